"""Order in which cameras are served, and images encoded together: real pipelines and the nano model, no topics."""
import threading
import time

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from sensor_msgs.msg import RegionOfInterest
from std_msgs.msg import Header

from sam2_core import Prompt as CorePrompt
from sam2_core import Sam2Model, StreamTracker
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import Prompt
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.prompt_plan import PromptRequest
from sam2_ros.perception.single_image import SegmentAllQuery
from sam2_ros.perception.worker import Worker
from sam2_ros.runtime.parameters import Parameters
from sam2_ros.srv import SegmentAll
from testing.waiting import PATIENCE


class BareCamera:
    """A camera that publishes into a list."""

    def __init__(self, model, changed: threading.Condition, log: list, name: str) -> None:
        self.name = name
        self.pipeline = CameraPipeline(StreamTracker(model), Parameters(), changed, f'/{name}',
                                       rclpy.logging.get_logger('test'))
        self.closed = False
        self._log = log
        work_aside = self.pipeline.work_aside
        self.pipeline.work_aside = lambda: log.append((name, None)) or work_aside()

    def before_step(self) -> None:
        pass

    def publish(self, frame, answers) -> float:
        if frame is not None:
            self._log.append((self.name, frame))
        return 0.0

    def now(self) -> float:
        return time.monotonic()

    def show(self, seconds: int, brightness: int = 80, width: int = 160) -> None:
        image = np.full((120, width, 3), brightness, np.uint8)
        image[30:90, 50:110] = (230, 60, 40)
        self.pipeline.put_image(from_pixels(image, 'rgb8', Header(stamp=Time(sec=seconds))))

    def prompt(self) -> None:
        box = RegionOfInterest(x_offset=50, y_offset=30, width=60, height=60)
        self.pipeline.inbox.put_prompt(PromptRequest(Prompt(box=box), time.monotonic()))


@pytest.fixture
def run(model):
    """Create a worker that is not started yet, its cameras and the list of what they publish."""
    changed, log, workers = threading.Condition(), [], []

    def make(count: int):
        cameras = [BareCamera(model, changed, log, f'camera{number}') for number in range(count)]
        workers.append(Worker(model, cameras, changed, lambda: True, rclpy.logging.get_logger('test')))
        return workers[0], cameras, log
    yield make
    workers[0].stop()
    assert not workers[0].alive


def wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def names(log: list) -> list[str]:
    return [name for name, frame in log if frame is not None]


def test_the_camera_that_has_waited_longest_comes_first(run):
    worker, cameras, log = run(3)
    for number in (2, 0, 1):
        cameras[number].show(10)
    cameras[2].show(11)  # a newer image does not move the camera to the end of the queue
    worker.start()
    wait_for(lambda: len(log) == 3)
    assert names(log) == ['camera2', 'camera0', 'camera1']
    assert log[0][1].header.stamp.sec == 11 and log[0][1].dropped == 1


def test_a_fast_camera_does_not_starve_a_slow_one(run):
    worker, (fast, slow), log = run(2)
    for camera in (fast, slow):
        camera.prompt()
        camera.show(1)
    worker.start()
    wait_for(lambda: {'camera0', 'camera1'} <= set(names(log)))
    stop, stamps = threading.Event(), iter(range(2, 10**6))

    def hurry():
        while not stop.is_set():
            fast.show(next(stamps))
            time.sleep(0.001)
    thread = threading.Thread(target=hurry)
    thread.start()
    for seconds in range(2, 12):
        before = len(names(log))
        slow.show(seconds)
        wait_for(lambda seconds=seconds: any(
            name == 'camera1' and frame.header.stamp.sec == seconds for name, frame in log if frame is not None))
        served = names(log)[before:]
        assert served[:served.index('camera1')].count('camera0') <= 2, 'the image in work, and at most one more'
    stop.set()
    thread.join()


def test_images_that_wait_together_are_encoded_together_with_the_same_results(run, model, monkeypatch):
    batches = []
    original = Sam2Model.encode_image
    monkeypatch.setattr(Sam2Model, 'encode_image', lambda self, images: batches.append(len(images)) or original(
        self, images))
    worker, cameras, log = run(2)
    alone = [StreamTracker(model) for _ in cameras]
    for camera in cameras:
        camera.prompt()
    for seconds in (1, 2, 3):
        with worker._changed:  # so that the worker sees both at once
            for camera, brightness, width in zip(cameras, (60, 110), (160, 200), strict=True):
                camera.show(seconds, brightness, width)
            if seconds == 1:
                worker.start()
        wait_for(lambda seconds=seconds: len(names(log)) == 2 * seconds)
    assert batches == [1, 1, 2, 2], 'while nothing is tracked yet each is on its own'
    for name, tracker in zip(('camera0', 'camera1'), alone, strict=True):
        for number, frame in enumerate([frame for other, frame in log if other == name]):
            prompts = [CorePrompt(1, box=(50, 30, 110, 90))] if number == 0 else []
            expected = tracker.step(frame.image, prompts).objects[1]
            (item,) = frame.objects
            assert item.id == 1
            assert (item.mask != expected.mask).mean() < 1e-3


