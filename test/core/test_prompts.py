"""What counts as a prompt, and what each refusal says."""
import numpy as np
import pytest

from sam2_core import Prompt, PromptError
from sam2_core.prompts import merge_prompts

HEIGHT, WIDTH = 48, 64


@pytest.mark.parametrize(('prompt', 'reason'), [
    (Prompt(), 'without content'),
    (Prompt(points=[], labels=[]), 'without content'),
    (Prompt(points=[(1, 2)]), '1 points and 0 labels'),
    (Prompt(points=[(1, 2)], labels=[2]), 'label'),
    (Prompt(points=[(1, 2)], labels=[-1]), 'label'),
    (Prompt(points=[(np.nan, 2)], labels=[1]), r'point \(nan, 2\): must be finite'),
    (Prompt(points=[(70, 2)], labels=[1]), r'point \(70, 2\): outside the image of 64 x 48'),
    (Prompt(points=[(3, -2)], labels=[1]), r'point \(3, -2\): outside'),
    (Prompt(points='ab', labels=[1]), 'points'),
    (Prompt(points=[(1, 2, 3)], labels=[1]), 'pairs'),
    (Prompt(box=(30, 20, 10, 40)), r'box \(30, 20, 10, 40\): x1 must exceed x0'),
    (Prompt(box=(30, 20, 40, 20)), 'y1 must exceed y0'),
    (Prompt(box=(64, 20, 90, 40)), 'outside the image of 64 x 48'),
    (Prompt(box=(0, np.inf, 9, 9)), 'must be finite'),
    (Prompt(box=(1, 2, 3)), r'box \(1, 2, 3\): must be \(x0, y0, x1, y1\)'),
    (Prompt(mask=np.ones((48, 63), bool)), r'mask of shape \(48, 63\): must be \(48, 64\)'),
    (Prompt(mask=np.zeros((48, 64), bool)), 'without a single pixel'),
    (Prompt(mask=np.full((48, 64), np.nan)), 'NaN'),
    (Prompt(mask=np.full((48, 64), 'x')), 'mask of type'),
    (Prompt(mask=np.ones((48, 64), bool), box=(1, 2, 3, 4)), 'give the mask alone'),
])
def test_wrong_prompt_is_refused_with_its_value(prompt, reason):
    with pytest.raises(PromptError, match=reason):
        prompt.check(HEIGHT, WIDTH)


def test_box_is_cut_at_the_image():
    assert Prompt(box=(-5, 10, 70, 60)).check(HEIGHT, WIDTH).box.tolist() == [0, 10, 64, 48]


def test_points_are_scaled_to_the_models_square():
    points, labels = Prompt(points=[(32, 12)], labels=[0]).check(HEIGHT, WIDTH).as_points(HEIGHT, WIDTH, 256)
    assert points.tolist() == [[128, 64]]
    assert labels.tolist() == [0]


def test_box_comes_before_points():
    prompt = Prompt(points=[(5, 6)], labels=[1], box=(1, 2, 3, 4)).check(HEIGHT, WIDTH)
    points, labels = prompt.as_points(HEIGHT, WIDTH, 64)
    assert labels.tolist() == [2, 3, 1]
    assert points[2, 0] == 5


def test_prompts_of_one_object_are_merged_box_first():
    merged = merge_prompts([Prompt(3, points=[(5, 6)], labels=[1]), Prompt(3, box=(1, 2, 3, 4)),
                            Prompt(3, points=[(7, 8)], labels=[0]), Prompt(4, points=[(9, 9)], labels=[1])],
                           HEIGHT, WIDTH)
    assert sorted(merged) == [3, 4]
    points, labels = merged[3].as_points(HEIGHT, HEIGHT, HEIGHT)
    assert labels.tolist() == [2, 3, 1, 0]
    assert points.tolist() == [[1, 2], [3, 4], [5, 6], [7, 8]]


@pytest.mark.parametrize(('prompts', 'reason'), [
    ([Prompt(box=(1, 2, 3, 4))], 'object_id None'),
    ([Prompt(0, box=(1, 2, 3, 4))], 'object_id 0'),
    ([Prompt('a', box=(1, 2, 3, 4))], "object_id 'a'"),
    ([Prompt(True, box=(1, 2, 3, 4))], 'object_id True'),
    ([Prompt(1, box=(1, 2, 3, 4)), Prompt(1, box=(5, 6, 7, 8))], 'object 1: two boxes'),
    ([Prompt(1, box=(1, 2, 3, 4)), Prompt(1, mask=np.ones((HEIGHT, WIDTH), bool))], 'object 1: a mask and another'),
    ([Prompt(1, box=(1, 2, 3, 4)), Prompt(8, points=[(99, 0)], labels=[1])], 'object 8: point'),
])
def test_wrong_set_of_prompts_names_the_object(prompts, reason):
    with pytest.raises(PromptError, match=reason):
        merge_prompts(prompts, HEIGHT, WIDTH)
