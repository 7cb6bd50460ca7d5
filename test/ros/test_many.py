"""Many recordings: one summary, nothing done twice, no failure that costs the others; on Ray, no death of a worker."""
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip('rosbags', reason='needs rosbags (pip install rosbags rosbags-image)')

from discs import Discs, header

from sam2_ros.bag_writer import BagWriter
from sam2_ros.conversions import from_pixels
from sam2_ros.evaluate import main
from sam2_ros.evaluation.job import Job
from sam2_ros.evaluation.many import TRIES, evaluate_many
from sam2_ros.evaluation.recording import RecordingError


@pytest.fixture
def write(tmp_path):
    """A function: a bag of the discs; its path."""
    def write(name, images=4):
        discs = Discs(images)
        with BagWriter(tmp_path / name) as bag:
            for index, arrival in enumerate(discs.arrivals):
                bag.write('/camera/image', discs.image(index), arrival)
                bag.write('/camera/truth', from_pixels(discs.truth(index), 'mono16', header(index)), arrival)
        return tmp_path / name
    return write


def evaluate(bags, output, *options):
    return main([*map(str, bags), '--output', str(output), '--device', 'cpu', '--bag', 'none', '--no-video', *options])


def read(path):
    return json.loads(path.read_text())


def test_several_bags_have_a_folder_each_and_one_summary(write, tmp_path, capsys):
    assert evaluate([write('a'), write('b', images=6)], tmp_path / 'out') == 0
    summary = read(tmp_path / 'out' / 'summary.json')
    each = {name: read(tmp_path / 'out' / name / 'metrics.json') for name in ('a', 'b')}
    assert set(summary['recordings']) == {'a', 'b'} and summary['failed'] == {}
    assert summary['recordings']['b']['mean'] == each['b']['mean']
    objects = [item['J&F'] for metrics in each.values() for item in metrics['objects'].values()]
    assert summary['mean']['J&F'] == pytest.approx(sum(objects) / 4)
    page = (tmp_path / 'out' / 'summary.html').read_text()
    for name in ('a', 'b'):
        assert f'href="{name}/report.html"' in page and (tmp_path / 'out' / name / 'report.html').exists()
    assert 'mean over objects' in capsys.readouterr().out


def test_finished_bags_are_not_done_again(write, tmp_path, capsys):
    bags, out = [write('a'), write('b')], tmp_path / 'out'
    evaluate(bags, out)
    before = {name: (out / name / 'metrics.json').stat().st_mtime_ns for name in ('a', 'b')}
    (out / 'b' / 'metrics.json').unlink()  # as if it had been killed in b

    assert evaluate(bags, out) == 0
    assert (out / 'a' / 'metrics.json').stat().st_mtime_ns == before['a']
    assert (out / 'b' / 'metrics.json').exists()
    assert 'a was evaluated before' in capsys.readouterr().out
    assert set(read(out / 'summary.json')['recordings']) == {'a', 'b'}

    evaluate(bags, out, '--redo')
    assert (out / 'a' / 'metrics.json').stat().st_mtime_ns > before['a']


@pytest.mark.parametrize('what', ['options', 'bag'])
def test_what_has_changed_is_done_again(write, tmp_path, what):
    bags, out = [write('a'), write('b')], tmp_path / 'out'
    evaluate(bags, out)
    before = (out / 'a' / 'metrics.json').stat().st_mtime_ns
    if what == 'bag':
        for path in bags[0].iterdir():
            os.utime(path, (1, 1))
    evaluate(bags, out, *(['--image-size', '128'] if what == 'options' else []))
    assert (out / 'a' / 'metrics.json').stat().st_mtime_ns > before


def test_a_bag_that_fails_costs_itself_alone(write, tmp_path, capsys):
    broken = tmp_path / 'broken'
    broken.mkdir()
    assert evaluate([write('a'), broken, write('b')], tmp_path / 'out') == 1
    summary = read(tmp_path / 'out' / 'summary.json')
    assert set(summary['recordings']) == {'a', 'b'} and set(summary['failed']) == {'broken'}
    assert str(broken) in capsys.readouterr().err
    assert 'broken' in (tmp_path / 'out' / 'summary.html').read_text()


@pytest.mark.parametrize('error, calls', [(RuntimeError('out of memory'), TRIES), (RecordingError('no images'), 1)])
def test_what_may_go_well_next_time_is_tried_again(tmp_path, error, calls):
    tried = []

    def work(job):
        tried.append(job)
        raise error
    outcome, = evaluate_many([Job(tmp_path / 'bag', tmp_path / 'out')], work)
    assert outcome.metrics is None and str(error) in outcome.problem
    assert len(tried) == calls


def test_times_are_not_measured_beside_other_work(write, tmp_path, capsys):
    with pytest.raises(SystemExit):
        evaluate([write('a')], tmp_path / 'out', '--mode', 'real-time', '--ray')
    assert 'leave --ray out' in capsys.readouterr().err


# --- Ray

def workers_at_work():
    """Processes of this test's cluster that evaluate just now."""
    parents, titles = {}, {}
    for path in Path('/proc').glob('[0-9]*'):
        try:
            parents[int(path.name)] = int((path / 'stat').read_text().rpartition(')')[2].split()[1])
            titles[int(path.name)] = (path / 'cmdline').read_text()
        except OSError:
            continue

    def is_ours(process):
        while process in parents and process != os.getpid():
            process = parents[process]
        return process == os.getpid()
    return [process for process, title in titles.items() if title.startswith('ray::') and '_evaluate' in title
            and is_ours(process)]


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(write, tmp_path, capsys, monkeypatch):
    """A real Ray with two workers; one of them is killed while it is at work."""
    ray = pytest.importorskip('ray', reason='needs Ray (pip install ray)')
    initialise = ray.init
    monkeypatch.setattr(ray, 'init', lambda **options: initialise(**options, num_cpus=2))
    monkeypatch.setenv('RAY_USAGE_STATS_ENABLED', '0')
    bags = [write(name, images=60) for name in ('a', 'b', 'c')]
    killed = []

    def kill_one():
        deadline = time.monotonic() + 120
        while not killed and time.monotonic() < deadline:
            found = workers_at_work()
            if len(found) == 2:
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
            time.sleep(0.02)
    killer = threading.Thread(target=kill_one)
    killer.start()
    code = evaluate(bags, tmp_path / 'out', '--ray')
    killer.join()
    assert code == 0 and len(killed) == 1
    summary = read(tmp_path / 'out' / 'summary.json')
    assert set(summary['recordings']) == {'a', 'b', 'c'} and summary['failed'] == {}
    assert summary['mean']['J&F'] > 0.8

    capsys.readouterr()
    assert evaluate(bags, tmp_path / 'out', '--ray') == 0  # a restart: nothing is left to do
    assert capsys.readouterr().out.count('was evaluated before') == 3
