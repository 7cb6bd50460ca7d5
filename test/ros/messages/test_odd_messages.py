"""Odd messages to the callbacks of a real node: it keeps running and answers every prompt once."""
import contextlib
import math
import random
from array import array
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Point, PointStamped
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import ParameterValue
from rcl_interfaces.srv import SetParameters
from sensor_msgs.msg import CameraInfo, Image, RegionOfInterest
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import ImagePoint, Prompt
from sam2_ros.srv import SegmentAll, SegmentImage, SetPrompt
from sam2_ros.topics.camera_topics import CameraTopics
from sam2_ros.topics.publishers import CameraPublishers
from testing.in_process import HEIGHT, WIDTH, in_process, picture

SECOND = 10**9
NUMBERS = (0.0, -0.0, 1.0, -1.0, 0.5, 1e-30, 1e30, -1e30, math.inf, -math.inf, math.nan, 48.0, 1e5, 3e38)
SIZES = (0, 1, 2, 3, WIDTH, HEIGHT, 65535, 2**31, 2**32 - 1)
ENCODINGS = ('rgb8', 'bgr8', 'mono8', '16UC1', '32FC1', 'bayer_rggb8', 'yuv422', '', 'RGB8', 'mono16')
MODELS = ('plumb_bob', 'rational_polynomial', 'equidistant', 'fisheye', '', 'thin_prism')


