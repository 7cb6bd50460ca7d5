"""Late prompts: the real tracker with the packaged nano model, and a disc that moves."""
import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, RegionOfInterest
from std_msgs.msg import Header

from sam2_core import StreamTracker
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import ImagePoint, Instance, InstanceEvent, Prompt
from sam2_ros.perception.camera_pipeline import CameraPipeline
from sam2_ros.perception.late_prompts import MAX_UNDER_WAY
from testing import camera_images, pipelines
from testing.pipelines import send, work, work_aside

HEIGHT, WIDTH, RADIUS, RATE = 240, 320, 32, 10  # RATE: images per second


def centre(number: int, row: int = 0) -> tuple[int, int]:
    return 40 + 10 * number % 240, 60 + 120 * row


def truth(number: int, row: int = 0) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    x, y = centre(number, row)
    return np.hypot(columns - x, rows - y) < RADIUS


def picture(number: int) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    image = np.full((HEIGHT, WIDTH, 3), 80, np.uint8)
    for row, colour, stripe in ((0, (225, 60, 40), (250, 200, 60)), (1, (40, 90, 225), (210, 235, 250))):
        x, y = centre(number, row)
        mask, stripes = truth(number, row), np.sin((columns - x + 0.5 * (rows - y)) * 0.35) > 0.3
        image[mask] = colour
        image[mask & stripes] = stripe
    return cv2.GaussianBlur(image, (3, 3), 0)


def header(number: int) -> Header:
    return camera_images.header(100 + number / RATE)


def box(number: int, row: int = 0) -> RegionOfInterest:
    x, y = centre(number, row)
    return RegionOfInterest(x_offset=x - RADIUS, y_offset=y - RADIUS, width=2 * RADIUS, height=2 * RADIUS)


def drawn_on(number: int, **fields) -> Prompt:
    return Prompt(header=header(number), **fields)


def show(pipeline: CameraPipeline, number: int, *prompts: Prompt):
    return pipelines.show(pipeline, picture(number), header(number), *prompts)


def arrive(pipeline: CameraPipeline, number: int) -> None:
    pipeline.put_image(from_pixels(picture(number), 'rgb8', header(number)))


def iou(item, number: int, row: int = 0) -> float:
    mask = truth(number, row)
    return (item.mask & mask).sum() / (item.mask | mask).sum()


def test_a_late_prompt_is_applied_to_its_image_and_the_object_is_where_it_is_now(make):
    pipeline = make(catch_up_images=20)
    for number in range(11):
        show(pipeline, number)
    frame, answers = show(pipeline, 11, drawn_on(3, id=5, label='disc', box=box(3)))
    assert answers == [] and frame.objects == []
    (answer,) = work_aside(pipeline)
    assert answer.accepted and answer.id == 5 and answer.header == header(3)
    assert iou(answer.item, 3) > 0.7 and answer.item.label == 'disc'
    frame, _ = show(pipeline, 12)
    (item,) = frame.objects
    assert (item.id, item.label, item.state) == (5, 'disc', Instance.TRACKED)
    assert iou(item, 12) > 0.7
    assert [(event.id, event.kind) for event in frame.events] == [(5, InstanceEvent.ADDED)]


def test_a_box_drawn_long_ago_would_miss_the_object_now():
    """Show that the test above proves something: the object has left the place where the box was drawn."""
    rows, columns = np.nonzero(truth(12))
    drawn = box(3)
    assert columns.min() > drawn.x_offset + drawn.width


