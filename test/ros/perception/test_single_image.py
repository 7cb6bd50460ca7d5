"""Queries to a pipeline with the packaged nano model."""

import numpy as np
import pytest
from sensor_msgs.msg import Image, RegionOfInterest

from sam2_core import ImageSegmenter
from sam2_core import Prompt as CorePrompt
from sam2_core.automatic_masks import Filters
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import ImagePoint, Instance, Prompt
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.single_image import MAX_QUERIES, SegmentAllQuery, SegmentImageQuery
from sam2_ros.srv import SegmentAll, SegmentImage
from testing import pipelines
from testing.camera_images import BLUE, RED, header, picture
from testing.in_process import image as in_process_image
from testing.in_process import in_process, set_box
from testing.pipelines import send, work_aside

HEIGHT, WIDTH = 240, 320
BOX = RegionOfInterest(x_offset=60, y_offset=60, width=80, height=80)
DISCS = (100, 100, 40, RED), (220, 140, 30, BLUE)
SHOWN = picture(HEIGHT, WIDTH, *DISCS)
MASK = np.zeros((HEIGHT, WIDTH), np.uint8)
MASK[90:120, 100:130] = 255


def show(pipeline: CameraPipeline, seconds: int, image: np.ndarray = SHOWN):
    return pipelines.show(pipeline, image, header(seconds))




def ask(pipeline: CameraPipeline, call_type, request, *rest):
    """Return the reply after all slices, or None."""
    replies = []
    call = call_type(request, replies.append, *rest)
    assert pipeline.inbox.put_query(call)
    pipeline.take()
    pipeline.work()
    work_aside(pipeline)
    return replies[0] if replies else None


def query(*prompts: Prompt, **fields) -> SegmentImage.Request:
    return SegmentImage.Request(prompts=list(prompts), **fields)


def test_prompts_on_the_newest_image_are_answered_as_the_segmenter_does(make, model):
    pipeline = make()
    show(pipeline, 10)
    found = ask(pipeline, SegmentImageQuery, query(Prompt(box=BOX, label='disc'), Prompt(
        id=7, points=[ImagePoint(x=220.0, y=140.0)])))
    assert found.image.header == header(10)
    assert [(item.id, item.label, item.state) for item in found.objects] == [
        (1, 'disc', Instance.TRACKED), (7, '', Instance.TRACKED)]
    segmenter = ImageSegmenter(model)
    expected = segmenter.segment(segmenter.encode(SHOWN), CorePrompt(box=(60, 60, 140, 140)))
    np.testing.assert_array_equal(found.objects[0].mask, expected.masks[0])
    assert 0 <= found.objects[0].visibility <= 1


def test_tracking_is_not_disturbed(make):
    asked, alone = make(), make()
    for pipeline in (asked, alone):
        send(pipeline, Prompt(id=1, box=BOX))
        show(pipeline, 10)
    for seconds in range(11, 15):
        assert ask(asked, SegmentImageQuery, query(Prompt(box=BOX))).objects
        assert ask(asked, SegmentAllQuery, SegmentAll.Request(points_per_side=3), 5.0).complete
        one, other = show(asked, seconds)[0], show(alone, seconds)[0]
        assert [item.id for item in one.objects] == [1]
        np.testing.assert_array_equal(one.objects[0].mask, other.objects[0].mask)


def test_the_encoder_pass_of_the_tracker_serves_the_query_too(make, model, monkeypatch):
    pipeline = make()
    send(pipeline, Prompt(id=1, box=BOX))
    show(pipeline, 10)
    encoded = []
    original = type(model).encode_image
    monkeypatch.setattr(type(model), 'encode_image', lambda *a: encoded.append(1) or original(*a))
    assert ask(pipeline, SegmentImageQuery, query(Prompt(box=BOX))).objects
    assert ask(pipeline, SegmentAllQuery, SegmentAll.Request(points_per_side=2), 5.0)
    assert not encoded


def test_three_masks_for_an_ambiguous_prompt_best_first(make):
    pipeline = make()
    show(pipeline, 10)
    found = ask(pipeline, SegmentImageQuery, query(Prompt(points=[ImagePoint(x=100.0, y=100.0)]), multimask=True))
    assert [item.id for item in found.objects] == [1, 1, 1]
    scores = [item.score for item in found.objects if item.box is not None]
    assert scores == sorted(scores, reverse=True) and len(scores) >= 1


