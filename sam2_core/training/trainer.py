"""A training run from clips to weights, which can stop and be resumed at any step.

Everything that changes during training follows from the progress between 0 and 1. It counts steps, or minutes if the
run is given its time; the learning rate then reaches 0 when the time is over, however fast the machine is.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import numpy as np
import torch
import torch.distributed as dist

from sam2_core.model import Sam2Model
from sam2_core.stopping import StopSignals
from sam2_core.training.clips import Clip, NoUsableData, PackedClips, split
from sam2_core.training.data import Augmentation, ClipSource, SyntheticClips, as_batch, batches
from sam2_core.training.distributed import highest
from sam2_core.training.divergence import Diverged, RecordReader
from sam2_core.training.initialise import new_model
from sam2_core.training.learner import Learner
from sam2_core.training.log import LogLine, Throughput, TrainingLog
from sam2_core.training.optimisation import OptimisationStep
from sam2_core.training.run_folder import RunFolder
from sam2_core.training.settings import TrainConfig
from sam2_core.training.validation import Validation

_GO_ON, _LEAVE, _NO_DATA, _DIVERGED = range(4)  # states of a process; all processes act on the gravest


class Trainer:
    """A run that can be left and resumed.

    step: steps that are done; done: progress at the last call of ``progress``; trouble: why the run cannot go on.
    """

    def __init__(self, config: TrainConfig, source: ClipSource | None = None, model: Sam2Model | None = None,
                 validation: Sequence[Clip] = ()) -> None:
        """Build the run and load its saved state, if ``config.output`` holds one.

        source: the clips, synthetic ones by default; model: the model to go on from, a new one by default; validation:
        clips to validate on, also at the start and at the end of the run. Raises ValueError if a saved value is not
        finite.
        """
        self.config = config
        self.is_new = model is None
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.device = torch.device(config.device)
        torch.manual_seed(config.seed)
        self.learner = Learner(config, new_model(config.model) if model is None else model, self.device)
        self.model = self.learner.model
        self.optimisation = OptimisationStep(self.learner, self.rank, self.world)
        self.validation = Validation(self.learner, validation)
        self._validates_ends = bool(validation)
        self._validated_step = -1
        self.source = source or SyntheticClips(config.seed, config.clip_frames, config.model.image_size)
        self.done = 0.0
        self.trouble: Diverged | NoUsableData | None = None
        self._record = RecordReader(self.learner.guard)
        self.folder = RunFolder(config.output, self.learner)
        self.position = self.folder.resume()
        if config.compile:
            self.optimisation.compile()

    @property
    def step(self) -> int:
        """Return the number of steps that are done."""
        return self.position.step

    def save(self) -> None:
        """Write the state to go on from, and the averaged weights, in the first process.

        Raises Diverged, and overwrites nothing, if any value is not finite.
        """
        if self.rank == 0:
            self.folder.save(self.position)

    def progress(self) -> float:
        """Return the progress of the run, 0..1, the same in all processes."""
        self.done = self.config.progress(self.position.step, self.position.elapsed)
        if self.config.minutes is not None and self.world > 1:  # each process has a clock of its own
            shared = torch.tensor([self.done], dtype=torch.float64, device=self.device)
            dist.broadcast(shared, 0)
            self.done = float(shared)
        return self.done

    def run_step(self, chunks: list[PackedClips]) -> None:
        """Do one step on one batch."""
        config, position, progress = self.config, self.position, self.progress()
        frames = config.schedule.frames(progress)
        rng = np.random.default_rng((config.seed, position.step))
        self.optimisation.seed(position.step)
        clips = as_batch(chunks, config.accumulate, self.device)
        if config.augment:
            clips = Augmentation(rng, config.clip_frames, frames)(clips)
        clips = split(clips, frames)
        if frames != position.stage_frames or not self.optimisation.has_stage:
            self.optimisation.begin_stage(clips)
        if frames != position.stage_frames:
            if self.is_new and position.stage_frames <= 1 < frames:
                self.learner.start_memory(clips)
            position.stage_frames = frames
        self.optimisation.run(clips, position.step, progress)
        position.step += 1
        self._note(self._record.after_step())

    def _note(self, failed: Diverged | None) -> None:
        """Record a failed step: the weights are those of the step before it."""
        if failed is not None and self.trouble is None:
            self.trouble, self.position.step = failed, failed.step - 1

    def validate(self) -> dict[str, float]:
        """Return the averaged model's figures on the validation clips."""
        return self.validation.measure()

    def run(self, show: Callable[[LogLine], None] = lambda line: None,
            each_step: Callable[[], None] = lambda: None) -> bool:
        """Train until the end or until the run is stopped; return whether it is complete.

        ``show`` is given every line of the log, ``each_step`` is called after every step. Raises Diverged at a loss or
        gradient that is not finite, NoUsableData when nothing can be read any more: in all processes at the same step,
        after the last finite state was saved.
        """
        log = self._open_log(show) if self.rank == 0 else None
        with StopSignals(quiet=self.rank > 0) as stop:
            with closing(self._batches()) as stream:
                self._train(stream, stop, log, each_step)
            self._note(self._record.now())
            complete = self.progress() >= 1
            if log is not None and complete and self._validates_ends and self._validated_step != self.step \
                    and self.trouble is None:
                self._write_validation(log)
            found = self.trouble
            failed_update = isinstance(found, Diverged) and 'gradient' in found.values
            if log is not None and isinstance(found, Diverged) and failed_update:  # a validation logs itself
                log.write(self._line() | {'step': found.step} | found.values)
            if not isinstance(found, Diverged) or failed_update:
                self._save_if_finite()
            agreed = self._agreed(stop)
            if log is not None:
                self.folder.draw_curves()
        if self.trouble is not None:
            raise self.trouble
        if agreed == _DIVERGED:
            raise Diverged(self.step, {'loss of another process': math.nan})
        if agreed == _NO_DATA:
            raise NoUsableData('another process has nothing to read')
        return complete

    def _open_log(self, show: Callable[[LogLine], None]) -> TrainingLog:
        self.folder.path.mkdir(parents=True, exist_ok=True)
        log = TrainingLog(self.folder.log, show)
        log.forget_after(self.step or -1)
        return log

    def _train(self, stream: Generator[list[PackedClips], None, None], stop: StopSignals, log: TrainingLog | None,
               each_step: Callable[[], None]) -> None:
        config = self.config
        entered = started = saved = time.monotonic()
        self._validated_step = self.step
        if log is not None and self._validates_ends and self.step == 0:
            self._write_validation(log)
        if self.device.type == 'cuda' and config.graph:
            torch.cuda.set_stream(torch.cuda.Stream())
        throughput = Throughput(time.monotonic())
        before = self.position.elapsed
        while self.progress() < 1:
            asked = time.monotonic()
            chunks = self._next(stream, stop)
            if self._agreed(stop) != _GO_ON or chunks is None:
                break
            throughput.wait(time.monotonic() - asked)
            self.run_step(chunks)
            logs = self.step % config.log_every == 0
            validates = config.validate_every > 0 and self.step % config.validate_every == 0
            if logs or validates:
                self._note(self._record.now())  # in all processes
            if self.trouble is not None:
                continue  # all processes leave at the same place
            each_step()
            if started == entered:  # compiling and filling the queues does not count as training
                started = time.monotonic()
            throughput.add(sum(chunk.masks.shape[0] * chunk.masks.shape[1] for chunk in chunks) * self.world)
            now = time.monotonic()
            if logs and log is not None:
                figures = {name: round(float(value), 4) for name, value in self.optimisation.figures.items()}
                now = time.monotonic()
                log.write(self._line() | {'frames': self.position.stage_frames, 'rate': self.optimisation.rate}
                          | figures | throughput.figures(now))
            if validates and log is not None:
                self._validated_step = self.step
                self._write_validation(log)
                now = time.monotonic()
            self.position.elapsed = before + now - started
            if now - saved > config.save_every and self.trouble is None and not self.learner.guard.failed:
                self._save_if_finite()
                saved = time.monotonic()
            if config.stop_after is not None and now - entered > config.stop_after:
                stop.ask()

    def _batches(self) -> Generator[list[PackedClips], None, None]:
        config = self.config
        return batches(self.source, config.chunks, self.step, config.workers, self.rank, self.world, config.echo,
                       pin=self.device.type == 'cuda')

    def _next(self, stream: Generator[list[PackedClips], None, None], stop: StopSignals) -> list[PackedClips] | None:
        """Read the chunks of the next step; None if the run is about to leave."""
        if stop or self.trouble is not None:
            return None
        try:
            return next(stream)
        except NoUsableData as error:
            self.trouble = error
            return None

    def _agreed(self, stop: StopSignals) -> int:
        """Return the gravest state of any process: all must leave at the same step."""
        mine = _LEAVE if stop else _GO_ON
        if self.trouble is not None:
            mine = _DIVERGED if isinstance(self.trouble, Diverged) else _NO_DATA
        return highest(mine, self.device)

    def _save_if_finite(self) -> None:
        try:
            self.save()
        except Diverged as error:
            self.trouble = self.trouble or error

    def _write_validation(self, log: TrainingLog) -> None:
        """Log the validation figures; a loss that is not finite ends the run."""
        figures = self.validate()
        log.write(self._line() | {f'validation_{name}': round(value, 4) for name, value in figures.items()})
        if self.trouble is None and not math.isfinite(figures['loss']):
            self.trouble = Diverged(self.step, {'validation loss': figures['loss']})

    def _line(self) -> LogLine:
        return {'step': self.step, 'minutes': round(self.position.elapsed / 60, 3)}
