"""Objects of a camera in a file: what is restored, when it is saved, and files that cannot be used or written."""
import errno
import json
import random
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from builtin_interfaces.msg import Time
from sensor_msgs.msg import RegionOfInterest

from sam2_core import StreamTracker, load_model, load_state, save_state
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import Instance, InstanceEvent, Prompt
from sam2_ros.perception import kept_objects
from sam2_ros.perception.camera_snapshot import NOTES
from sam2_ros.perception.kept_objects import KeptObjects, discard
from testing.camera_images import BLUE, RED, header, picture
from testing.pipelines import send, work_aside
from testing.waiting import PATIENCE

TOPIC, REMOVED = '/camera/image_raw', InstanceEvent.REMOVED
HEIGHT, WIDTH = 120, 160
LEFT, RIGHT = (RegionOfInterest(x_offset=x, y_offset=30, width=50, height=50) for x in (15, 95))


def scene(seconds, left=True, right=True):
    """Return a picture of two discs that move a little with time."""
    shift = 0.5 * (seconds % 10)
    discs = [(40 + shift, 55, 25, RED)] * left + [(120 - shift, 55, 25, BLUE)] * right
    return picture(HEIGHT, WIDTH, *discs)


class Log:
    """Logger that keeps its texts."""

    def __init__(self):
        self.texts = []
        self.info = self.warning = self.error = lambda text, **options: self.texts.append(text)


class Camera:
    """A camera's pipeline with its file, from the start of a node to its end."""

    def __init__(self, pipeline, path, topic=TOPIC):
        self.pipeline, self.log = pipeline, Log()
        self.kept = KeptObjects(path, topic, pipeline, pipeline._router._ids, self.log)
        self.kept.restore()

    def show(self, seconds, *prompts, frame_id='camera', **discs):
        """Let prompts and an image arrive; return the frame and the answers. It is what the worker does."""
        return self.see(scene(seconds, **discs), seconds, *prompts, frame_id=frame_id)

    def see(self, pixels, seconds, *prompts, frame_id='camera'):
        send(self.pipeline, *prompts)
        self.pipeline.put_image(from_pixels(pixels, 'rgb8', header(seconds, frame_id=frame_id)))
        self.pipeline.take()
        return self.step()

    def step(self):
        self.kept.before_step()
        frame, answers = self.pipeline.work()
        self.kept.before_publish()
        self.kept.after_publish()
        return frame, answers

    def written(self):
        """Wait until the file is written; return the ids in it."""
        assert self.kept._writer.wait(PATIENCE)
        return in_file(self.kept.path)

    def end(self):
        self.kept.close()


def in_file(path):
    return [one['id'] for one in load_state(path)[0]['metadata']['objects']]


@pytest.fixture
def path(tmp_path):
    return tmp_path / 'kept' / 'objects.safetensors'


@pytest.fixture
def start(make, path):
    """Return a function that starts a camera; all of them are ended with the test."""
    cameras = []

    def camera(where=path, topic=TOPIC, model=None, **parameters):
        pipeline = make(None if model is None else StreamTracker(model), **parameters)
        cameras.append(Camera(pipeline, where, topic))
        return cameras[-1]
    yield camera
    for one in cameras:
        one.end()


@pytest.fixture
def both(start):
    """Return a camera with two objects, after five images."""
    camera = start()
    camera.show(10, Prompt(id=3, box=LEFT, label='left'), Prompt(id=8, box=RIGHT, label='right'))
    for seconds in (11, 12, 13, 14):
        camera.show(seconds)
    camera.kept.save()
    return camera


def told(item):
    return item.id, item.label, item.state, item.score, item.visibility, item.last_seen, item.box


def assert_equal_frames(frame, expected):
    assert [told(item) for item in frame.objects] == [told(item) for item in expected.objects]
    for item, other in zip(frame.objects, expected.objects, strict=True):
        assert (item.mask is None and other.mask is None) or np.array_equal(item.mask, other.mask)
    assert frame.events == expected.events


# --- what is restored

