"""Figures of a run, compared with the published tools and with values worked out by hand."""
import json
from pathlib import Path

import numpy as np
import pytest

from sam2_core.masks import mask_box
from sam2_ros.evaluation.metrics import Agreement, Exported, MetricsError, read, to_json, write
from sam2_ros.evaluation.results import TOTAL, Answer, FrameOutput, ObjectOutput, Run
from sam2_ros.evaluation.scoring import scores
from sam2_ros.msg import Instance
from sam2_ros.recordings.recording import RecordingError
from testing import metric_masks

PUBLISHED = json.loads(Path(metric_masks.__file__).with_name('published_metrics.json').read_text())['sequences']
PERIOD = 100_000_000  # ns
SIZE = (40, 60)
LEFT, RIGHT = np.zeros((2, *SIZE), bool)
LEFT[10:30, 5:25] = RIGHT[10:30, 35:55] = True
NOTHING = np.zeros(SIZE, bool)


class Truth:
    """Recording with ground truth only: for each image a dict of masks by object, or None."""

    def __init__(self, *images) -> None:
        self._images = images
        self.name, self.labels, self.prompts, self.problems = 'truth', {}, [], []
        self.stamps = [(10 + index) * PERIOD for index in range(len(images))]
        self.arrivals = self.stamps

    def truth(self, index: int) -> np.ndarray | None:
        masks = self._images[index]
        if isinstance(masks, Exception):
            raise masks
        if masks is None:
            return None
        labels = np.zeros(next(iter(masks.values())).shape, np.uint16)
        for number, mask in masks.items():
            labels[mask] = number
        return labels


def output(mask: np.ndarray) -> ObjectOutput:
    box = mask_box(mask)
    if box is None:
        return ObjectOutput(Instance.OCCLUDED, 0.0, 0.1)
    x0, y0, x1, y1 = box
    return ObjectOutput(Instance.TRACKED, 0.9, 0.9, box, np.packbits(mask[y0:y1, x0:x1]))


def answer(number: int, index: int = 0, action: str = 'SET', reason: str = '', late: int = 0) -> Answer:
    stamp = (10 + index) * PERIOD
    return Answer(stamp + late * PERIOD, stamp, action, number, '', not reason, reason, None if reason else stamp)


def run_of(*images, answers=(), mode: str = 'lock-step', delay: float = 0.0, rate: float = 1.0) -> Run:
    """Return a run.

    Args:
        images: For each image the masks by object, or None if it was dropped.
        answers: To prompts.
        mode: Of the run.
        delay: Of the results, in images.
        rate: Of the run.
    """
    size = next((mask.shape for masks in images if masks for mask in masks.values()), SIZE)
    frames = [FrameOutput(index, (10 + index) * PERIOD, round((10 + index + delay) * PERIOD),
                          {number: output(mask) for number, mask in masks.items()}, {TOTAL: 0.001 * (index + 1)})
              for index, masks in enumerate(images) if masks is not None]
    return Run('truth', mode, rate, len(images), *size, {}, frames, list(answers))


def score(*arguments, **options) -> dict:
    """Return the figures of a run as metrics.json has them."""
    return to_json(scores.score(*arguments, **options))


# --- J and F

@pytest.mark.parametrize(('tool', 'sav', 'key'), [
    ('DAVIS', False, None), ('SA-V', True, None), ('SA-V, all frames', True, 'all_frames')])
def test_objects_score_as_in_the_published_tools(tool, sav, key):
    for seed in metric_masks.SEQUENCES:
        predicted, true = metric_masks.sequence(seed)
        numbers = range(1, true.max() + 1)
        images = [[{number: labels == number for number in numbers} for labels in part] for part in (predicted, true)]
        metrics = score(run_of(*images[0], answers=[answer(number) for number in numbers]), Truth(*images[1]), sav=sav)
        published = PUBLISHED[tool][f'sequence{seed}']
        for number, (j, f) in published.items():
            found = metrics['objects'][number]
            found = found[key] if key else found
            assert [found['J'], found['F']] == pytest.approx([j, f], abs=1e-6)
        mean = metrics['mean_all_frames' if key else 'mean']
        means = np.mean(list(published.values()), axis=0)
        assert [mean['J'], mean['F'], mean['J&F']] == pytest.approx([*means, means.mean()], abs=1e-6)


def test_the_frames_that_count_are_listed_with_their_values():
    both = {1: LEFT}
    metrics = score(run_of(both, both, {1: NOTHING}, both, answers=[answer(1)]), Truth(both, both, both, both))
    item = metrics['objects']['1']
    assert item['frames'] == {'index': [1, 2], 'J': [1, 0], 'F': [1, 0]}
    assert (item['J'], item['F'], item['J&F']) == (0.5, 0.5, 0.5)
    assert item['all_frames']['J'] == 0.75


