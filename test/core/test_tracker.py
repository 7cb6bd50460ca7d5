"""Tracker: objects are added, tracked, corrected and removed, in constant memory."""
import gc

import cv2
import numpy as np
import pytest
import torch

from sam2_core import ImageSegmenter, Prompt, PromptError, StreamTracker, load_model
from sam2_core.memory import stack_memories
from sam2_core.metrics import iou


def box_prompt(scene, object_id, frame=0):
    return Prompt(object_id=object_id, box=scene.box(object_id, frame))


def assert_same_results(a, b, tolerance=1e-3):
    assert list(a.objects) == list(b.objects)
    for object_id in a.objects:
        torch.testing.assert_close(a.objects[object_id].logits, b.objects[object_id].logits,
                                   atol=tolerance, rtol=tolerance)
        assert a.objects[object_id].object_score == pytest.approx(b.objects[object_id].object_score, abs=tolerance)


def assert_equal_results(a, b):
    assert list(a.objects) == list(b.objects)
    for object_id, item in a.objects.items():
        assert torch.equal(item.logits, b.objects[object_id].logits)
        assert (item.iou, item.object_score) == (b.objects[object_id].iou, b.objects[object_id].object_score)


def test_two_objects_are_tracked_over_thirty_images(nano, scene):
    tracker = StreamTracker(nano)
    result = tracker.step(scene.image(0), [box_prompt(scene, 1), box_prompt(scene, 2)])
    for frame in range(1, 30):
        result = tracker.step(scene.image(frame))
    assert tracker.object_ids == (1, 2)
    for object_id, item in result.objects.items():
        assert item.object_score > 0
        assert 0 <= item.iou <= 1
        assert iou(item.mask, scene.truth(object_id, 29)) > 0.7


def test_result_describes_its_mask(nano, scene):
    result = StreamTracker(nano).step(scene.image(0), [box_prompt(scene, 1)])
    item = result.objects[1]
    assert (result.height, result.width) == item.mask.shape == (240, 320)
    assert item.mask.dtype == bool
    rows, columns = np.nonzero(item.mask)
    assert item.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert item.logits.shape == (64, 64) and item.logits.dtype == torch.float32


def test_object_without_visible_pixel_has_no_box(nano, scene):
    tracker = StreamTracker(nano)
    tracker.step(scene.image(0), [box_prompt(scene, 1)])
    hidden = [tracker.step(scene.image(0, without=(1,))).objects[1] for _ in range(3)][-1]
    assert hidden.object_score < 0
    assert hidden.box is None and not hidden.mask.any()


def test_object_can_be_added_while_others_are_tracked(nano, scene):
    tracker, alone = StreamTracker(nano), StreamTracker(nano)
    tracker.step(scene.image(0), [box_prompt(scene, 1)])
    for frame in range(1, 6):
        prompts = [box_prompt(scene, 2, frame)] if frame == 3 else []
        result = tracker.step(scene.image(frame), prompts)
        expected = alone.step(scene.image(frame), prompts) if frame >= 3 else None
    torch.testing.assert_close(result.objects[2].logits, expected.objects[2].logits, atol=1e-3, rtol=1e-3)
    assert iou(result.objects[1].mask, scene.truth(1, 5)) > 0.7


def test_objects_in_a_batch_do_not_disturb_each_other(nano, scene):
    together, first, second = StreamTracker(nano), StreamTracker(nano), StreamTracker(nano)
    for frame in range(9):
        prompts = [box_prompt(scene, 1), box_prompt(scene, 2)] if frame == 0 else []
        result = together.step(scene.image(frame), prompts)
        one = first.step(scene.image(frame), prompts[:1])
        two = second.step(scene.image(frame), prompts[1:])
    for object_id, alone in ((1, one), (2, two)):
        torch.testing.assert_close(result.objects[object_id].logits, alone.objects[object_id].logits,
                                   atol=2e-3, rtol=2e-3)


