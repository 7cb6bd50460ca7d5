"""The published implementation, the ``sam2`` package from PyPI, when it is installed: a peer of benchmarks/speed.py.

    pip install --no-deps sam2 hydra-core omegaconf iopath   # and what they ask for; this is for the benchmark alone

Its model is put together from its classes, as its configuration files do it, since those are bound to images of 1024
pixels. It tracks recorded videos only: frames are handed to its inference state one by one, as they come.
"""
from __future__ import annotations

import contextlib
import importlib.util
from collections import OrderedDict

import numpy as np
import torch
from torch import Tensor

from sam2_core.config import VARIANTS

MANY = 10 ** 6  # frames that the video is said to have


def installed() -> bool:
    """Whether there is such a package."""
    return importlib.util.find_spec('sam2') is not None


def build(name: str, image_size: int, state: dict[str, Tensor], device: torch.device, compiled: bool):
    """Its video predictor with these weights; float32, as published. ``compiled``: its own compiled variant."""
    from sam2 import sam2_video_predictor as predictors
    from sam2.modeling.backbones.hieradet import Hiera
    from sam2.modeling.backbones.image_encoder import FpnNeck, ImageEncoder
    from sam2.modeling.memory_attention import MemoryAttention, MemoryAttentionLayer
    from sam2.modeling.memory_encoder import CXBlock, Fuser, MaskDownSampler, MemoryEncoder
    from sam2.modeling.position_encoding import PositionEmbeddingSine
    from sam2.modeling.sam.transformer import RoPEAttention

    predictors.tqdm = lambda frames, **_: frames  # no progress bar for each frame
    config = VARIANTS[name]
    dim, grid = config.d_model, image_size // 16
    channels = [config.embed_dim << i for i in (3, 2, 1, 0)]

    def sine(features: int) -> PositionEmbeddingSine:
        return PositionEmbeddingSine(num_pos_feats=features, normalize=True, temperature=10000)

    def rotary(**options) -> RoPEAttention:
        return RoPEAttention(rope_theta=config.rope_theta, feat_sizes=(grid, grid), embedding_dim=dim, num_heads=1,
                             downsample_rate=1, dropout=0.1, **options)

    encoder = ImageEncoder(
        trunk=Hiera(embed_dim=config.embed_dim, num_heads=config.num_heads, stages=config.stages,
                    global_att_blocks=config.global_attention_blocks, window_spec=config.window_sizes,
                    window_pos_embed_bkg_spatial_size=(config.position_grid,) * 2),
        neck=FpnNeck(position_encoding=sine(dim), d_model=dim, backbone_channel_list=channels,
                     fpn_top_down_levels=[2, 3], fpn_interp_model='nearest'),
        scalp=1)
    attention = MemoryAttention(
        d_model=dim, pos_enc_at_input=True, num_layers=config.memory_attention_layers,
        layer=MemoryAttentionLayer(
            activation='relu', d_model=dim, dim_feedforward=config.memory_attention_feedforward, dropout=0.1,
            pos_enc_at_attn=False, pos_enc_at_cross_attn_keys=True, pos_enc_at_cross_attn_queries=False,
            self_attention=rotary(), cross_attention=rotary(rope_k_repeat=True, kv_in_dim=config.memory_dim)))
    memory = MemoryEncoder(
        out_dim=config.memory_dim, position_encoding=sine(config.memory_dim),
        mask_downsampler=MaskDownSampler(kernel_size=3, stride=2, padding=1),
        fuser=Fuser(CXBlock(dim=dim, kernel_size=7, padding=3, layer_scale_init_value=1e-6, use_dwconv=True),
                    num_layers=config.fuser_layers))
    kind = predictors.SAM2VideoPredictorVOS if compiled else predictors.SAM2VideoPredictor
    is_21 = config.no_object_embedding
    model = kind(
        image_encoder=encoder, memory_attention=attention, memory_encoder=memory, num_maskmem=config.memory_frames,
        image_size=image_size, sigmoid_scale_for_mem_enc=20.0, sigmoid_bias_for_mem_enc=-10.0,
        use_mask_input_as_output_without_sam=True, directly_add_no_mem_embed=True, no_obj_embed_spatial=is_21,
        use_high_res_features_in_sam=True, multimask_output_in_sam=True, iou_prediction_use_sigmoid=True,
        use_obj_ptrs_in_encoder=True, add_tpos_enc_to_obj_ptrs=is_21, proj_tpos_enc_in_obj_ptrs=is_21,
        use_signed_tpos_enc_to_obj_ptrs=is_21, only_obj_ptrs_in_the_past_for_eval=True, pred_obj_scores=True,
        pred_obj_scores_mlp=True, fixed_no_obj_ptr=True, multimask_output_for_tracking=True,
        use_multimask_token_for_obj_ptr=True, multimask_min_pt_num=0, multimask_max_pt_num=1,
        use_mlp_for_obj_ptr_proj=True, compile_image_encoder=compiled, binarize_mask_from_pts_for_mem_enc=True,
        sam_mask_decoder_extra_args={'dynamic_multimask_via_stability': True,
                                     'dynamic_multimask_stability_delta': config.stability_delta,
                                     'dynamic_multimask_stability_thresh': config.stability_threshold})
    model.load_state_dict(state)
    return model.to(device).eval().requires_grad_(False)


class OfficialStream:
    """Frames into its video predictor, one at a time."""

    def __init__(self, model, first: Tensor, boxes: list[tuple[float, float, float, float]],
                 dtype: torch.dtype) -> None:
        """first: (1, 3, S, S), normalised; objects are prompted there by their boxes, in pixels."""
        self._model, self._number = model, 0
        self._autocast = dtype  # half precision as its README has it: weights in float32, the rest by autocast
        size = model.image_size
        self._state = {
            'images': {0: first[0]}, 'num_frames': MANY, 'video_height': size, 'video_width': size,
            'offload_video_to_cpu': False, 'offload_state_to_cpu': False, 'device': model.device,
            'storage_device': model.device, 'obj_ids': [], 'obj_id_to_idx': OrderedDict(),
            'obj_idx_to_id': OrderedDict(),
            **{name: {} for name in ('point_inputs_per_obj', 'mask_inputs_per_obj', 'cached_features', 'constants',
                                     'output_dict_per_obj', 'temp_output_dict_per_obj', 'frames_tracked_per_obj')}}
        with self._precision():
            for object_id, box in enumerate(boxes):
                model.add_new_points_or_box(self._state, 0, object_id, box=np.array(box, np.float32))
            model.propagate_in_video_preflight(self._state)

    def fill(self, frames: int) -> None:
        """As after so many frames, each remembered as the first is."""
        for outputs in self._state['output_dict_per_obj'].values():
            for number in range(1, frames):
                outputs['non_cond_frame_outputs'][number] = outputs['cond_frame_outputs'][0]
        self._number = frames - 1

    def step(self, image: Tensor) -> Tensor:
        """The next frame, (1, 3, S, S), normalised: mask logits (objects, S / 4, S / 4)."""
        state, self._number = self._state, self._number + 1
        state['images'] = {self._number: image[0]}
        with self._precision():
            next(self._model.propagate_in_video(state, self._number, max_frame_num_to_track=0))
        return torch.cat([outputs['non_cond_frame_outputs'][self._number]['pred_masks'][0]
                          for outputs in state['output_dict_per_obj'].values()])

    def _precision(self):
        if self._autocast == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self._model.device.type, self._autocast)
