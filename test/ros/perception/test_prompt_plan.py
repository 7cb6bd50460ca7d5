"""Prompt messages become one plan, in their order; a prompt that cannot be applied is refused and changes nothing."""
import math
from array import array

import numpy as np
import pytest
from sensor_msgs.msg import Image, RegionOfInterest

from sam2_core import PromptError
from sam2_ros.msg import ImagePoint, Prompt
from sam2_ros.perception.prompt_plan import Ids, Plan, to_prompt

HEIGHT, WIDTH = 60, 80


def box(x=10, y=10, width=20, height=15) -> RegionOfInterest:
    return RegionOfInterest(x_offset=x, y_offset=y, width=width, height=height)


def points(*coordinates, label=ImagePoint.FOREGROUND) -> list[ImagePoint]:
    return [ImagePoint(x=float(x), y=float(y), label=label) for x, y in coordinates]


def mask(height=HEIGHT, width=WIDTH, encoding='mono8', value=255) -> Image:
    image = Image(height=height, width=width, encoding=encoding, step=width)
    image.data.frombytes(np.full(height * width, value, np.uint8).tobytes())
    return image


def speck() -> Image:
    image = mask(value=0)
    image.data[WIDTH + 2] = 255
    return image


def plan_of(*messages, tracked=(), max_objects=32) -> Plan:
    plan = Plan(tracked, max_objects, image_size=32)
    for message in messages:
        plan.add(message, HEIGHT, WIDTH)
    return plan


def test_the_message_is_told_to_the_tracker_as_it_is():
    clicks = points((3, 4), (5.5, 6)) + points((7, 8), label=ImagePoint.BACKGROUND)
    prompt = to_prompt(Prompt(points=clicks, box=box(1, 2, 30, 40)), 7)
    assert prompt.object_id == 7
    assert prompt.points == [(3, 4), (5.5, 6), (7, 8)] and prompt.labels == [1, 1, 0]
    assert prompt.box == (1, 2, 31, 42)
    assert prompt.mask is None


def test_a_box_of_width_zero_is_none_and_so_is_a_mask():
    prompt = to_prompt(Prompt(points=points((1, 1)), box=box(width=0)), 1)
    assert prompt.box is None and prompt.mask is None


def test_a_mask_is_true_where_it_is_255():
    message = Prompt(mask=mask(value=0))
    message.mask.data[WIDTH + 2] = 255
    assert np.argwhere(to_prompt(message, 1).mask).tolist() == [[1, 2]]


def test_a_lossy_mask_is_refused_with_its_values():
    message = Prompt(mask=mask(value=0))
    message.mask.data[:3] = array('B', [1, 255, 2])
    with pytest.raises(PromptError, match='mask with the values 0, 1, 2, 255: must be'):
        to_prompt(message, 1)


def test_set_adds_an_object_with_its_label():
    plan = plan_of(Prompt(id=4, box=box(), label='cup'))
    assert [prompt.object_id for prompt in plan.now.all()] == [4]
    assert plan.known == {4} and plan.now.labels == {4: 'cup'} and not plan.forget


def picked(ids: Ids, *tracked: int, count: int = 1, given: int = 0) -> list[int]:
    """Return the ids of prompts for an image with these tracked objects; ``given`` is the id in each prompt."""
    plan = Plan(tracked, 65535, ids=ids)
    return [plan.add(Prompt(id=given, points=points((5, 5))), HEIGHT, WIDTH) for _ in range(count)]


def test_id_zero_takes_the_next_that_is_free():
    assert picked(Ids(), 1, 2, 4, count=3) == [3, 5, 6]


def test_ids_of_objects_that_have_ended_are_not_given_again():
    ids = Ids()
    assert picked(ids, count=3) == [1, 2, 3]
    assert picked(ids) == [4], 'all have been removed, cleared or forgotten'
    assert picked(ids, given=6) == [6] and picked(ids, given=65535) == [65535]
    assert picked(ids, count=3) == [5, 7, 8], 'nor those that a user chose, and these move nothing'


def test_a_prompt_that_is_refused_uses_no_id():
    ids = Ids()
    for message in (Prompt(), Prompt(box=box(500, 500))):
        with pytest.raises(PromptError):
            Plan((), 32, ids=ids).add(message, HEIGHT, WIDTH)
    assert picked(ids) == [1]


def test_after_the_last_id_the_first_that_is_free_comes_again():
    ids = Ids()
    assert picked(ids, given=2) == [2]
    for wanted in (1, *range(3, 65536)):
        assert ids.next(()) == wanted
        ids.use(wanted, (), chosen=False)
    assert picked(ids, 1, 3, count=3) == [2, 4, 5]
    assert picked(ids, count=2) == [6, 7], 'a new round, in which 1 and 3 count as used'


def test_the_last_id_is_found_and_one_more_is_refused():
    ids = Ids()
    assert picked(ids, *range(1, 65535)) == [65535]
    with pytest.raises(PromptError, match='all 65535 ids are in use'):
        ids.next(range(1, 65536))


def test_set_of_a_known_id_starts_it_again():
    plan = plan_of(Prompt(id=4, box=box()), tracked=(4, 5))
    assert plan.forget == {4} and plan.known == {4, 5}
    assert len(plan.now.all()) == 1


def test_set_twice_keeps_the_second():
    plan = plan_of(Prompt(id=4, box=box(), label='a'), Prompt(id=4, points=points((1, 2)), label='b'))
    assert len(plan.now.all()) == 1 and plan.now.all()[0].box is None and plan.now.labels == {4: 'b'}