class Odd:
    """Random messages that are mostly valid."""

    def __init__(self, robot, seed: int) -> None:
        self.robot, self.random = robot, random.Random(seed)

    def one_of(self, *values):
        return self.random.choice(values)

    def header(self) -> Header:
        """Return a header that mostly has the stamp of the camera."""
        sec, nanosec = divmod(self.robot.now + self.one_of(0, 0, 0, 0, -10**8, -5 * 10**8, 10**8, SECOND), SECOND)
        if self.random.random() < 0.15:
            sec, nanosec = self.one_of((0, 0), (-5, 0), (-2**31, 0), (2**31 - 1, 2**32 - 1), (0, 2**32 - 1),
                                       (sec + 4, 0), (sec - 4, 0), (sec, 2**31))
        return Header(stamp=Time(sec=sec, nanosec=nanosec),
                      frame_id=self.one_of('camera', 'camera', 'camera', '', 'map', '/camera', 'ä\u2028 b' * 20))

    def number(self) -> float:
        return self.random.choice(NUMBERS) if self.random.random() < 0.5 else self.random.uniform(-100, 100)

    def size(self, usual: int) -> int:
        return usual if self.random.random() < 0.7 else self.random.choice(SIZES)

    def region(self) -> RegionOfInterest:
        return RegionOfInterest(x_offset=self.one_of(0, 0, 5, 60, 2**32 - 1), y_offset=self.one_of(0, 0, 5, 2**31),
                                width=self.size(20), height=self.size(20), do_rectify=self.one_of(True, False))

    def image(self, usual: str = 'rgb8') -> Image:
        message = from_pixels(picture(), 'rgb8', self.header())
        if usual != 'rgb8':
            pixels = np.full((HEIGHT, WIDTH), self.one_of(0, 1, 900, 65535), np.uint16)
            message = from_pixels(pixels if usual == '16UC1' else pixels.astype(np.float32), usual, message.header)
        for name, values in (('encoding', ENCODINGS), ('height', SIZES), ('width', SIZES), ('step', SIZES),
                             ('is_bigendian', (0, 1, 255))):
            if self.random.random() < 0.06:
                setattr(message, name, self.random.choice(values))
        if self.random.random() < 0.06:
            message.data = array('B', bytes(self.one_of(0, 1, 100, WIDTH * HEIGHT * 3 + 1)))
        return message

    def info(self) -> CameraInfo:
        message = CameraInfo(header=self.header(), width=self.size(WIDTH), height=self.size(HEIGHT),
                             distortion_model=self.random.choice(MODELS),
                             k=[50.0, 0.0, 32.0, 0.0, 50.0, 24.0, 0.0, 0.0, 1.0],
                             p=[50.0, 0.0, 32.0, 0.0, 0.0, 50.0, 24.0, 0.0, 0.0, 0.0, 1.0, 0.0])
        if self.random.random() < 0.6:
            message.d = [self.number() * self.one_of(0.01, 0.01, 1.0)
                         for _ in range(self.one_of(0, 1, 2, 3, 4, 5, 5, 6, 8, 12, 14, 15, 16, 300))]
        for _ in range(self.one_of(0, 0, 0, 1, 3)):
            message.k[self.random.randrange(9)] = self.number()
            message.p[self.random.randrange(12)] = self.number()
        if self.random.random() < 0.3:
            message.binning_x, message.binning_y = self.one_of(0, 1, 2, 7, 2**32 - 1), self.one_of(0, 1, 2, 1000)
        if self.random.random() < 0.3:
            message.roi = self.region()
        return message

    def click(self) -> PointStamped:
        return PointStamped(header=self.header(), point=Point(x=self.number() / 50, y=self.number() / 50,
                                                              z=self.one_of(1.0, 1.0, self.number())))

    def prompt(self) -> Prompt:
        message = Prompt(header=self.header() if self.random.random() < 0.6 else Header(),
                         action=self.one_of(0, 0, 0, 0, 1, 1, 2, 3, 4, 255), id=self.one_of(0, 0, 0, 1, 2, 3, 65535),
                         label=self.one_of('', 'cup', 'x' * 1000, 'ä"\\\n'))
        if self.random.random() < 0.5:
            message.box = self.region()
        if self.random.random() < 0.5:
            message.points = [ImagePoint(x=self.number(), y=self.number(), label=self.one_of(0, 1, 1, 2, 255))
                              for _ in range(self.one_of(0, 1, 1, 1, 2, 50))]
        if self.random.random() < 0.15:
            message.mask = self.image()
            if self.random.random() < 0.7:
                message.mask = from_pixels((picture()[..., 0] > 100).astype(np.uint8) * 255, 'mono8', message.header)
        return message

    def detections(self) -> SimpleNamespace:
        """Return an object with the fields of vision_msgs/Detection2DArray, which need not be installed."""
        def one() -> SimpleNamespace:
            centre = SimpleNamespace(position=SimpleNamespace(x=self.number(), y=self.number()), theta=self.number())
            hypothesis = SimpleNamespace(class_id=self.one_of('', 'cup', 'dog'), score=self.one_of(0.9, self.number()))
            box = SimpleNamespace(center=centre, size_x=abs(self.number()), size_y=self.number())
            return SimpleNamespace(bbox=box, results=[SimpleNamespace(hypothesis=hypothesis)] * self.one_of(0, 1, 1, 2))
        return SimpleNamespace(header=self.header(), detections=[one() for _ in range(self.one_of(0, 1, 2, 5, 1500))])

    def question(self) -> tuple[str, object]:
        filled = {'image': self.image()} if self.random.random() < 0.2 else {}
        return self.one_of(
            ('/segment_image', SegmentImage.Request(prompts=[self.prompt() for _ in range(self.one_of(0, 1, 1, 3))],
                                                    multimask=self.one_of(True, False), **filled)),
            ('/segment_all', SegmentAll.Request(points_per_side=self.one_of(0, 1, 2, 2, 129, 2**32 - 1),
                                                min_score=self.number() % 3e38 if math.isfinite(self.number()) else 0.0,
                                                time_limit=self.one_of(0.0, 0.01, math.nan, -1.0, math.inf), **filled)),
            ('/reset', Trigger.Request()))

    def change(self) -> SetParameters.Request:
        name = self.one_of('depth_min', 'depth_max', 'rectified', 'lost_after', 'cloud_stride', 'on_time_jump',
                           'nothing', 'max_objects', 'history_seconds', 'detections_iou', 'forget_after')
        value = ParameterValue(type=self.one_of(0, 1, 2, 3, 3, 4, 9, 200), bool_value=self.one_of(True, False),
                               integer_value=self.one_of(-1, 0, 1, 5), double_value=self.number(),
                               string_value=self.one_of('', 'keep', 'reset'))
        return SetParameters.Request(parameters=[ParameterMessage(name=name, value=value)])


