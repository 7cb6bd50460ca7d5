"""Differences between sam2_core and transformers with the same weights, stage by stage and in streams.

Used by the parity tests, which set the limits, and by benchmarks/parity.py, which prints the figures.
"""
from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sam2_core import EncodedImage, ImageSegmenter, Prompt, Sam2Model, StreamTracker, load_model
from sam2_core.tensors import ImageFeatures, Memory, ObjectMasks
from testing import reference, reference_edgetam
from testing.model_options import with_masks_alone
from testing.reference import Encoded, VideoModel, as_points
from testing.reference_edgetam import EdgeTamObject
from testing.reference_stream import MAX_PROMPT_LOGIT, Followed, ReferenceObject

# prompts are drawn in scenes of reference.IMAGE_SIZE pixels, and scaled to those of a model
CLICK = (90.0, 100.0)
BOX = (40.0, 60.0, 150.0, 165.0)
OFF_CLICK = (200.5, 31.25)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch on one core: sums have the same order on every machine, and no thread waits for a busy core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True, eq=False)
class Pair:
    """The same weights in both implementations."""

    name: str
    ours: Sam2Model
    theirs: VideoModel
    object_type: type[ReferenceObject] = ReferenceObject
    encoded: dict[int, Encoded] = field(default_factory=dict)
    encoded_by_ours: dict[int, EncodedImage] = field(default_factory=dict)

    def encode_ours(self, image: np.ndarray) -> EncodedImage:
        """Return the features of an image by sam2_core, cached."""
        key = hash(image.tobytes())
        if key not in self.encoded_by_ours:
            self.encoded_by_ours[key] = ImageSegmenter(self.ours).encode(image)
        return self.encoded_by_ours[key]

    def encode(self, image: np.ndarray) -> Encoded:
        """Return the features of an image by transformers, cached."""
        key = hash(image.tobytes())
        if key not in self.encoded:
            self.encoded[key] = reference.encode(self.theirs, image)
        return self.encoded[key]

    def features(self, image: np.ndarray) -> ImageFeatures:
        """Return the features of an image by transformers as input of sam2_core."""
        return ImageFeatures(*reversed(self.encode(image).maps(self.theirs)))

    def scene(self, count: int) -> list[np.ndarray]:
        """Return ``reference.moving_scene`` in the size of the models."""
        return reference.moving_scene(count, self.ours.image_size)

    @property
    def scale(self) -> float:
        """Return the factor from the coordinates of prompts to those of the scene."""
        return self.ours.image_size / reference.IMAGE_SIZE

    def set_object_score_bias(self, bias: float) -> None:
        """Make every object visible (above zero by a few units) or absent (below) in both."""
        reference.set_object_score_bias(self.theirs, bias)
        self.ours.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(bias)


def make_pair(name: str, seed: int = 0, image_size: int = reference.IMAGE_SIZE) -> Pair:
    """Draw random weights for transformers, and load them into sam2_core from a file in the published layout."""
    if name == 'edgetam':
        edgetam = reference_edgetam.edgetam_model(image_size)
        return Pair(name, _loaded(name, reference_edgetam.published_state(edgetam), image_size), edgetam,
                    EdgeTamObject)
    theirs = reference.reference_model(name, image_size, seed)
    return Pair(name, _loaded(name, reference.published_state(theirs), image_size), theirs)


def _loaded(name: str, state: Mapping[str, Tensor], image_size: int) -> Sam2Model:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f'{name}.pt'
        torch.save({'model': dict(state)}, path)
        return with_masks_alone(load_model(name, checkpoint=path, device='cpu', image_size=image_size))


def trained_nano_pair() -> Pair:
    """Return both implementations with the packaged weights of nano."""
    ours = load_model('nano', device='cpu')
    theirs = reference.reference_model('nano', ours.image_size)
    reference.load_published(theirs, ours.state_dict())
    return Pair('nano', with_masks_alone(ours), theirs)


def error(ours: Tensor | np.ndarray, theirs: Tensor | np.ndarray) -> float:
    """Return the largest absolute difference; raise ValueError for different shapes."""
    ours, theirs = torch.as_tensor(ours).float(), torch.as_tensor(theirs).float()
    if ours.shape != theirs.shape:
        raise ValueError(f'shapes {tuple(ours.shape)} and {tuple(theirs.shape)}')
    return float((ours - theirs).abs().max())


