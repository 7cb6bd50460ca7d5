"""Only the model that encoded an image accepts it, and only while its weights are unchanged."""
import copy
import gc
import pickle
import weakref

import pytest
import torch

from sam2_core import EncodedImage, ImageSegmenter, Prompt, StreamTracker, encode_images, load_model

BOX = (36, 36, 104, 104)


@pytest.fixture
def own(nano):
    """Return a model that only this test uses."""
    return copy.deepcopy(nano)


def uses(model):
    """Return the functions that accept an encoded image."""
    segmenter = ImageSegmenter(model)
    return (lambda image: StreamTracker(model).step(image, [Prompt(1, box=BOX)]),
            lambda image: StreamTracker(model).step(image),
            lambda image: segmenter.segment(image, Prompt(box=BOX)),
            lambda image: segmenter.search(image, points_per_side=1),
            lambda image: segmenter.segment_all(image, points_per_side=1))


def test_image_of_another_model_is_refused_though_its_shapes_fit(nano, own, scene):
    image = ImageSegmenter(own).encode(scene.image(0))
    for use in uses(nano):
        with pytest.raises(ValueError, match=r'image encoded by another model.*encode it with .*nano \(256 pixels, '):
            use(image)
    for use in uses(own):
        use(image)


def test_a_refused_image_leaves_the_tracker_as_it_was(nano, own, scene):
    tracker = StreamTracker(nano)
    tracker.step(scene.image(0), [Prompt(1, box=scene.box(1))])
    expected = tracker.fork([1]).step(scene.image(1)).objects[1]
    with pytest.raises(ValueError, match='another model'):
        tracker.step(ImageSegmenter(own).encode(scene.image(1)), [Prompt(2, box=scene.box(2))])
    assert tracker.object_ids == (1,)
    assert torch.equal(tracker.step(scene.image(1)).objects[1].logits, expected.logits)


def changed_in_place(model):
    with torch.no_grad():
        model.image_encoder.neck.convs[0].conv.weight.mul_(1.01)


def loaded_again(model):
    model.load_state_dict({name: value * 1.01 if value.is_floating_point() else value
                           for name, value in model.state_dict().items()})


def replaced(model):
    model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()}, assign=True)


@pytest.mark.parametrize('change', [changed_in_place, loaded_again, replaced])
def test_image_encoded_before_the_model_changed_is_refused(own, scene, change):
    image, = encode_images(own, [scene.image(0)])
    change(own)
    for use in uses(own):
        with pytest.raises(ValueError, match='encoded before .* got other weights .*: encode it again'):
            use(image)
    ImageSegmenter(own).segment(ImageSegmenter(own).encode(scene.image(0)), Prompt(box=BOX))


def test_images_of_several_cameras_stay_those_of_their_model(own, scene):
    first, second = encode_images(own, [scene.image(0), scene.image(3)[:200]])
    own.to('cpu').eval().double().float()
    own.state_dict()
    for image in (first, second, copy.copy(first), copy.deepcopy(second)):
        StreamTracker(own).step(image, [Prompt(1, box=BOX)])


def test_image_from_another_process_is_refused_unless_its_maker_is_none(nano, scene):
    image = ImageSegmenter(nano).encode(scene.image(0))
    received = pickle.loads(pickle.dumps(image))
    with pytest.raises(ValueError, match='in another process'):
        StreamTracker(nano).step(received, [Prompt(1, box=BOX)])
    by_hand = EncodedImage(received.features, received.height, received.width)
    found, expected = (ImageSegmenter(nano).segment(one, Prompt(box=BOX)) for one in (by_hand, image))
    assert torch.equal(found.logits, expected.logits)


def test_features_put_together_by_hand_must_have_the_models_shapes(nano, scene):
    features = ImageSegmenter(nano).encode(scene.image(0)).features
    other = load_model('nano', device='cpu', image_size=128)
    for use in uses(other):
        with pytest.raises(ValueError, match=r'features of shapes .*16, 16.*: must be .*8, 8.* for .*128 pixels'):
            use(EncodedImage(features, 240, 320))
    with pytest.raises(ValueError, match='features of shapes'):
        StreamTracker(nano).step(EncodedImage(features._replace(stride4_bchw=features.stride8_bchw), 240, 320))


def test_images_that_are_not_encoded_are_named(nano, scene):
    for use in uses(nano)[2:4]:
        with pytest.raises(TypeError, match='image of type ndarray: must be an EncodedImage; encode it first'):
            use(scene.image(0))


def test_an_encoded_image_keeps_no_model_alive(nano, scene):
    model = copy.deepcopy(nano)
    image = ImageSegmenter(model).encode(scene.image(0))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    with pytest.raises(ValueError, match='another model'):
        StreamTracker(nano).step(image)