def test_an_image_of_the_past_is_found_by_the_stamp_of_the_first_prompt(make):
    pipeline = make()
    show(pipeline, 10, picture(HEIGHT, WIDTH, *DISCS, background=30))
    show(pipeline, 11)
    found = ask(pipeline, SegmentImageQuery, query(Prompt(header=header(10), box=BOX)))
    assert found.image.header == header(10)
    np.testing.assert_array_equal(found.image.image, picture(HEIGHT, WIDTH, *DISCS, background=30))


def test_an_image_may_come_with_the_query_even_when_there_is_no_camera(make):
    given = from_pixels(picture(HEIGHT, WIDTH, *DISCS, background=30), 'rgb8', header(3))
    found = ask(make(), SegmentImageQuery, query(Prompt(box=BOX), image=given))
    assert found.image.header == header(3) and len(found.objects) == 1
    found = ask(make(), SegmentAllQuery, SegmentAll.Request(image=given, points_per_side=2), 5.0)
    assert found.image.header == header(3)


def test_without_an_image_a_query_waits_and_is_then_answered(make):
    pipeline, replies = make(), []
    pipeline.inbox.put_query(SegmentImageQuery(query(Prompt(box=BOX)), replies.append))
    pipeline.take()
    pipeline.work()
    assert pipeline.seconds_to_deadline() > 0 and not pipeline.has_work_aside()
    show(pipeline, 10)
    work_aside(pipeline)
    assert len(replies) == 1 and replies[0].objects
    assert pipeline.seconds_to_deadline() is None


def test_but_not_for_ever(make):
    pipeline, replies = make(prompt_timeout=3.0), []
    call = SegmentImageQuery(query(Prompt(box=BOX)), replies.append)
    call.received -= 3.1
    pipeline.inbox.put_query(call)
    pipeline.take()
    pipeline.work()
    assert replies == ['no image on /camera/image_raw for 3 s: is the camera running?']


@pytest.mark.parametrize(('request_', 'reason'), [
    (query(), 'no prompts: give at least one'),
    (query(Prompt(box=BOX), Prompt()), 'prompt 2: prompt without content: give points, a box or a mask'),
    (query(Prompt(box=BOX), Prompt(mask=from_pixels(MASK, 'mono8', header(0)))), 'prompt 2: mask without points or a '
     'box: nano was not trained to segment by a mask alone; prompt with its box, (100, 90, 130, 120), or'),
    (query(*[Prompt(box=BOX)] * 257), '257 prompts: ask at most 256 at a time'),
    (query(Prompt(header=header(5), box=BOX)), 'prompt 1: its image is 5.00 s older than the newest'),
    (query(Prompt(box=BOX), image=Image(width=4, height=4, encoding='bayer')), "image: encoding 'bayer'"),
    (SegmentAll.Request(points_per_side=200), 'points_per_side 200: must be at most 128'),
    (SegmentAll.Request(min_score=1.5), 'min_score 1.5: must lie between 0 and 1'),
    (SegmentAll.Request(time_limit=-1.0), 'time_limit -1: must be positive'),
    (SegmentAll.Request(time_limit=float('nan')), 'time_limit nan: must be positive')])
def test_what_cannot_be_answered_is_refused_by_name(make, request_, reason):
    pipeline = make()
    show(pipeline, 10)
    call = (SegmentImageQuery,) if isinstance(request_, SegmentImage.Request) else (SegmentAllQuery,)
    answer = ask(pipeline, call[0], request_, *([5.0] if call[0] is SegmentAllQuery else []))
    assert isinstance(answer, str) and answer.startswith(reason)


def test_everything_is_what_the_core_finds(make, model):
    pipeline = make()
    show(pipeline, 10)
    found = ask(pipeline, SegmentAllQuery, SegmentAll.Request(points_per_side=8, min_score=0.5, min_stability=0.5),
                60.0)
    expected = ImageSegmenter(model).segment_all(SHOWN, 8, Filters(min_iou=0.5, min_stability=0.5))
    assert found.complete and len(found.objects) == len(expected) > 0
    assert [item.id for item in found.objects] == list(range(1, len(expected) + 1))
    for item, other in zip(found.objects, expected, strict=True):
        np.testing.assert_array_equal(item.mask, other.mask)
    few = ask(pipeline, SegmentAllQuery, SegmentAll.Request(points_per_side=8, min_score=0.5, min_stability=0.5,
                                                         max_masks=1), 60.0)
    assert len(few.objects) == 1
    np.testing.assert_array_equal(few.objects[0].mask, expected[0].mask)