@torch.inference_mode()
def encoder_errors(pair: Pair) -> dict[str, float]:
    """Compare the levels of the feature pyramid; strides 4 and 8 after the decoder's projections."""
    image = pair.scene(1)[0]
    theirs = pair.encode(image).maps(pair.theirs)
    ours = pair.ours.encode_image(reference.pixel_values(image))
    return {'stride 4': error(ours.stride4_bchw, theirs[0]), 'stride 8': error(ours.stride8_bchw, theirs[1]),
            'stride 16': error(ours.stride16_bchw, theirs[2])}


@torch.inference_mode()
def prompt_errors(pair: Pair) -> dict[str, float]:
    """Compare ImageSegmenter with transformers' Sam2Model for each kind of prompt: logits and predicted IoU."""
    image = pair.scene(1)[0]
    model = reference.image_model(pair.theirs)
    segmenter = ImageSegmenter(pair.ours)
    encoded = pair.encode_ours(image)
    embeddings = model.get_image_embeddings(reference.pixel_values(image))
    point, off_point, corners = (tuple(pair.scale * value for value in drawn) for drawn in (CLICK, OFF_CLICK, BOX))
    click, label = torch.tensor([[[point]]]), torch.tensor([[[1]]])
    box = torch.tensor([[corners]])

    def answer(**prompt: object) -> tuple[Tensor, Tensor]:
        output = model(image_embeddings=[e.clone() for e in embeddings], **prompt)
        return output.pred_masks[0, 0], output.iou_scores[0, 0]

    def worst(prompt: Prompt, theirs: tuple[Tensor, Tensor], **options: object) -> float:
        ours = segmenter.segment(encoded, prompt, **options)
        return max(error(ours.logits, theirs[0]), error(ours.scores, theirs[1]))

    three = answer(input_points=click, input_labels=label, multimask_output=True)
    previous = three[0][1].clamp(-MAX_PROMPT_LOGIT, MAX_PROMPT_LOGIT)
    clicks = torch.tensor([[[point, off_point]]])
    return {
        'click, three masks': worst(Prompt(points=[point], labels=[1]), three, multimask=True),
        'click, one mask': worst(Prompt(points=[point], labels=[1]), answer(
            input_points=click, input_labels=label, multimask_output=False)),
        # transformers puts a box after the clicks, the published code before; the set of tokens is the same
        'box': worst(Prompt(box=corners), answer(input_boxes=box, multimask_output=False)),
        'box and clicks': worst(Prompt(box=corners, points=[point, off_point], labels=[1, 0]), answer(
            input_boxes=box, input_points=clicks, input_labels=torch.tensor([[[1, 0]]]), multimask_output=False)),
        'previous logits and clicks': worst(
            Prompt(points=[point, off_point], labels=[1, 0]), answer(
                input_points=clicks, input_labels=torch.tensor([[[1, 0]]]), input_masks=previous[None, None],
                multimask_output=False), previous_logits=three[0][1]),
        'previous logits alone': worst(Prompt(), _mask_alone(model, embeddings, previous), previous_logits=three[0][1]),
    }


def _mask_alone(model: reference.Sam2ImageModel, embeddings: list[Tensor], logits: Tensor) -> tuple[Tensor, Tensor]:
    """Decode a mask prompt without points: transformers adds an empty point, the published code no prompt token."""
    _, dense = model.prompt_encoder(None, None, None, logits[None, None])
    masks, iou, _, _ = model.mask_decoder(
        image_embeddings=embeddings[-1], image_positional_embeddings=model.get_image_wide_positional_embeddings(),
        sparse_prompt_embeddings=embeddings[-1].new_zeros(1, 1, 0, embeddings[-1].shape[1]),
        dense_prompt_embeddings=dense, multimask_output=False, high_resolution_features=embeddings[:-1])
    return masks[0, 0], iou[0, 0]