def test_the_way_to_now_costs_no_more_images_than_allowed_and_they_are_spread(make, model, monkeypatch):
    pipeline = make(catch_up_images=3)
    for number in range(17):
        arrive(pipeline, number)  # skipped images are in the history, too
    work(pipeline)
    seen = []
    original = StreamTracker.step

    def step(self, image, prompts=()):
        seen.append(next(number for number in range(20) if np.array_equal(image, picture(number))))
        return original(self, image, prompts)
    send(pipeline, drawn_on(4, id=1, box=box(4)))
    work(pipeline)
    with monkeypatch.context() as patch:
        patch.setattr(StreamTracker, 'step', step)
        work_aside(pipeline)
    assert seen == [4, 8, 12, 16]
    frame, _ = show(pipeline, 17)
    assert iou(frame.objects[0], 17) > 0.5


def test_a_late_correction_is_remembered_with_the_images_that_it_went_through(make):
    """The live tracker skipped every other image, and the catch-up did not: the steps in memory are still right."""
    pipeline = make(catch_up_images=3)
    for number in range(17):
        send(pipeline, *([Prompt(id=1, box=box(0))] if number == 0 else []))
        arrive(pipeline, number)
        if number % 2 == 0:
            work(pipeline)
    x, y = centre(5)
    send(pipeline, drawn_on(5, id=1, action=Prompt.REFINE, points=[ImagePoint(x=float(x), y=float(y), label=1)]))
    work(pipeline)
    assert work_aside(pipeline)[0].accepted
    show(pipeline, 17)
    assert pipeline.objects.tracker._banks[1].steps == (0, 1, 2, 2, 4, 6, 8, 9), '0, 2, 4; 5, 9, 13, 16; 17'


def test_with_no_image_allowed_it_joins_right_away(make):
    pipeline = make(catch_up_images=0)
    for number in range(3):
        show(pipeline, number)
    send(pipeline, drawn_on(1, id=1, box=box(1)))
    work(pipeline)
    assert len(work_aside(pipeline)) == 1
    assert iou(show(pipeline, 3)[0].objects[0], 3) > 0.7


def test_one_slice_is_one_image_and_the_live_objects_go_on_between(make):
    pipeline = make(catch_up_images=4)
    show(pipeline, 0, Prompt(id=1, box=box(0)))
    for number in range(1, 9):
        show(pipeline, number)
    send(pipeline, drawn_on(2, id=2, box=box(2, 1)))
    joined = None
    for number in range(9, 30):
        frame, _ = show(pipeline, number)
        assert iou(frame.objects[0], number) > 0.6, 'the live object does not suffer'
        if len(frame.objects) == 2:
            joined = number
            break
        assert pipeline.has_work_aside()
        pipeline.work_aside()
    assert joined == 9 + 1 + 4, 'its own image, then four, one for each live image'
    assert iou(frame.objects[1], joined, 1) > 0.6


def test_prompts_drawn_on_one_image_travel_together(make):
    pipeline = make(catch_up_images=2)
    for number in range(8):
        show(pipeline, number)
    send(pipeline, drawn_on(2, id=1, box=box(2)), drawn_on(2, id=2, box=box(2, 1)))
    work(pipeline)
    slices = 0
    while pipeline.has_work_aside():
        pipeline.work_aside()
        slices += 1
    assert slices == 3
    frame, _ = show(pipeline, 8)
    assert [item.id for item in frame.objects] == [1, 2]
    assert iou(frame.objects[0], 8) > 0.6 and iou(frame.objects[1], 8, 1) > 0.6


def test_a_prompt_for_the_newest_image_needs_no_further_one_to_be_answered(make):
    pipeline = make()
    show(pipeline, 0)
    send(pipeline, drawn_on(0, id=1, box=box(0)))
    assert work(pipeline) == (None, [])
    (answer,) = work_aside(pipeline)
    assert answer.accepted and answer.header == header(0) and iou(answer.item, 0) > 0.7


def test_a_prompt_that_overtakes_its_image_waits_for_it(make):
    pipeline = make()
    show(pipeline, 0)
    frame, answers = show(pipeline, 1, drawn_on(2, id=1, box=box(2)))
    assert answers == [] and frame.objects == []
    frame, answers = show(pipeline, 2)
    assert answers[0].accepted and answers[0].header == header(2)
    assert iou(frame.objects[0], 2) > 0.7