@pytest.mark.fuzz
@pytest.mark.parametrize('rectified', [False, True])
def test_the_process_lives_and_answers_every_prompt(monkeypatch, rounds, rectified):
    submitted, answered, tasks, refused_clicks = Counter(), Counter(), [], [0]
    submit, answer = CameraTopics.submit, CameraPublishers.answer
    monkeypatch.setattr(CameraTopics, 'submit', lambda camera, request: submitted.update([request]) or submit(
        camera, request))
    monkeypatch.setattr(CameraPublishers, 'answer', lambda outputs, one: answered.update([one.request]) or answer(
        outputs, one))
    with in_process(threaded=False, prompt_timeout=0.1, rectified=rectified, max_objects=3) as robot:
        robot.pipeline.change(replace(robot.pipeline.parameters, detections_topic='detections'))
        odd, sent = Odd(robot, seed=int(rectified)), Counter()
        for number in range(rounds(80, 10_000)):
            robot.now += 10**8
            kind = odd.random.choices(
                ('image', 'depth', 'info', 'click', 'prompt', 'detections', 'question', 'set_prompt', 'change'),
                (20, 10, 20, 15, 15, 8, 4, 6, 2))[0]
            sent[kind] += 1
            if kind in ('image', 'depth', 'info', 'click', 'prompt'):
                topic = {'info': '/camera_info', 'click': '/prompt_point'}.get(kind, f'/{kind}')
                before = len(robot.statuses)
                message = odd.image(odd.one_of('16UC1', '32FC1')) if kind == 'depth' else getattr(odd, kind)()
                robot.send(topic, message)
                refused_clicks[0] += kind == 'click' and len(robot.statuses) > before
            elif kind == 'detections':
                robot.camera.topics._on_detections(odd.detections())
            elif kind == 'change':
                tasks.append(robot.ask('/set_parameters', odd.change()))
            else:
                tasks.append(robot.ask(*odd.question()) if kind == 'question' else robot.ask(
                    '/set_prompt', SetPrompt.Request(prompt=odd.prompt())))
            robot.executor.spin_once(timeout_sec=0)
            if odd.random.random() < 0.7:
                robot.serve()
            if number % 100 == 0:
                robot.published[:] = [(topic, message) for topic, message in robot.published if 'status' in topic]
        assert robot.node.trigger_deactivate().name == 'SUCCESS'
        robot.wait_for(lambda: all(task.done() for task in tasks), 'answers of services')
        assert all(task.exception() is None and task.result() is not None for task in tasks)
        assert submitted.keys() <= answered.keys() and set(answered.values()) <= {1}
        assert sent['click'] > 0 and refused_clicks[0] <= sent['click']
        # odd input is refused by name; no step fails, and no callback but that of rclpy for parameters
        assert robot.pipeline.failures.totals() == []
        assert all('/set_parameters failed' in text for text in robot.node.failures.totals())
    print(dict(sent), 'prompts', len(submitted))


def test_a_stream_goes_on_after_all_of_it(monkeypatch):
    with in_process(threaded=False, prompt_timeout=0.1) as robot:
        odd = Odd(robot, seed=7)
        for _ in range(40):
            robot.now += 10**8
            with contextlib.suppress(KeyError):
                robot.send('/camera_info', odd.info())
                robot.send('/depth', odd.image('16UC1'))
                robot.send('/image', odd.image())
                robot.send('/prompt', odd.prompt())
            robot.serve()
        for _ in range(8):
            robot.show()
            robot.serve()
        robot.send('/prompt', Prompt(id=7, box=RegionOfInterest(x_offset=8, y_offset=8, width=24, height=24)))
        robot.show()
        robot.serve()
        last = robot.frames[-1].instances[-1]
        assert last.id == 7 and last.roi.width and last.has_depth
