"""Prompts: valid forms, and the error for each invalid one."""
import numpy as np
import pytest
import torch

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
    # shapes
    (Prompt(points=np.ones((2, 4)), labels=[1] * 4), r'points of shape \(2, 4\): must be N \(x, y\) pairs'),
    (Prompt(points=np.ones((2, 3)), labels=[1] * 3), r'points of shape \(2, 3\)'),
    (Prompt(points=np.ones((3, 3)), labels=[1] * 3), r'points of shape \(3, 3\)'),
    (Prompt(points=np.ones((1, 2, 2)), labels=[1, 1]), r'points of shape \(1, 2, 2\)'),
    (Prompt(points=np.empty((0, 3))), r'points of shape \(0, 3\)'),
    (Prompt(points=5, labels=[1]), r'points of shape \(\)'),
    (Prompt(points=(30, 20), labels=[1]), r'write one point as \[\(x, y\)\]'),
    (Prompt(points=[(1, 2), (3,)], labels=[1, 1]), r'points \[\(1, 2\), \(3,\)\]: rows of different lengths'),
    (Prompt(points=[(9, 9), (8, 8)], labels=[[1], [1]]), r'2 points and labels of shape \(2, 1\): give one label'),
    (Prompt(points=[(9, 9), (8, 8)], labels=[1, [0]]), r'labels \[1, \[0\]\]: rows of different lengths'),
    (Prompt(points=[(9, 9)], labels=1), r'labels of shape \(\)'),
    (Prompt(labels=[1]), '0 points and 1 labels'),
    (Prompt(box=[[1, 2, 30, 40]]), r'must be \(x0, y0, x1, y1\), shape \(4,\), in pixels, not \(1, 4\)'),
    (Prompt(box=[(1, 2), (30, 40)]), r'not \(2, 2\)'),
    (Prompt(box=[]), r'not \(0,\)'),
    (Prompt(box=[1, 2, 30, [40]]), 'box .*rows of different lengths'),
    (Prompt(mask=[[1, 0], [1]]), r'mask \[\[1, 0\], \[1\]\]: rows of different lengths, .* \(48, 64\)'),
    (Prompt(mask=np.ones((1, 48, 64), bool)), r'mask of shape \(1, 48, 64\)'),
    (Prompt(mask=torch.ones(64, 48)), r'mask of shape \(64, 48\)'),
    # types
    (Prompt(points=[(1 + 2j, 3)], labels=[1]), 'points .* of type complex'),
    (Prompt(points=[(True, False)], labels=[1]), 'points .* of type bool'),
    (Prompt(points=[(9, None)], labels=[1]), 'points .*: no array of numbers'),
    (Prompt(points=[(9, 10 ** 400)], labels=[1]), 'points .*: no array of numbers'),
    (Prompt(points=[(9, 9)], labels=['1']), 'labels .* of type'),
    (Prompt(points=[(9, 9)], labels=[0.5]), r'label 0.5: must be 1 \(on the object\) or 0'),
    (Prompt(points=[(9, 9)], labels=[np.nan]), 'label nan'),
    (Prompt(box=('1', '2', '30', '40')), 'must be .x0, y0, x1, y1.'),
    (Prompt(box=(1, 2, None, 40)), 'box .*: no array of numbers'),
    (Prompt(mask=np.full((48, 64), 1j)), 'mask of type complex128'),
    (Prompt(mask=np.full((48, 64), None)), 'no array of numbers'),
    # fractions, and less than a pixel
    (Prompt(box=(0.36, 0.31, 0.64, 0.69)), 'must be pixels, not fractions of the image; multiply x by 64 and y by 48'),
    (Prompt(box=(0, 0, 1, 1)), 'not fractions'),
    (Prompt(box=(10, 10, 10.5, 20)), r'has 0.5 x 10 pixels in the image; must have at least 1 x 1'),
    (Prompt(box=(-9, 10, 0.5, 20)), r'has 0.5 x 10 pixels in the image'),
    (Prompt(box=(10, 47.5, 20, 60)), r'has 10 x 0.5 pixels in the image'),
    (Prompt(points=[(0.4, 0.5), (0.6, 1)], labels=[1, 0]), r'points \[\[0.4, 0.5\], .*: must be pixels, not fractions'),
    # values of a mask
    (Prompt(mask=np.full((48, 64), -7.5)), 'mask with the values -7.5: must be bool.*look like logits: pass mask > 0'),
    (Prompt(mask=np.linspace(-10, 10, 3072).reshape(48, 64)), r'values -10, .*, 10: .*logits'),
    (Prompt(mask=np.linspace(0, 1, 3072).reshape(48, 64)), 'look like probabilities: pass mask >= 0.5'),
    (Prompt(mask=np.linspace(0, 1.0000001, 3072).reshape(48, 64)), 'look like probabilities'),
    (Prompt(mask=torch.full((48, 64), 0.25)), 'values 0.25: .*probabilities'),
    (Prompt(mask=np.arange(3072).reshape(48, 64) % 3), 'values 0, 1, 2: .*threshold it'),
    (Prompt(mask=np.where(np.eye(48, 64), 255, 1)), 'values 1, 255: '),
    (Prompt(mask=np.full((48, 64), 2)), 'values 2: '),
    (Prompt(mask=np.full((48, 64), np.inf)), 'infinite'),
    (Prompt(mask=np.eye(48, 64, dtype=np.int8) * -1), 'values -1, 0: '),
])
def test_wrong_prompt_is_refused_with_its_value(prompt, reason):
    with pytest.raises(PromptError, match=reason):
        prompt.check(HEIGHT, WIDTH)


