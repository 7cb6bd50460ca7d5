"""Thread that owns the model: it serves the camera that has waited longest, and publishes the results."""
from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence

from sam2_core import EncodedImage, Sam2Model, encode_images
from sam2_ros.topics.camera_topics import CameraTopics

STOP_LIMIT = 60.0  # seconds to wait for the work in hand: a large model on a CPU, or a compilation, takes long
TELL_EVERY = 5.0  # seconds
PAUSE = 0.5  # seconds after a failure of the loop itself, which may come again at once


class Worker:
    """Runs the streams of some cameras in a thread of its own between ``start`` and ``stop``."""

    def __init__(self, model: Sam2Model, cameras: Sequence[CameraTopics], changed: threading.Condition,
                 usable: Callable[[], bool], logger) -> None:
        """``changed`` is the one that the streams notify; ``usable`` turns False once ROS has been shut down."""
        self._model = model
        self._cameras = list(cameras)
        self._changed = changed
        self._usable = usable
        self._logger = logger
        self._stopping = False
        self._doing = ('', 0.0)  # the work in hand, since when (time.monotonic())
        self._thread = threading.Thread(target=self._run, name='sam2_worker', daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()

    def stop(self, limit: float = STOP_LIMIT) -> str:
        """Wait until the work in hand is done and the thread has ended, at most ``limit`` seconds.

        Returns '', or the reason why the thread has not ended: it is left alone then, and ends after that work.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        started = time.monotonic()
        while self._thread.is_alive():
            waited = time.monotonic() - started
            self._thread.join(max(0.0, min(TELL_EVERY, limit - waited)))
            if not self._thread.is_alive():
                break
            what, since = self._doing
            work = f'{what or "the worker"} (since {time.monotonic() - since:.1f} s)'
            if time.monotonic() - started >= limit:
                return (f'the worker did not end within {limit:g} s: it still waits for {work}; is the GPU stuck? '
                        f'Kill the process if it does not end')
            self._logger.warning(f'stopping: waiting for {work}')
        return ''

    @property
    def alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopping:
            try:
                if self._wait():
                    self._serve()
                    self._work_aside()
            except Exception:
                self._log('the worker failed')
                with self._changed:
                    self._changed.wait(PAUSE)

    def _guarded(self, camera: CameraTopics, what: str, work: Callable, *arguments) -> None:
        """Run a piece of work; report an exception from one camera and keep serving the others."""
        self._doing = (f'{what} of {camera.pipeline.topic}', time.monotonic())
        failures = camera.pipeline.failures
        try:
            work(*arguments)
        except Exception as error:
            failures.report(what, error)
            self._stopping |= not self._usable()
        finally:
            self._doing = ('', time.monotonic())

    def _log(self, what: str) -> None:
        if self._usable():
            self._logger.error(f'{what}:\n{traceback.format_exc()}', throttle_duration_sec=TELL_EVERY)
        else:  # the process is going down: nobody listens
            self._stopping = True

    def _wait(self) -> bool:
        """Wait until there is work, or a prompt has waited too long; return False when it is time to end."""
        def ready() -> bool:
            return self._stopping or any(camera.pipeline.waiting_since() is not None or camera.pipeline.has_work_aside()
                                         for camera in self._cameras)
        deadlines = [camera.pipeline.seconds_to_deadline() for camera in self._cameras]
        with self._changed:
            self._changed.wait_for(ready, min((seconds for seconds in deadlines if seconds is not None), default=None))
            return not self._stopping

    def _serve(self) -> None:
        """Process what has arrived, the camera that has waited longest first; encode their images together."""
        waiting = by_age(self._cameras)
        waiting += [camera for camera in self._cameras
                    if camera not in waiting and camera.pipeline.seconds_to_deadline() == 0]
        for camera in waiting:
            self._guarded(camera, 'an image', camera.pipeline.take)
        encoded = self._encode(waiting)
        for camera in waiting:
            self._guarded(camera, 'an image', camera.work, encoded.get(camera))

    def _encode(self, cameras: Sequence[CameraTopics]) -> dict[CameraTopics, EncodedImage]:
        """Return the features of their images, if there are several; a single one is the stream's own business."""
        try:
            images = {camera: image for camera in cameras if (image := camera.pipeline.image_to_encode()) is not None}
            if len(images) < 2:
                return {}
            self._doing = (f'images of {len(images)} cameras', time.monotonic())
            return dict(zip(images, encode_images(self._model, list(images.values())), strict=True))
        except Exception:  # out of memory, most likely: one by one they may fit
            self._log(f'the images of {len(cameras)} cameras cannot be encoded together')
            return {}

    def _work_aside(self) -> None:
        """Do a slice of late prompts and questions for one camera; the next time it is the turn of another."""
        for camera in self._cameras:
            if camera.pipeline.has_work_aside():
                self._cameras.remove(camera)
                self._cameras.append(camera)
                self._guarded(camera, 'a late prompt or a question', camera.work_aside)
                return


def by_age(cameras: Sequence[CameraTopics]) -> list[CameraTopics]:
    """Return the cameras at which something has arrived, the one that has waited longest first."""
    waiting = [(since, camera) for camera in cameras if (since := camera.pipeline.waiting_since()) is not None]
    return [camera for _, camera in sorted(waiting, key=lambda pair: pair[0])]