def test_when_a_batch_does_not_fit_the_images_are_encoded_one_by_one(run, monkeypatch):
    original = Sam2Model.encode_image

    def encode(self, images):
        if len(images) > 1:
            raise RuntimeError('out of memory')
        return original(self, images)
    worker, cameras, log = run(2)
    for camera in cameras:
        camera.prompt()
        camera.show(1)
    worker.start()
    wait_for(lambda: len(names(log)) == 2)
    monkeypatch.setattr(Sam2Model, 'encode_image', encode)
    with worker._changed:
        for camera in cameras:
            camera.show(2)
    wait_for(lambda: len(names(log)) == 4)
    assert all(frame.objects and frame.header.stamp.sec == 2 for _, frame in log[2:])


def test_queries_to_two_cameras_are_worked_on_in_turn_and_images_come_between(run):
    worker, cameras, log = run(2)
    replies = []
    for camera in cameras:
        camera.show(1)
        camera.pipeline.inbox.put_query(SegmentAllQuery(SegmentAll.Request(points_per_side=16), replies.append, 60.0))
    worker.start()
    seconds = 2
    while len(replies) < 2:
        cameras[0].show(seconds)
        seconds += 1
        wait_for(lambda seconds=seconds: len(replies) == 2 or any(
            frame is not None and frame.header.stamp.sec == seconds - 1 for _, frame in list(log)))
    slices = [name for name, frame in log if frame is None]
    assert slices.count('camera0') == slices.count('camera1') == 16
    assert slices[:6] == ['camera0', 'camera1'] * 3 or slices[:6] == ['camera1', 'camera0'] * 3
    assert names(log).count('camera0') > 5


def test_what_goes_wrong_in_one_camera_does_not_end_the_worker(run):
    worker, cameras, log = run(2)
    cameras[0].publish = lambda frame, answers: 1 / 0
    for camera in cameras:
        camera.show(1)
    worker.start()
    wait_for(lambda: names(log) == ['camera1'])
    cameras[1].show(2)
    wait_for(lambda: names(log) == ['camera1'] * 2)
    assert worker.alive
    assert cameras[0].pipeline.failures.recent(time.monotonic()) == [
        'an image failed: ZeroDivisionError: division by zero'], 'on /diagnostics'


def test_a_shorter_timeout_holds_for_those_that_wait_already(run):
    worker, (camera,), _ = run(1)
    camera.pipeline.parameters = Parameters(prompt_timeout=600.0)
    worker.start()
    camera.prompt()
    wait_for(lambda: camera.pipeline.inbox.waiting_since() is None)
    camera.pipeline.change(Parameters(prompt_timeout=0.1))
    wait_for(lambda: camera.pipeline.seconds_to_deadline() is None)


class Log:
    def __init__(self) -> None:
        self.lines = []

    def warning(self, text: str, **_) -> None:
        self.lines.append(text)

    error = warning


def test_the_end_is_waited_for_with_a_limit_and_what_it_waits_for_is_named(model, monkeypatch):
    changed, log, hanging, begun = threading.Condition(), Log(), threading.Event(), threading.Event()
    camera = BareCamera(model, changed, [], 'stuck')
    camera.before_step = lambda: begun.set() or hanging.wait(PATIENCE)
    worker = Worker(model, [camera], changed, lambda: True, log)
    monkeypatch.setattr('sam2_ros.perception.worker.WARN_EVERY', 0.01)
    worker.start()
    camera.show(1)
    assert begun.wait(PATIENCE)
    problem = worker.stop(limit=0.05)
    assert problem.startswith('the worker did not end within 0.05 s: it still waits for an image of /stuck (since 0.')
    assert log.lines and log.lines[0].startswith('stopping: waiting for an image of /stuck (since 0.')
    assert worker.alive
    hanging.set()
    assert worker.stop() == '' and not worker.alive


def test_a_loop_that_fails_itself_goes_on(run, monkeypatch):
    worker, (camera,), log = run(1)
    monkeypatch.setattr('sam2_ros.perception.worker.PAUSE', 0.01)
    waits = []
    deadline = camera.pipeline.seconds_to_deadline
    camera.pipeline.seconds_to_deadline = lambda: waits.append(1) or (1 / 0 if len(waits) == 1 else deadline())
    worker.start()
    camera.show(1)
    wait_for(lambda: names(log) == ['camera0'])
