"""Tracking of one object by a video model of transformers, arranged to follow the published rules."""
from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from testing.reference import Encoded, VideoModel

MAX_PROMPT_LOGIT = 32.0  # limit of previous logits that are used as a prompt


class Followed(NamedTuple):
    """Result of transformers for the object in one frame."""

    logits: Tensor  # (S / 4, S / 4)
    object_score: float


class ReferenceObject:
    """Object that Sam2VideoModel tracks in a stream.

    First prompts and tracking use its public ``forward`` with a streaming session. Where transformers deviates from the
    published tracker, the session is arranged to follow the published rule, and a docstring describes the deviation.
    Every object has its own session, because transformers binarises the memory of all objects of a frame if one of
    them is prompted; the published tracker binarises only that of the prompted object.
    """

    session_type: Callable[..., Any] = Sam2VideoInferenceSession
    correction_options: Mapping[str, object] = {}

    def __init__(self, model: VideoModel, max_conditioning_frames: int = 4,
                 max_pointer_distance: int | None = None) -> None:
        self.model = model
        self.max_conditioning_frames = max_conditioning_frames
        self.max_pointer_distance = max_pointer_distance
        self.session = self.session_type(dtype=torch.float32)
        self.session.obj_id_to_idx(1)

    @property
    def conditioning(self) -> dict[int, dict]:
        return self.session.output_dict_per_obj[0]['cond_frame_outputs']

    @property
    def others(self) -> dict[int, dict]:
        return self.session.output_dict_per_obj[0]['non_cond_frame_outputs']

    @staticmethod
    def frame_of(features: Tensor) -> Tensor:
        """Return a memory frame (tokens, memory_dim), as stored, from the features of transformers."""
        return features[:, 0]

    @torch.inference_mode()
    def start(self, time: int, frame: Encoded, points: Tensor, labels: Tensor) -> Followed:
        """Start with the first prompt.

        points: (P, 2) in the model's pixels; a box is two points with labels 2 and 3 and comes first.
        """
        self._show(time, frame)
        self.session.add_point_inputs(0, time, _inputs(points, labels))
        self.session.obj_with_new_inputs = [1]
        return self._forward(time, frame)

    @torch.inference_mode()
    def track(self, time: int, frame: Encoded) -> Followed:
        """Track through a frame without a prompt."""
        self._arrange_conditioning(time)
        self._show(time, frame)
        return self._forward(time, frame)

    @torch.inference_mode()
    def correct(self, time: int, frame: Encoded, points: Tensor, labels: Tensor) -> Followed:
        """Correct the object by clicks in a tracked frame.

        transformers drops the tracked mask and stores the result as an ordinary frame. In the published tracker, the
        clamped logits of the tracked mask are a mask prompt beside the clicks, and the frame becomes a conditioning
        frame (``add_all_frames_to_correct_as_cond``).
        """
        self.track(time, frame)
        tracked = self.others.pop(time)
        corrected = self.model._run_single_frame_inference(
            self.session, frame_idx=time, obj_idx=0, batch_size=1, is_init_cond_frame=False,
            point_inputs=_inputs(points, labels), mask_inputs=None, reverse=False, streaming=True,
            prev_sam_mask_logits=tracked['pred_masks'].clamp(-MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT),
            **self.correction_options)
        return self._store_prompted(time, corrected)

    @torch.inference_mode()
    def adopt(self, time: int, frame: Encoded, mask: Tensor) -> Followed:
        """Start with a mask prompt (S, S).

        transformers chooses among three masks for the pointer, and encodes the memory from the full-size mask. The
        published tracker uses the single mask, and encodes the memory from the upscaled low-resolution logits.
        """
        self._show(time, frame)
        *high, features = frame.maps(self.model)
        with self._single_mask():
            adopted = self.model._use_mask_as_output(features, high, mask[None, None])
        low = adopted.pred_masks
        self.others.pop(time, None)
        return self._store_prompted(time, {
            'pred_masks': low, 'object_pointer': adopted.object_pointer,
            'object_score_logits': adopted.object_score_logits,
            'high_res_masks': F.interpolate(low, size=mask.shape, mode='bilinear')})

    def _store_prompted(self, time: int, output: dict) -> Followed:
        self.session.store_output(0, time, output_value=output, is_conditioning_frame=True)
        self._encode_prompted(time, output)
        return Followed(output['pred_masks'][0, 0], float(output['object_score_logits']))

    def _encode_prompted(self, time: int, output: dict) -> None:
        self.model._batch_encode_memories(self.session, time, [0], [output['high_res_masks']],
                                          [output['object_score_logits']], [True])

    def _forward(self, time: int, frame: Encoded) -> Followed:
        output = self.model(self.session, frame=frame.pixels, frame_idx=time)
        return Followed(output.pred_masks[0, 0], float(output.object_score_logits))

    def _show(self, time: int, frame: Encoded) -> None:
        self.session.cache.cache_vision_features(
            time, {'vision_feats': frame.levels, 'vision_pos_embeds': frame.positions})

    def _arrange_conditioning(self, now: int) -> None:
        """Keep only the conditioning frames whose pointers the published code reads.

        transformers reads the pointers of all conditioning frames, however many memories it chooses, and their
        distance grows without limit. The published code reads only the pointers of the chosen frames, and counts the
        others as ordinary frames. The limit of the distance is a rule of sam2_core.
        """
        while len(self.conditioning) > self.max_conditioning_frames:
            oldest = min(self.conditioning)
            self.others[oldest] = self.conditioning.pop(oldest)
        limit = self.max_pointer_distance
        if limit is not None:
            for time in [t for t in self.conditioning if now - t > limit]:
                self.conditioning[now - limit] = self.conditioning.pop(time)

    @contextlib.contextmanager
    def _single_mask(self) -> Iterator[None]:
        self.model._single_frame_forward = functools.partial(self.model._single_frame_forward, multimask_output=False)
        try:
            yield
        finally:
            del self.model._single_frame_forward


def _inputs(points: Tensor, labels: Tensor) -> dict[str, Tensor]:
    return {'point_coords': points[None, None].float(), 'point_labels': labels[None, None].int()}
