"""Single images: points, boxes, masks, three masks and refinement."""
import numpy as np
import pytest
import torch

import sam2_core.segmenter
from sam2_core import EncodedImage, ImageSegmenter, Prompt, PromptError, StreamTracker, encode_images
from sam2_core.config import VARIANTS
from sam2_core.metrics import iou
from testing.model_options import with_masks_alone


@pytest.fixture(scope='module')
def encoded(nano, scene):
    return ImageSegmenter(nano).encode(scene.image(0))


@pytest.fixture(scope='module')
def segmenter(nano):
    return ImageSegmenter(nano)


def centre(scene, object_id):
    x0, y0, x1, y1 = scene.box(object_id)
    return (x0 + x1) / 2, (y0 + y1) / 2


@pytest.mark.parametrize('object_id', [1, 2])
def test_box_finds_the_object(segmenter, encoded, scene, object_id):
    found = segmenter.segment(encoded, Prompt(box=scene.box(object_id)))
    assert found.masks.shape == (1, 240, 320) and found.masks.dtype == bool
    assert found.scores.shape == (1,) and found.logits.shape == (1, 64, 64)
    assert iou(found.masks[0], scene.truth(object_id, 0)) > 0.7


@pytest.mark.parametrize('object_id', [1, 2])
def test_click_offers_three_masks_of_which_one_is_the_object(segmenter, encoded, scene, object_id):
    found = segmenter.segment(encoded, Prompt(points=[centre(scene, object_id)], labels=[1]), multimask=True)
    assert found.masks.shape == (3, 240, 320) and found.logits.shape == (3, 64, 64)
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert max(iou(mask, scene.truth(object_id, 0)) for mask in found.masks) > 0.6


def test_previous_logits_refine_the_answer(segmenter, encoded, scene):
    first = segmenter.segment(encoded, Prompt(points=[centre(scene, 1)], labels=[1]), multimask=True)
    click = Prompt(points=[centre(scene, 1), centre(scene, 2)], labels=[1, 0])
    refined = segmenter.segment(encoded, click, previous_logits=first.logits[int(first.scores.argmax())])
    without = segmenter.segment(encoded, click)
    assert iou(refined.masks[0], scene.truth(1, 0)) > 0.6
    assert not torch.equal(refined.logits, without.logits)


def test_predicted_iou_is_higher_where_there_is_an_object(segmenter, encoded, scene):
    """Both object scores are positive, because training never prompts an absent object."""
    click = Prompt(points=[centre(scene, 1)], labels=[1])
    there = segmenter.segment(encoded, click)
    gone = segmenter.segment(segmenter.encode(scene.image(0, without=(1,))), click)
    assert there.object_score > 0 and there.object_score != gone.object_score
    assert there.scores[0] > gone.scores[0] + 0.5


@pytest.fixture(scope='module')
def trained_by_masks(nano):
    """Return a segmenter of nano's weights that accepts a mask alone, as those of the published models do."""
    return ImageSegmenter(with_masks_alone(nano))


def test_mask_or_previous_logits_alone_are_a_prompt_of_published_models(trained_by_masks, scene):
    """The parity tests compare the results with the reference."""
    encoded = trained_by_masks.encode(scene.image(0))
    logits = trained_by_masks.segment(encoded, Prompt(box=scene.box(2))).logits[0]
    answers = [trained_by_masks.segment(encoded, Prompt(), previous_logits=logits.numpy()),
               trained_by_masks.segment(encoded, Prompt(), previous_logits=-logits),
               trained_by_masks.segment(encoded, Prompt(mask=scene.truth(1, 0))),
               trained_by_masks.segment(encoded, Prompt(mask=scene.truth(2, 0)))]
    for i, one in enumerate(answers):
        assert one.masks.shape == (1, 240, 320)
        assert not any(torch.allclose(one.logits, other.logits) for other in answers[:i])
    assert all(VARIANTS[name].masks_alone for name in VARIANTS if name != 'nano')


def test_nano_refuses_a_mask_alone_with_its_box_as_the_cure(segmenter, encoded, scene):
    x0, y0, x1, y1 = scene.box(1)
    with pytest.raises(PromptError) as error:
        segmenter.segment(encoded, Prompt(mask=scene.truth(1, 0)))
    assert str(error.value) == (
        f'mask without points or a box: nano was not trained to segment by a mask alone; prompt with its box, ({x0}, '
        f'{y0}, {x1}, {y1}), or give the mask to a tracker, which uses it as it is')
    assert iou(segmenter.segment(encoded, Prompt(box=(x0, y0, x1, y1))).masks[0], scene.truth(1, 0)) > 0.7
    tracker = StreamTracker(segmenter.model)
    assert iou(tracker.step(scene.image(0), [Prompt(1, mask=scene.truth(1, 0))]).objects[1].mask,
               scene.truth(1, 0)) > 0.9


