"""A failure in one place costs a camera neither its objects nor an answer: real tracker, nano model."""

import numpy as np
import pytest
from sensor_msgs.msg import Image, RegionOfInterest

import sam2_core.tracker
from sam2_core import StreamTracker
from sam2_ros.msg import ImagePoint, InstanceEvent, Prompt
from sam2_ros.perception.camera_pipeline import CameraPipeline
from testing import pipelines
from testing.camera_images import RED, header, picture
from testing.pipelines import send, work

HEIGHT, WIDTH = 96, 128
DISC = RegionOfInterest(x_offset=40, y_offset=20, width=50, height=50)
SHOWN, EMPTY = picture(HEIGHT, WIDTH, (64, 44, 24, RED)), picture(HEIGHT, WIDTH)


def show(pipeline: CameraPipeline, tenths: int, *prompts: Prompt, disc: bool = True):
    """Let an image arrive with a stamp in tenths of a second; return the frame and the answers."""
    return pipelines.show(pipeline, SHOWN if disc else EMPTY, header(tenths / 10), *prompts)




def late(tenths: int, **fields) -> Prompt:
    return Prompt(header=header(tenths / 10), id=1, box=DISC, **fields)


def ids(frame) -> list[int]:
    return [item.id for item in frame.objects]


@pytest.mark.parametrize('begun', [False, True])
def test_an_object_that_is_being_corrected_is_not_forgotten_meanwhile(make, begun):
    pipeline = make(forget_after=0.45)
    show(pipeline, 100, Prompt(id=1, box=DISC, label='disc'))
    for tenths in range(101, 105):
        show(pipeline, tenths, disc=False)
    send(pipeline, late(101, action=Prompt.REFINE))
    assert work(pipeline) == (None, [])
    answers = pipeline.work_aside() if begun else []
    frame, _ = show(pipeline, 105, disc=False)
    assert ids(frame) == [1]
    while pipeline.has_work_aside():
        answers += pipeline.work_aside()
    assert [(answer.accepted, answer.id) for answer in answers] == [(True, 1)]
    frame, _ = show(pipeline, 106)
    assert [(item.id, item.label) for item in frame.objects] == [(1, 'disc')]


def test_an_image_on_the_way_that_cannot_be_used_is_passed_over(make):
    pipeline = make()
    show(pipeline, 100)
    pipeline.put_image(Image(header=header(10.1), encoding='rgb8', height=3, width=3, step=9, data=bytes(5)))
    work(pipeline)
    show(pipeline, 102)
    send(pipeline, late(100, label='disc'))
    work(pipeline)
    (answer,) = pipeline.work_aside()
    assert answer.accepted
    while pipeline.has_work_aside():
        pipeline.work_aside()
    assert ids(show(pipeline, 103)[0]) == [1]


def test_an_object_that_was_accepted_is_not_lost_when_the_model_fails_on_its_way(make, monkeypatch):
    pipeline = make()
    for tenths in range(100, 104):
        show(pipeline, tenths)
    send(pipeline, late(100))
    work(pipeline)
    assert pipeline.work_aside()[0].accepted
    with monkeypatch.context() as patch:
        patch.setattr(StreamTracker, 'step', failing)
        while pipeline.has_work_aside():
            pipeline.work_aside()
    assert ids(show(pipeline, 104)[0]) == [1]


def failing(*_, **__):
    raise RuntimeError('out of memory')


@pytest.mark.parametrize('action', [Prompt.SET, Prompt.REFINE])
def test_stamps_that_jump_back_take_back_what_has_not_begun_when_objects_are_forgotten(make, action):
    pipeline = make(on_time_jump='reset')
    show(pipeline, 100, Prompt(id=1, box=DISC))
    show(pipeline, 101)
    send(pipeline, late(100, action=action))
    assert work(pipeline) == (None, [])
    assert show(pipeline, 10) == (None, []), 'may be a single odd stamp'
    frame, answers = show(pipeline, 11)
    assert [(answer.accepted, answer.reason) for answer in answers] == [
        (False, 'image stamps jumped back before it was applied, and objects are forgotten then (on_time_jump)')]
    assert frame.objects == [] and not pipeline.has_work_aside()
    assert show(pipeline, 12)[0].objects == []


@pytest.mark.parametrize('prompts', [
    [late(100, label='cup'), late(100, action=Prompt.REFINE)], [late(100, action=Prompt.REFINE)]])
def test_the_answer_to_a_late_correction_has_the_label_of_the_object(make, prompts):
    pipeline = make()
    show(pipeline, 100, Prompt(id=1, box=DISC, label='cup'))
    show(pipeline, 101)
    if len(prompts) == 2:
        prompts[1].box = RegionOfInterest()
        prompts[1].points = [ImagePoint(x=64.0, y=44.0, label=1)]
    send(pipeline, *prompts)
    work(pipeline)
    assert [answer.item.label for answer in pipeline.work_aside()] == ['cup'] * len(prompts)