def test_but_not_for_ever(make):
    pipeline = make(prompt_timeout=3.0)
    show(pipeline, 0)
    send(pipeline, drawn_on(50, id=1, box=box(5)), age=3.1)
    _, (answer,) = show(pipeline, 1)
    assert answer.reason.startswith('no image with its stamp 105.000 or a later one on /camera/image_raw within 3 s; '
                                    'the newest has 100.100')


def test_the_refusal_of_an_old_stamp_says_how_old_and_what_there_is(make):
    pipeline = make(history_seconds=1.0)
    for number in range(30):
        arrive(pipeline, number)
    _, (answer,) = show(pipeline, 30, drawn_on(5, id=1, box=box(5)))
    assert not answer.accepted
    assert answer.reason.startswith('its image is 2.50 s older than the newest; the history has 10 images and covers '
                                    '0.90 s')
    assert not pipeline.has_work_aside()


def test_a_compressed_image_of_the_past_serves_too(make):
    pipeline = make()
    for number in range(6):
        data = cv2.imencode('.png', cv2.cvtColor(picture(number), cv2.COLOR_RGB2BGR))[1].tobytes()
        pipeline.put_image(CompressedImage(header=header(number), format='png', data=data))
        work(pipeline)
    send(pipeline, drawn_on(2, id=1, box=box(2)))
    work(pipeline)
    (answer,) = work_aside(pipeline)
    assert answer.accepted and iou(answer.item, 2) > 0.7
    assert iou(show(pipeline, 6)[0].objects[0], 6) > 0.7


def test_a_late_correction_comes_to_the_same_as_one_in_time(make):
    start = Prompt(id=1, label='disc', box=box(0))
    x, y = centre(3)
    correction = drawn_on(3, id=1, action=Prompt.REFINE, points=[ImagePoint(x=float(x + 9), y=float(y - 9), label=1)])
    late, in_time, never = make(catch_up_images=20), make(), make()
    for pipeline in (late, in_time, never):
        show(pipeline, 0, start)
    for number in range(1, 7):
        show(late, number)
        show(never, number)
        show(in_time, number, *([correction] if number == 3 else []))
    send(late, correction)
    work(late)
    (answer,) = work_aside(late)
    assert answer.accepted and answer.header == header(3)
    frame, _ = show(late, 7)
    (item,) = frame.objects
    assert (item.id, item.label) == (1, 'disc') and not frame.events, 'it has been the same object all the time'
    np.testing.assert_array_equal(item.mask, show(in_time, 7)[0].objects[0].mask)
    assert (item.mask != show(never, 7)[0].objects[0].mask).any()


@pytest.mark.parametrize('message', [Prompt(id=2, action=Prompt.REMOVE), Prompt(action=Prompt.CLEAR)])
@pytest.mark.parametrize('slices', [0, 1])
def test_an_object_on_its_way_can_be_removed(make, message, slices):
    pipeline = make()
    for number in range(6):
        show(pipeline, number)
    send(pipeline, drawn_on(2, id=2, box=box(2)))
    _, answers = work(pipeline)
    for _ in range(slices):
        answers += pipeline.work_aside()
    send(pipeline, message)
    answers += work(pipeline)[1]
    assert answers[-1].accepted
    assert answers[0].accepted == bool(slices)
    if not slices:
        assert answers[0].reason == 'taken back before it was applied'
    assert not pipeline.has_work_aside()
    assert show(pipeline, 6)[0].objects == []


def test_a_new_start_replaces_the_one_on_its_way(make):
    pipeline = make()
    for number in range(6):
        show(pipeline, number)
    send(pipeline, drawn_on(2, id=2, label='old', box=box(2)))
    work(pipeline)
    pipeline.work_aside()
    frame, answers = show(pipeline, 6, Prompt(id=2, label='new', box=box(6, 1)))
    assert answers[0].accepted
    work_aside(pipeline)
    (item,) = show(pipeline, 7)[0].objects
    assert item.label == 'new' and iou(item, 7, 1) > 0.7


