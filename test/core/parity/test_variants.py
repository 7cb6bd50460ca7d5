"""Parity of the published variants with transformers on the same random weights, stage by stage and in streams.

The trunk of EdgeTAM is sam2_core's own in both (reference_edgetam.py); test_edgetam.py compares it with the official
one.

Where transformers deviates from the published code, ``ReferenceObject`` and ``comparisons`` arrange it to follow the
published rule. test_deviations.py shows the results without these arrangements, and test_published_rules.py tests the
published rules directly.
"""
import pytest

from testing import comparisons
from testing.comparisons import STREAM

STAGE_LIMIT = 1e-3  # mask logits, whose standard deviation is about 5
EDGETAM_STAGE_LIMIT = 1e-4
STREAM_LIMIT = 0.03  # one pixel or one memory that rounds the other way affects all later frames

VARIANTS = [
    'edgetam', 'sam2.1_hiera_tiny', 'sam2_hiera_tiny', 'sam2.1_hiera_base_plus', 'sam2_hiera_base_plus',
    # the two releases have the same image encoder, so one release is enough for these sizes
    *(pytest.param(name, marks=pytest.mark.slow)
      for name in ('sam2.1_hiera_small', 'sam2.1_hiera_large'))]
ABSENT = range(2, 4)  # frames


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    with comparisons.one_thread():
        yield


@pytest.fixture(scope='module', params=VARIANTS)
def pair(request):
    """Return the variant in both; the larger ones, whose blocks are those of tiny, at half the size."""
    small = 'edgetam' in request.param or 'tiny' in request.param
    return comparisons.make_pair(request.param, image_size=256 if small else 128)


@pytest.fixture(scope='module')
def stage_limit(pair):
    return EDGETAM_STAGE_LIMIT if pair.name == 'edgetam' else STAGE_LIMIT


@pytest.fixture(scope='module')
def levels(pair):
    return comparisons.encoder_errors(pair)


@pytest.fixture(scope='module')
def prompts(pair):
    return comparisons.prompt_errors(pair)


@pytest.fixture(scope='module')
def stages(pair):
    return comparisons.stage_errors(pair)


@pytest.fixture(scope='module')
def stream(pair):
    """Run ten frames with four objects: 1 tracked, 2 corrected at frame 5, 3 added at frame 3, 4 prompted by a mask."""
    return comparisons.run_stream(pair, STREAM, pair.scene(10))


@pytest.fixture(scope='module')
def interrupted(pair):
    """Track an object that is absent in two frames, by the bias of both score heads."""
    try:
        return comparisons.run_stream(
            pair, {1: STREAM[1]}, pair.scene(7),
            before=lambda time: pair.set_object_score_bias(-30.0 if time in ABSENT else 3.0))
    finally:
        pair.set_object_score_bias(3.0)


@pytest.mark.parametrize('level', ['stride 4', 'stride 8', 'stride 16'])
def test_encoder_level(levels, level, stage_limit):
    assert levels[level] < stage_limit


@pytest.mark.parametrize('kind', [
    'click, three masks', 'click, one mask', 'box', 'box and clicks', 'previous logits and clicks',
    'previous logits alone'])
def test_prompt_on_an_image(prompts, kind, stage_limit):
    assert prompts[kind] < stage_limit


@pytest.mark.parametrize('stage', [
    'memory attention', 'tracking: logits', 'tracking: pointer', 'tracking: scores', 'single mask: logits',
    'single mask: pointer', 'single mask: scores', 'memory encoder, probability', 'memory encoder, certain'])
def test_stage_of_tracking(stages, stage, stage_limit):
    assert stages[stage] < stage_limit


@pytest.mark.parametrize('prompted', [True, False])
@pytest.mark.parametrize('object_score', [4.0, -4.0])
def test_memory_is_stored_alike(pair, prompted, object_score):
    ours, theirs = comparisons.stored_memories(pair, prompted, object_score)
    assert ours.dtype == theirs.dtype
    # float32 noise before rounding to bfloat16 sometimes gives the neighbouring number
    assert (ours != theirs).float().mean() < 0.01
    assert comparisons.error(ours, theirs) <= 2 ** -7 * float(theirs.abs().max())


def test_tracking_over_ten_frames(stream):
    assert len(stream.errors[1]) == 10
    assert stream.worst(1) < STREAM_LIMIT


def test_correction_at_frame_5(stream):
    assert stream.worst(2) < STREAM_LIMIT


def test_object_added_at_frame_3(stream):
    assert list(stream.errors[3]) == list(range(3, 10))
    assert stream.worst(3) < STREAM_LIMIT


def test_object_prompted_by_a_mask(stream):
    assert stream.worst(4) < STREAM_LIMIT


def test_object_scores_over_the_stream(stream):
    assert max(max(errors.values()) for errors in stream.score_errors.values()) < STREAM_LIMIT


def test_absent_object_and_its_return(interrupted):
    scores = interrupted.scores[1]
    assert all((scores[time] < 0) == (time in ABSENT) for time in scores)
    assert all(interrupted.spread[1][time] == 0 for time in ABSENT)  # -1024 everywhere
    assert interrupted.worst() < STREAM_LIMIT


def test_reference_is_worth_comparing_with(stream):
    """Masks have foreground and background, and logits of about the published size."""
    for object_id in STREAM:
        assert all(1.5 < spread < 30 for spread in stream.spread[object_id].values())
        assert all(0.03 < share < 0.97 for share in stream.foreground[object_id].values())
        assert all(score > 0 for score in stream.scores[object_id].values())
