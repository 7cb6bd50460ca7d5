"""One camera's objects from image to image: the real tracker with the packaged nano model."""
import numpy as np
import pytest
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import Header

from sam2_core import StreamTracker
from sam2_ros.messages.conversions import from_pixels, to_nanoseconds
from sam2_ros.msg import ImagePoint, Instance, Prompt
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.catch_up import CatchUp
from sam2_ros.runtime.parameters import Parameters
from testing import pipelines
from testing.camera_images import RED, header, picture
from testing.pipelines import send, work

TOPIC = '/camera/image_raw'


HEIGHT, WIDTH = 120, 160
DISC = RegionOfInterest(x_offset=50, y_offset=30, width=60, height=60)
SHOWN, EMPTY = picture(HEIGHT, WIDTH, (80, 60, 30, RED)), picture(HEIGHT, WIDTH)


def show(pipeline: CameraPipeline, seconds: float, *prompts: Prompt, disc: bool = True):
    """Let an image arrive with this stamp; return the frame and the answers."""
    return pipelines.show(pipeline, SHOWN if disc else EMPTY, header(seconds), *prompts)




def test_a_prompt_gives_an_instance_in_the_very_image(make):
    frame, answers = show(make(), 10, Prompt(id=3, box=DISC, label='disc'))
    assert [(a.accepted, a.id, a.header) for a in answers] == [(True, 3, header(10))]
    (item,) = frame.objects
    assert (item.id, item.label, item.state, item.last_seen) == (3, 'disc', Instance.TRACKED, Time(sec=10))
    truth = (SHOWN != 80).any(-1)
    assert (item.mask & truth).sum() / (item.mask | truth).sum() > 0.7
    assert frame.header == header(10) and frame.dropped == 0


def test_late_prompts_and_queries_see_a_thermal_image_as_it_was_shown_live(make, monkeypatch):
    """The room becomes warmer, and the range of the images with it."""
    pipeline = make()
    shown = []
    for number in range(15):
        values = 20_000 + 4 * SHOWN.sum(-1, dtype=np.uint16) + np.uint16(20 * number)
        pipeline.put_image(from_pixels(values, 'mono16', header(10 + number / 10)))
        shown.append(work(pipeline)[0].image)
    assert len({image.tobytes() for image in shown}) > 5
    begun = []
    begin = CatchUp.begin
    monkeypatch.setattr(CatchUp, 'begin', lambda self, *rest: begun.append(self.image) or begin(self, *rest))
    for number in (1, 7, 13):
        send(pipeline, Prompt(header=header(10 + number / 10), id=number, box=DISC))
        work(pipeline)
        pipelines.work_aside(pipeline)
        np.testing.assert_array_equal(begun[-1], shown[number])
        np.testing.assert_array_equal(pipeline.history.at(to_nanoseconds(header(10 + number / 10).stamp)).rgb(),
                                      shown[number])


def test_a_bad_prompt_costs_neither_its_batch_nor_the_objects(make):
    pipeline = make()
    show(pipeline, 10, Prompt(id=1, box=DISC, label='kept'))
    frame, answers = show(pipeline, 11, Prompt(id=1), Prompt(id=2, box=DISC),
                          Prompt(id=9, action=Prompt.REFINE, points=[ImagePoint(x=1.0, y=1.0)]))
    assert [answer.accepted for answer in answers] == [False, True, False]
    assert [(item.id, item.label) for item in frame.objects] == [(1, 'kept'), (2, '')]


def test_prompts_that_cannot_work_are_refused_and_the_image_goes_on(make):
    pipeline = make()
    show(pipeline, 10, Prompt(id=1, box=DISC, label='kept'))
    speck = np.zeros((HEIGHT, WIDTH), np.uint8)
    speck[60, 70] = 255
    small = from_pixels(speck, 'mono8', Header())
    off = [ImagePoint(x=5.0, y=5.0, label=ImagePoint.BACKGROUND)]
    frame, answers = show(pipeline, 11, Prompt(id=2, mask=small), Prompt(id=3, points=off), Prompt(id=1, points=off),
                          Prompt(id=1, action=Prompt.REFINE, mask=small), Prompt(id=4, box=DISC),
                          Prompt(id=4, action=Prompt.REFINE, points=off))
    assert [answer.accepted for answer in answers] == [False] * 4 + [True] * 2
    assert 'too small for a model that sees the image of 160 x 120 as 256 x 256' in answers[0].reason
    assert 'a new object cannot start from points off the object alone' in answers[1].reason
    assert [(item.id, item.label) for item in frame.objects] == [(1, 'kept'), (4, '')]


