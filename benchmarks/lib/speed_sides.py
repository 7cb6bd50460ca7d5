"""The sides that speed.py compares: ours, transformers' Sam2VideoModel, and the package sam2 where it is installed.

Each is built from the same weights and driven through its own public way of tracking, frame by frame, with memories
that are full: one conditioning frame, six recent ones, sixteen pointers.
"""
from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from benchmarks.lib.parts import boxes, full_tracker
from sam2_core import StreamTracker, load_model
from testing.reference import moving_scene, pixel_values, published_state, reference_model  # noqa: F401

FILLED = 16  # frames after which memories do not get longer
Step = Callable[[np.ndarray], list[np.ndarray]]  # an image -> one mask (image_size / 4 squared) for each object


@dataclass(frozen=True)
class Setting:
    """What is measured, but for the number of objects."""

    model: str
    image_size: int
    device: torch.device
    dtype: torch.dtype
    weights: Path  # random ones, as a published checkpoint
    compile: str = ''  # backend of torch.compile; empty: not compiled


class Side(NamedTuple):
    """A way of tracking: a model from weights, then its step after a first image with so many objects."""

    build: Callable[[Setting], Any]
    start: Callable[[Any, Setting, np.ndarray, int], tuple[Step, Any]]  # with what is remembered


def write_weights(setting: Setting) -> None:
    """Random weights of a model where a setting expects them."""
    state = published_state(reference_model(setting.model, setting.image_size))
    setting.weights.parent.mkdir(parents=True, exist_ok=True)
    torch.save({'model': state}, setting.weights)


# --- ours

def build_ours(setting: Setting) -> nn.Module:
    options = {'compile': setting.compile} if setting.compile else {}
    return load_model(setting.model, setting.weights, device=setting.device, dtype=setting.dtype,
                      image_size=setting.image_size, **options)


def start_ours(model: nn.Module, setting: Setting, image: np.ndarray, objects: int) -> tuple[Step, StreamTracker]:
    tracker = full_tracker(model, image, objects)

    def step(image: np.ndarray) -> list[np.ndarray]:
        return [(item.logits > 0).cpu().numpy() for item in tracker.step(image).objects.values()]

    return step, tracker


# --- transformers

def build_transformers(setting: Setting) -> nn.Module:
    return reference_model(setting.model, setting.image_size).to(setting.device, setting.dtype)


@torch.inference_mode()
def start_transformers(model: nn.Module, setting: Setting, image: np.ndarray,
                       objects: int) -> tuple[Step, Sam2VideoInferenceSession]:
    device, dtype = setting.device, setting.dtype
    session = Sam2VideoInferenceSession(inference_device=device, inference_state_device=device, dtype=dtype)
    for i, box in enumerate(boxes(objects, setting.image_size)):
        session.obj_id_to_idx(i + 1)
        session.add_point_inputs(i, 0, {
            'point_coords': torch.tensor(box, device=device).reshape(1, 1, 2, 2).to(dtype),
            'point_labels': torch.tensor([[[2, 3]]], dtype=torch.int32, device=device)})
    session.obj_with_new_inputs = list(range(1, objects + 1))

    def show(image: np.ndarray, number: int):
        frame = pixel_values(image).to(device, dtype)
        return model(session, frame=frame, frame_idx=number).pred_masks

    show(image, 0)
    for outputs in session.output_dict_per_obj.values():
        for number in range(1, FILLED):
            outputs['non_cond_frame_outputs'][number] = outputs['cond_frame_outputs'][0]
    number = FILLED

    @torch.inference_mode()
    def step(image: np.ndarray) -> list[np.ndarray]:
        nonlocal number
        masks = show(image, number) > 0
        number += 1
        return list(masks.reshape(objects, *masks.shape[-2:]).cpu().numpy())

    return step, session


# --- the package sam2

def build_sam2(setting: Setting) -> nn.Module:
    """Through its own builder, from its own configuration; compiled with what it calls vos_optimized."""
    import sam2.sam2_video_predictor as package
    from sam2.build_sam import build_sam2_video_predictor
    package.tqdm = lambda items, **_: items  # a bar for each frame
    family, size = setting.model.split('_hiera_')
    letters = {'tiny': 't', 'small': 's', 'base_plus': 'b+', 'large': 'l'}
    grid = setting.image_size // 16
    predictor = build_sam2_video_predictor(
        f'configs/{family}/{family}_hiera_{letters[size]}.yaml', str(setting.weights), device=str(setting.device),
        hydra_overrides_extra=[f'++model.image_size={setting.image_size}',
                               *(f'++model.memory_attention.layer.{name}_attention.feat_sizes=[{grid},{grid}]'
                                 for name in ('self', 'cross'))],
        vos_optimized=setting.compile == 'inductor')
    predictor.fill_hole_area = 0  # work on finished masks that nobody else here does
    return predictor.requires_grad_(False)


@torch.inference_mode()
def start_sam2(predictor: nn.Module, setting: Setting, image: np.ndarray, objects: int) -> tuple[Step, dict]:
    """Its inference state over a video that has no end, of which it holds the newest frame. Half precision is
    autocast, as its authors use it."""
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
    for outputs in remembered.values():
        for number in range(1, FILLED):
            outputs['non_cond_frame_outputs'][number] = outputs['cond_frame_outputs'][0]
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
    """Which of the wanted sides can run this model: sam2 has no nano, and has to be installed."""
    return [name for name in wanted
            if name != 'sam2' or (model != 'nano' and importlib.util.find_spec('sam2') is not None)]
