"""sam2_compare: differences between two runs, their confidence intervals, and the exit code."""
import json

import numpy as np
import pytest

from sam2_ros.compare import main
from sam2_ros.evaluation.scoring.comparison import MetricsError, compare, load


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a metrics.json with scores, {id: J and F of each image}, and returns its path."""
    def write(name, objects, **others):
        means = {number: float(np.mean(values)) for number, values in objects.items()}
        content = {'recording': 'kitchen', 'images': 500, 'mode': 'lock-step', 'rate': 1.0, 'dropped': 0,
                   'protocol': {'frames_counted': 'DAVIS'},
                   'objects': {str(number): {'label': f'cup {number}', 'J': means[number], 'F': means[number],
                                             'J&F': means[number],
                                             'frames': {'index': list(range(1, len(values) + 1)),
                                                        'J': list(map(float, values)), 'F': list(map(float, values))}}
                               for number, values in objects.items()}}
        path = tmp_path / name
        path.write_text(json.dumps({**content, **others}))
        return path
    return write


def compared(a, b, **options):
    return compare(load(a), load(b), **options)


# --- figures

def test_the_mean_is_over_objects_and_each_objects_over_its_images(write):
    a = write('a.json', {1: [0.5, 0.7], 2: [0.9] * 10})
    b = write('b.json', {1: [0.7, 0.9], 2: [0.8] * 10})
    found = compared(a, b)
    assert found.mean['J&F'].before == pytest.approx((0.6 + 0.9) / 2)
    assert found.mean['J&F'].after == pytest.approx((0.8 + 0.8) / 2)
    assert found.mean['J&F'].change == pytest.approx(0.05)
    assert found.objects[1]['J'].change == pytest.approx(0.2)
    assert found.objects[2]['J'].change == pytest.approx(-0.1)
    assert found.counted == 12


def test_j_and_f_are_told_apart(write):
    a = write('a.json', {1: [0.5] * 4})
    content = json.loads(a.read_text())
    content['objects']['1']['frames']['F'] = [0.9] * 4
    b = a.with_name('b.json')
    b.write_text(json.dumps(content))
    found = compared(a, b)
    assert found.mean['J'].change == 0
    assert found.mean['F'].change == pytest.approx(0.4)
    assert found.mean['J&F'].change == pytest.approx(0.2)


def test_only_images_that_both_count_are_compared(write):
    a, b = write('a.json', {1: [0.5, 0.5, 0.5, 0.5]}), write('b.json', {1: [0.6, 0.6]})
    found = compared(a, b)
    assert found.counted == 2
    assert found.mean['J&F'].change == pytest.approx(0.1)
    assert found.left_out == [f'object 1: 2 images that only {a} counts']


# --- how sure

def test_a_file_equals_itself(write):
    a = write('a.json', {1: np.linspace(0.2, 0.9, 50), 2: np.linspace(0.9, 0.1, 50)})
    found = compared(a, a)
    assert found.mean['J&F'].change == 0
    assert found.mean['J&F'].interval == (0, 0)


def test_a_change_that_is_everywhere_the_same_is_sure(write):
    before = np.random.default_rng(1).uniform(0.2, 0.8, 60)
    found = compared(write('a.json', {1: before, 2: before}), write('b.json', {1: before + 0.05, 2: before + 0.05}))
    assert found.mean['J&F'].interval == pytest.approx((0.05, 0.05))


def test_the_interval_is_the_same_each_time_and_for_a_seed(write):
    random = np.random.default_rng(2)
    a = write('a.json', {1: random.uniform(0, 1, 80), 2: random.uniform(0, 1, 80)})
    b = write('b.json', {1: random.uniform(0, 1, 80), 2: random.uniform(0, 1, 80)})
    assert compared(a, b).mean['J&F'] == compared(a, b).mean['J&F']
    assert compared(a, b, seed=1).mean['J&F'].interval != compared(a, b).mean['J&F'].interval


def test_the_interval_of_independent_images_is_that_of_the_normal_distribution(write):
    change = np.random.default_rng(3).normal(0, 0.1, 400)
    found = compared(write('a.json', {1: [0.5] * 400}), write('b.json', {1: 0.5 + np.clip(change, -0.5, 0.5)}), block=1)
    half = 1.96 * change.std() / 400 ** 0.5
    assert found.mean['J&F'].interval == pytest.approx((change.mean() - half, change.mean() + half), abs=half / 10)


def test_neighbouring_images_are_not_taken_as_independent(write):
    """Differences are correlated noise around 0: 95 of 100 intervals should contain 0."""
    random = np.random.default_rng(4)

    def share_holding_zero(block):
        held = 0
        for _ in range(100):
            noise, change = random.normal(0, 1, 500), np.zeros(500)
            for i in range(1, 500):
                change[i] = 0.85 * change[i - 1] + noise[i]
            a = write('a.json', {1: [0.5] * 400})
            b = write('b.json', {1: 0.5 + np.clip(0.05 * change[100:], -0.5, 0.5)})
            low, high = compared(a, b, block=block, draws=400).mean['J&F'].interval
            held += low <= 0 <= high
        return held
    assert share_holding_zero(block=1) < 65
    assert share_holding_zero(block=0) > 80


def test_what_differs_between_objects_is_not_sure_however_many_images_say_so(write):
    before = {number: [0.5] * 300 for number in (1, 2, 3, 4)}
    after = {1: [0.7] * 300, 2: [0.4] * 300, 3: [0.6] * 300, 4: [0.45] * 300}
    found = compared(write('a.json', before), write('b.json', after))
    low, high = found.mean['J&F'].interval
    assert low < 0 < found.mean['J&F'].change < high
    assert found.objects[1]['J&F'].interval == pytest.approx((0.2, 0.2))


def test_one_image_tells_nothing(write, capsys):
    a, b = write('a.json', {1: [0.5]}), write('b.json', {1: [0.9]})
    assert compared(a, b).mean['J&F'].interval is None
    assert main([str(a), str(b)]) == 0
    assert 'too few images' in capsys.readouterr().out


# --- gates

@pytest.fixture
def pair(write):
    """Object 1 falls by 0.06, object 2 rises by 0.02: the mean falls by 0.02."""
    return [str(write('a.json', {1: [0.8] * 50, 2: [0.6] * 50}, latency={'total': {'p95': 0.040}})),
            str(write('b.json', {1: [0.74] * 50, 2: [0.62] * 50}, latency={'total': {'p95': 0.060}}))]


@pytest.mark.parametrize('options, code', [
    ([], 0),
    (['--fail-below', '-0.03'], 0),
    (['--fail-below', '-0.01'], 1),
    (['--fail-below', '-0.01', '--when-sure'], 0),  # one object is better, one is worse
    (['--fail-object-below', '-0.07'], 0),
    (['--fail-object-below', '-0.05'], 1),
    (['--fail-object-below', '-0.05', '--when-sure'], 1),
    (['--fail-slower', '1.6'], 0),
    (['--fail-slower', '1.4'], 1)])
def test_a_gate_fails_when_it_gets_worse_than_it_allows(pair, options, code, capsys):
    assert main([*pair, *options]) == code
    assert ('sam2_compare: worse: ' in capsys.readouterr().err) == bool(code)


def test_what_images_that_were_dropped_cost_counts_in_a_gate(write, capsys):
    real_time = {'mode': 'real-time'}
    a = write('a.json', {1: [0.8] * 9}, **real_time, as_seen={'mean': {'J': 0.7, 'F': 0.7, 'J&F': 0.7}})
    b = write('b.json', {1: [0.8] * 9}, **real_time, as_seen={'mean': {'J': 0.6, 'F': 0.6, 'J&F': 0.6}})
    assert main([str(a), str(b), '--fail-below', '-0.05']) == 1
    assert 'as seen changes by -0.1000' in capsys.readouterr().err


def test_a_gate_on_speed_needs_times(write, capsys):
    a = str(write('a.json', {1: [0.8] * 5}))
    assert main([a, a, '--fail-slower', '1.2']) == 2
    assert 'no p95' in capsys.readouterr().err


# --- what is refused

@pytest.mark.parametrize('others, word', [
    ({'recording': 'garden'}, "recording: 'kitchen' and 'garden'"),
    ({'mode': 'real-time'}, "mode: 'lock-step' and 'real-time'"),
    ({'rate': 2.0}, 'rate: 1.0 and 2.0'),
    ({'images': 400}, 'images: 500 and 400'),
    ({'protocol': {'frames_counted': 'SA-V'}}, "frames_counted: 'DAVIS' and 'SA-V'")])
def test_other_recordings_and_protocols_are_compared_only_when_told(write, capsys, others, word):
    a, b = str(write('a.json', {1: [0.8] * 5})), str(write('b.json', {1: [0.8] * 5}, **others))
    assert main([a, b]) == 2
    assert word in capsys.readouterr().err
    assert main([a, b, '--force']) == 0
    assert word in capsys.readouterr().out


def test_an_object_that_only_one_scores_is_no_improvement(write, capsys):
    a, b = str(write('a.json', {1: [0.8] * 5, 2: [0.1] * 5})), str(write('b.json', {1: [0.8] * 5}))
    assert main([a, b]) == 2
    assert f'only {a} scores object 2' in capsys.readouterr().err
    assert main([a, b, '--force']) == 0
    assert f'object 2: only {a} scores it' in capsys.readouterr().out


def test_runs_with_nothing_in_common_are_not_compared(write, capsys):
    a, b = str(write('a.json', {1: [0.8] * 5})), str(write('b.json', {2: [0.8] * 5}))
    assert main([a, b, '--force']) == 2
    assert 'no object with an image that both count' in capsys.readouterr().err


@pytest.mark.parametrize('text, word', [
    (None, 'No such file'), ('', 'no JSON'), ('{"objects"', 'no JSON'), ('[]', 'no "objects"'), ('{}', 'no "objects"'),
    ('{"objects": {}}', 'ground truth'), ('{"objects": {"1": {"J": null}}}', 'ground truth'),
    ('{"objects": {"1": 5}}', 'object 1'), ('{"objects": {"cup": {}}}', 'object cup'),
    ('{"objects": {"1": {"frames": {"index": [1, 2], "J": [1], "F": [1, 1]}}}}', 'equal length'),
    ('{"objects": {"1": {"frames": {"index": [2, 1], "J": [1, 1], "F": [1, 1]}}}}', 'in order'),
    ('{"objects": {"1": {"frames": {"index": [1], "J": [NaN], "F": [1]}}}}', 'from 0 to 1'),
    ('{"objects": {"1": {"frames": {"index": [1], "J": [1.5], "F": [1]}}}}', 'from 0 to 1'),
    ('{"objects": {"1": {"frames": {"index": [1], "J": [null], "F": [1]}}}}', 'object 1'),
    ('{"objects": {"1": {"frames": {"index": 1, "J": 1, "F": 1}}}}', 'object 1'),
    ('{"objects": {"1": {"frames": {"J": [1], "F": [1]}}}}', 'object 1')])
def test_a_file_that_cannot_be_used_is_named_with_the_cure(write, tmp_path, capsys, text, word):
    bad = tmp_path / 'bad.json'
    if text is not None:
        bad.write_text(text)
    assert main([str(write('a.json', {1: [0.8] * 5})), str(bad)]) == 2
    said = capsys.readouterr().err
    assert str(bad) in said and word in said


def test_bytes_that_are_no_text_are_refused(tmp_path):
    bad = tmp_path / 'bad.json'
    bad.write_bytes(b'\xff\xfe\x00\x81')
    with pytest.raises(MetricsError, match='no JSON'):
        load(bad)


@pytest.mark.parametrize('option', [['--draws', '0'], ['--block', '-1'], ['--fail-below', 'nan'], ['--seed', '-1']])
def test_options_out_of_range_are_refused(pair, option):
    with pytest.raises(SystemExit) as error:
        main([*pair, *option])
    assert error.value.code == 2


# --- what is printed

def test_what_differs_besides_the_scores_is_named(write, capsys):
    a = write('a.json', {1: [0.8] * 5}, parameters={'model': 'nano', 'depth_wait': 0.1}, versions={'torch': '2.9'})
    b = write('b.json', {1: [0.8] * 5}, parameters={'model': 'tiny', 'depth_wait': 0.1}, versions={'torch': '2.10'})
    assert main([str(a), str(b)]) == 0
    said = capsys.readouterr().out
    assert 'model: nano -> tiny' in said and 'torch: 2.9 -> 2.10' in said
    assert 'depth_wait' not in said


def test_labels_are_printed_as_they_are(write, capsys):
    a = write('a.json', {1: [0.8] * 5})
    content = json.loads(a.read_text())
    content['objects']['1']['label'] = '[red]mug[/red]'
    a.write_text(json.dumps(content))
    assert main([str(a), str(a)]) == 0
    assert '[red]mug[/red]' in capsys.readouterr().out


def test_json_says_the_same(pair, capsys):
    assert main([*pair, '--json', '--fail-below', '-0.01']) == 1
    said = json.loads(capsys.readouterr().out)
    assert said['mean']['J&F']['before'] == pytest.approx(0.7)
    assert said['mean']['J&F']['change'] == pytest.approx(-0.02)
    low, high = said['mean']['J&F']['interval']
    assert low < -0.02 < high
    assert said['objects']['2']['label'] == 'cup 2'
    assert said['objects']['2']['J&F']['change'] == pytest.approx(0.02)
    assert len(said['failed']) == 1
