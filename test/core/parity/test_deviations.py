"""Where transformers leaves the published rules: without the arrangements of ReferenceObject the two part.

Each arrangement is here for a reason that can be seen. A test that fails after an update of transformers says that the
deviation is gone, and that its arrangement can go too.
"""
import pytest
import torch

from testing import comparisons, reference
from testing.comparisons import BOX, CLICK, Given
from testing.reference import as_points
from testing.reference_stream import ReferenceObject

STREAM_LIMIT = 0.03  # as in test_parity_variants.py


class CorrectedByForward(ReferenceObject):
    """Corrections as transformers makes them: without the mask tracked so far, stored as an ordinary frame."""

    @torch.inference_mode()
    def correct(self, time, frame, points, labels):
        self.track(time, frame)
        return self.start(time, frame, points, labels)


class AdoptedByForward(ReferenceObject):
    """Mask prompts as transformers takes them: the pointer of the best of three, the memory of the full-size mask."""

    @torch.inference_mode()
    def adopt(self, time, frame, mask):
        self._show(time, frame)
        self.session.add_mask_inputs(0, time, mask[None, None])
        self.session.obj_with_new_inputs = [1]
        return self._forward(time, frame)


class PointersOfAll(ReferenceObject):
    """transformers' own choice of four conditioning frames: memories of four, but pointers of all.

    Seen once one that is not chosen is more than 15 frames old: before, it counts as an ordinary frame.
    """

    def _arrange_conditioning(self, now):
        self.model.config.max_cond_frame_num = self.max_conditioning_frames


class PointersWithoutLimit(ReferenceObject):
    """The published tracker lets the distance of a conditioning pointer grow without end, as transformers does."""

    def __init__(self, model, max_pointer_distance):
        super().__init__(model, max_pointer_distance=None)


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    with comparisons.one_thread():
        yield


@pytest.fixture
def pair():
    return comparisons.make_pair('nano')


def errors_with(monkeypatch, follower, pair, script, count):
    monkeypatch.setattr(comparisons, 'ReferenceObject', follower)
    return comparisons.run_stream(pair, {1: script}, reference.moving_scene(count)).errors[1]


@pytest.mark.parametrize(('follower', 'script', 'parts_at'), [
    (CorrectedByForward, {0: Given((CLICK,), (1,)), 3: Given(((20.0, 30.0),), (0,))}, 3),
    (AdoptedByForward, {0: Given(mask=comparisons.LEFT_MASK)}, 1),
    (PointersOfAll, {time: Given(((60.0 + 9 * time, 120.0),), (1,)) for time in range(0, 10, 2)}, 16),
    (PointersWithoutLimit, {0: Given((CLICK,), (1,))}, 33),
])
def test_without_its_arrangement_transformers_parts(monkeypatch, pair, follower, script, parts_at):
    errors = errors_with(monkeypatch, follower, pair, script, parts_at + 2)
    assert max(errors[time] for time in range(parts_at)) < STREAM_LIMIT
    assert max(errors[time] for time in (parts_at, parts_at + 1)) > STREAM_LIMIT


@torch.inference_mode()
def test_one_prompted_object_binarises_the_memories_of_all_in_transformers(pair):
    """Two objects in one session: the second is added at frame 1, and the first is remembered as if prompted then."""
    frames = [pair.encode(image) for image in reference.moving_scene(3)]
    alone, together = ReferenceObject(pair.theirs), ReferenceObject(pair.theirs)
    for one in (alone, together):
        one.start(0, frames[0], *as_points([CLICK], [1]))
    alone.track(1, frames[1])
    points, labels = as_points(box=BOX)
    together._show(1, frames[1])
    together.session.add_point_inputs(together.session.obj_id_to_idx(2), 1, {
        'point_coords': points[None, None], 'point_labels': labels[None, None].int()})
    together.session.obj_with_new_inputs = [2]
    pair.theirs(together.session, frame=frames[1].pixels, frame_idx=1)
    together._show(2, frames[2])
    both = pair.theirs(together.session, frame=frames[2].pixels, frame_idx=2)
    assert comparisons.error(both.pred_masks[0, 0], alone.track(2, frames[2]).logits) > STREAM_LIMIT


@torch.inference_mode()
def test_mask_alone_gets_tokens_that_are_no_points_in_transformers(pair):
    """Published: no prompt token where only a mask is given."""
    image = reference.moving_scene(1)[0]
    model = reference.image_model(pair.theirs)
    logits = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0)) * 5
    theirs = model(reference.pixel_values(image), input_masks=logits, multimask_output=False).pred_masks[0, 0]
    segmenter = comparisons.ImageSegmenter(pair.ours)
    ours = segmenter.segment(segmenter.encode(image), comparisons.Prompt(), previous_logits=logits[0, 0])
    assert comparisons.error(ours.logits, theirs) > STREAM_LIMIT