@torch.inference_mode()
def stage_errors(pair: Pair, tracked: int = 8) -> dict[str, float]:
    """Compare the stages of tracking, each with the inputs of transformers after ``tracked`` frames."""
    scene = pair.scene(tracked + 1)
    followed = pair.object_type(pair.theirs)
    followed.start(0, pair.encode(scene[0]), *as_points([tuple(pair.scale * value for value in CLICK)], [1]))
    for time in range(1, tracked):
        followed.track(time, pair.encode(scene[time]))
    frame, image = pair.encode(scene[tracked]), pair.features(scene[tracked])
    attended = pair.theirs._prepare_memory_conditioned_features(
        followed.session, tracked, 0, False, frame.levels[-1], frame.positions[-1], num_total_frames=None,
        streaming=True)
    errors = {'memory attention': error(pair.ours.attend_memory(image, memory_of(followed, tracked, pair)), attended)}

    high = frame.maps(pair.theirs)[:-1]
    for stage, multimask in (('tracking', True), ('single mask', False)):
        theirs = pair.theirs._single_frame_forward(image_embeddings=[*high, attended], multimask_output=multimask)
        ours = pair.ours.choose_masks(pair.ours.decode_masks(
            attended, image, multimask=multimask, unprompted=True))
        errors[f'{stage}: logits'] = error(ours.logits, theirs.pred_masks[0])
        errors[f'{stage}: pointer'] = error(ours.pointers, theirs.object_pointer[0])
        errors[f'{stage}: scores'] = max(error(ours.iou, theirs.iou_scores[0].max(-1).values),
                                         error(ours.object_score, theirs.object_score_logits[0, 0]))
        logits = theirs.pred_masks
    for kind, mask in (('probability', logits.sigmoid()), ('certain', (logits > 0).float())):
        at_image = torch.nn.functional.interpolate(mask * 20 - 10, scale_factor=4.0, mode='bilinear')
        theirs, _ = pair.theirs.memory_encoder(high_level(frame, pair), at_image)
        errors[f'memory encoder, {kind}'] = error(pair.ours.memory_encoder(image.stride16_bchw, at_image), theirs)
    return errors


def high_level(frame: Encoded, pair: Pair) -> Tensor:
    """Return the raw features of stride 16, (1, channels, h, w)."""
    return frame.maps(pair.theirs)[-1]


def memory_of(followed: ReferenceObject, now: int, pair: Pair) -> Memory:
    """Return the memories of transformers as input of sam2_core, ordered by the published rules.

    Time slots: 6 for a conditioning frame, k - 1 for the frame k back, up to 6 back. Pointers: the conditioning
    frames', then those of up to 15 frames back.
    """
    conditioning, others = followed.conditioning, followed.others
    back = [k for k in range(1, 16) if now - k in others]
    frames = [followed.frame_of(m['maskmem_features']) for m in conditioning.values()]
    frames += [followed.frame_of(others[now - k]['maskmem_features']) for k in back if k <= 6]
    slots = [6] * len(conditioning) + [k - 1 for k in back if k <= 6]
    pointers = [m['object_pointer'][0, 0] for m in conditioning.values()]
    pointers += [others[now - k]['object_pointer'][0, 0] for k in back]
    ages = [now - time for time in conditioning] + back
    return Memory(torch.stack(frames)[None], torch.tensor([slots]), torch.stack(pointers)[None], torch.tensor([ages]))


@torch.inference_mode()
def stored_memories(pair: Pair, prompted: bool, object_score: float) -> tuple[Tensor, Tensor]:
    """Return the stored memory of one frame, ours and theirs, bfloat16 (tokens, memory_dim)."""
    image = pair.scene(1)[0]
    frame, features = pair.encode(image), pair.features(image)
    logits = pair.theirs._single_frame_forward(
        input_points=torch.tensor([[[CLICK]]]) * pair.scale, input_labels=torch.tensor([[[1]]]),
        image_embeddings=frame.maps(pair.theirs)).pred_masks
    score = torch.tensor([object_score])
    full = torch.nn.functional.interpolate(logits, scale_factor=4.0, mode='bilinear')
    theirs, _ = pair.theirs._encode_new_memory(frame.levels[-1], full, score[:, None, None], prompted)
    masks = ObjectMasks(logits[0], score, score, torch.zeros(1, pair.ours.config.d_model))
    return pair.ours.encode_memory(features, masks, torch.tensor([prompted]))[0], pair.object_type.frame_of(theirs)