def test_the_first_image_after_a_restart_gives_what_it_would_have_given_without_it(both, start, path):
    both.show(15, right=False)
    both.kept.save()
    both.end()
    content = path.read_bytes()
    again = start()
    assert again.log.texts == [f"{TOPIC}: restored 2 objects (3 'left', 8 'right') from {path}"]
    path.write_bytes(content)
    for seconds, right in ((16, False), (17, True), (18, True)):
        frame, _ = again.show(seconds, right=right)
        expected, _ = both.show(seconds, right=right)
        assert_equal_frames(frame, expected)
    assert [item.state for item in frame.objects] == [Instance.TRACKED, Instance.TRACKED]


def test_time_that_has_passed_during_the_restart_counts_as_hidden_only_for_hidden_objects(both, start):
    both.end()
    again = start(lost_after=2.0)
    frame, _ = again.show(100, right=False)
    assert [(item.id, item.state, item.last_seen) for item in frame.objects] == [
        (3, Instance.TRACKED, Time(sec=100)), (8, Instance.LOST, Time(sec=14))]
    assert [(event.id, event.kind) for event in frame.events] == [
        (8, InstanceEvent.OCCLUDED), (8, InstanceEvent.LOST)]


def test_objects_that_are_hidden_for_too_long_by_then_are_forgotten_and_leave_the_file(both, start, path):
    both.end()
    again = start(lost_after=2.0, forget_after=30.0)
    frame, _ = again.show(100, right=False)
    assert [item.id for item in frame.objects] == [3]
    assert again.written() == [3]


@pytest.mark.parametrize(('policy', 'known'), [('keep', [3, 8]), ('reset', [])])
def test_stamps_that_went_back_during_the_restart_are_a_time_jump(both, start, policy, known):
    both.end()
    again = start(on_time_jump=policy)
    frame, _ = again.show(1, right=False)
    assert [item.id for item in frame.objects] == known
    assert all(item.state in (Instance.TRACKED, Instance.OCCLUDED) for item in frame.objects), 'hidden since now'
    assert again.written() == known


def test_ids_of_objects_before_the_restart_are_not_given_to_others(start):
    camera = start()
    _, answers = camera.show(10, Prompt(box=LEFT), Prompt(box=RIGHT), Prompt(id=3, box=LEFT))
    assert [answer.id for answer in answers] == [1, 2, 3]
    camera.show(11, Prompt(id=2, action=Prompt.REMOVE))
    assert camera.written() == [1, 3]
    camera.show(12, Prompt(action=Prompt.CLEAR))
    assert camera.written() == []
    camera.end()
    _, answers = start().show(13, Prompt(box=LEFT))
    assert [(answer.accepted, answer.id) for answer in answers] == [(True, 4)]


def test_objects_can_be_corrected_and_removed_after_a_restart(both, start):
    both.end()
    again = start()
    send(again.pipeline, Prompt(id=8, action=Prompt.REMOVE))
    frame, (answer,) = again.step()  # before the first image
    assert frame is None and answer.accepted
    assert again.written() == [3]
    again.end()
    last = start()
    frame, (answer,) = last.show(15, Prompt(id=3, action=Prompt.REFINE, box=LEFT))
    assert answer.accepted and [(item.id, item.label) for item in frame.objects] == [(3, 'left')]


# --- when it is saved

