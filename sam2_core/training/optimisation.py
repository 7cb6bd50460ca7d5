"""One step of the optimisation: plainly, through compiled modules, or replayed as a CUDA graph."""
from __future__ import annotations

import sys

import torch
from torch import Tensor, nn

from sam2_core.training.clips import PackedClips
from sam2_core.training.distributed import average_gradients
from sam2_core.training.learner import Learner
from sam2_core.training.optimizer import set_rate
from sam2_core.training.rollout import Knobs, mean_figures

_EAGER_STEPS = 3  # before a step is captured


class OptimisationStep:
    """Forward pass, backward pass and update on one batch of clips.

    Batches of one stage have one shape. A CUDA graph is captured anew for each stage, after some eager steps.

    figures: loss and other figures of the last step, tensors without a dimension. A replayed graph writes into them.
    rate: learning rate of the last step.
    """

    def __init__(self, learner: Learner, rank: int, world: int) -> None:
        """rank, world: number of this process, and of all processes that train together."""
        self.learner, self.config = learner, learner.config
        self.rank, self.world = rank, world
        self.knobs = Knobs.on(learner.device)
        self.figures: dict[str, Tensor] = {}
        self.rate = 0.0
        self._step = 0
        self._batch: PackedClips | None = None  # the tensors that every step of the stage is computed from
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_left = _EAGER_STEPS
        self._compiled: list[nn.Module] = []

    def compile(self) -> None:
        """Compile the modules that have one shape in a stage."""
        self._compiled = [self.learner.model.image_encoder, self.learner.model.memory_encoder]
        for module in self._compiled:
            module.compile(dynamic=False)

    @property
    def has_stage(self) -> bool:
        """Tell whether a stage has begun in this process."""
        return self._batch is not None

    def begin_stage(self, clips: PackedClips) -> None:
        """Use the shape of this batch for the steps that follow, and discard a graph of another shape."""
        self._graph, self._eager_left, self._batch = None, _EAGER_STEPS, clips
        self.learner.optimizer.zero_grad(set_to_none=True)
        self.figures = {}
        if self.learner.device.type == 'cuda':
            torch.cuda.empty_cache()

    def seed(self, step: int, part: int = 0) -> None:
        """Seed torch for a part of a step, as if each accumulated part were another process's."""
        number = self.rank * self.config.accumulate + part
        torch.manual_seed((self.config.seed * 1_000_003 + step) * 64 + number)

    def run(self, clips: PackedClips, step: int, progress: float) -> None:
        """Do step number ``step``, from 0, at this progress of the run. The batch has the shape of the stage."""
        batch = self._in_place(clips)
        self._step = step
        self.config.schedule.set(self.knobs, progress)
        self.rate = self.config.schedule.rate(progress)
        set_rate(self.learner.optimizer, self.rate)
        self.learner.set_average_rate(step)
        self.learner.guard.number.fill_(step + 1)
        if not self.config.graph:
            self._compiled_step(batch)
        elif self._graph is None and self._eager_left:
            self._compiled_step(batch)
            self._eager_left -= 1
        else:
            if self._graph is None:
                self._graph = self._captured(batch)
            self._graph.replay()

    def _in_place(self, clips: PackedClips) -> PackedClips:
        assert self._batch is not None, 'begin_stage comes first'
        for mine, new in zip(self._batch, clips, strict=True):
            mine.copy_(new)
        return self._batch

    def _compiled_step(self, batch: PackedClips) -> None:
        """Do a step; if compiled code fails, do it and all that follow without."""
        try:
            self._plain_step(batch)
        except Exception as error:
            if not self._compiled:
                raise
            print(f'compiled code fails ({type(error).__name__}: {str(error)[:500]}): going on without',
                  file=sys.stderr)
            for module in self._compiled:
                module._compiled_call_impl = None
            self._compiled = []
            self._plain_step(batch)

    def _plain_step(self, batch: PackedClips) -> None:
        self.learner.optimizer.zero_grad(set_to_none=True)
        parts = self.config.accumulate
        if parts == 1:
            self._forward_backward(batch)
        else:
            self._accumulate([PackedClips(*part) for part in zip(*(t.chunk(parts) for t in batch), strict=True)])
        loss = self.figures['loss']
        if self.world > 1:
            loss = average_gradients(self._gradients(), loss, self.world)
        self.figures['gradient'] = self.learner.update(loss)

    def _accumulate(self, parts: list[PackedClips]) -> None:
        """Compute the gradients and figures of several parts, averaged."""
        figures = []
        for number, clips in enumerate(parts):
            self.seed(self._step, number)
            self._forward_backward(clips)
            figures.append(self.figures)
        self.figures = mean_figures(figures)
        torch._foreach_div_(self._gradients(), len(parts))

    def _forward_backward(self, clips: PackedClips) -> None:
        loss, self.figures = self.learner.losses(self.learner.model, clips, self.knobs)
        loss.backward()

    def _gradients(self) -> list[Tensor]:
        return [parameter.grad for parameter in self.learner.with_gradient() if parameter.grad is not None]

    def _captured(self, batch: PackedClips) -> torch.cuda.CUDAGraph:
        self.learner.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream(),
                              capture_error_mode='thread_local'):  # the loader pins memory meanwhile
            self._forward_backward(batch)
            self.figures['gradient'] = self.learner.update(self.figures['loss'])
        return graph
