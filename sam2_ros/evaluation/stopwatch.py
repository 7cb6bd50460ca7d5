"""Cost of the work on each image: seconds by stage, and memory."""
from __future__ import annotations

import contextlib
import resource
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam2_core import Sam2Model
from sam2_core.memory_policy import MemoryPolicy
from sam2_core.nn.mask_decoder import DecodedMasks
from sam2_core.tensors import ImageFeatures, Memory, ObjectMasks, StaticStages
from sam2_ros.evaluation.results import TRACK


class Stopwatch:
    """Sums of seconds by stage. On a GPU it synchronises at both ends of a stage."""

    def __init__(self, device: torch.device, timer: Callable[[], float] = time.perf_counter) -> None:
        """Create a stopwatch for work on a device; ``timer`` returns seconds."""
        self._device, self._timer = device, timer
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        started = self._now()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._now() - started

    def take(self) -> dict[str, float]:
        """Return the seconds of each stage since the last call."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def _now(self) -> float:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)
        return self._timer()


class TimedModel(Sam2Model):
    """View of a model that adds the time of its stages to a stopwatch.

    It shares weights, settings and compiled stages with the model and computes the same; the model is left as it is.
    The stages are ``encode``, ``attend``, ``decode mask`` and ``memory``. A compiled model attends and decodes tracked
    objects in one function, which is one stage, ``track``.
    """

    _original: Sam2Model
    _watch: Stopwatch

    def __init__(self, model: Sam2Model, watch: Stopwatch) -> None:
        """Create a view of ``model``."""
        # Sam2Model.__init__ would create weights, and assigning the model as an attribute would register it among its
        # own modules, which the view shares.
        self.__dict__.update(vars(model), _original=model, _watch=watch)
        for method in ('encode_image', 'attend_memory', 'decode_masks', 'encode_memory'):
            self.__dict__.pop(method, None)  # one that replaces the model's own would hide the method below
        if model.compiled is not None:
            self.__dict__['compiled'] = _TimedStages(model.compiled, watch)

    def encode_image(self, images_bchw: Tensor) -> ImageFeatures:
        """Encode images as the model does."""
        with self._watch.stage('encode'):
            return self._original.encode_image(images_bchw)

    def attend_memory(self, features: ImageFeatures, memory: Memory) -> Tensor:
        """Attend to memories as the model does."""
        with self._watch.stage('attend'):
            return self._original.attend_memory(features, memory)

    def decode_masks(self, features_bchw: Tensor, image: ImageFeatures, *arguments: Any,
                     **options: Any) -> DecodedMasks:
        """Decode masks as the model does."""
        with self._watch.stage('decode mask'):
            return self._original.decode_masks(features_bchw, image, *arguments, **options)

    def encode_memory(self, image: ImageFeatures, masks: ObjectMasks, prompted: Tensor) -> Tensor:
        """Encode memories as the model does."""
        with self._watch.stage('memory'):
            return self._original.encode_memory(image, masks, prompted)


class _TimedStages:
    """Compiled stages that add their time to a stopwatch."""

    def __init__(self, stages: StaticStages, watch: Stopwatch) -> None:
        self._stages, self._watch = stages, watch

    def encode_image(self, images_bchw: Tensor) -> ImageFeatures:
        with self._watch.stage('encode'):
            return self._stages.encode_image(images_bchw)

    def track_objects(self, image: ImageFeatures, memory: Memory) -> tuple[Tensor, ObjectMasks]:
        with self._watch.stage(TRACK):
            return self._stages.track_objects(image, memory)

    def track_candidates(self, image: ImageFeatures, memory: Memory) -> tuple[Tensor, ObjectMasks, Tensor]:
        with self._watch.stage(TRACK):
            return self._stages.track_candidates(image, memory)

    def encode_memory(self, image: ImageFeatures, masks: ObjectMasks, prompted: Tensor) -> Tensor:
        with self._watch.stage('memory'):
            return self._stages.encode_memory(image, masks, prompted)

    def warm_up(self, objects: int, max_conditioning_frames: int = 4, recent_frames: Iterable[int | None] = (None,),
                show: Callable[[str], None] = lambda text: None,
                memory_policy: str | MemoryPolicy = 'published') -> None:
        self._stages.warm_up(objects, max_conditioning_frames, recent_frames, show, memory_policy)


class PeakMemory:
    """Largest amounts of memory held since this object was created, bytes."""

    def __init__(self, model: Sam2Model) -> None:
        """Start to watch this process and the device of a model."""
        self._device = model.device if model.device.type == 'cuda' else None
        if self._device is not None:
            torch.cuda.reset_peak_memory_stats(self._device)
        with contextlib.suppress(OSError):  # not Linux, or not permitted: the peak is that since the process started
            Path('/proc/self/clear_refs').write_text('5')

    @property
    def gpu(self) -> int:
        """Memory allocated by PyTorch; 0 without a GPU."""
        return 0 if self._device is None else torch.cuda.max_memory_allocated(self._device)

    @property
    def process(self) -> int:
        """Resident memory of this process."""
        return peak_resident_memory() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_resident_memory(process: int | None = None) -> int:
    """Return the peak of a process's resident memory in bytes, 0 if the system does not report it.

    Args:
        process: Its id; None means this process.
    """
    with contextlib.suppress(OSError):
        for line in Path(f'/proc/{process or "self"}/status').read_text().splitlines():
            if line.startswith('VmHWM:'):
                return int(line.split()[1]) * 1024
    return 0