@dataclass(frozen=True, eq=False)
class Given:
    """Prompt for one object in one frame: clicks (points, labels, box) or a mask."""

    points: tuple = ()
    labels: tuple = ()
    box: tuple | None = None
    mask: np.ndarray | None = None

    def scaled(self, scale: float) -> Given:
        """Return the same prompt in a scene of another size."""
        step = round(1 / scale)
        return Given(tuple(tuple(scale * value for value in point) for point in self.points), self.labels,
                     self.box and tuple(scale * value for value in self.box),
                     None if self.mask is None else self.mask[::step, ::step])

    def to_ours(self, object_id: int) -> Prompt:
        return Prompt(object_id, self.points or None, self.labels or None, self.box, self.mask)


Script = Mapping[int, Mapping[int, Given]]
"""Prompts by object id and frame."""

LEFT_MASK = np.zeros((reference.IMAGE_SIZE,) * 2, bool)
LEFT_MASK[70:141, 33:110] = True

STREAM: Script = {
    1: {0: Given((CLICK,), (1,))},
    2: {0: Given(((120.0, 120.0),), (1,), BOX), 5: Given(((130.0, 140.0), (230.0, 20.0)), (1, 0))},
    3: {3: Given(box=(150.0, 140.0, 215.0, 205.0))},
    4: {1: Given(mask=LEFT_MASK)},
}


@dataclass(frozen=True, eq=False)
class StreamRun:
    """Results of one stream in both implementations, by object id and frame."""

    errors: dict[int, dict[int, float]]  # largest difference of the mask logits
    score_errors: dict[int, dict[int, float]]
    scores: dict[int, dict[int, float]]  # object score of transformers
    spread: dict[int, dict[int, float]]  # standard deviation of transformers' mask logits
    foreground: dict[int, dict[int, float]]  # share of pixels above zero

    def worst(self, object_id: int | None = None) -> float:
        chosen = self.errors.values() if object_id is None else [self.errors[object_id]]
        return max(e for errors in chosen for e in errors.values())


@torch.inference_mode()
def run_stream(pair: Pair, script: Script, frames: Iterable[np.ndarray],
               before: Callable[[int], None] = lambda time: None) -> StreamRun:
    """Run all objects in one StreamTracker, and each in a session of transformers.

    ``before`` is called with the number of each frame, for example to change the weights of both.
    """
    tracker = StreamTracker(pair.ours)
    followed: dict[int, ReferenceObject] = {}
    run = StreamRun(*({object_id: {} for object_id in script} for _ in range(5)))
    for time, image in enumerate(frames):
        before(time)
        prompts = {object_id: given[time].scaled(pair.scale) for object_id, given in script.items() if time in given}
        result = tracker.step(pair.encode_ours(image), [one.to_ours(object_id) for object_id, one in prompts.items()])
        frame = pair.encode(image)
        for object_id in script:
            if object_id in followed or object_id in prompts:
                theirs = _follow(pair, followed, object_id, time, frame, prompts.get(object_id))
                ours = result.objects[object_id]
                run.errors[object_id][time] = error(ours.logits, theirs.logits)
                run.score_errors[object_id][time] = abs(ours.object_score - theirs.object_score)
                run.scores[object_id][time] = theirs.object_score
                run.spread[object_id][time] = float(theirs.logits.std())
                run.foreground[object_id][time] = float((theirs.logits > 0).float().mean())
    return run


def _follow(pair: Pair, followed: dict[int, ReferenceObject], object_id: int, time: int, frame: Encoded,
            given: Given | None) -> Followed:
    known = object_id in followed
    if not known:
        followed[object_id] = pair.object_type(pair.theirs, max_pointer_distance=pair.ours.config.max_pointer_distance)
    one = followed[object_id]
    if given is None:
        return one.track(time, frame)
    if given.mask is not None:
        return one.adopt(time, frame, torch.from_numpy(given.mask).float())
    return (one.correct if known else one.start)(time, frame, *as_points(given.points, given.labels, given.box))