def test_states_follow_the_stamps_of_the_images(make):
    pipeline = make(lost_after=1.5)
    show(pipeline, 10, Prompt(id=1, box=DISC))
    seen = {}
    for seconds in (10.5, 11.0, 11.5, 12.0, 12.5):
        item = show(pipeline, seconds, disc=False)[0].objects[0]
        assert item.box is None and item.mask is None and item.score == 0
        assert item.last_seen == Time(sec=10)
        assert item.visibility < 0.5
        seen[seconds] = item.state
    assert seen == {10.5: Instance.OCCLUDED, 11.0: Instance.OCCLUDED, 11.5: Instance.OCCLUDED, 12.0: Instance.LOST,
                    12.5: Instance.LOST}


@pytest.mark.parametrize(('policy', 'known'), [('keep', [1]), ('reset', [])])
def test_a_bag_that_starts_again(make, policy, known):
    pipeline = make(on_time_jump=policy, lost_after=1.5)
    show(pipeline, 100, Prompt(id=1, box=DISC))
    show(pipeline, 101, disc=False)
    assert show(pipeline, 50, disc=False)[0] is None, 'may be a single odd stamp'
    frame, _ = show(pipeline, 50.1, disc=False)
    assert [item.id for item in frame.objects] == known
    assert all(item.state == Instance.OCCLUDED for item in frame.objects)
    show(pipeline, 51, disc=False)
    frame, _ = show(pipeline, 52, disc=False)
    assert all(item.state == Instance.LOST for item in frame.objects), 'counted from the jump on'


def test_images_slightly_out_of_order_are_no_jump(make):
    pipeline = make(on_time_jump='reset')
    show(pipeline, 100, Prompt(id=1, box=DISC))
    assert show(pipeline, 99.5)[0].objects


def test_labels_and_ids_last_until_removed(make):
    pipeline = make()
    show(pipeline, 10, Prompt(box=DISC, label='a'), Prompt(box=DISC, label='b'))
    frame, _ = show(pipeline, 11, Prompt(id=1, action=Prompt.REMOVE))
    assert [(item.id, item.label) for item in frame.objects] == [(2, 'b')]
    frame, answers = show(pipeline, 12, Prompt(box=DISC, label='c'))
    assert answers[0].id == 3
    assert sorted((item.id, item.label) for item in frame.objects) == [(2, 'b'), (3, 'c')]
    frame, _ = show(pipeline, 13, Prompt(action=Prompt.CLEAR))
    assert frame.objects == []


def test_a_restarted_object_forgets(make, model):
    tracker = StreamTracker(model)
    pipeline = make(tracker)
    show(pipeline, 10, Prompt(id=1, box=DISC))
    for seconds in range(11, 14):
        show(pipeline, seconds)
    again, _ = show(pipeline, 14, Prompt(id=1, box=DISC))
    fresh, _ = show(make(), 14, Prompt(id=1, box=DISC))
    np.testing.assert_array_equal(again.objects[0].mask, fresh.objects[0].mask)


def test_prompts_wait_for_an_image(make):
    pipeline = make()
    send(pipeline, Prompt(id=1, box=DISC))
    assert work(pipeline) == (None, [])
    assert pipeline.seconds_to_deadline() > 0
    frame, answers = show(pipeline, 10)
    assert answers[0].accepted and [item.id for item in frame.objects] == [1]
    assert pipeline.seconds_to_deadline() is None


