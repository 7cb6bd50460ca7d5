"""Sides that speed.py compares: sam2_core, transformers, and the package sam2 if it is installed.

Each is built from the same weights and tracks frame by frame through its own public API, with full memories: one
conditioning frame, six recent frames and sixteen pointers. EdgeTamVideoModel of transformers cannot track objects as a
batch, so each object has a session of its own; these share the features of the image.
"""
from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from transformers.models.edgetam_video.modeling_edgetam_video import EdgeTamVideoInferenceSession
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from benchmarks.lib.parts import Box, boxes, full_tracker
from sam2_core import Sam2Model, StreamTracker, load_model
from testing import reference_edgetam
from testing.reference import moving_scene, pixel_values, published_state, reference_model  # noqa: F401

EDGETAM = 'edgetam'
FILLED = 16  # number of frames after which memories stop growing
Session = Sam2VideoInferenceSession | EdgeTamVideoInferenceSession
Step = Callable[[np.ndarray], list[np.ndarray]]  # image -> one mask (image_size / 4, image_size / 4) per object


@dataclass(frozen=True)
class Setting:
    """Settings of a measurement, apart from the number of objects."""

    model: str
    image_size: int
    device: torch.device
    dtype: torch.dtype
    weights: Path  # random weights in the layout of a published checkpoint
    compile: str = ''  # backend of torch.compile; empty: not compiled


class Side(NamedTuple):
    """Implementation of tracking: build a model, then start to track a number of objects on a first image."""

    build: Callable[[Setting], Any]
    start: Callable[[Any, Setting, np.ndarray, int], tuple[Step, Any]]  # the step and the state


def write_weights(setting: Setting) -> None:
    """Write random weights of a model to the path in the setting."""
    if setting.model == EDGETAM:
        state = reference_edgetam.published_state(reference_edgetam.edgetam_model(setting.image_size))
    else:
        state = published_state(reference_model(setting.model, setting.image_size))
    setting.weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save({'model': state}, setting.weights)


def _fill(outputs_by_object: dict[int, dict[str, dict[int, Any]]]) -> None:
    """Fill memories with the output of the first frame. transformers stores outputs in the layout of sam2."""
    for outputs in outputs_by_object.values():
        for number in range(1, FILLED):
            outputs['non_cond_frame_outputs'][number] = outputs['cond_frame_outputs'][0]


# --- sam2_core

def build_ours(setting: Setting) -> Sam2Model:
    """Return the model of sam2_core."""
    return load_model(setting.model, setting.weights, device=setting.device, dtype=setting.dtype,
                      image_size=setting.image_size, compile=setting.compile or False)


def start_ours(model: Sam2Model, setting: Setting, image: np.ndarray, objects: int) -> tuple[Step, StreamTracker]:
    """Return a step and its tracker."""
    tracker = full_tracker(model, image, objects)

    def step(image: np.ndarray) -> list[np.ndarray]:
        return [(item.logits > 0).cpu().numpy() for item in tracker.step(image).objects.values()]

    return step, tracker


# --- transformers

def build_transformers(setting: Setting) -> nn.Module:
    """Return the model of transformers."""
    model = (reference_edgetam.edgetam_model(setting.image_size) if setting.model == EDGETAM
             else reference_model(setting.model, setting.image_size))
    return model.to(setting.device, setting.dtype)


@torch.inference_mode()
def start_transformers(model: nn.Module, setting: Setting, image: np.ndarray,
                       objects: int) -> tuple[Step, list[Session]]:
    """Return a step and its inference sessions."""
    places = boxes(objects, setting.image_size)
    sessions = [_session(EdgeTamVideoInferenceSession, setting, [box]) for box in places] if (
        setting.model == EDGETAM) else [_session(Sam2VideoInferenceSession, setting, places)]

    def show(image: np.ndarray, number: int) -> Tensor:
        frame = pixel_values(image).to(setting.device, setting.dtype)
        first, *others = sessions
        masks = [model(first, frame=frame, frame_idx=number).pred_masks]
        for session in others:
            session.cache.cache_vision_features(number, first.cache.get_vision_features(number))
            masks.append(model(session, frame=frame, frame_idx=number).pred_masks)
        return torch.cat(masks)

    show(image, 0)
    for session in sessions:
        _fill(session.output_dict_per_obj)
    number = FILLED

    @torch.inference_mode()
    def step(image: np.ndarray) -> list[np.ndarray]:
        nonlocal number
        masks = show(image, number) > 0
        number += 1
        return list(masks.reshape(objects, *masks.shape[-2:]).cpu().numpy())

    return step, sessions