def test_two_trackers_on_one_model_do_not_disturb_each_other(nano, scene):
    alone = StreamTracker(nano)
    expected = [alone.step(scene.image(f), [box_prompt(scene, 1)] if f == 0 else []) for f in range(4)]
    one, other = StreamTracker(nano), StreamTracker(nano)
    for frame in range(4):
        result = one.step(scene.image(frame), [box_prompt(scene, 1)] if frame == 0 else [])
        other.step(scene.image(20 - frame), [box_prompt(scene, 2, 20)] if frame == 0 else [])
        assert_same_results(result, expected[frame])


def test_correction_survives_the_next_frames(nano, scene):
    """The prompt selects both discs; a correction selects one of them, and is stored like a first prompt."""
    tracker = StreamTracker(nano)
    tracker.step(scene.image(0), [Prompt(1, mask=scene.truth(1, 0) | scene.truth(2, 0))])
    for frame in range(1, 12):
        prompts = [Prompt(1, mask=scene.truth(1, 3))] if frame == 3 else []
        mask = tracker.step(scene.image(frame), prompts).objects[1].mask
        if frame > 3:
            assert iou(mask, scene.truth(1, frame)) > 0.6
            assert not (mask & scene.truth(2, frame)).any()
    memory = stack_memories([tracker._banks[1]])
    conditioning = memory.time_slots[0] == nano.config.memory_frames - 1
    assert conditioning.sum() == 2, 'frames 0 and 3, long after frame 3 has left the six most recent'


def test_clicks_off_the_object_correct_an_object_and_start_none(nano, scene):
    tracker = StreamTracker(nano)
    off = Prompt(2, points=[(5, 5)], labels=[0])
    with pytest.raises(PromptError, match=r'object 2: point \(5, 5\): a new object cannot start'):
        tracker.step(scene.image(0), [box_prompt(scene, 1), off])
    assert not tracker.object_ids
    tracker.step(scene.image(0), [box_prompt(scene, 2), off])
    assert iou(tracker.step(scene.image(1), [off]).objects[2].mask, scene.truth(2, 1)) > 0.6


def test_mask_prompt_comes_back_as_the_mask(nano, scene):
    truth = scene.truth(1, 0)
    tracker = StreamTracker(nano)
    assert iou(tracker.step(scene.image(0), [Prompt(1, mask=truth)]).objects[1].mask, truth) > 0.9
    assert iou(tracker.step(scene.image(1)).objects[1].mask, scene.truth(1, 1)) > 0.7


def test_removed_object_is_gone_and_the_others_stay(nano, scene):
    tracker = StreamTracker(nano)
    tracker.step(scene.image(0), [box_prompt(scene, 1), box_prompt(scene, 2)])
    tracker.remove(1)
    assert list(tracker.step(scene.image(1)).objects) == [2]
    with pytest.raises(KeyError, match='object 1 is not known; known'):
        tracker.remove(1)
    tracker.reset()
    assert tracker.step(scene.image(2)).objects == {} and tracker.memory_bytes == 0


def test_wrong_prompt_loses_nothing(nano, scene):
    tracker, undisturbed = StreamTracker(nano), StreamTracker(nano)
    for t in (tracker, undisturbed):
        t.step(scene.image(0), [box_prompt(scene, 1)])
    with pytest.raises(PromptError, match='object 2: point'):
        tracker.step(scene.image(1), [Prompt(1, points=[(80, 70)], labels=[1]),
                                      Prompt(2, points=[(999, 5)], labels=[1])])
    assert tracker.object_ids == (1,)
    assert_same_results(tracker.step(scene.image(1)), undisturbed.step(scene.image(1)), tolerance=1e-6)


def test_stream_without_objects_costs_no_model_run(nano, scene):
    runs = []
    hook = nano.image_encoder.register_forward_hook(lambda *_: runs.append(1))
    try:
        tracker = StreamTracker(nano)
        assert tracker.step(scene.image(0)).objects == {} and not runs
        tracker.step(scene.image(1), [box_prompt(scene, 1, 1)])
        assert len(runs) == 1
    finally:
        hook.remove()


