"""The one thread that owns the model: it serves the camera that has waited longest, and hands the results on."""
from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence

from sam2_core import EncodedImage, Sam2Model, encode_images
from sam2_ros.camera import Camera


class Worker:
    """Runs the streams of some cameras in a thread of its own between ``start`` and ``stop``."""

    def __init__(self, model: Sam2Model, cameras: Sequence[Camera], changed: threading.Condition,
                 usable: Callable[[], bool], logger) -> None:
        """``changed`` is the one that the streams notify; ``usable`` turns False once ROS has been shut down."""
        self._model = model
        self._cameras = list(cameras)
        self._changed = changed
        self._usable = usable
        self._logger = logger
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name='sam2_worker', daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return when the image in work is done and the thread has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        while self._wait():
            self._serve()
            self._work_aside()

    def _guarded(self, work: Callable, *arguments) -> None:
        """What goes wrong with one camera is neither the others' end nor the worker's."""
        try:
            work(*arguments)
        except Exception:
            if self._usable():
                self._logger.error(traceback.format_exc())
            else:  # the process is going down: nobody listens
                self._stopping = True

    def _wait(self) -> bool:
        """Until there is something to do, or a prompt has waited too long; False when it is time to end."""
        def ready() -> bool:
            return self._stopping or any(camera.stream.waiting_since() is not None or camera.stream.has_work_aside()
                                         for camera in self._cameras)
        deadlines = [camera.stream.seconds_to_deadline() for camera in self._cameras]
        with self._changed:
            self._changed.wait_for(ready, min((seconds for seconds in deadlines if seconds is not None), default=None))
            return not self._stopping

    def _serve(self) -> None:
        """What has arrived at each camera, those first that have waited longest; their images are encoded together."""
        waiting = by_age(self._cameras)
        waiting += [camera for camera in self._cameras
                    if camera not in waiting and camera.stream.seconds_to_deadline() == 0]
        for camera in waiting:
            self._guarded(camera.stream.take)
        encoded = self._encode(waiting)
        for camera in waiting:
            self._guarded(camera.work, encoded.get(camera))

    def _encode(self, cameras: Sequence[Camera]) -> dict[Camera, EncodedImage]:
        """The features of their images, if there are several; a single one is the stream's own business."""
        images = {camera: image for camera in cameras if (image := camera.stream.image_to_encode()) is not None}
        if len(images) < 2:
            return {}
        try:
            return dict(zip(images, encode_images(self._model, list(images.values())), strict=True))
        except Exception:  # out of memory, most likely: one by one they may fit
            self._logger.error(f'{len(images)} images cannot be encoded together:\n{traceback.format_exc()}',
                               throttle_duration_sec=5.0)
            return {}

    def _work_aside(self) -> None:
        """A slice of late prompts and questions for one camera; the next time it is the turn of another."""
        for camera in self._cameras:
            if camera.stream.has_work_aside():
                self._cameras.remove(camera)
                self._cameras.append(camera)
                self._guarded(camera.work_aside)
                return


def by_age(cameras: Sequence[Camera]) -> list[Camera]:
    """Those at which something has arrived, the one first that has waited longest."""
    waiting = [(since, camera) for camera in cameras if (since := camera.stream.waiting_since()) is not None]
    return [camera for _, camera in sorted(waiting, key=lambda pair: pair[0])]