def test_an_object_counts_from_its_first_sight_or_its_prompt_whichever_is_later():
    one, two = {1: LEFT, 2: NOTHING}, {1: LEFT, 2: RIGHT}
    metrics = score(run_of(one, one, two, two, two, answers=[answer(1), answer(2, 2)]), Truth(one, one, two, two, two))
    assert metrics['objects']['2']['frames']['index'] == [3]
    metrics = score(run_of(one, one, two, two, two, answers=[answer(1, 1)]), Truth(two, two, two, two, two))
    assert metrics['objects']['1']['frames']['index'] == [2, 3]


def test_an_object_that_a_user_took_back_is_not_missed():
    both, gone = {1: LEFT}, {}
    metrics = score(run_of(both, both, both, gone, gone, answers=[answer(1), answer(1, 3, 'REMOVE')]),
                    Truth(*[both] * 5))
    assert metrics['objects']['1']['frames'] == {'index': [1], 'J': [1], 'F': [1]}


def test_objects_that_are_never_prompted_count_nothing_and_are_named_with_the_reason():
    two = {1: LEFT, 2: RIGHT}
    metrics = score(run_of(*[{1: LEFT}] * 4, answers=[answer(1), answer(2, reason='box too small')]), Truth(*[two] * 4))
    assert metrics['mean']['J'] == 0.5
    assert metrics['objects']['2']['J'] == 0 and metrics['objects']['2']['frames']['J'] == [0, 0]
    assert metrics['not_prompted'] == {'2': 'refused: box too small'}
    assert metrics['prompts'] == {'accepted': 1,
                                  'refused': [{'id': 2, 'action': 'SET', 'reason': 'box too small'}]}
    metrics = score(run_of(*[{1: LEFT, 7: RIGHT}] * 4, answers=[answer(1), answer(7)]), Truth(*[{1: LEFT}] * 4))
    assert metrics['not_in_truth'] == [7] and metrics['not_prompted'] == {}


def test_only_annotated_images_count():
    both = {1: LEFT}
    metrics = score(run_of(both, {1: NOTHING}, both, {1: NOTHING}, both, answers=[answer(1)]),
                    Truth(both, None, both, None, both))
    assert metrics['objects']['1']['frames']['index'] == [2] and metrics['mean']['J'] == 1
    assert metrics['annotated'] == 3


# --- presence, recovery, identity, drift

def test_presence():
    seen, absent = {1: LEFT}, {1: NOTHING}
    truth = Truth(seen, seen, seen, absent, absent, absent, seen)
    metrics = score(run_of(seen, seen, absent, seen, absent, absent, seen, answers=[answer(1)]), truth)
    assert metrics['presence'] == metrics['objects']['1']['presence'] == {'precision': 0.5, 'recall': 0.5}


def test_time_to_recover():
    seen, absent, wrong = {1: LEFT}, {1: NOTHING}, {1: RIGHT}
    truth = Truth(seen, absent, seen, seen, seen, absent, seen, absent, absent, seen)
    found = run_of(seen, absent, wrong, absent, seen, seen, absent, absent, absent, seen, answers=[answer(1)])
    assert score(found, truth)['recovery'] == {
        'occlusions': 3, 'recovered': 2, 'seconds': {'mean': pytest.approx(0.1), 'p50': pytest.approx(0.1), 'max': 0.2}}


def test_identity_swaps():
    truth = Truth(*[{1: LEFT, 2: RIGHT}] * 6)
    swapped, right = {1: RIGHT, 2: LEFT}, {1: LEFT, 2: RIGHT}
    answers = [answer(1), answer(2)]
    metrics = score(run_of(right, swapped, swapped, right, {1: RIGHT, 2: RIGHT}, right, answers=answers), truth)
    assert metrics['identity_swaps'] == 3
    assert [metrics['objects'][number]['identity_swaps'] for number in '12'] == [2, 1]
    assert score(run_of(*[right] * 6, answers=answers), truth)['identity_swaps'] == 0


def test_drift_is_counted_from_the_last_prompt():
    both, half = {1: LEFT}, {1: LEFT & (np.arange(60) < 15)}
    images = [both] * 10 + [half] * 10 + [both] * 12
    metrics = score(run_of(*images, answers=[answer(1), answer(1, 20, 'REFINE')]), Truth(*[both] * 32))
    # 1 to 0.9 s after the first prompt; 0 to 1.0 s after the second
    assert metrics['drift'] == [{'from': 0, 'to': 1, 'J': 1.0, 'frames': 9 + 10},
                                {'from': 1, 'to': 2, 'J': pytest.approx((10 * 0.5 + 1) / 11), 'frames': 11}]


# --- the cost of time

def moving(index: int) -> dict[int, np.ndarray]:
    return {1: np.roll(LEFT, 4 * index, 1)}


def test_late_results_are_judged_by_the_truth_of_their_time_too():
    truth = Truth(*[moving(index) for index in range(8)])
    run = run_of(*[moving(index) for index in range(8)], answers=[answer(1)], mode='real-time', delay=1.5)
    metrics = score(run, truth)
    assert metrics['mean']['J'] == 1, 'at its own stamp each is right'
    # a result that is 1.5 images late is there when the next image is the newest: 4 pixels off
    assert metrics['when_available']['mean']['J'] == pytest.approx(16 / 24)
    # and an image meets the newest result there is, that of two images before
    assert metrics['as_seen']['objects']['1']['J'] == pytest.approx(np.mean([0, *[12 / 28] * 5]))
    assert metrics['latency']['result'] == dict.fromkeys(('p50', 'p95', 'p99'), pytest.approx(0.15))