def test_limit_of_objects_is_kept(nano, scene):
    tracker = StreamTracker(nano, max_objects=1)
    tracker.step(scene.image(0), [box_prompt(scene, 1)])
    with pytest.raises(PromptError, match='the limit is 1: remove one first'):
        tracker.step(scene.image(1), [box_prompt(scene, 2)])
    tracker.step(scene.image(1), [box_prompt(scene, 1, 1)])
    assert tracker.object_ids == (1,)


def test_existing_objects_stay_when_the_limit_is_lowered(nano, scene):
    tracker = StreamTracker(nano)
    tracker.step(scene.image(0), [box_prompt(scene, 1), box_prompt(scene, 2)])
    tracker.max_objects = 1
    corrected = tracker.step(scene.image(1), [box_prompt(scene, 2, 1)])
    assert list(corrected.objects) == [1, 2]


@pytest.mark.parametrize(('image', 'error', 'text'), [
    (np.zeros((4, 4), np.uint8), ValueError, r'image of shape \(4, 4\)'),
    (np.zeros((4, 4, 4), np.uint8), ValueError, r'shape \(4, 4, 4\)'),
    (np.zeros((0, 4, 3), np.uint8), ValueError, r'shape \(0, 4, 3\)'),
    (np.zeros((4, 4, 3), np.float32), TypeError, 'dtype float32: must be uint8'),
    ('image.png', TypeError, 'type str'),
])
def test_wrong_image_is_refused_by_name(nano, image, error, text):
    with pytest.raises(error, match=text):
        StreamTracker(nano).step(image)


def test_image_may_be_a_tensor_or_a_read_only_or_flipped_view(nano, scene):
    image = scene.image(0)
    locked = image.copy()
    locked.flags.writeable = False
    flipped = np.ascontiguousarray(image[:, ::-1])[:, ::-1]
    results = [StreamTracker(nano).step(i, [box_prompt(scene, 1)]) for i in (image, torch.from_numpy(image), locked,
                                                                            flipped)]
    for other in results[1:]:
        assert_same_results(results[0], other, tolerance=1e-6)


def test_objects_survive_a_change_of_image_size(nano, scene):
    tracker, unchanged = StreamTracker(nano), StreamTracker(nano)
    for t in (tracker, unchanged):
        t.step(scene.image(0), [box_prompt(scene, 1)])
    for frame in range(1, 4):
        image = scene.image(frame)
        mask = tracker.step(cv2.resize(image, (640, 360), interpolation=cv2.INTER_CUBIC)).objects[1].mask
        expected = unchanged.step(image).objects[1].mask.astype(np.uint8)
        assert mask.shape == (360, 640)
        assert iou(mask, cv2.resize(expected, (640, 360), interpolation=cv2.INTER_NEAREST) > 0) > 0.9


def test_memory_is_a_constant_per_object(nano, scene):
    tracker = StreamTracker(nano)
    tracker.step(scene.image(0), [box_prompt(scene, 1)])
    of_one = tracker.memory_bytes
    for frame in range(1, 40):
        prompts = [Prompt(1, points=[(70 + 5 * frame, 70)], labels=[1])] if frame % 3 == 0 else []
        tracker.step(scene.image(frame), prompts)
        assert tracker.memory_bytes == of_one
    tracker.step(scene.image(40), [box_prompt(scene, 2, 40)])
    assert tracker.memory_bytes == 2 * of_one
    tracker.remove(1)
    assert tracker.memory_bytes == of_one


def test_tensors_alive_do_not_grow_with_the_stream(nano, scene):
    def living():
        gc.collect()
        return sum(o.nbytes for o in gc.get_objects() if type(o) in (torch.Tensor, torch.nn.Parameter))

    tracker = StreamTracker(nano)
    tracker.step(scene.image(0), [box_prompt(scene, 1)])
    for _ in range(20):
        tracker.step(scene.image(1))
    before = living()
    for _ in range(30):
        tracker.step(scene.image(1))
    assert living() == before


def test_encoded_image_serves_as_the_image(nano, scene):
    from_pixels, from_features = StreamTracker(nano), StreamTracker(nano)
    for frame in range(3):
        prompts = [box_prompt(scene, 1)] if frame == 0 else []
        image = scene.image(frame)
        expected = from_pixels.step(image, prompts)
        result = from_features.step(ImageSegmenter(nano).encode(image), prompts)
        assert_equal_results(result, expected)
        assert (result.height, result.width) == (240, 320)


