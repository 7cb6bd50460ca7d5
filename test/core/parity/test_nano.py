"""Parity of nano with transformers: trained weights, and streams longer than the memory."""
import pytest

from testing import comparisons, reference
from testing.comparisons import CLICK, STREAM, Given

STREAM_LIMIT = 0.03  # as in test_variants.py

CORRECTED_OFTEN = {0: Given(((60.0, 200.0),), (1,)), 5: Given(((75.0, 190.0),), (1,)), 6: Given(((20.0, 20.0),), (0,))}

LONG: comparisons.Script = {
    # never corrected: after frame 32, the distance of its conditioning pointer is at the limit
    1: {0: Given((CLICK,), (1,))},
    # more conditioning frames than are stored, some of them still within reach as ordinary frames
    2: {0: Given(box=(40.0, 60.0, 150.0, 165.0)),
        **{time: Given(((60.0 + 3 * time, 120.0),), (time % 2,)) for time in (4, 6, 7, 9, 10, 12)},
        36: Given(mask=comparisons.LEFT_MASK)},
    3: {15: Given(((200.0, 180.0), (30.0, 40.0)), (1, 0))},
}


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    with comparisons.one_thread():
        yield


@pytest.fixture(scope='module')
def trained():
    pair = comparisons.trained_nano_pair()
    return pair, comparisons.run_stream(pair, {**STREAM, 5: CORRECTED_OFTEN}, reference.moving_scene(12))


@pytest.fixture(scope='module')
def long_stream():
    return comparisons.run_stream(comparisons.make_pair('nano'), LONG, reference.moving_scene(40))


def test_trained_weights_answer_prompts_alike(trained):
    errors = comparisons.prompt_errors(trained[0])
    assert max(errors.values()) < 1e-3, errors


@pytest.mark.parametrize('object_id', [1, 2, 3, 4, 5])
def test_trained_weights_track_alike(trained, object_id):
    assert trained[1].worst(object_id) < STREAM_LIMIT


@pytest.mark.parametrize('object_id', LONG)
def test_stream_longer_than_the_memory(long_stream, object_id):
    assert len(long_stream.errors[object_id]) == 40 - min(LONG[object_id])
    assert long_stream.worst(object_id) < STREAM_LIMIT
