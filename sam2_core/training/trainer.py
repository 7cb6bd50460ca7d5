"""A training run from clips to weights, which can stop and be resumed at any step.

Everything that changes during training follows from the progress between 0 and 1, which counts steps, or minutes where
the time is given: then the learning rate reaches 0 when the time is over, however fast the machine is.
"""
from __future__ import annotations

import copy
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sam2_core.model import Sam2Model
from sam2_core.training import curves, run_state
from sam2_core.training.clips import Clip, NoUsableData, PackedClips, pack, split
from sam2_core.training.data import Augmentation, ClipSource, SyntheticClips, batches
from sam2_core.training.distributed import average_gradients, highest
from sam2_core.training.divergence import Diverged, UpdateGuard, divergence, not_finite
from sam2_core.training.initialise import new_model, start_memory
from sam2_core.training.log import TrainingLog
from sam2_core.training.optimizer import new_optimizer
from sam2_core.training.rollout import ForegroundHead, Knobs, Step, mean_figures, normalise, step_losses
from sam2_core.training.settings import TrainConfig, part_of
from sam2_core.training.stopping import StopSignals

VALIDATION_SEED = 1000
_EAGER_STEPS = 3  # before a step is captured
_RUN_AHEAD = 2  # steps that are queued on a GPU
_GO_ON, _LEAVE, _NO_DATA, _DIVERGED = range(4)  # what a process wants; all do what the gravest says