def test_a_failure_after_the_model_has_written_its_memory_leaves_no_object_without_a_name(make, monkeypatch):
    pipeline = make()
    show(pipeline, 100, Prompt(id=1, box=DISC))
    with monkeypatch.context() as patch:
        patch.setattr(sam2_core.tracker, '_results', failing)
        frame, (answer,) = show(pipeline, 101, Prompt(id=2, box=DISC))
        assert frame is None and 'out of memory' in answer.reason
    frame, _ = show(pipeline, 102)
    assert ids(frame) == [1]
    frame, (answer,) = show(pipeline, 103, Prompt(id=2, box=DISC))
    assert answer.accepted and [(event.id, event.kind) for event in frame.events] == [(2, InstanceEvent.ADDED)]


def fail(*_, **__):
    raise RuntimeError('out of memory')


@pytest.mark.parametrize('where', ['_track', '_remember'])
def test_a_new_start_that_the_model_fails_at_leaves_the_object_as_it_was(make, monkeypatch, where):
    pipeline = make()
    show(pipeline, 100, Prompt(id=1, box=DISC, label='kept'), Prompt(id=2, box=DISC))
    with monkeypatch.context() as patch:
        patch.setattr(StreamTracker, where, fail)
        frame, answers = show(pipeline, 101, Prompt(id=1, box=DISC, label='new'), Prompt(id=2, action=Prompt.REMOVE))
    assert frame is None and [answer.accepted for answer in answers] == [False, True]
    frame, _ = show(pipeline, 102)
    assert [(item.id, item.label) for item in frame.objects] == [(1, 'kept')]
    assert [(event.id, event.kind) for event in frame.events] == [(2, InstanceEvent.REMOVED)]


def test_a_late_new_start_takes_the_place_of_the_object_when_it_arrives(make):
    pipeline = make(catch_up_images=2)
    show(pipeline, 100, Prompt(id=1, box=DISC, label='old'))
    for tenths in range(101, 106):
        show(pipeline, tenths)
    frame, _ = show(pipeline, 106, late(102, label='new'))
    labels = []
    for tenths in range(107, 112):
        labels += [(item.id, item.label) for item in frame.objects]
        pipeline.work_aside()
        frame, _ = show(pipeline, tenths)
        if frame.events:
            break
    assert labels and set(labels) == {(1, 'old')}, 'never missing on the way'
    assert [(item.id, item.label) for item in frame.objects] == [(1, 'new')]
    assert [event.kind for event in frame.events] == [InstanceEvent.REMOVED, InstanceEvent.ADDED]


def test_a_late_new_start_that_the_model_fails_at_leaves_the_object_as_it_was(make, monkeypatch):
    pipeline = make()
    for tenths in range(100, 106):
        show(pipeline, tenths, *([Prompt(id=1, box=DISC, label='kept')] if tenths == 100 else []))
    send(pipeline, late(102, label='new'))
    work(pipeline)
    with monkeypatch.context() as patch:
        patch.setattr(StreamTracker, 'step', fail)
        (answer,) = pipeline.work_aside()
    assert not answer.accepted
    frame, _ = show(pipeline, 106)
    assert [(item.id, item.label) for item in frame.objects] == [(1, 'kept')] and not frame.events


def test_a_correction_after_a_late_new_start_on_the_same_image_belongs_to_the_new_one(make):
    pipeline = make(catch_up_images=0)
    for tenths in range(100, 104):
        show(pipeline, tenths, *([Prompt(id=1, box=DISC, label='old')] if tenths == 100 else []))
    click = [ImagePoint(x=64.0, y=44.0, label=ImagePoint.FOREGROUND)]
    send(pipeline, late(102, label='new'), Prompt(header=header(10.2), id=1, action=Prompt.REFINE, points=click))
    work(pipeline)
    assert [answer.accepted for answer in pipeline.work_aside()] == [True, True]
    (item,) = show(pipeline, 104)[0].objects
    fresh = make(catch_up_images=0)
    for tenths in range(100, 104):
        show(fresh, tenths)
    send(fresh, late(102, label='new'), Prompt(header=header(10.2), id=1, action=Prompt.REFINE, points=click))
    work(fresh)
    fresh.work_aside()
    np.testing.assert_array_equal(item.mask, show(fresh, 104)[0].objects[0].mask)


def test_whoever_waits_is_told_when_a_decoder_raises_what_nobody_expects(make, monkeypatch):
    pipeline = make()
    for tenths in range(100, 104):
        show(pipeline, tenths)
    monkeypatch.setattr('sam2_ros.perception.image_decoder.to_rgb', fail)
    send(pipeline, late(101))
    _, (answer,) = work(pipeline)
    assert answer.reason == 'its image cannot be used: out of memory'
