"""When the score of an object counts as low for a while."""
import pytest

from sam2_core.scores import LOW_FRAMES, LOW_SCORE, ScoreWatch

LOW, HIGH = LOW_SCORE - 0.1, LOW_SCORE + 0.1


def found(rows):
    """Return what a watch says about one object: rows of score, and whether it is visible and prompted."""
    watch = ScoreWatch()
    lows = (watch.add(frame, 7, *row) for frame, row in enumerate(rows))
    return [low for low in lows if low is not None]


def test_a_score_that_stays_low_is_reported_once_when_the_window_is_full():
    (low,) = found([(LOW, True)] * (3 * LOW_FRAMES))
    assert low.object_id == 7 and low.frame == LOW_FRAMES - 1
    assert low.mean == pytest.approx(LOW)


@pytest.mark.parametrize('rows', [
    [(HIGH, True)] * (3 * LOW_FRAMES),
    [(LOW, True)] * (LOW_FRAMES - 1),
    [(HIGH, True), (LOW, True)] * LOW_FRAMES,  # LOW_SCORE on average, which is not below it
    [(0.0, False)] * (3 * LOW_FRAMES)], ids=['high', 'too short', 'on the threshold', 'hidden'])
def test_nothing_else_is_reported(rows):
    assert found(rows) == []


def test_hidden_frames_are_left_out_of_the_mean():
    rows = [(HIGH, True), (0.0, False), (0.0, False)] * (2 * LOW_FRAMES)
    assert found(rows) == []
    rows = [(LOW, True), (0.0, False)] * LOW_FRAMES
    assert [low.frame for low in found(rows)] == [2 * LOW_FRAMES - 2]


def test_a_prompt_starts_the_mean_afresh():
    assert found(([(LOW, True)] * (LOW_FRAMES - 1) + [(LOW, True, True)]) * 3) == []


def test_a_fall_is_noticed_after_a_good_start():
    """Of 20 scores, k of 0.1 and the others of 0.9 have the mean 0.9 - 0.04 k, which is below 0.45 from k = 12 on."""
    (low,) = found([(0.9, True)] * 50 + [(0.1, True)] * 50)
    assert low.frame == 50 + 12 - 1


def test_objects_are_watched_apart():
    watch = ScoreWatch()
    said = [watch.add(frame, object_id, score, True) for frame in range(LOW_FRAMES)
            for object_id, score in ((1, LOW), (2, HIGH), (3, LOW))]
    assert [low.object_id for low in said if low is not None] == [1, 3]


def test_a_score_that_is_not_a_number_counts_as_zero():
    (low,) = found([(float('nan'), True)] * LOW_FRAMES)
    assert low.mean == 0