def test_time_that_runs_out_gives_what_there_is_and_says_so(make):
    pipeline = make()
    show(pipeline, 10)
    found = ask(pipeline, SegmentAllQuery, SegmentAll.Request(points_per_side=32, time_limit=1e-3), 60.0)
    assert not found.complete


def test_the_work_is_cut_into_slices_so_that_images_come_between(make):
    pipeline, replies = make(), []
    show(pipeline, 10)
    pipeline.inbox.put_query(SegmentAllQuery(SegmentAll.Request(points_per_side=8), replies.append, 60.0))
    pipeline.inbox.put_query(SegmentImageQuery(query(*[Prompt(box=BOX)] * 9), replies.append))
    slices = 0
    for seconds in range(11, 40):
        assert show(pipeline, seconds)[0] is not None
        if pipeline.has_work_aside():
            pipeline.work_aside()
            slices += 1
    assert slices == 4 + 3
    assert [type(reply).__name__ for reply in replies] == ['QueryResult', 'QueryResult']
    assert len(replies[0].objects) == 9, 'the short query does not wait for the long one'


def test_a_stop_answers_everyone(make):
    pipeline, replies = make(), []
    pipeline.inbox.put_query(SegmentImageQuery(query(Prompt(box=BOX)), replies.append))
    pipeline.drain('stopped')
    assert replies == ['stopped']
    show(pipeline, 10)
    pipeline.inbox.put_query(SegmentAllQuery(SegmentAll.Request(), replies.append, 60.0))
    pipeline.take()
    pipeline.work()
    pipeline.work_aside()
    pipeline.drain('stopped too')
    assert replies == ['stopped', 'stopped too'] and not pipeline.has_work_aside()


def test_when_the_model_fails_whoever_asked_is_told(make, model, monkeypatch):
    pipeline, replies = make(), []
    show(pipeline, 10)
    pipeline.inbox.put_query(SegmentImageQuery(query(Prompt(box=BOX)), replies.append))
    pipeline.work()
    with monkeypatch.context() as patch:
        patch.setattr(ImageSegmenter, 'segment', lambda *_: 1 / 0)
        pipeline.work_aside()
    assert replies == ['the model failed on this image: ZeroDivisionError: division by zero']
    assert not pipeline.has_work_aside()


def test_queries_that_are_worked_on_count_among_those_that_wait(make):
    pipeline, replies = make(), []
    show(pipeline, 10)
    for _ in range(MAX_QUERIES + 2):
        assert pipeline.inbox.put_query(SegmentImageQuery(query(Prompt(box=BOX)), replies.append))
        pipeline.work()
    assert replies == ['10 queries are waiting already: send them more slowly'] * 2
    work_aside(pipeline)
    assert len(replies) == MAX_QUERIES + 2
    assert ask(pipeline, SegmentImageQuery, query(Prompt(box=BOX))).objects, 'there is room again'


@pytest.mark.parametrize('age', [1, 5, 18])
def test_a_past_image_has_its_depth_as_long_as_it_is_kept(age):
    """Depth of the last second is still in the mailbox, older depth in the history."""
    with in_process(threaded=False) as robot:
        stamps = []
        for _ in range(20):
            stamps.append(robot.show())
            robot.serve()
        task = robot.ask('/segment_image', SegmentImage.Request(prompts=[set_box(stamps[-1 - age], id=3)]))
        robot.wait_for(lambda: robot.serve() or task.done())
        (found,) = task.result().result.instances
        assert found.has_depth and found.box_center.position.z == pytest.approx(1.0, abs=0.05)
        assert task.result().result.header.stamp.nanosec == stamps[-1 - age] % 10**9


def test_an_image_that_comes_with_the_query_has_no_depth_of_the_camera():
    with in_process(threaded=False) as robot:
        for _ in range(3):
            robot.show()
            robot.serve()
        own = in_process_image(robot.now)
        task = robot.ask('/segment_image', SegmentImage.Request(prompts=[set_box()], image=own))
        robot.wait_for(lambda: robot.serve() or task.done())
        assert not task.result().result.instances[0].has_depth