def _session(kind: type[Session], setting: Setting, places: Sequence[Box]) -> Session:
    """Return a session of transformers with one object for each box."""
    device = setting.device
    session = kind(inference_device=device, inference_state_device=device, dtype=setting.dtype)
    for i, box in enumerate(places):
        session.obj_id_to_idx(i + 1)
        session.add_point_inputs(i, 0, {
            'point_coords': torch.tensor(box, device=device).reshape(1, 1, 2, 2).to(setting.dtype),
            'point_labels': torch.tensor([[[2, 3]]], dtype=torch.int32, device=device)})
    session.obj_with_new_inputs = list(range(1, len(places) + 1))
    return session


# --- the package sam2

def build_sam2(setting: Setting) -> Any:
    """Return the predictor of sam2, from its own builder and configuration; compiled, it is "vos_optimized"."""
    import sam2.sam2_video_predictor as package
    from sam2.build_sam import build_sam2_video_predictor
    package.tqdm = lambda items, **_: items  # it shows a progress bar for each frame
    family, size = setting.model.split('_hiera_')
    letters = {'tiny': 't', 'small': 's', 'base_plus': 'b+', 'large': 'l'}
    grid = setting.image_size // 16
    predictor = build_sam2_video_predictor(
        f'configs/{family}/{family}_hiera_{letters[size]}.yaml', str(setting.weights), device=str(setting.device),
        hydra_overrides_extra=[f'++model.image_size={setting.image_size}',
                               *(f'++model.memory_attention.layer.{name}_attention.feat_sizes=[{grid},{grid}]'
                                 for name in ('self', 'cross'))],
        vos_optimized=setting.compile == 'inductor')
    predictor.fill_hole_area = 0  # the other sides do not fill holes in masks
    return predictor.requires_grad_(False)


@torch.inference_mode()
def start_sam2(predictor: Any, setting: Setting, image: np.ndarray, objects: int) -> tuple[Step, dict]:
    """Return a step and the inference state of an endless video, of which only the newest frame is stored.

    Half precision runs under autocast, as its authors use it.
    """
    size, device = setting.image_size, setting.device
    frames = {0: pixel_values(image)[0].to(device)}
    half = torch.autocast(device.type, setting.dtype, enabled=setting.dtype != torch.float32)
    with half, patch('sam2.sam2_video_predictor.load_video_frames', return_value=(frames, size, size)):
        state = predictor.init_state('')
        state['num_frames'] = 2 ** 31
        for i, box in enumerate(boxes(objects, size)):
            predictor.add_new_points_or_box(state, frame_idx=0, obj_id=i + 1, box=box)
        predictor.propagate_in_video_preflight(state)
    remembered = state['output_dict_per_obj']
    _fill(remembered)
    number = FILLED

    @torch.inference_mode()
    def step(image: np.ndarray) -> list[np.ndarray]:
        nonlocal number
        frames.clear()
        frames[number] = pixel_values(image)[0].to(device)
        with half:
            next(predictor.propagate_in_video(state, start_frame_idx=number, max_frame_num_to_track=0))
        masks = [remembered[i]['non_cond_frame_outputs'][number]['pred_masks'][0, 0] for i in range(objects)]
        number += 1
        return [(mask > 0).cpu().numpy() for mask in masks]

    return step, state


SIDES = {'sam2_core': Side(build_ours, start_ours), 'transformers': Side(build_transformers, start_transformers),
         'sam2': Side(build_sam2, start_sam2)}


def sides_for(model: str, wanted: list[str]) -> list[str]:
    """Return the sides that can run a model.

    sam2 has neither nano nor EdgeTAM, and may not be installed. transformers needs timm for EdgeTAM.
    """
    can = {'sam2_core': True, 'transformers': model != EDGETAM or reference_edgetam.HAS_TIMM,
           'sam2': '_hiera_' in model and importlib.util.find_spec('sam2') is not None}
    return [name for name in wanted if can[name]]