@pytest.mark.parametrize('dtype', [bool, np.uint8, np.int8, np.uint16, np.int64, np.float16, np.float32, np.float64,
                                   torch.bool, torch.uint8, torch.int32, torch.bfloat16, torch.float32])
def test_mask_of_zero_and_one_other_value_may_have_any_type(dtype):
    truth = np.eye(HEIGHT, WIDTH, dtype=bool)
    given = torch.from_numpy(truth).to(dtype) if isinstance(dtype, torch.dtype) else truth.astype(dtype)
    for mask in [given] if dtype in (bool, torch.bool, np.int8) else [given, given * 255]:
        checked = Prompt(mask=mask).check(HEIGHT, WIDTH).mask
        assert checked.dtype == bool and (checked == truth).all()


def test_tensors_and_lists_are_taken_as_arrays():
    for convert in (list, np.asarray, torch.as_tensor):
        prompt = Prompt(points=convert([(5, 6), (7, 8)]), labels=convert([1, 0]), box=convert([1, 2, 30, 40]))
        prompt = prompt.check(HEIGHT, WIDTH)
        assert prompt.points.tolist() == [[5, 6], [7, 8]] and prompt.labels.tolist() == [1, 0]
        assert prompt.box.tolist() == [1, 2, 30, 40]
    labels = Prompt(points=[torch.tensor([5., 6.])], labels=[torch.tensor(True)]).check(HEIGHT, WIDTH).labels
    assert labels.tolist() == [1]


def test_clicks_off_the_object_alone_start_nothing():
    with pytest.raises(PromptError, match=r'point \(5, 6\): a new object cannot start .*at least one point on it'):
        Prompt(points=[(5, 6), (7, 8)], labels=[0, 0]).check(HEIGHT, WIDTH).check_starts()
    for prompt in (Prompt(points=[(5, 6), (7, 8)], labels=[0, 1]), Prompt(mask=np.ones((HEIGHT, WIDTH), bool)),
                   Prompt(points=[(5, 6)], labels=[0], box=(1, 2, 30, 40))):
        prompt.check(HEIGHT, WIDTH).check_starts()


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
    ([Prompt(1.0, box=(1, 2, 3, 4))], 'object_id 1.0: must be a positive integer'),
    ([Prompt(np.float32(1), box=(1, 2, 3, 4))], 'object_id .*1.0.*: must be a positive integer'),
    ([Prompt(np.True_, box=(1, 2, 3, 4))], 'object_id .*True'),
    ([Prompt(torch.tensor(1), box=(1, 2, 3, 4))], r'object_id tensor\(1\)'),
    ([Prompt(-3, box=(1, 2, 3, 4))], 'object_id -3'),
    ([{'object_id': 1, 'box': (1, 2, 3, 4)}], 'prompt of type dict: must be a Prompt'),
    (Prompt(1, box=(1, 2, 3, 4)), r'must be a list of Prompt, not one; write \[prompt\]'),
    ([Prompt(1, box=(1, 2, 3, 4)), Prompt(1, box=(5, 6, 7, 8))],
     r'object 1: two boxes in the same image, \(1, 2, 3, 4\) and \(5, 6, 7, 8\): give one'),
    ([Prompt(1, box=(1, 2, 3, 4)), Prompt(1, mask=np.ones((HEIGHT, WIDTH), bool))], 'object 1: a mask and another'),
    ([Prompt(1, box=(1, 2, 3, 4)), Prompt(8, points=[(99, 0)], labels=[1])], 'object 8: point'),
])
def test_wrong_set_of_prompts_names_the_object(prompts, reason):
    with pytest.raises(PromptError, match=reason):
        merge_prompts(prompts, HEIGHT, WIDTH)
