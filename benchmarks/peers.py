"""The sides that benchmarks/speed.py compares: sam2_core, transformers, the ``sam2`` package; all on the same weights.

Each is brought to the state in which frames cost what they cost on a robot: memories full, with one conditioning frame,
six recent ones and sixteen pointers.
"""
from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import official
import torch
from torch import Tensor, nn
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

from sam2_core import Prompt, Sam2Model, StreamTracker, load_model

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'test' / 'core'))
from reference import pixel_values, published_state, reference_model  # noqa: E402

Step = Callable[[np.ndarray], list[np.ndarray]]  # an image -> one mask (image_size / 4 squared) for each object
FILLED = 16  # frames after which memories do not get longer
OURS = 'sam2_core'


@dataclass(frozen=True)
class Task:
    """One row of the benchmark, but for the number of objects."""

    model: str
    image_size: int
    device: torch.device
    dtype: torch.dtype
    compiled: bool = False


class Sides:
    """The models of all sides for a task, and their steps for a number of objects."""

    def __init__(self, task: Task, weights: Path) -> None:
        """weights: a file to write; random weights do not change the time."""
        self.task = task
        theirs = reference_model(task.model, task.image_size)
        state = published_state(theirs)
        torch.save({'model': state}, weights)
        self._weights = weights
        self.ours = self.load(task.compiled)
        self._models: dict[str, nn.Module] = {OURS: self.ours, 'transformers': theirs.to(task.device, task.dtype)}
        if official.installed() and task.model != 'nano':  # its decoder has the published widths in its code
            self._models['sam2'] = official.build(task.model, task.image_size, state, task.device, task.compiled)

    @property
    def names(self) -> list[str]:
        return list(self._models)

    def load(self, compiled: bool = False) -> Sam2Model:
        """Our model."""
        options = {'compile': True} if compiled else {}
        return load_model(self.task.model, self._weights, device=self.task.device, dtype=self.task.dtype,
                          image_size=self.task.image_size, **options)

    def weights_mib(self, name: str) -> float:
        """What the parameters of a side take."""
        return sum(parameter.nbytes for parameter in self._models[name].parameters()) / 2 ** 20

    def step(self, name: str, image: np.ndarray, objects: int) -> Step:
        """A side's step; memories are full after ``image``, where the objects are prompted."""
        if name == OURS:
            return our_step(our_tracker(self.ours, image, objects))
        places = boxes(objects, self.task.image_size)
        make = their_step if name == 'transformers' else official_step
        return make(self._models[name], image, places, self.task)


def boxes(objects: int, width: int, height: int | None = None) -> list[tuple[float, float, float, float]]:
    """As many boxes as wanted, in a grid over the image."""
    side = int(np.ceil(objects ** 0.5))
    x, y = width / side, (height or width) / side
    return [((i % side + 0.2) * x, (i // side + 0.2) * y, (i % side + 0.8) * x, (i // side + 0.8) * y)
            for i in range(objects)]


@torch.inference_mode()
def our_tracker(model: Sam2Model, image: np.ndarray, objects: int) -> StreamTracker:
    """A tracker whose memories are full."""
    tracker = StreamTracker(model)
    height, width = image.shape[:2]
    tracker.step(image, [Prompt(i + 1, box=box) for i, box in enumerate(boxes(objects, width, height))])
    for bank in tracker._banks.values():
        for _ in range(1, FILLED):
            bank.write(bank._frames.storage[0].clone(), bank._pointers.storage[0].clone(), conditioning=False)
    return tracker


def our_step(tracker: StreamTracker) -> Step:
    """With the masks as the others give them."""
    return lambda image: [(item.logits > 0).cpu().numpy() for item in tracker.step(image).objects.values()]


@torch.inference_mode()
def their_step(model, image: np.ndarray, places: list, task: Task) -> Step:
    """transformers' streaming session."""
    device, dtype, objects = task.device, task.dtype, len(places)
    session = Sam2VideoInferenceSession(inference_device=device, inference_state_device=device, dtype=dtype)
    for i, box in enumerate(places):
        session.obj_id_to_idx(i + 1)
        session.add_point_inputs(i, 0, {
            'point_coords': torch.tensor(box, device=device).reshape(1, 1, 2, 2).to(dtype),
            'point_labels': torch.tensor([[[2, 3]]], dtype=torch.int32, device=device)})
    session.obj_with_new_inputs = list(range(1, objects + 1))

    def show(image: np.ndarray, number: int) -> Tensor:
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

    return step


@torch.inference_mode()
def official_step(model, image: np.ndarray, places: list, task: Task) -> Step:
    """The published video predictor."""
    stream = official.OfficialStream(model, pixel_values(image).to(task.device), places, task.dtype)
    stream.fill(FILLED)

    @torch.inference_mode()
    def step(image: np.ndarray) -> list[np.ndarray]:
        return list((stream.step(pixel_values(image).to(task.device)) > 0).cpu().numpy())

    return step
