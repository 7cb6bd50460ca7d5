"""No container of a camera grows, whatever stamps its images carry. Containers are found by walking its objects."""
import types
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch
from sensor_msgs.msg import Image

import sam2_ros.perception.detection_prompts
import sam2_ros.perception.image_history
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import Instance, Prompt
from sam2_ros.perception.detection_prompts import MAX_DETECTIONS, RecentBoxes, read
from sam2_ros.perception.frame import Frame, TrackedObject
from sam2_ros.perception.meter import MOST
from sam2_ros.runtime.parameters import Parameters
from testing.in_process import HEIGHT, WIDTH, camera_info, header, image, in_process, picture

SECOND = 10**9
START = 1_700_000_000 * SECOND
STAMPS = {
    'none': lambda number: 0,
    'repeated': lambda number: START,
    'hardly advancing': lambda number: START + number,
    'decreasing': lambda number: START - number * SECOND // 10,
    'decreasing by jumps': lambda number: START - number * 3 * SECOND,
    'huge': lambda number: (2**31 - 1) * SECOND - number % 7,
    'by turns': lambda number: START + number * SECOND // 10 + number % 2 * 3600 * SECOND,
    'by turns of two': lambda number: START + number * SECOND // 10 + number // 2 % 2 * 3600 * SECOND,
    'negative': lambda number: -number * SECOND,
}
OPAQUE = (types.ModuleType, type, types.FunctionType, types.MethodType, types.BuiltinFunctionType, torch.Tensor,
          torch.nn.Module, np.ndarray, str, bytes, int, float)


def sizes(root: object) -> dict[str, int]:
    """Return the length of all containers that can be reached from an object of ours, by class and attribute."""
    found, seen, todo = {}, set(), [(root, '')]
    while todo:
        item, path = todo.pop()
        if id(item) in seen or isinstance(item, OPAQUE):
            continue
        seen.add(id(item))
        if isinstance(item, (dict, list, set, frozenset, tuple, deque, bytearray)):
            found[path] = found.get(path, 0) + len(item)
            todo += [(value, f'{path}[]') for value in (item.values() if isinstance(item, dict) else item)]
        elif type(item).__module__.startswith(('sam2_ros.', 'collections')) and 'msg' not in type(item).__module__:
            names = [*getattr(item, '__dict__', ()), *getattr(type(item), '__slots__', ())]
            todo += [(getattr(item, name, None), f'{type(item).__name__}.{name}') for name in names]
    return found


@pytest.fixture(scope='module')
def robot():
    with in_process(threaded=False, history_seconds=60.0) as robot:
        yield robot


@pytest.mark.fuzz
@pytest.mark.parametrize('stamps', STAMPS)
def test_no_container_grows_with_the_images(robot, monkeypatch, rounds, stamps):
    images = rounds(140, 5000)
    if images < sam2_ros.perception.image_history.MAX_IMAGES:
        monkeypatch.setattr(sam2_ros.perception.image_history, 'MAX_IMAGES', 30)
        monkeypatch.setattr(sam2_ros.perception.detection_prompts, 'MAX_FRAMES', 30)
    robot.restart()
    robot.pipeline.change(replace(robot.pipeline.parameters, detections_topic='detections'))
    measured = []
    for number in range(2 * images):
        stamp = STAMPS[stamps](number)
        robot.send('/camera_info', camera_info(stamp))
        robot.send('/depth', from_pixels(np.full((HEIGHT, WIDTH), 1000, np.uint16), '16UC1', header(stamp)))
        robot.send('/image', image(stamp))
        robot.send('/prompt', Prompt(header=header(stamp), action=Prompt.REMOVE, id=9))
        robot.node._worker._serve()
        robot.published.clear()
        if number % images == images - 1:
            measured.append(sizes(robot.camera))
    before, after = measured
    assert before['ImageHistory._images'] <= sam2_ros.perception.image_history.MAX_IMAGES and len(before) > 30
    meters = {'Meter._received', 'Meter._received[]', 'Meter._processed', 'Meter._processed[]', 'Meter._dropped',
              'Meter._dropped[]', 'Meter._depth', 'Meter._depth[]'}  # the last 10 s, and at most meter.MOST of each
    slack = sam2_ros.perception.image_history.MAX_IMAGES // 10
    assert {key: (before.get(key, 0), size) for key, size in after.items()
            if size > before.get(key, 0) + slack and key not in meters} == {}
    assert all(after[key] <= 2 * MOST for key in meters & after.keys())


def test_the_meter_of_growth_sees_growth():
    class Grown:
        def __init__(self) -> None:
            self.kept = {'a': [1, 2, 3]}
    Grown.__module__ = 'sam2_ros.grown'
    assert sizes(Grown()) == {'Grown.kept': 1, 'Grown.kept[]': 3}


@pytest.mark.parametrize('stamp', [0, 5 * SECOND])
def test_boxes_of_images_with_no_stamp_or_one_stamp_are_kept_once(stamp):
    seen = RecentBoxes()
    for number in range(1, 100):
        item = TrackedObject(1, 'cup', Instance.TRACKED, 0.9, 0.9, header(stamp).stamp, (number, 0, number + 1, 5))
        seen.see(Frame(header(stamp), picture(), [item], 0), 2.0)
    assert len(seen._boxes) <= 1
    assert seen.at(0)[0].box == seen.at(7 * SECOND)[0].box == (99, 0, 100, 5)


def test_of_too_many_detections_the_first_are_read():
    class Message:
        detections = [object()] * (MAX_DETECTIONS + 1)
    with pytest.raises(AttributeError):
        read(Message(), Parameters(), 10, 10)


def test_a_history_of_tiny_images_whose_stamps_hardly_advance_is_bounded(monkeypatch):
    monkeypatch.setattr(sam2_ros.perception.image_history, 'MAX_IMAGES', 20)
    history = sam2_ros.perception.image_history.ImageHistory()
    for number in range(100):
        history.put(Image(header=header(SECOND + number)), 60.0, 10**6)
    assert history.extent()[0] == 20
