"""Many recordings: one summary, no repeated work, and failures or killed Ray workers that do not affect the others."""
import json
import os
import signal
import threading
import time
from html import unescape
from pathlib import Path

import pytest

pytest.importorskip('rosbags', reason='needs rosbags (pip install rosbags rosbags-image)')

import numpy as np
from sensor_msgs.msg import CameraInfo

from sam2_ros.evaluate import main
from sam2_ros.evaluation.batch import TRIES, evaluate_many
from sam2_ros.evaluation.job import Job, do, job_key
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import Prompt
from sam2_ros.recordings.bag_writer import BagWriter
from sam2_ros.recordings.recording import RecordingError
from testing.discs import HEIGHT, WIDTH, Discs, header


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a bag of the discs and returns its path.

    Its arguments are ``image``, which changes an image message, and ``more``, which creates further messages by topic.
    """
    def write(name, images=4, image=lambda index, message: message, more=None):
        discs = Discs(images)
        with BagWriter(tmp_path / name) as bag:
            for index, arrival in enumerate(discs.arrivals):
                bag.write('/camera/image', image(index, discs.image(index)), arrival)
                bag.write('/camera/truth', from_pixels(discs.truth(index), 'mono16', header(index)), arrival)
                for topic, message in (more or {}).items():
                    bag.write(topic, message(index), arrival)
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


def test_the_log_of_a_killed_recorder_belongs_to_the_recording(tmp_path):
    file = tmp_path / 'run.db3'
    file.write_bytes(b'a')
    before = job_key(Job(file, tmp_path / 'out'))
    (tmp_path / 'run.db3-wal').write_bytes(b'b')
    assert job_key(Job(file, tmp_path / 'out')) != before


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


def depth(index):
    return from_pixels(np.full((HEIGHT, WIDTH), 1000, np.uint16), '16UC1', header(index))


def calibration(**values):
    return lambda index: CameraInfo(**{
        'header': header(index), 'height': HEIGHT, 'width': WIDTH, 'distortion_model': 'plumb_bob', 'd': [0.1],
        'k': [100.0, 0.0, 80.0, 0.0, 100.0, 60.0, 0.0, 0.0, 1.0]} | values)


def unknown(index, message):
    return from_pixels(np.zeros((HEIGHT, WIDTH), np.uint8), 'nv24', message.header)


def broken_depth(index):
    message = depth(index)
    message.encoding = '8UC1' if index == 1 else '16UC1'
    return message


def with_depth(depth=depth, **calibrated):
    return {'more': {'/camera/depth': depth, '/camera/camera_info': calibration(**calibrated)}}


NOT_USED = 'depth not used in 3 of 3 images: '
ODD = {  # what is wrong with a bag, and what is said about it
    'distortion': (with_depth(d=[0.1, 0.0, 0.0, 0.0, 0.0, 0.02]), NOT_USED),
    'size': (with_depth(width=7), NOT_USED),
    'not_finite': (with_depth(k=[float('nan')] * 9), NOT_USED),
    'one_depth': (with_depth(broken_depth), 'depth not used in 1 of 3 images: '),
    'one_image': ({'image': lambda index, message: unknown(index, message) if index == 2 else message},
                  "encoding 'nv24': not supported"),
    'prompts': ({'more': {'/sam2/prompt': lambda index: Prompt(header=header(index), id=1, action=9)}}, 'action 9'),
}


def test_what_is_wrong_with_one_part_of_a_bag_costs_that_part_and_is_named(write, tmp_path):
    """The recordings after it are evaluated too."""
    bags = [write(name, images=3, **odd) for name, (odd, _) in ODD.items()]
    assert evaluate([*bags, write('good', images=3)], tmp_path / 'out') == 0
    good = read(tmp_path / 'out' / 'good' / 'metrics.json')
    assert good['problems'] == [] and good['unusable'] == {} and good['mean']['J&F'] > 0.8
    for name, (_, named) in ODD.items():
        metrics = read(tmp_path / 'out' / name / 'metrics.json')
        refused = [item['reason'] for item in metrics['prompts']['refused']]
        told = [*metrics['problems'], *metrics['unusable'].values(), *refused]
        assert any(named in text for text in told), (name, told)
        assert metrics['processed'] == 3 - len(metrics['unusable']), name
        assert len(refused) == 3 if name == 'prompts' else metrics['mean_all_frames']['J&F'] > 0.8, name
        assert named in unescape((tmp_path / 'out' / name / 'report.html').read_text()), name


def test_a_recording_without_a_single_usable_image_has_failed(write, tmp_path, capsys):
    bags = [write('unknown', image=unknown), write('good')]
    assert evaluate(bags, tmp_path / 'out', '--prompts', 'first-truth') == 1
    reason = read(tmp_path / 'out' / 'summary.json')['failed']['unknown']
    assert "encoding 'nv24': not supported; publish one of rgb8" in reason
    assert set(read(tmp_path / 'out' / 'summary.json')['recordings']) == {'good'}
    (tmp_path / 'prompts.yaml').write_text('[{frame: 0, id: 1, action: clear}]')
    assert evaluate(bags[:1], tmp_path / 'alone', '--prompts', str(tmp_path / 'prompts.yaml')) == 2
    assert 'none of its 4 images can be used; image 0: ' in capsys.readouterr().err


def test_a_video_that_cannot_be_written_costs_the_video(write, tmp_path, monkeypatch, model):
    def fail(*_):
        raise OSError('OpenCV can write none of mp4v')
    monkeypatch.setattr('sam2_core.drawing.video.VideoFile.write', fail)
    out = tmp_path / 'out'
    do(Job(write('a', images=2), out, bag=''), model)
    assert read(out / 'metrics.json')['problems'] == ['overlay.mp4: OpenCV can write none of mp4v']
    assert not (out / 'overlay.mp4').exists() and (out / 'report.html').exists()


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
    """Return the processes of this test's cluster that are evaluating."""
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
    """Run Ray with two workers and kill one of them while it is evaluating."""
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