@pytest.fixture
def clock(monkeypatch):
    """Return a clock that stands still, of the file's module."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(kept_objects, 'time', SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def stamp_in_file(camera):
    camera.written()
    return json.loads(load_state(camera.kept.path)[1][NOTES])['stamp'] // 10**9


def test_the_file_is_written_at_changes_and_once_in_a_period(start, clock):
    camera = start(keep_objects_period=5.0)
    camera.show(9)
    assert not camera.kept.path.exists(), 'no objects'
    camera.show(10, Prompt(id=1, box=LEFT))
    assert stamp_in_file(camera) == 10
    clock.now += 4.9
    camera.show(11)
    assert stamp_in_file(camera) == 10
    clock.now += 0.2
    camera.show(12)
    assert stamp_in_file(camera) == 12
    camera.show(13, Prompt(id=1, action=Prompt.REFINE, box=LEFT))
    assert stamp_in_file(camera) == 13
    camera.show(14, Prompt(id=1, action=Prompt.REMOVE))
    assert stamp_in_file(camera) == 14 and in_file(camera.kept.path) == []
    clock.now += 1000
    camera.show(15)
    assert stamp_in_file(camera) == 14, 'nothing has changed'


def test_a_late_object_is_saved_when_it_joins(start, clock):
    camera = start(keep_objects_period=3600.0)
    camera.show(10, Prompt(id=1, box=LEFT))
    camera.show(11)
    camera.show(11.5, Prompt(id=2, box=RIGHT, header=header(11)))
    assert [answer.accepted for answer in work_aside(camera.pipeline)] == [True]
    assert camera.written() == [1]
    camera.show(12)
    assert camera.written() == [1, 2]


def test_images_do_not_wait_for_the_disk_and_only_the_newest_state_waits(start, clock, monkeypatch):
    camera = start(keep_objects_period=0.1)
    begun, release, stamps = threading.Event(), threading.Event(), []

    def slow(path, state, notes):
        begun.set()
        assert release.wait(PATIENCE)
        stamps.append(json.loads(notes[NOTES])['stamp'] // 10**9)
        save_state(path, state, notes)
    monkeypatch.setattr(kept_objects, 'save_state', slow)
    camera.show(10, Prompt(id=1, box=LEFT))
    assert begun.wait(PATIENCE)
    for seconds in range(11, 16):
        clock.now += 1
        frame, _ = camera.show(seconds)
        assert frame.objects and not stamps
    release.set()
    assert camera.kept._writer.wait(PATIENCE)
    assert stamps == [10]
    with camera.pipeline.inbox._changed:  # the writer wakes the worker for changes that it has missed
        assert camera.pipeline.inbox._changed.wait_for(lambda: camera.pipeline.inbox._news, PATIENCE)
    camera.show(16)
    camera.written()
    assert stamps == [10, 16]


@pytest.mark.parametrize(('prompt', 'left'), [
    (Prompt(id=3, action=Prompt.REMOVE), [8]), (Prompt(action=Prompt.CLEAR), []), (Prompt(id=3, box=RIGHT), [8])])
def test_an_object_that_has_ended_does_not_come_back_however_slow_the_disk_is(both, start, monkeypatch, prompt, left):
    """SET with a known id ends an object, too; of the new one nothing has been saved."""
    release = threading.Event()

    def slow(path, state, notes):
        assert release.wait(PATIENCE)
    with monkeypatch.context() as patch:
        patch.setattr(kept_objects, 'save_state', slow)
        both.kept._due = 0.0
        both.show(15)  # its snapshot is being written, with both objects
        _, answers = both.show(16, prompt)
        assert [answer.accepted for answer in answers] == [True]
        assert in_file(both.kept.path) == [3, 8]
        release.set()
        both.end()  # as if it had been killed: nothing is written any more
    again = start()
    assert [item.id for item in again.show(17)[0].objects] == left
    again.show(18, Prompt(id=3, box=LEFT))
    assert again.written() == sorted([*left, 3], key=[8, 3].index)
    again.end()
    assert {item.id for item in start().show(19)[0].objects} == {*left, 3}, 'the new object has not ended'


def test_a_note_of_ends_is_only_for_the_file_that_it_was_written_for(both, start, path):
    both.show(15, Prompt(id=3, action=Prompt.REMOVE))
    assert both.written() == [8]
    both.end()
    path.unlink()
    again = start()
    again.show(16, Prompt(id=3, box=LEFT), Prompt(id=8, box=RIGHT))
    again.written()
    again.end()
    assert len(start().show(17)[0].objects) == 2


def test_a_note_that_cannot_be_read_says_nothing(both, start, path):
    both.end()
    for text in (b'', b'{', b'[]', b'{"series": 1, "ended": [3]}', b'\xff' * 5000, b'[' * 5000):
        path.with_name(f'{path.name}.lock').write_bytes(text)
        again = start()
        assert len(again.pipeline.objects.ids) == 2
        again.end()


# --- disks

def test_a_full_disk_is_reported_and_tracking_goes_on(clock, both, monkeypatch):
    def full(path, state, notes):
        raise OSError(errno.ENOSPC, 'No space left on device')
    with monkeypatch.context() as patch:
        patch.setattr(kept_objects, 'save_state', full)
        clock.now += 10
        frame, _ = both.show(15)
        assert len(frame.objects) == 2 and both.written() == [3, 8]
        problem = f'objects are not kept: {both.kept.path} cannot be written: No space left on device'
        assert both.kept.problem == problem and both.log.texts == [f'{TOPIC}: {problem}']
    clock.now += 10
    both.show(16)
    assert both.written() == [3, 8] and both.kept.problem == ''
    assert both.log.texts[-1] == f'{TOPIC}: objects are kept in {both.kept.path} again'


def test_where_not_even_an_end_can_be_noted_the_other_objects_are_lost_rather_than_this_one_brought_back(
        both, start, monkeypatch):
    def full(path, state, notes):
        raise OSError(errno.ENOSPC, 'No space left on device')

    def write(series, ended):
        raise OSError(errno.EIO, 'Input/output error')
    with monkeypatch.context() as patch:
        patch.setattr(kept_objects, 'save_state', full)
        patch.setattr(both.kept._lock, 'write', write)
        both.show(15, Prompt(id=3, action=Prompt.REMOVE))
        both.end()
    assert 'objects.safetensors.lock cannot be written: Input/output error' in both.log.texts[0]
    assert start().show(16)[0].objects == []


def test_a_folder_that_cannot_be_made_is_reported(start, tmp_path):
    (tmp_path / 'file').write_text('')
    camera = start(tmp_path / 'file' / 'objects.safetensors')
    assert camera.kept.problem == (f'objects are not kept: {tmp_path}/file: File exists; give a file in a folder that '
                                   f'the node may write to')
    frame, _ = camera.show(10, Prompt(id=1, box=LEFT))
    assert len(frame.objects) == 1
    camera.kept.save()


def test_two_nodes_do_not_share_a_file(both, start):
    other = start()
    assert other.kept.problem == (f'objects are not kept: {both.kept.path} is in use by another node: give each node a '
                                  f'file of its own')
    other.show(10, Prompt(id=1, box=LEFT))
    other.kept.save()
    assert in_file(both.kept.path) == [3, 8]
    both.end()
    assert len(start().show(15)[0].objects) == 2


# --- files that cannot be used

@pytest.fixture(scope='module')
def smaller():
    return load_model('nano', device='cpu', image_size=128)


def spoil(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content))


@pytest.mark.parametrize(('change', 'reason'), [
    (lambda content: content[:len(content) // 2], 'truncated or damaged'),
    (lambda content: b'', 'truncated or damaged'),
    (lambda content: content[:-1] + bytes([content[-1] ^ 1]), 'its content differs from its checksum'),
    (lambda content: content + b'\0' * 20_000_000, 'bytes: must be at most'),
])
def test_a_damaged_file_is_set_aside(both, start, path, change, reason):
    both.end()
    spoil(path, change)
    damaged = path.read_bytes()
    again = start()
    (text,) = again.log.texts
    assert text.startswith(f'{TOPIC}: kept objects are not used: ') and reason in text
    assert text.endswith(f'The file is now {path}.unusable')
    assert path.with_name(f'{path.name}.unusable').read_bytes() == damaged and not path.exists()
    frame, _ = again.show(15, Prompt(id=1, box=LEFT))
    assert [item.id for item in frame.objects] == [1] and again.written() == [1]
    again.end()
    path.write_bytes(damaged)
    start()
    assert path.with_name(f'{path.name}.unusable1').read_bytes() == damaged


def test_a_file_of_another_model_policy_camera_or_limit_is_set_aside(both, start, path, smaller):
    both.end()
    whole = path.read_bytes()
    for number, (options, reason) in enumerate((
            ({'model': smaller}, "state of a model 'nano' with image_size 256: must be 128"),
            ({'memory_policy': 'distractor_aware'},
             "memory_policy 'published': must be 'distractor_aware' as in this tracker; give both the same memory_p"),
            ({'topic': '/other/image'}, f'objects of the camera on {TOPIC}: must be /other/image; give each camera'),
            ({'max_objects': 1}, '2 objects: must be at most 1; raise max_objects'))):
        path.write_bytes(whole)
        camera = start(**options)
        assert reason in camera.log.texts[0], camera.log.texts
        assert camera.pipeline.objects.ids == ()
        assert path.with_name(f'{path.name}.unusable{number or ""}').read_bytes() == whole
        camera.end()


@pytest.mark.parametrize(('pixels', 'frame_id', 'text'), [
    (scene(15)[::2, ::2], 'camera', "the camera now has 80 x 60 in 'camera'"),
    (scene(15), 'other', "the camera now has 160 x 120 in 'other'"),
])
def test_objects_of_another_view_are_dropped_at_the_first_image(both, start, path, pixels, frame_id, text):
    both.end()
    again = start()
    frame, _ = again.see(pixels, 15, frame_id=frame_id)
    assert frame.objects == []
    assert [(event.id, event.kind) for event in frame.events] == [(3, REMOVED), (8, REMOVED)]
    assert f"160 x 120 pixels in frame 'camera': {text}" in again.log.texts[-1]
    assert in_file(path.with_name(f'{path.name}.unusable')) == [3, 8]
    again.show(16, Prompt(id=1, box=LEFT), frame_id=frame_id)
    assert again.written() == [1]


def test_a_view_may_change_while_the_node_runs(both):
    frame, _ = both.see(scene(15)[::2, ::2], 15)
    assert len(frame.objects) == 2


@pytest.mark.parametrize('kind', ['checkpoint', 'state of a tracker', 'folder'])
def test_a_file_that_is_not_the_node_s_is_left_alone(start, path, model, kind):
    path.parent.mkdir()
    if kind == 'folder':
        path.mkdir()
    elif kind == 'checkpoint':
        safetensors.torch.save_file({'weight': torch.zeros(3)}, path)
    else:
        save_state(path, StreamTracker(model).state_dict(), {'frame': '7'})
    before = path.is_dir() or path.read_bytes()
    camera = start()
    assert 'give another path' in camera.kept.problem
    camera.show(10, Prompt(id=1, box=LEFT))
    camera.kept.save()
    assert (path.is_dir() or path.read_bytes()) == before


@pytest.mark.fuzz
def test_notes_with_random_faults_are_refused_or_can_be_tracked_with(both, start, path, rounds):
    both.end()
    state, notes = load_state(path)
    content, rng, used = json.loads(notes[NOTES]), random.Random(4), 0
    values = (None, True, -1, 0, 1, 3, 7, 65536, 2**62, 1.5, float('nan'), 'x' * 2000, '', [], {}, 'eJxjYAAAAAEAAQ==')
    for _ in range(rounds(60, 5000)):
        spoiled = json.loads(json.dumps(content))
        part = spoiled
        while True:
            key = rng.choice([*part] if isinstance(part, dict) else [*range(len(part))])
            if not isinstance(part[key], (dict, list)) or not part[key] or rng.random() < 0.2:
                break
            part = part[key]
        if rng.random() < 0.2:
            del part[key]
        else:
            part[key] = rng.choice(values)
        save_state(path, state, {NOTES: rng.choice([json.dumps(spoiled)] * 9 + ['[' * 5000])})
        camera = start()
        if camera.pipeline.objects.ids:
            used += 1
            camera.show(15)
        else:
            assert 'kept objects are not used' in camera.log.texts[0]
            assert not path.exists()
        camera.end()
    assert used


def test_the_file_of_an_unconfigured_node_can_be_discarded(both, tmp_path):
    both.end()
    assert discard(both.kept.path) == '' and not both.kept.path.exists()
    assert discard(both.kept.path) == ''
    assert 'cannot be deleted: ' in discard(tmp_path)
