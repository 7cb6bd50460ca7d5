"""One run of ``sam2_track``: the backward pass, the forward pass and the files, each resumable at any frame."""
from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sam2_core.model import Sam2Model
from sam2_core.offline.frames import FrameSource, UnreadableFrame
from sam2_core.offline.outputs import ResultFiles
from sam2_core.offline.prompts import PassSchedule, TrackPlan
from sam2_core.offline.resume import BACKWARD, FILES, FORWARD, TrackFolder, TrackProgress
from sam2_core.offline.store import FrameRecord, FrameStore, frame_record
from sam2_core.offline.tracking import PassStep, chosen, run_pass
from sam2_core.scores import LowScore, ScoreWatch
from sam2_core.tracker import StreamTracker


class Callbacks(NamedTuple):
    """What a run asks and tells its caller."""

    stop: Callable[[], bool]  # whether to stop after this frame
    moved: Callable[[str, int, int, int], object]  # phase, frame, frames done in the phase, frames of the phase
    unreadable: Callable[[UnreadableFrame], object]
    low_score: Callable[[LowScore], object]


class TrackRun:
    """A video and its prompts on their way to files."""

    def __init__(self, model: Sam2Model, source: FrameSource, plan: TrackPlan, folder: TrackFolder,
                 files: ResultFiles, score: Callable[[float], float], caption: str, save_every: float,
                 memory_policy: str) -> None:
        """Describe the run.

        Args:
            model: The model.
            source: The frames.
            plan: The prompts.
            folder: Output folder, which may hold the beginning of this run.
            files: Writer of the results.
            score: Function from the predicted to the expected IoU.
            caption: Text below the frames of the overlay.
            save_every: Seconds between two saves.
            memory_policy: As given to ``StreamTracker``.
        """
        self._source, self._plan, self._folder, self._files = source, plan, folder, files
        self._score, self._caption, self._save_every = score, caption, save_every
        self._model, self._memory_policy = model, memory_policy
        self._tracker, self._watch = self._new_tracker(), ScoreWatch()
        self.progress = TrackProgress()

    def frames(self, phase: str) -> range:
        """Return the frames of a phase, in order."""
        return self._plan.backwards.frames if phase == BACKWARD else range(self._plan.start, self._plan.end)

    def resume(self) -> bool:
        """Load what an interrupted run saved; return whether there was anything."""
        self.progress = self._folder.load(self._tracker)
        return self.progress != TrackProgress()

    def run(self, callbacks: Callbacks) -> bool:
        """Continue to the end, or until the caller asks to stop; return whether all is complete."""
        sizes = self.progress.sizes
        with FrameStore(self._folder.store_path(BACKWARD), sizes.get(BACKWARD, 0)) as backward, \
                FrameStore(self._folder.store_path(FORWARD), sizes.get(FORWARD, 0)) as forward:
            def keep_backward(step: PassStep) -> None:
                backward.append(step.frame, _record(step))

            def keep_forward(step: PassStep) -> None:
                record = _record(step)
                stored = backward.read(step.frame)
                record = record._replace(objects=chosen(self._plan, step.frame, stored.objects if stored else {},
                                                        record.objects))
                forward.append(step.frame, record)
                if isinstance(step.image, np.ndarray):
                    self._files.write_frame(step.frame, step.image, record)

            return (self._pass(BACKWARD, FORWARD, self._plan.backwards, backward, keep_backward, callbacks)
                    and self._pass(FORWARD, FILES, self._plan.forwards, forward, keep_forward, callbacks)
                    and self._write_files(forward, callbacks))

    def _pass(self, phase: str, following: str, schedule: PassSchedule, store: FrameStore,
              keep: Callable[[PassStep], None], callbacks: Callbacks) -> bool:
        if self.progress.phase != phase:
            return True
        frames, saved = self.frames(phase), time.monotonic()
        for step in run_pass(self._tracker, self._source, schedule, frames[self.progress.done:]):
            keep(step)
            self.progress.done += 1
            if isinstance(step.image, UnreadableFrame):
                if str(step.frame) not in self.progress.unreadable:
                    self.progress.unreadable[str(step.frame)] = step.image.reason
                    callbacks.unreadable(step.image)
            else:
                self._report_low_scores(step, schedule, callbacks)
            callbacks.moved(phase, step.frame, self.progress.done, len(frames))
            asked = callbacks.stop()
            if asked or time.monotonic() - saved >= self._save_every:
                self._save(phase, store)
                saved = time.monotonic()
            if asked:
                return False
        self.progress.phase, self.progress.done = following, 0
        self._tracker = self._new_tracker()
        self._save(phase, store)
        return True

    def _new_tracker(self) -> StreamTracker:
        return StreamTracker(self._model, memory_policy=self._memory_policy)

    def _report_low_scores(self, step: PassStep, schedule: PassSchedule, callbacks: Callbacks) -> None:
        prompted = {prompt.object_id for prompt in schedule.prompts.get(step.frame, ())}
        for object_id, item in (step.result.objects if step.result else {}).items():
            low = self._watch.add(step.frame, object_id, self._score(item.iou), item.box is not None,
                                  object_id in prompted)
            if low is not None:
                callbacks.low_score(low)

    def _write_files(self, store: FrameStore, callbacks: Callbacks) -> bool:
        frames = self.frames(FILES)
        for done, frame in enumerate(self._files.finish(store, frames, self._caption), 1):
            callbacks.moved(FILES, frame, done, len(frames))
            if callbacks.stop():
                return False
        return True

    def _save(self, phase: str, store: FrameStore) -> None:
        store.flush()
        self.progress.sizes[phase] = store.size
        self._folder.save(self.progress, self._tracker)


def _record(step: PassStep) -> FrameRecord:
    if isinstance(step.image, UnreadableFrame) or step.result is None:
        return FrameRecord(0, 0, {}, str(step.image))
    return frame_record(step.result)