# --- forks

@pytest.fixture
def followed(nano, scene):
    """Return a tracker that has tracked both discs over images 0 to 9."""
    tracker = StreamTracker(nano)
    for frame in range(10):
        tracker.step(scene.image(frame), [box_prompt(scene, 1), box_prompt(scene, 2)] if frame == 0 else [])
    return tracker


def test_fork_continues_exactly_like_its_origin(followed, scene):
    fork = followed.fork([1, 2])
    assert fork.object_ids == (1, 2)
    for frame in range(10, 14):
        assert_equal_results(fork.step(scene.image(frame)), followed.step(scene.image(frame)))


def test_fork_and_origin_do_not_disturb_each_other(followed, nano, scene):
    fork, undisturbed = followed.fork([1]), followed.fork([1, 2])
    for frame in range(3):
        fork.step(scene.image(20 - frame), [Prompt(1, mask=scene.truth(2, 20 - frame))])
    assert_equal_results(followed.step(scene.image(10)), undisturbed.step(scene.image(10)))
    fork.remove(1)
    assert followed.object_ids == (1, 2)


def test_fork_of_an_earlier_moment_gives_the_result_of_that_moment(nano, scene):
    """The past state is restored exactly as long as no frame has been dropped since."""
    tracker = StreamTracker(nano)
    results = [tracker.step(scene.image(frame), [box_prompt(scene, 1)] if frame == 0 else []) for frame in range(6)]
    fork = tracker.fork([1], frames_back=3)
    for frame in range(3, 6):
        assert_equal_results(fork.step(scene.image(frame)), results[frame])


def test_fork_of_a_moment_before_the_object_follows_it_from_its_prompt(followed, scene):
    mask = followed.fork([1], frames_back=50).step(scene.image(9)).objects[1].mask
    assert iou(mask, scene.truth(1, 9)) > 0.7


def test_late_correction_is_carried_to_the_present_and_stays(nano, scene):
    """The prompt selects both discs; after image 9, a prompt on image 4 selects one of them."""
    tracker = StreamTracker(nano)
    for frame in range(10):
        both = Prompt(1, mask=scene.truth(1, 0) | scene.truth(2, 0))
        tracker.step(scene.image(frame), [both] if frame == 0 else [])
    fork = tracker.fork([1], frames_back=6)
    fork.step(scene.image(4), [Prompt(1, mask=scene.truth(1, 4))])
    for frame in range(5, 10):
        fork.step(scene.image(frame))
    tracker.adopt(fork, 1)
    for frame in range(10, 14):
        mask = tracker.step(scene.image(frame)).objects[1].mask
        assert iou(mask, scene.truth(1, frame)) > 0.6
        assert not (mask & scene.truth(2, frame)).any()


def test_adopted_object_is_tracked_as_it_would_have_been(followed, nano, scene):
    late = StreamTracker(nano)
    for frame in range(6, 10):
        late.step(scene.image(frame), [box_prompt(scene, 2, 6)] if frame == 6 else [])
    alone = late.fork([2])
    followed.remove(2)
    followed.adopt(late, 2)
    assert followed.object_ids == (1, 2) and late.object_ids == ()
    result, expected = followed.step(scene.image(10)), alone.step(scene.image(10))
    assert torch.equal(result.objects[2].logits, expected.objects[2].logits)


def test_adopted_object_replaces_the_one_of_its_id(followed, nano, scene):
    other = StreamTracker(nano)
    other.step(scene.image(9), [Prompt(1, mask=scene.truth(2, 9))])
    bytes_before = followed.memory_bytes
    followed.adopt(other, 1)
    assert followed.object_ids == (1, 2) and followed.memory_bytes == bytes_before
    assert iou(followed.step(scene.image(10)).objects[1].mask, scene.truth(2, 10)) > 0.6


