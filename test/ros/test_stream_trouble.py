"""What goes wrong in one place costs one camera neither its objects nor anybody an answer: real tracker, nano model."""
import time

import cv2
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import Header

import sam2_core.tracker
from sam2_core import StreamTracker
from sam2_ros.conversions import from_pixels
from sam2_ros.msg import ImagePoint, InstanceEvent, Prompt
from sam2_ros.prompting import PromptRequest
from sam2_ros.stream import Stream

HEIGHT, WIDTH = 96, 128
DISC = RegionOfInterest(x_offset=40, y_offset=20, width=50, height=50)


def header(tenths: int) -> Header:
    return Header(stamp=Time(sec=tenths // 10, nanosec=tenths % 10 * 10**8), frame_id='camera')


def picture(disc: bool = True) -> np.ndarray:
    image = np.full((HEIGHT, WIDTH, 3), 80, np.uint8)
    return cv2.circle(image, (64, 44), 24, (230, 60, 40), -1) if disc else image


def send(stream: Stream, *prompts: Prompt) -> None:
    for prompt in prompts:
        assert stream.mailbox.put_prompt(PromptRequest(prompt, time.monotonic()))


def work(stream: Stream):
    stream.take()
    return stream.work()


def show(stream: Stream, tenths: int, *prompts: Prompt, disc: bool = True):
    send(stream, *prompts)
    stream.put_image(from_pixels(picture(disc), 'rgb8', header(tenths)))
    return work(stream)


def late(tenths: int, **fields) -> Prompt:
    return Prompt(header=header(tenths), id=1, box=DISC, **fields)


def ids(frame) -> list[int]:
    return [item.id for item in frame.objects]


@pytest.mark.parametrize('begun', [False, True])
def test_an_object_that_is_being_corrected_is_not_forgotten_meanwhile(make, begun):
    stream = make(forget_after=0.45)
    show(stream, 100, Prompt(id=1, box=DISC, label='disc'))
    for tenths in range(101, 105):
        show(stream, tenths, disc=False)
    send(stream, late(101, action=Prompt.REFINE))
    assert work(stream) == (None, [])
    answers = stream.work_aside() if begun else []
    frame, _ = show(stream, 105, disc=False)
    assert ids(frame) == [1]
    while stream.has_work_aside():
        answers += stream.work_aside()
    assert [(answer.accepted, answer.id) for answer in answers] == [(True, 1)]
    frame, _ = show(stream, 106)
    assert [(item.id, item.label) for item in frame.objects] == [(1, 'disc')]


def test_an_image_on_the_way_that_cannot_be_used_is_passed_over(make):
    stream = make()
    show(stream, 100)
    stream.put_image(Image(header=header(101), encoding='rgb8', height=3, width=3, step=9, data=bytes(5)))
    work(stream)
    show(stream, 102)
    send(stream, late(100, label='disc'))
    work(stream)
    (answer,) = stream.work_aside()
    assert answer.accepted
    while stream.has_work_aside():
        stream.work_aside()
    assert ids(show(stream, 103)[0]) == [1]


def test_an_object_that_was_accepted_is_not_lost_when_the_model_fails_on_its_way(make, monkeypatch):
    stream = make()
    for tenths in range(100, 104):
        show(stream, tenths)
    send(stream, late(100))
    work(stream)
    assert stream.work_aside()[0].accepted
    with monkeypatch.context() as patch:
        patch.setattr(StreamTracker, 'step', failing)
        while stream.has_work_aside():
            stream.work_aside()
    assert ids(show(stream, 104)[0]) == [1]


def failing(*_, **__):
    raise RuntimeError('out of memory')


@pytest.mark.parametrize('action', [Prompt.SET, Prompt.REFINE])
def test_stamps_that_jump_back_take_back_what_has_not_begun_when_objects_are_forgotten(make, action):
    stream = make(on_time_jump='reset')
    show(stream, 100, Prompt(id=1, box=DISC))
    show(stream, 101)
    send(stream, late(100, action=action))
    assert work(stream) == (None, [])
    frame, answers = show(stream, 10)
    assert [(answer.accepted, answer.reason) for answer in answers] == [
        (False, 'image stamps jumped back before it was applied, and objects are forgotten then (on_time_jump)')]
    assert frame.objects == [] and not stream.has_work_aside()
    assert show(stream, 11)[0].objects == []


@pytest.mark.parametrize('prompts', [
    [late(100, label='cup'), late(100, action=Prompt.REFINE)], [late(100, action=Prompt.REFINE)]])
def test_the_answer_to_a_late_correction_has_the_label_of_the_object(make, prompts):
    stream = make()
    show(stream, 100, Prompt(id=1, box=DISC, label='cup'))
    show(stream, 101)
    if len(prompts) == 2:
        prompts[1].box = RegionOfInterest()
        prompts[1].points = [ImagePoint(x=64.0, y=44.0, label=1)]
    send(stream, *prompts)
    work(stream)
    assert [answer.item.label for answer in stream.work_aside()] == ['cup'] * len(prompts)


def test_a_failure_after_the_model_has_written_its_memory_leaves_no_object_without_a_name(make, monkeypatch):
    stream = make()
    show(stream, 100, Prompt(id=1, box=DISC))
    with monkeypatch.context() as patch:
        patch.setattr(sam2_core.tracker, '_results', failing)
        frame, (answer,) = show(stream, 101, Prompt(id=2, box=DISC))
        assert frame is None and 'out of memory' in answer.reason
    frame, _ = show(stream, 102)
    assert ids(frame) == [1]
    frame, (answer,) = show(stream, 103, Prompt(id=2, box=DISC))
    assert answer.accepted and [(event.id, event.kind) for event in frame.events] == [(2, InstanceEvent.ADDED)]