def test_what_was_dropped_costs_where_the_robot_saw_nothing_newer():
    truth = Truth(*[moving(index) for index in range(6)])
    run = run_of(moving(0), None, None, moving(3), None, moving(5), answers=[answer(1)], mode='real-time')
    metrics = score(run, truth)
    assert metrics['dropped'] == 3 and metrics['processed'] == 3
    assert metrics['objects']['1']['frames']['index'] == [3] and metrics['mean']['J'] == 1
    assert metrics['as_seen']['mean']['J'] == pytest.approx(np.mean([16 / 24, 12 / 28, 1, 16 / 24]))


def test_a_late_prompt_counts_from_when_it_came():
    both, nothing = {1: LEFT}, {}
    images = [nothing] * 4 + [both] * 4
    run = run_of(*images, answers=[answer(1, 0, late=3)], mode='real-time')
    assert score(run, Truth(*[both] * 8))['objects']['1']['frames'] == {
        'index': [4, 5, 6], 'J': [1, 1, 1], 'F': [1, 1, 1]}


def test_latency_is_told_in_percentiles_by_stage():
    run = run_of(*[{1: LEFT}] * 101, answers=[answer(1)])
    latency = score(run, Truth(*[None] * 101))['latency']
    assert latency == {'total': {'p50': pytest.approx(0.051), 'p95': pytest.approx(0.096), 'p99': pytest.approx(0.1)}}


# --- what is missing or damaged

def test_without_truth_there_is_no_mean_and_the_rest_is_told():
    metrics = score(run_of(*[{1: LEFT}] * 3, answers=[answer(1)]), Truth(None, None, None))
    assert metrics['mean'] is None and metrics['objects'] == {} and metrics['not_in_truth'] == []
    assert metrics['annotated'] == 0 and metrics['processed'] == 3


def test_truth_that_cannot_be_used_costs_that_image_and_is_named():
    both = {1: LEFT}
    truth = Truth(both, RecordingError('truth of image 1: cut off'), {1: np.ones((20, 30), bool)}, both, both)
    metrics = score(run_of(*[both] * 5, answers=[answer(1)]), truth)
    assert metrics['objects']['1']['frames']['index'] == [3]
    assert metrics['problems'] == ['truth of image 1: cut off',
                                   'truth of image 2 has 30 x 20 pixels: must be 60 x 40, as the image']


def test_metrics_are_strict_json(tmp_path):
    def refuse(constant):
        raise AssertionError(constant)
    metrics = scores.score(run_of({1: LEFT}, {1: LEFT}, answers=[answer(1)]), Truth({1: LEFT}, {1: LEFT}))
    content = to_json(metrics)
    assert content['mean'] is None and content['objects']['1']['J'] is None, 'first and last: nothing is left'
    write(metrics, tmp_path / 'metrics.json')
    assert json.loads((tmp_path / 'metrics.json').read_text(), parse_constant=refuse) == content
    assert [path.name for path in tmp_path.iterdir()] == ['metrics.json']


def test_metrics_are_read_as_they_were_written(tmp_path):
    """The file has all that one may have: an object without prompt, an occlusion, late results, exports."""
    both, one = {1: LEFT, 2: RIGHT}, {1: LEFT, 2: NOTHING}
    truth = [both, both, one, both, both, both]
    metrics = scores.score(run_of(*truth, answers=[answer(1), answer(2, reason='box too small')], mode='real-time',
                                  delay=1.5), Truth(*truth), {'truth': 'bag'})
    metrics.against_lock_step = Agreement(0.9, {1: 0.9}, 6)
    metrics.exported = {'davis': Exported(5, 8, 2, 0, (2,))}
    metrics.prompts_from, metrics.job = 'topic', '0123'
    assert metrics.recovery.seconds is not None and metrics.as_seen and metrics.not_prompted and metrics.drift
    write(metrics, tmp_path / 'metrics.json')
    assert read(tmp_path / 'metrics.json') == metrics


def test_a_file_from_before_there_were_versions_is_read(tmp_path):
    metrics = scores.score(run_of(*[{1: LEFT}] * 4, answers=[answer(1)]), Truth(*[{1: LEFT}] * 4))
    content = to_json(metrics)
    assert content.pop('format_version') == 1
    (tmp_path / 'metrics.json').write_text(json.dumps(content))
    assert read(tmp_path / 'metrics.json') == metrics


def test_a_file_of_a_newer_version_is_refused(tmp_path):
    content = to_json(scores.score(run_of({1: LEFT}, answers=[answer(1)]), Truth({1: LEFT}))) | {'format_version': 2}
    (tmp_path / 'metrics.json').write_text(json.dumps(content))
    with pytest.raises(MetricsError, match='metrics.json: format version 2: must be 1; use the version'):
        read(tmp_path / 'metrics.json')