def test_nano_refuses_previous_logits_alone_and_takes_them_with_a_box(segmenter, encoded, scene):
    first = segmenter.segment(encoded, Prompt(box=scene.box(1)))
    with pytest.raises(PromptError, match='previous_logits without points or a box: nano was not trained .*; give a '
                                          'point or the box'):
        segmenter.segment(encoded, Prompt(), previous_logits=first.logits[0])
    again = segmenter.segment(encoded, Prompt(box=scene.box(1)), previous_logits=first.logits[0])
    assert iou(again.masks[0], scene.truth(1, 0)) > 0.7


def test_nano_loses_an_object_that_it_is_given_as_a_mask_alone(trained_by_masks, scene):
    """The measurement behind the refusal: remove the refusal when the weights learn it."""
    encoded = trained_by_masks.encode(scene.image(0))
    for object_id in (1, 2):
        truth = scene.truth(object_id, 0)
        assert iou(trained_by_masks.segment(encoded, Prompt(mask=truth)).masks[0], truth) < 0.5


def test_clicks_off_the_object_may_refine_an_earlier_answer(segmenter, encoded, scene):
    first = segmenter.segment(encoded, Prompt(box=scene.box(1)))
    refined = segmenter.segment(encoded, Prompt(points=[(5, 5)], labels=[0]), previous_logits=first.logits[0])
    other = segmenter.segment(encoded, Prompt(points=[(300, 5)], labels=[0]), previous_logits=first.logits[0])
    assert not torch.equal(refined.logits, first.logits) and not torch.equal(refined.logits, other.logits)


def test_features_answer_many_prompts_alike(segmenter, encoded, scene):
    one = segmenter.segment(encoded, Prompt(box=scene.box(1)))
    segmenter.segment(encoded, Prompt(box=scene.box(2)))
    assert torch.equal(one.logits, segmenter.segment(encoded, Prompt(box=scene.box(1))).logits)


@pytest.mark.parametrize(('prompt', 'previous', 'text'), [
    (Prompt(), None, 'without content'),
    (Prompt(points=[(400, 5)], labels=[1]), None, 'outside the image of 320 x 240'),
    (Prompt(points=[(5, 5)], labels=[1]), np.zeros((3, 64, 64), np.float32),
     r'shape \(3, 64, 64\): must be \(64, 64\)'),
    (Prompt(mask=np.ones((240, 320), bool)), np.zeros((64, 64), np.float32), 'give one of them'),
    (Prompt(points=[(5, 5)], labels=[0]), None, r'point \(5, 5\): a new object cannot start from points'),
    (Prompt(), np.full((64, 64), np.nan, np.float32), 'previous_logits with NaN'),
    (Prompt(), np.eye(64, dtype=np.float32), 'previous_logits of 0 to 1: look like probabilities or a mask'),
    (Prompt(), np.eye(64, dtype=bool), 'previous_logits of type bool: .*a mask is a Prompt'),
    (Prompt(), torch.eye(64, dtype=torch.int64), 'previous_logits of type torch.int64'),
    (Prompt(), [[1.0] * 64] * 64, r'previous_logits of type list: must be \(64, 64\)'),
    (Prompt(labels=[1]), -np.eye(64, dtype=np.float32), '0 points and 1 labels'),
])
def test_wrong_prompt_is_refused(segmenter, encoded, prompt, previous, text):
    with pytest.raises(PromptError, match=text):
        segmenter.segment(encoded, prompt, previous_logits=previous)


def test_images_of_any_size_are_encoded_as_one_batch(nano, scene):
    image = scene.image(0)
    images = [image, torch.from_numpy(image[:200, :100].copy()), scene.image(5)[:, ::-1]]
    runs = []
    hook = nano.image_encoder.register_forward_hook(lambda *_: runs.append(1))
    try:
        together = encode_images(nano, images)
    finally:
        hook.remove()
    assert len(runs) == 1
    assert [(e.height, e.width) for e in together] == [(240, 320), (200, 100), (240, 320)]
    for batched, one in zip(together, images, strict=True):
        for part, expected in zip(batched.features, ImageSegmenter(nano).encode(one).features, strict=True):
            torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)


def test_one_wrong_image_refuses_the_batch_before_any_work(nano, scene):
    with pytest.raises(ValueError, match=r'image of shape \(4, 4\)'):
        encode_images(nano, [scene.image(0), np.zeros((4, 4), np.uint8)])
    assert encode_images(nano, []) == []


def test_encoded_image_is_found_where_it_used_to_be():
    assert sam2_core.segmenter.EncodedImage is EncodedImage
