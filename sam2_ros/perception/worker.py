"""Thread that owns the model: it serves the camera that has waited longest, and publishes the results."""
from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Protocol

from sam2_core import EncodedImage, Sam2Model, encode_images
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.frame import Frame
from sam2_ros.perception.prompt_plan import PromptAnswer
from sam2_ros.runtime.logger import Logger

STOP_LIMIT = 60.0  # seconds to wait for the work in hand: a large model on a CPU, or a compilation, takes long
WARN_EVERY = 5.0  # seconds
PAUSE = 0.5  # seconds after a failure of the loop itself, which may come again at once


class ServedCamera(Protocol):
    """A camera as the worker serves it: its pipeline, and what comes before and after."""

    pipeline: CameraPipeline
    closed: bool  # the node did not wait for the last step, whose results are void

    def before_step(self) -> None:
        """Prepare a step before the inbox is read: put the camera's own prompts, as for detections, into it."""

    def publish(self, frame: Frame | None, answers: list[PromptAnswer]) -> float:
        """Publish; return the seconds from the stamp of the image to now, 0 if it has none or there is no frame."""

    def now(self) -> float:
        """Return the seconds of a clock that never goes back."""


def step(camera: ServedCamera, encoded: EncodedImage | None = None) -> None:
    """Process the image that a camera's pipeline has taken, and the prompts that wait.

    This is the order of a step for the node and for evaluation: prepare, work, publish, count, shed load.
    encoded: Features of the image, if they have been computed already.
    """
    pipeline = camera.pipeline
    camera.before_step()
    frame, answers = pipeline.work(encoded)
    if camera.closed:
        return
    latency = camera.publish(frame, answers)
    if frame is not None:
        pipeline.finish(frame, latency, camera.now())


def step_aside(camera: ServedCamera) -> None:
    """Work on a slice of a camera's late prompts and queries."""
    answers = camera.pipeline.work_aside()
    if not camera.closed:
        camera.publish(None, answers)


class Worker:
    """Thread that serves cameras between ``start`` and ``stop``."""

    def __init__(self, model: Sam2Model, cameras: Sequence[ServedCamera], changed: threading.Condition,
                 usable: Callable[[], bool], logger: Logger) -> None:
        """Create a worker, not started; pipelines notify ``changed``, ``usable`` is False once ROS is shut down."""
        self._model = model
        self._cameras = list(cameras)
        self._changed = changed
        self._usable = usable
        self._logger = logger
        self._stopping = False
        self._doing = ('', 0.0)  # the work in hand, since when (time.monotonic())
        self._thread = threading.Thread(target=self._run, name='sam2_worker', daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, limit: float = STOP_LIMIT) -> str:
        """Wait until the work in hand is done and the thread has ended, at most ``limit`` seconds.

        Returns '', or the reason why the thread has not ended. It is left alone then, and ends after that work.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        started = time.monotonic()
        while self._thread.is_alive():
            waited = time.monotonic() - started
            self._thread.join(max(0.0, min(WARN_EVERY, limit - waited)))
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
        """Whether the thread is running."""
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

    def _guarded(self, camera: ServedCamera, what: str, work: Callable, *arguments: object) -> None:
        """Run a piece of work; report an exception from one camera and keep serving the others."""
        pipeline = camera.pipeline
        self._doing = (f'{what} of {pipeline.topic}', time.monotonic())
        try:
            work(*arguments)
        except Exception as error:
            pipeline.failures.report(what, error)
            self._stopping |= not self._usable()
        finally:
            self._doing = ('', time.monotonic())

    def _log(self, what: str) -> None:
        if self._usable():
            self._logger.error(f'{what}:\n{traceback.format_exc()}', throttle_duration_sec=WARN_EVERY)
        else:  # the process is ending, nobody reads the log
            self._stopping = True

    def _wait(self) -> bool:
        """Wait until there is work, or a prompt has waited too long; return False when it is time to end."""
        def ready() -> bool:
            return self._stopping or any(camera.pipeline.inbox.waiting_since() is not None
                                         or camera.pipeline.has_work_aside() for camera in self._cameras)
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
            self._guarded(camera, 'an image', step, camera, encoded.get(camera))

    def _encode(self, cameras: Sequence[ServedCamera]) -> dict[ServedCamera, EncodedImage]:
        """Return the features of the images of several cameras; a single one is left to its pipeline."""
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
        """Work on a slice of late prompts and queries for one camera; the cameras take turns."""
        for camera in self._cameras:
            if camera.pipeline.has_work_aside():
                self._cameras.remove(camera)
                self._cameras.append(camera)
                self._guarded(camera, 'a late prompt or a query', step_aside, camera)
                return


def by_age(cameras: Sequence[ServedCamera]) -> list[ServedCamera]:
    """Return the cameras at which something has arrived, the one that has waited longest first."""
    waiting = [(since, camera) for camera in cameras if (since := camera.pipeline.inbox.waiting_since()) is not None]
    return [camera for _, camera in sorted(waiting, key=lambda pair: pair[0])]
