"""File that keeps the objects of one camera over restarts of the node."""
from __future__ import annotations

import contextlib
import time
import uuid
from pathlib import Path

from sam2_core import TrackerStateError, save_state
from sam2_core.state_files import ForeignFileError
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.camera_snapshot import CameraSnapshot, View, read_snapshot
from sam2_ros.perception.kept_lock import KeptLock
from sam2_ros.perception.prompt_plan import Ids
from sam2_ros.runtime.failures import describe
from sam2_ros.runtime.logger import Logger
from sam2_ros.runtime.newest_writer import NewestWriter

WAIT_SAVE = 1.0  # seconds that a transition waits for the file; the process has 2 s after a signal
WAIT_CLOSE = 10.0  # seconds
MOST_ASIDE = 9  # files that could not be used are numbered up to here; then the last one is replaced
LOG_EVERY = 30.0  # seconds


class KeptObjects:
    """Objects of one camera in a file: restored on configure, saved on change, periodically, and at the end.

    The worker's thread calls ``before_step``, ``before_publish`` and ``after_publish``, which take snapshots. A thread
    of its own writes them, so that no image waits for a disk. Ends of objects are noted in the lock file at once. The
    file is locked while the node is configured. If it cannot be used or written, ``problem`` says why, and the node
    continues without it.
    """

    def __init__(self, path: Path, camera: str, pipeline: CameraPipeline, ids: Ids, logger: Logger) -> None:
        """Lock the file; ``restore`` reads it.

        Args:
            path: The file.
            camera: Full name of the camera's raw image topic.
            pipeline: Pipeline of the camera.
            ids: Source of ids for new objects.
            logger: Receives what happens to the file.
        """
        self.path = path
        self.problem = ''  # empty: the objects are kept
        self.saved: float | None = None  # time.monotonic() of the newest snapshot in the file; None: none yet
        self._camera = camera
        self._pipeline = pipeline
        self._ids = ids
        self._logger = logger
        self._expected: View | None = None  # of restored objects, until the first image
        self._seen_changes = pipeline.objects.changes  # as of the newest snapshot
        self._kept: dict[int, object] = {}  # objects in the newest snapshot and not ended, with their identities
        self._series, self._number = uuid.uuid4().hex, 0  # of the newest snapshot
        self._written = 0  # number of the snapshot in the file
        self._empty = True  # the file has no objects
        self._due = 0.0  # time.monotonic() of the next periodic snapshot
        self._logged = float('-inf')
        self._writer: NewestWriter[CameraSnapshot] | None = None
        self._lock = self._locked()
        if self._lock is not None:
            self._writer = NewestWriter(self._write, pipeline.inbox.notify)

    # --- on configure

    def restore(self) -> None:
        """Let the pipeline continue with the objects in the file, if there is a file that fits."""
        if self._lock is None or not self.path.exists():
            return
        if not self.path.is_file():
            self._give_up(f'{self.path} is not a file: give another path')
            return
        try:
            snapshot = read_snapshot(self.path, self._pipeline)
            if snapshot.camera != self._camera:
                raise TrackerStateError(f'objects of the camera on {snapshot.camera}: must be {self._camera}; give '
                                        f'each camera a file of its own')
            snapshot.apply(self._pipeline, self._ids, self._lock.ended_since(snapshot.series, snapshot.number))
        except ForeignFileError as error:
            self._give_up(str(error))
            return
        except Exception as error:
            self._set_aside(describe(error))
            return
        self._series, self._number = snapshot.series, snapshot.number
        self._written, self._empty = snapshot.number, not snapshot.records
        self._kept = self._pipeline.objects.states.identities()
        if self._pipeline.objects.ids:
            self._expected = snapshot.view
            self._logger.info(f'{self._camera}: restored {self._named()} from {self.path}')

    def _named(self) -> str:
        ids, states = self._pipeline.objects.ids, self._pipeline.objects.states
        texts = [f'{object_id} {states.label(object_id)!r}' if states.label(object_id) else str(object_id)
                 for object_id in ids[:10]]
        return f'{len(ids)} object{"" if len(ids) == 1 else "s"} ({", ".join(texts)}{", ..." if len(ids) > 10 else ""})'

    # --- in the worker's thread

    def before_step(self) -> None:
        """Drop restored objects if the first image shows another view than theirs."""
        header, (height, width) = self._pipeline.taken_view
        if self._expected is None or header is None:
            return
        expected, view = self._expected, View(header.frame_id, height, width)
        self._expected = None
        if view != expected:
            self._pipeline.objects.reset()
            if self._writer is not None:
                self._writer.wait(WAIT_SAVE)
            self._set_aside(f'objects in images of {expected.width} x {expected.height} pixels in frame '
                            f"'{expected.frame_id}': the camera now has {width} x {height} in '{header.frame_id}'")

    def before_publish(self) -> None:
        """Note the ends of objects, so that none comes back after its end has been published."""
        now = self._pipeline.objects.states.identities()
        ended = [object_id for object_id, identity in self._kept.items() if now.get(object_id) is not identity]
        if not ended or self._lock is None:
            return
        for object_id in ended:
            del self._kept[object_id]
        noted = {object_id: last for object_id, last in self._lock.ended.items()
                 if last >= self._written and self._lock.series == self._series}
        try:
            self._lock.write(self._series, {**noted, **dict.fromkeys(ended, self._number)})
        except OSError as error:  # lose the other objects rather than bring these back
            self._report(f'objects are not kept: {self._lock.path} cannot be written: {error.strerror}')
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def after_publish(self) -> None:
        """Take a snapshot if objects have changed or the period has passed, unless the last one is still written."""
        if self._writer is None or not self._writer.idle:
            return
        objects = self._pipeline.objects
        if not objects.ids and self._empty:
            return
        if objects.changes != self._seen_changes or time.monotonic() >= self._due:
            self._save()

    # --- after the worker has ended

    def save(self) -> None:
        """Write the objects now, and wait for that at most WAIT_SAVE seconds."""
        self.before_publish()
        if self._writer is not None and (self._pipeline.objects.ids or not self._empty):
            self._save()
            self._writer.wait(WAIT_SAVE)

    def close(self) -> None:
        """End the thread and unlock the file."""
        writer, self._writer = self._writer, None
        if writer is not None and not writer.close(WAIT_CLOSE):
            self._logger.error(f'{self.path}: still being written after {WAIT_CLOSE:g} s: is the disk stuck?')
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    # --- the file

    def _save(self) -> None:
        assert self._writer is not None, 'the file is locked'
        objects = self._pipeline.objects
        self._due = time.monotonic() + self._pipeline.parameters.keep_objects_period
        self._seen_changes, self._kept = objects.changes, objects.states.identities()
        self._number += 1
        self._writer.put(CameraSnapshot.of(self._pipeline, self._ids, self._camera, self._view(), self._series,
                                           self._number))

    def _view(self) -> View:
        header, (height, width) = self._pipeline.newest_view
        if header is None:
            return self._expected or View('', 0, 0)
        return View(header.frame_id, height, width)

    def _write(self, snapshot: CameraSnapshot) -> None:
        """Write a snapshot, in the writer's thread."""
        try:
            save_state(self.path, snapshot.tracker, snapshot.notes())
        except Exception as error:
            self._report(f'objects are not kept: {self.path} cannot be written: '
                         f'{error.strerror if isinstance(error, OSError) and error.strerror else describe(error)}')
            return
        if self.problem:
            self._logger.warning(f'{self._camera}: objects are kept in {self.path} again')
        self.problem, self.saved = '', time.monotonic()
        self._written, self._empty = snapshot.number, not snapshot.tracker['metadata']['objects']

    def _report(self, problem: str) -> None:
        self.problem = problem
        if time.monotonic() - self._logged >= LOG_EVERY:
            self._logged = time.monotonic()
            self._logger.error(f'{self._camera}: {problem}')

    def _give_up(self, reason: str) -> None:
        """Leave the file alone, and keep nothing while the node is configured."""
        self._report(f'objects are not kept: {reason}')
        self.close()

    def _set_aside(self, reason: str) -> None:
        """Rename the file, so that neither the next start fails on it nor the next snapshot replaces it."""
        names = [self.path.with_name(f'{self.path.name}.unusable{number or ""}') for number in range(MOST_ASIDE)]
        target = next((name for name in names if not name.exists()), names[-1])
        try:
            self.path.replace(target)
        except OSError as error:
            self._give_up(f'{reason}; and it cannot be renamed ({error.strerror}): move {self.path} away')
            return
        self._kept, self._empty = {}, True
        self._logger.error(f'{self._camera}: kept objects are not used: {reason}. The file is now {target}')

    def _locked(self) -> KeptLock | None:
        """Lock the file against other nodes; return None and set ``problem`` if that is not possible."""
        path = self.path.with_name(f'{self.path.name}.lock')
        try:
            return KeptLock(path)
        except BlockingIOError:
            reason = f'{self.path} is in use by another node: give each node a file of its own'
        except OSError as error:
            reason = f'{error.filename or path}: {error.strerror}; give a file in a folder that the node may write to'
        self._report(f'objects are not kept: {reason}')
        return None


def discard(path: Path) -> str:
    """Delete the file of kept objects while no node uses it; return '' or the reason why it is still there."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        return f'the kept objects in {path} cannot be deleted: {error.strerror}'
    return ''