def test_object_that_cannot_be_adopted_stays_where_it_is(nano, scene):
    tracker, other = StreamTracker(nano, max_objects=1), StreamTracker(nano)
    tracker.step(scene.image(0), [box_prompt(scene, 1)])
    other.step(scene.image(0), [box_prompt(scene, 1), box_prompt(scene, 2)])
    with pytest.raises(PromptError, match='object 2: .* the limit is 1: remove one first'):
        tracker.adopt(other, 2)
    with pytest.raises(KeyError, match='object 3 is not known; known'):
        tracker.adopt(other, 3)
    foreign = StreamTracker(load_model('nano', device='cpu', image_size=128))
    with pytest.raises(ValueError, match=r'object 1 of a tracker on nano \(256 pixels.* nano \(128 pixels'):
        foreign.adopt(other, 1)
    assert tracker.object_ids == (1,) and other.object_ids == (1, 2) and foreign.object_ids == ()
    tracker.adopt(other, 1)
    assert tracker.object_ids == (1,) and other.object_ids == (2,)


@pytest.mark.parametrize(('ids', 'back', 'error', 'text'), [
    ([1, 7], 0, KeyError, 'object 7 is not known'), ([1], -1, ValueError, 'frames_back -1: must be at least 0')])
def test_impossible_fork_is_refused(followed, ids, back, error, text):
    with pytest.raises(error, match=text):
        followed.fork(ids, back)


# --- limits of recent frames

def test_limited_memory_comes_back_in_full(followed, scene):
    unlimited = followed.fork([1, 2])
    followed.recent_frames = 2
    followed.recent_frames = None
    for frame in range(10, 13):
        assert_equal_results(followed.step(scene.image(frame)), unlimited.step(scene.image(frame)))


def test_limited_memory_is_still_written(followed, scene):
    """Frames that are processed under the limit are used once the limit is lifted."""
    before = stack_memories([followed._banks[1]])
    followed.recent_frames = 2
    for frame in range(10, 13):
        assert iou(followed.step(scene.image(frame)).objects[1].mask, scene.truth(1, frame)) > 0.6
    after = stack_memories([followed._banks[1]])
    assert torch.equal(after.time_slots, before.time_slots)
    assert torch.equal(after.frames[0, 1:4], before.frames[0, 4:7])


@pytest.mark.parametrize(('limit', 'frames'), [(None, 7), (3, 4), (0, 1)])
def test_limit_lets_attention_see_fewer_tokens(followed, nano, scene, limit, frames):
    seen = []
    hook = nano.memory_attention.register_forward_hook(lambda _, inputs, __: seen.append(inputs[2].shape))
    try:
        followed.recent_frames = limit
        followed.step(scene.image(10))
    finally:
        hook.remove()
    pointers = 10 * nano.config.d_model // nano.config.memory_dim
    assert seen == [(2, frames * nano.grid ** 2 + pointers, nano.config.memory_dim)]


def test_fork_has_the_limit_of_its_origin(followed):
    followed.recent_frames = 3
    assert followed.fork([1]).recent_frames == 3
    with pytest.raises(ValueError, match='recent_frames -1: must be at least 0, or None for all'):
        followed.recent_frames = -1
    assert followed.recent_frames == 3


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_half_precision_finds_the_same_masks(nano, scene, dtype):
    half = StreamTracker(load_model('nano', device='cpu', dtype=dtype))
    full = StreamTracker(nano)
    for frame in range(4):
        prompts = [box_prompt(scene, 1)] if frame == 0 else []
        a, b = half.step(scene.image(frame), prompts), full.step(scene.image(frame), prompts)
        assert iou(a.objects[1].mask, b.objects[1].mask) > 0.9


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_gpu_finds_the_masks_of_the_cpu(nano, scene, dtype):
    gpu = StreamTracker(load_model('nano', device='cuda', dtype=dtype))
    cpu = StreamTracker(nano)
    for frame in range(8):
        prompts = [box_prompt(scene, 1), box_prompt(scene, 2)] if frame == 0 else []
        a, b = gpu.step(scene.image(frame), prompts), cpu.step(scene.image(frame), prompts)
        for object_id in (1, 2):
            assert a.objects[object_id].logits.device.type == 'cuda'
            assert iou(a.objects[object_id].mask, b.objects[object_id].mask) > 0.9