def test_refine_adds_to_what_is_known_and_keeps_memory_and_label():
    plan = plan_of(Prompt(id=4, action=Prompt.REFINE, points=points((1, 2))),
                   Prompt(id=4, action=Prompt.REFINE, points=points((3, 4))), tracked=(4,))
    assert len(plan.now.all()) == 2 and not plan.forget and not plan.now.labels


def test_a_correction_may_be_off_the_object_alone():
    plan = plan_of(Prompt(id=4, action=Prompt.REFINE, points=points((1, 2), label=0)), tracked=(4,))
    assert plan.now.prompts[4][0].labels.tolist() == [0]


def test_refine_can_rename():
    plan = plan_of(Prompt(id=4, action=Prompt.REFINE, points=points((1, 2)), label='new'), tracked=(4,))
    assert plan.now.labels == {4: 'new'}


def test_refine_of_an_object_set_in_the_same_batch():
    plan = plan_of(Prompt(id=4, box=box()), Prompt(id=4, action=Prompt.REFINE, points=points((1, 2))))
    assert len(plan.now.all()) == 2


def test_remove_and_clear():
    plan = plan_of(Prompt(id=9, box=box()), Prompt(id=4, action=Prompt.REMOVE), tracked=(4, 5))
    assert plan.forget == {4} and plan.known == {5, 9}
    plan.add(Prompt(action=Prompt.CLEAR), HEIGHT, WIDTH)
    assert plan.forget == {4, 5} and not plan.known and not plan.now.all() and not plan.now.labels


def test_after_clear_ids_go_on():
    ids = Ids()
    assert picked(ids, count=2) == [1, 2]
    plan = Plan((1, 2), 32, ids=ids)
    plan.add(Prompt(action=Prompt.CLEAR), HEIGHT, WIDTH)
    assert plan.add(Prompt(box=box()), HEIGHT, WIDTH) == 3
    assert plan.forget == {1, 2}


REFUSED = [
    (Prompt(id=1), 'prompt without content'),
    (Prompt(id=1, points=points((math.nan, 3))), 'point (nan, 3): must be finite'),
    (Prompt(id=1, points=points((math.inf, 3))), 'must be finite'),
    (Prompt(id=1, points=points((81, 3))), 'point (81, 3): outside the image of 80 x 60 pixels'),
    (Prompt(id=1, points=points((3, -2))), 'outside the image'),
    (Prompt(id=1, points=points((3, 3), label=2)), 'must be 1 (on the object) or 0'),
    (Prompt(id=1, box=box(x=80)), 'outside the image of 80 x 60 pixels'),
    (Prompt(id=1, box=box(height=0)), 'y1 must exceed y0'),
    (Prompt(id=1, mask=mask(height=30)), '(30, 80): must be (60, 80)'),
    (Prompt(id=1, mask=mask(encoding='rgb8')), "encoding 'rgb8': must be mono8"),
    (Prompt(id=1, mask=mask(value=0)), 'mask without a single pixel'),
    (Prompt(id=1, mask=speck()), '1 x 1 at (2, 1): too small for a model that sees the image of 80 x 60 as 32 x 32'),
    (Prompt(id=2, action=Prompt.REFINE, mask=speck()), 'too small for a model'),
    (Prompt(id=1, points=points((3, 3), label=0)), 'point (3, 3): a new object cannot start from points off'),
    (Prompt(id=2, points=points((3, 3), label=0)), 'a new object cannot start from points off the object'),
    (Prompt(id=1, mask=mask(), box=box()), 'mask alone'),
    (Prompt(id=7, action=Prompt.REFINE, points=points((3, 3))), 'id 7 is not known (known: 2, 3): SET it first'),
    (Prompt(id=0, action=Prompt.REFINE, points=points((3, 3))), 'id 0 is not known'),
    (Prompt(id=2, action=Prompt.REFINE), 'prompt without content'),
    (Prompt(id=7, action=Prompt.REMOVE), 'id 7 is not known'),
    (Prompt(id=1, action=9, box=box()), 'action 9: must be one of 0 (SET)'),
    (Prompt(id=2), 'prompt without content'),
]


@pytest.mark.parametrize(('message', 'reason'), REFUSED, ids=[reason for _, reason in REFUSED])
def test_a_refused_prompt_says_why_and_changes_nothing(message, reason):
    plan = plan_of(Prompt(id=3, box=box(), label='kept'), tracked=(2, 3))
    before = (set(plan.known), set(plan.forget), dict(plan.now.labels), list(plan.now.all()))
    with pytest.raises(PromptError) as caught:
        plan.add(message, HEIGHT, WIDTH)
    assert reason in str(caught.value)
    assert (plan.known, plan.forget, plan.now.labels, plan.now.all()) == before


def test_two_boxes_for_one_object_cannot_be_merged():
    plan = plan_of(Prompt(id=4, box=box()))
    with pytest.raises(PromptError, match='two boxes'):
        plan.add(Prompt(id=4, action=Prompt.REFINE, box=box(x=20)), HEIGHT, WIDTH)
    assert len(plan.now.all()) == 1


def test_max_objects_counts_what_is_planned_too():
    plan = plan_of(Prompt(id=5, box=box()), tracked=(1,), max_objects=2)
    with pytest.raises(PromptError, match='2 objects are tracked already and max_objects is 2: remove one first'):
        plan.add(Prompt(id=6, box=box()), HEIGHT, WIDTH)
    plan.add(Prompt(id=5, box=box()), HEIGHT, WIDTH)  # a known object can be started again
    plan.add(Prompt(id=1, action=Prompt.REMOVE), HEIGHT, WIDTH)
    assert plan.add(Prompt(id=6, box=box()), HEIGHT, WIDTH) == 6