def test_a_correction_of_an_object_on_its_way_waits_for_its_arrival(make):
    pipeline = make(catch_up_images=1)
    for number in range(5):
        show(pipeline, number)
    send(pipeline, drawn_on(2, id=2, box=box(2)))
    work(pipeline)
    _, answers = show(pipeline, 5, Prompt(id=2, action=Prompt.REFINE, label='named', box=box(5)))
    assert answers == []
    work_aside(pipeline)
    frame, answers = show(pipeline, 6)
    assert [answer.accepted for answer in answers] == [True]
    assert frame.objects[0].label == 'named'


def test_an_object_on_its_way_counts_and_its_id_is_taken(make):
    pipeline = make(max_objects=2)
    for number in range(5):
        show(pipeline, number)
    send(pipeline, drawn_on(1, box=box(1)))
    _, answers = show(pipeline, 5, Prompt(box=box(5, 1)), Prompt(box=box(5)))
    assert [(answer.id, answer.accepted) for answer in answers] == [(2, True), (0, False)]
    assert [answer.id for answer in work_aside(pipeline)] == [1]


def test_what_is_under_way_is_bounded_and_the_rest_waits(make):
    pipeline = make(catch_up_images=0, history_seconds=10.0)
    count = MAX_UNDER_WAY + 3
    for number in range(count + 1):
        arrive(pipeline, number)
    work(pipeline)
    send(pipeline, *(drawn_on(number, id=number + 1, box=box(number)) for number in range(count)))
    work(pipeline)
    assert len(work_aside(pipeline)) == MAX_UNDER_WAY
    frame, _ = show(pipeline, count + 1)
    assert len(frame.objects) == MAX_UNDER_WAY
    assert len(work_aside(pipeline)) == 3
    frame, _ = show(pipeline, count + 2)
    assert len(frame.objects) == count


def test_a_stop_lets_objects_join_that_were_answered_and_refuses_the_others(make):
    pipeline = make()
    for number in range(8):
        show(pipeline, number)
    send(pipeline, drawn_on(2, id=1, box=box(2)))
    work(pipeline)
    assert pipeline.work_aside()[0].accepted
    send(pipeline, drawn_on(4, id=2, box=box(4, 1)))
    work(pipeline)
    assert [(answer.id, answer.reason) for answer in pipeline.drain('stopped')] == [(2, 'stopped')]
    frame, _ = show(pipeline, 8)
    assert [item.id for item in frame.objects] == [1]


def test_stamps_that_jump_back_end_what_is_under_way(make):
    pipeline = make()
    for number in range(30, 36):
        show(pipeline, number)
    send(pipeline, drawn_on(32, id=1, box=box(32)))
    work(pipeline)
    assert pipeline.work_aside()[0].accepted
    show(pipeline, 0)
    frame, _ = show(pipeline, 1)
    assert [item.id for item in frame.objects] == [1]
    assert not pipeline.has_work_aside()


def test_when_the_model_fails_on_a_late_prompt_whoever_waits_is_told(make, monkeypatch):
    pipeline = make()
    show(pipeline, 0, Prompt(id=1, box=box(0)))
    for number in range(1, 5):
        show(pipeline, number)
    send(pipeline, drawn_on(2, id=2, box=box(2, 1)))
    work(pipeline)
    with monkeypatch.context() as patch:
        patch.setattr(StreamTracker, 'step', lambda *_: (_ for _ in ()).throw(RuntimeError('out of memory')))
        (answer,) = pipeline.work_aside()
    assert answer.reason == 'the model failed on this image: RuntimeError: out of memory'
    frame, _ = show(pipeline, 5)
    assert [item.id for item in frame.objects] == [1]