class Trainer:
    """A run that can be left and taken up again.

    source: the clips, synthetic ones by default; model: where to go on from, a new one by default; validation: clips to
    measure on, at the start and the end of the run as well.
    """

    def __init__(self, config: TrainConfig, source: ClipSource | None = None, model: Sam2Model | None = None,
                 validation: Sequence[Clip] = ()) -> None:
        self.config = config
        self.is_new = model is None
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.device = torch.device(config.device)
        torch.manual_seed(config.seed)
        self.model = (new_model(config.model) if model is None else model).to(self.device).train()
        self.model.requires_grad_(True)
        self.model.no_mem_pos_enc.requires_grad_(False)  # used by no version
        for name, parameter in self.model.named_parameters():
            if part_of(name, config.frozen) is not None:
                parameter.requires_grad_(False)
        # the single mask is what is trained; falling back on the others is for use only
        self.model.sam_mask_decoder.stability_threshold = -1.0
        self.head = ForegroundHead(config.model.d_model).to(self.device) if config.foreground else None
        self.average = copy.deepcopy(self.model).requires_grad_(False) if config.ema else self.model
        self.modules = {'model': self.model} | ({'head': self.head} if self.head else {})
        self.saved = self.modules | ({'average': self.average} if config.ema else {})
        self.names = run_state.parameter_names(self.modules)
        self.optimizer = new_optimizer(self.names, config, self.device)
        self._validation = [self._on_device(pack([clip])) for clip in validation]
        self._measures_ends = bool(validation)
        self.source = source or SyntheticClips(config.seed, config.clip_frames, config.model.image_size)
        self.knobs = Knobs.on(self.device)
        self.ema_rate = torch.zeros((), device=self.device)
        self.step, self.elapsed, self.stage_frames, self.rate = 0, 0.0, 0, 0.0
        self.done = 0.0  # what progress() said last: no other process need be asked
        self._graph: torch.cuda.CUDAGraph | None = None
        self._eager_left = _EAGER_STEPS
        self._inputs: PackedClips | None = None
        self.figures: dict[str, Tensor] = {}
        self.guard = UpdateGuard(self.device)
        self.trouble: Diverged | NoUsableData | None = None  # why the run cannot go on
        self._running: deque[tuple[torch.cuda.Event, Tensor]] = deque()
        on_gpu = self.device.type == 'cuda'
        self._records = [torch.zeros(4, dtype=torch.float64, pin_memory=on_gpu) for _ in range(_RUN_AHEAD + 1)]
        if on_gpu:
            self.optimizer.found_inf = self.guard.failed  # fused: skips the update on the device
        self._resume()
        self._compiled = self._compile() if config.compile else []

    def _compile(self) -> list[torch.nn.Module]:
        model = self.model
        modules = [model.image_encoder, model.memory_encoder]  # those with one shape in a stage
        for module in modules:
            module.compile(dynamic=False)
        return modules

    @property
    def _folder(self) -> Path:
        return self.config.output / 'checkpoint'

    def _resume(self) -> None:
        state = run_state.load_state(self._folder, self.saved, self.optimizer, self.names)
        if state is not None:
            if spoilt := self._spoilt():
                raise ValueError(f'{self._folder}: {spoilt} holds values that are not finite: start again with '
                                 f'another --output')
            self.step, self.elapsed, self.stage_frames = state['step'], state['elapsed'], state['stage_frames']

    def _spoilt(self) -> str | None:
        """Return the name of the first saved tensor that is not finite."""
        tensors = [(f'{prefix}.{key}', value) for prefix, module in self.saved.items()
                   for key, value in module.state_dict().items()]
        tensors += [(f'{field} of {self.names[p]}', s[field]) for p, s in self.optimizer.state.items()
                    for field in ('exp_avg', 'exp_avg_sq') if field in s]
        dtype = self.config.weights_dtype  # float16 ends at 65504
        return not_finite(tensors) or not_finite((f'{key} in {dtype}', value.to(dtype))
                                                 for key, value in self.average.state_dict().items())

    def save(self) -> None:
        """Write the folder to go on from, and the averaged weights as a model file.

        Raises Diverged, and overwrites nothing, if any of it is not finite.
        """
        if self.rank:
            return
        if spoilt := self._spoilt():
            raise Diverged(self.step, {spoilt: math.nan})
        run_state.save_state(self._folder, self.saved, self.optimizer, self.names,
                               {'step': self.step, 'elapsed': self.elapsed, 'stage_frames': self.stage_frames})
        run_state.save_weights(self.config.output / 'weights.safetensors', self.average, self.config.weights_dtype)

    def progress(self) -> float:
        """How far the run is, 0..1; the same in all processes."""
        config = self.config
        if config.steps is not None:
            self.done = self.step / config.steps
        else:
            self.done = self.elapsed / (60 * config.minutes)
            if self.world > 1:
                shared = torch.tensor([self.done], dtype=torch.float64, device=self.device)
                dist.broadcast(shared, 0)
                self.done = float(shared)
        return self.done

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.half)

    def _losses(self, model: Sam2Model, clips: PackedClips, knobs: Knobs) -> tuple[Tensor, dict[str, Tensor]]:
        frames = clips.masks.shape[1]
        step = Step(frames, self.config.objects, image_objects=2 if frames == 1 else 1)
        with self._autocast():
            return step_losses(model, self.head, clips, step, knobs)

    def _on_device(self, clips: PackedClips) -> PackedClips:
        return PackedClips(*(part.to(self.device) for part in clips))

    def _forward_backward(self, clips: PackedClips) -> None:
        loss, self.figures = self._losses(self.model, clips, self.knobs)
        loss.backward()

    def _update(self, loss: Tensor) -> None:
        """Apply the gradients, unless they or the loss of all processes are not finite."""
        parameters = [p for p in self.names if p.grad is not None]
        gradient = torch.nn.utils.clip_grad_norm_(parameters, self.config.clip_norm, foreach=True)
        self.guard.judge(loss, gradient)
        self.figures['gradient'] = gradient
        if self.device.type == 'cuda' or not self.guard.failed:
            self.optimizer.step()
        if self.average is self.model:
            return
        with torch.no_grad():
            averaged, present = list(self.average.parameters()), list(self.model.parameters())
            change = torch._foreach_sub(present, averaged)
            torch._foreach_mul_(change, self.ema_rate * (1 - self.guard.failed))
            torch._foreach_add_(averaged, change)

    def _enter_stage(self, frames: int, clips: PackedClips) -> None:
        """Forget what was captured; before the first clips start the memory from the encoder as it is."""
        if self.is_new and self.stage_frames <= 1 < frames:
            with self._autocast():  # as in training: code compiled for it serves
                features = self.model.encode_image(normalise(clips.frames.flatten(0, 1))).stride16_bchw.detach()
            start_memory(self.model, features)
            if self.world > 1:  # the statistics differ
                for parameter in self.model.parameters():
                    dist.broadcast(parameter.data, 0)
            for name in ('memory_encoder', 'memory_attention'):
                getattr(self.average, name).load_state_dict(getattr(self.model, name).state_dict())
        self.stage_frames = frames

    def run_step(self, chunks: list[PackedClips]) -> None:
        """One step on one batch."""
        config, progress = self.config, self.progress()
        frames = config.schedule.frames(progress)
        rng = np.random.default_rng((config.seed, self.step))
        self._seed(0)
        clips = PackedClips(*(torch.cat([part.to(self.device, non_blocking=True) for part in parts])
                              for parts in zip(*self._in_parts(chunks), strict=True)))
        if config.augment:
            clips = Augmentation(rng, config.clip_frames, frames)(clips)
        clips = split(clips, frames)
        if frames != self.stage_frames or self._inputs is None:
            self._graph, self._eager_left, self._inputs = None, _EAGER_STEPS, clips
            self.optimizer.zero_grad(set_to_none=True)
            self.figures = {}
            if self.device.type == 'cuda':
                torch.cuda.empty_cache()
            if frames != self.stage_frames:
                self._enter_stage(frames, clips)
        for mine, new in zip(self._inputs, clips, strict=True):
            mine.copy_(new)
        config.schedule.set(self.knobs, progress)
        self.rate = rate = config.schedule.rate(progress)
        for group in self.optimizer.param_groups:
            if isinstance(group['lr'], Tensor):
                group['lr'].fill_(rate * group['scale'])
            else:
                group['lr'] = rate * group['scale']
        self.ema_rate.fill_(1 - min(config.ema, (1 + self.step) / (10 + self.step)))
        self.guard.number.fill_(self.step + 1)
        if not config.graph:
            self._try_step()
        elif self._graph is not None:
            self._graph.replay()
        elif self._eager_left:
            self._try_step()
            self._eager_left -= 1
        else:
            self._capture()
            self._graph.replay()
        self.step += 1
        if self.device.type != 'cuda':
            self._note(self.guard.record)
            return
        event, record = torch.cuda.Event(), self._records[self.step % len(self._records)]
        record.copy_(self.guard.record, non_blocking=True)
        event.record()
        self._running.append((event, record))
        if len(self._running) > _RUN_AHEAD:  # what the host reads ahead is held in memory
            event, record = self._running.popleft()
            event.synchronize()
            self._note(record)

    def _note(self, record: Tensor) -> None:
        """Take note of a failed step in the record of the guard: the weights are those of the step before it."""
        found = divergence(record)
        if found is not None and self.trouble is None:
            self.trouble, self.step = found, found.step - 1

    def _try_step(self) -> None:
        """A step; if compiled code fails, the same step and all others without it."""
        try:
            self._plain_step()
        except Exception as error:
            if not self._compiled:
                raise
            print(f'compiled code fails ({type(error).__name__}: {str(error)[:500]}): going on without',
                  file=sys.stderr)
            for module in self._compiled:
                module._compiled_call_impl = None
            self._compiled = []
            self._plain_step()

    def _in_parts(self, chunks: list[PackedClips]) -> list[PackedClips]:
        """Part by part: of as many parts each takes the chunk that another process would read."""
        return [chunk for part in range(self.config.accumulate) for chunk in chunks[part::self.config.accumulate]]

    def _seed(self, part: int) -> None:
        number = self.rank * self.config.accumulate + part
        torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 64 + number)

    def _plain_step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        parts = self.config.accumulate
        if parts == 1:
            self._forward_backward(self._inputs)
        else:
            self._accumulate([PackedClips(*part) for part in zip(*(t.chunk(parts) for t in self._inputs), strict=True)])
        loss = self.figures['loss']
        if self.world > 1:
            loss = average_gradients([p.grad for p in self.names if p.grad is not None], loss, self.world)
        self._update(loss)

    def _accumulate(self, parts: list[PackedClips]) -> None:
        """Gradients and figures of several parts, averaged."""
        figures = []
        for number, clips in enumerate(parts):
            self._seed(number)
            self._forward_backward(clips)
            figures.append(self.figures)
        self.figures = mean_figures(figures)
        torch._foreach_div_([p.grad for p in self.names if p.grad is not None], len(parts))

    def _capture(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream(),
                              capture_error_mode='thread_local'):  # the loader pins memory meanwhile
            self._forward_backward(self._inputs)
            self._update(self.figures['loss'])

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """The averaged model's figures on the validation clips, by default ones that no training seed makes."""
        if not self._validation:
            source = SyntheticClips(VALIDATION_SEED + self.config.seed, 8, self.config.model.image_size,
                                    self.config.validation_clips, textures=30)
            self._validation = [self._on_device(source[0])]
        torch.manual_seed(VALIDATION_SEED)
        found = [self._losses(self.average, clips, Knobs.on(self.device))[1] for clips in self._validation]
        return {name: float(value) for name, value in mean_figures(found).items()}

    def _write_validation(self, log: TrainingLog) -> None:
        """Log the validation figures; a loss that is not finite ends the run."""
        figures = self.validate()
        log.write(self._line() | {f'validation_{name}': round(value, 4) for name, value in figures.items()})
        if self.trouble is None and not math.isfinite(figures['loss']):
            self.trouble = Diverged(self.step, {'validation loss': figures['loss']})

    def _write_failed_step(self, log: TrainingLog, found: Diverged) -> None:
        """Log the step whose update was not applied; the validation of a step logs itself."""
        if 'gradient' in found.values:
            log.write(self._line() | {'step': found.step} | found.values)

    def _line(self) -> dict:
        return {'step': self.step, 'minutes': round(self.elapsed / 60, 3)}

    def _leaves(self, stop: StopSignals) -> bool:
        """Tell whether any of the processes wants to leave. All must leave at the same step."""
        return self._agreed(stop) != _GO_ON

    def _agreed(self, stop: StopSignals) -> int:
        mine = _LEAVE if stop else _GO_ON
        if self.trouble is not None:
            mine = _DIVERGED if isinstance(self.trouble, Diverged) else _NO_DATA
        return highest(mine, self.device)

    def _next(self, stream: Iterator[list[PackedClips]], stop: StopSignals) -> list[PackedClips] | None:
        """Read the chunks of the next step; None when the run is about to leave."""
        if stop or self.trouble is not None:
            return None
        try:
            return next(stream)
        except NoUsableData as error:
            self.trouble = error
            return None

    def run(self, show: Callable[[dict], None] = lambda line: None,
            each_step: Callable[[], None] = lambda: None) -> bool:
        """Train until the end, or until it is time to leave. True when the run is complete.

        ``show`` is given every line of the log, ``each_step`` is called after every step. Raises Diverged at a loss or
        gradient that is not finite, NoUsableData when nothing can be read any more: in all processes at the same step,
        after the last finite state was saved.
        """
        log = None
        if self.rank == 0:
            self.config.output.mkdir(parents=True, exist_ok=True)
            log = TrainingLog(self.config.output / 'log.jsonl', show)
            log.forget_after(self.step or -1)
        with StopSignals(quiet=self.rank > 0) as stop:
            with closing(self._batches()) as stream:
                self._train(stream, stop, log, each_step)
            self._note(self.guard.record)
            complete = self.progress() >= 1
            if log and complete and self._measures_ends and self._measured != self.step and self.trouble is None:
                self._write_validation(log)
            found = self.trouble
            if log and isinstance(found, Diverged):
                self._write_failed_step(log, found)
            if not isinstance(found, Diverged) or 'gradient' in found.values:
                self._save_if_finite()
            agreed = self._agreed(stop)
            if log:
                curves.draw(log.path, self.config.output / 'curves.png')
        if self.trouble is not None:
            raise self.trouble
        if agreed == _DIVERGED:
            raise Diverged(self.step, {'loss of another process': math.nan})
        if agreed == _NO_DATA:
            raise NoUsableData('another process has nothing to read')
        return complete

    def _save_if_finite(self) -> None:
        try:
            self.save()
        except Diverged as error:
            self.trouble = self.trouble or error

    def _batches(self) -> Iterator[list[PackedClips]]:
        config = self.config
        return batches(self.source, config.chunks, self.step, config.workers, self.rank, self.world, config.echo,
                       pin=self.device.type == 'cuda')

    def _train(self, stream: Iterator[list[PackedClips]], stop: StopSignals, log: TrainingLog | None,
               each_step: Callable[[], None]) -> None:
        config = self.config
        entered = started = saved = time.monotonic()
        self._measured = self.step  # the last step that was validated
        if log and self._measures_ends and self.step == 0:
            self._write_validation(log)
        if self.device.type == 'cuda' and config.graph:
            torch.cuda.set_stream(torch.cuda.Stream())
        waited, since, images = 0.0, time.monotonic(), 0
        before = self.elapsed
        while self.progress() < 1:
            asked = time.monotonic()
            chunks = self._next(stream, stop)
            if self._leaves(stop):
                break
            waited += time.monotonic() - asked
            self.run_step(chunks)
            if self.step % config.log_every == 0 or config.validate_every and self.step % config.validate_every == 0:
                self._note(self.guard.record)  # in all processes
            if self.trouble is not None:
                continue
            each_step()
            if started == entered:  # compiling and filling the queues is not training
                started = time.monotonic()
            images += sum(chunk.masks.shape[0] * chunk.masks.shape[1] for chunk in chunks) * self.world
            now = time.monotonic()
            if self.step % config.log_every == 0 and log:
                line = self._line() | {'frames': self.stage_frames, 'rate': self.rate}
                line |= {name: round(float(value), 4) for name, value in self.figures.items()}
                now = time.monotonic()
                line |= {'images_per_s': round(images / (now - since), 1),
                         'data_wait': round(waited / (now - since), 3)}
                waited, since, images = 0.0, now, 0
                log.write(line)
            if config.validate_every and self.step % config.validate_every == 0 and log:
                self._measured = self.step
                self._write_validation(log)
                now = time.monotonic()
            self.elapsed = before + now - started
            if now - saved > config.save_every and self.trouble is None and not self.guard.failed:
                self._save_if_finite()
                saved = time.monotonic()
            if config.stop_after is not None and now - entered > config.stop_after:
                stop.ask()