def test_but_not_for_ever(make):
    pipeline = make(prompt_timeout=600.0)
    send(pipeline, Prompt(id=1, box=DISC), age=600.1)
    send(pipeline, Prompt(id=2, box=DISC), age=500.0)
    assert pipeline.seconds_to_deadline() == 0
    frame, answers = work(pipeline)
    assert frame is None
    assert [(a.id, a.accepted) for a in answers] == [(1, False)]
    assert answers[0].reason == f'no image on {TOPIC} for 600 s: is the camera running?'
    assert 0 < pipeline.seconds_to_deadline() <= 100


def test_remove_and_clear_need_no_image(make):
    pipeline = make()
    show(pipeline, 10, Prompt(id=1, box=DISC), Prompt(id=2, box=DISC), Prompt(id=3, box=DISC))
    send(pipeline, Prompt(id=1, action=Prompt.REMOVE))
    send(pipeline, Prompt(id=8, action=Prompt.REMOVE))
    _, answers = work(pipeline)
    assert [(a.id, a.reason, a.header) for a in answers] == [
        (1, '', header(10)), (8, 'id 8 is not known (known: 2, 3)', Header())]
    send(pipeline, Prompt(action=Prompt.CLEAR))
    work(pipeline)
    assert show(pipeline, 11)[0].objects == []


@pytest.mark.parametrize(('message', 'taken_back'), [
    (Prompt(id=1, action=Prompt.REMOVE), [1]), (Prompt(action=Prompt.CLEAR), [1, 2, 0]),
    (Prompt(id=0, action=Prompt.REMOVE), [])])
def test_they_take_back_what_waits_for_one(make, message, taken_back):
    pipeline = make()
    for waiting in (Prompt(id=1, box=DISC), Prompt(id=2, box=DISC), Prompt(box=DISC), message):
        send(pipeline, waiting)
    _, answers = work(pipeline)
    assert [a.id for a in answers if a.reason == 'taken back before an image arrived'] == taken_back
    assert answers[-1].accepted == bool(taken_back)
    frame, _ = show(pipeline, 10)
    assert len(frame.objects) == 3 - len(taken_back)


def test_an_unusable_image_is_counted_and_prompts_wait_for_the_next(make):
    pipeline = make()
    send(pipeline, Prompt(id=1, box=DISC))
    pipeline.put_image(Image(height=4, width=4, step=1, encoding='rgb8'))
    assert work(pipeline) == (None, [])
    frame, answers = show(pipeline, 10)
    assert answers[0].accepted and frame.dropped == 1


def out_of_memory(*_):
    raise RuntimeError('out of memory')


def test_when_the_model_fails_whoever_waits_is_told_and_the_rest_goes_on(make, monkeypatch):
    pipeline = make()
    show(pipeline, 10, Prompt(id=1, box=DISC))
    with monkeypatch.context() as patch:
        patch.setattr(StreamTracker, 'step', out_of_memory)
        frame, answers = show(pipeline, 11, Prompt(id=2, box=DISC), Prompt(id=1, action=Prompt.REFINE),
                              Prompt(id=3, box=DISC), Prompt(id=3, action=Prompt.REMOVE))
    assert frame is None
    assert [answer.accepted for answer in answers] == [False, False, False, True]
    assert answers[0].reason == 'the model failed on this image: RuntimeError: out of memory'
    frame, answers = show(pipeline, 12, Prompt(id=2, box=DISC))
    assert answers[0].accepted and [item.id for item in frame.objects] == [1, 2]
    assert frame.dropped == 1


def test_max_objects_and_other_limits_can_change_at_any_time(make):
    pipeline = make(max_objects=1)
    _, answers = show(pipeline, 10, Prompt(id=1, box=DISC), Prompt(id=2, box=DISC))
    assert [answer.accepted for answer in answers] == [True, False]
    pipeline.parameters = Parameters(max_objects=2)
    _, answers = show(pipeline, 11, Prompt(id=2, box=DISC))
    assert answers[0].accepted


def test_drain_refuses_what_waits_and_throws_old_images_away(make):
    pipeline = make()
    send(pipeline, Prompt(id=1, box=DISC))
    pipeline.put_image(from_pixels(SHOWN, 'rgb8', header(10)))
    answers = pipeline.drain('closed')
    assert [(a.id, a.reason) for a in answers] == [(1, 'closed')]
    assert work(pipeline) == (None, [])
