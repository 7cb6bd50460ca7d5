"""Objects of a tracker that are saved and brought back, in memory and in files."""
import json
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch

from sam2_core import Prompt, StreamTracker, TrackerStateError, load_model, load_state, save_state
from sam2_core.fingerprint import fingerprint
from sam2_core.metrics import iou
from sam2_core.state_files import ForeignFileError
from sam2_core.tracker_state import bytes_per_object
from testing.plain_tracker import tiny_model

RNG = np.random.default_rng(6)
IMAGES = [np.kron(RNG.integers(0, 255, (3, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8)) for _ in range(60)]
CLICK = Prompt(1, points=[(9, 9)], labels=[1])
PROMPTS = {0: [Prompt(1, box=(5, 5, 20, 18)), Prompt(9, box=(2, 2, 12, 14))], 4: [CLICK], 7: [CLICK], 11: [CLICK],
           12: [Prompt(4, mask=IMAGES[12][..., 0] > 90)], 15: [CLICK], 16: [CLICK], 28: [Prompt(7, box=(8, 3, 30, 20))]}


@pytest.fixture(scope='module')
def model():
    return tiny_model()


@pytest.fixture
def tracker(model):
    """Return a tracker after 30 images, with objects of 2, 18 and 30 images, one of them corrected five times."""
    tracker = StreamTracker(model)
    run(tracker, 0, 30)
    return tracker


def run(tracker, start, end, prompts=PROMPTS):
    """Step through images; return the results."""
    return [tracker.step(IMAGES[number], prompts.get(number, [])) for number in range(start, end)]


def assert_equal(results, expected):
    assert len(results) == len(expected)
    for one, other in zip(results, expected, strict=True):
        assert list(one.objects) == list(other.objects)
        for object_id, item in other.objects.items():
            mine = one.objects[object_id]
            assert torch.equal(mine.logits, item.logits) and np.array_equal(mine.mask, item.mask)
            assert (mine.iou, mine.object_score, mine.box) == (item.iou, item.object_score, item.box)


def copied(state):
    """Return a deep copy of a state, as it comes out of a JSON file."""
    return {**{key: value.clone() for key, value in state.items() if key != 'metadata'},
            'metadata': json.loads(json.dumps(state['metadata']))}


def same(one, other):
    return (one['metadata'] == other['metadata']
            and all(torch.equal(one[key], other[key]) for key in ('frames', 'pointers')))


# --- continuing

def test_steps_after_a_restart_equal_those_without_it_bit_for_bit(tracker, model, tmp_path):
    save_state(tmp_path / 'objects.safetensors', tracker.state_dict(), {'image': '30'})
    restarted = StreamTracker(tiny_model())
    state, notes = load_state(tmp_path / 'objects.safetensors')
    restarted.load_state_dict(state)
    assert notes == {'image': '30'}
    assert restarted.object_ids == (1, 9, 4, 7)
    later = {33: [Prompt(9, points=[(3, 4)], labels=[0]), Prompt(2, box=(1, 1, 9, 9))], 40: [CLICK]}
    assert_equal(run(restarted, 30, 60, later), run(tracker, 30, 60, later))
    assert same(restarted.state_dict(), tracker.state_dict())


def test_late_corrections_after_a_restart_equal_those_without_it(tracker, model):
    restarted = StreamTracker(model)
    restarted.load_state_dict(tracker.state_dict())
    found = []
    for one in (tracker, restarted):
        results = run(one, 30, 34, {})
        late = one.fork([1, 7], 6)  # begins before the restart
        results += [late.step(IMAGES[28], [CLICK, Prompt(7, points=[(12, 9)], labels=[1])])]
        results += run(late, 31, 34, {})
        one.adopt(late, 1, frames_back=[6, 3, 2, 1])
        one.adopt(late, 7)
        results += run(one, 34, 40, {})
        results += run(one.fork([1, 7], 5), 40, 43, {})
        found.append(results)
    assert_equal(*found)


def test_a_state_is_a_snapshot(tracker, model):
    state = tracker.state_dict()
    before = copied(state)
    run(tracker, 30, 50, {30: [CLICK], 31: [CLICK]})
    tracker.remove(9)
    assert same(state, before)
    restarted = StreamTracker(model)
    restarted.load_state_dict(state)
    expected = StreamTracker(model)
    expected.load_state_dict(before)
    run(restarted, 30, 35)
    assert same(state, before), 'steps of the tracker that loaded it'
    state['frames'].zero_()
    state['metadata']['objects'].clear()
    assert_equal(run(restarted, 35, 37), run(expected, 30, 37)[5:])


def test_a_labelling_tool_goes_back_and_continues_differently(nano, scene):
    tracker = StreamTracker(nano)
    states, first = [], []
    for frame in range(12):
        states.append(tracker.state_dict())
        first.append(tracker.step(scene.image(frame), [Prompt(1, box=scene.box(1))] if frame == 0 else []))
    tracker.load_state_dict(states[5])
    for frame in range(5, 12):  # a second object, from the sixth image on
        result = tracker.step(scene.image(frame), [Prompt(2, box=scene.box(2, frame))] if frame == 5 else [])
        assert [iou(result.objects[k].mask, scene.truth(k, frame)) > 0.8 for k in (1, 2)] == [True, True]
    tracker.load_state_dict(states[5])
    assert_equal([tracker.step(scene.image(frame)) for frame in range(5, 12)], first[5:])
    tracker.load_state_dict(states[0])
    assert tracker.object_ids == ()


def test_recent_frames_are_restored_and_max_objects_is_the_tracker_s_own(tracker, model):
    tracker.recent_frames = 2
    state = tracker.state_dict()
    restarted = StreamTracker(model, max_objects=4)
    restarted.load_state_dict(state)
    assert (restarted.recent_frames, restarted.max_objects) == (2, 4)
    small = StreamTracker(model, max_objects=3)
    with pytest.raises(TrackerStateError, match='state of 4 objects: the limit of this tracker is 3: raise max_obj'):
        small.load_state_dict(state)
    assert small.object_ids == () and small.recent_frames is None


def test_the_size_of_a_state_is_bounded_as_the_memory_is(tracker, model):
    sizes = []
    for start in (30, 40, 50):
        run(tracker, start, start + 10, {number: [CLICK] for number in range(start, start + 10, 3)})
        state = tracker.state_dict()
        tensors = sum(state[key].nbytes for key in ('frames', 'pointers'))
        assert tensors <= tracker.memory_bytes == 4 * bytes_per_object(model, 4)
        sizes.append((tensors, len(json.dumps(state['metadata']))))
    assert sizes[1][0] == sizes[2][0]
    assert max(text for _, text in sizes) < 4 * 3000 + 3000


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_state_moves_between_devices(nano, scene):
    on_gpu = load_model('nano', device='cuda')
    for source, target in ((nano, on_gpu), (on_gpu, nano)):
        tracker, other = StreamTracker(source), StreamTracker(target)
        for frame in range(5):
            tracker.step(scene.image(frame), [Prompt(1, box=scene.box(1))] if frame == 0 else [])
        state = tracker.state_dict()
        assert state['frames'].device.type == 'cpu'
        other.load_state_dict(state)
        assert same(other.state_dict(), state)
        assert iou(other.step(scene.image(5)).objects[1].mask, scene.truth(1, 5)) > 0.8


# --- refused states

def change(*path_and_value):
    """Return a function that sets a value deep in a state."""
    *path, last, value = path_and_value

    def apply(state):
        for key in path:
            state = state[key]
        state[last] = value(state[last]) if isinstance(value, Callable) else value
    return apply


def set_nan(tensor):
    tensor = tensor.clone()
    tensor[1, 2] = float('nan')
    return tensor


REFUSED = {
    'an older version': (change('metadata', 'version', 1), 'state of version 1: must be 2; save it with this version'),
    'no version': (change('metadata', 'version', None), 'state of version None'),
    'a checkpoint': (lambda state: state.update(state.pop('metadata')), 'missing metadata'),
    'no tensor': (lambda state: state.pop('frames'), 'state: missing frames; give the dict that state_dict returned'),
    'an unknown key': (lambda state: state.update(more=1), 'state: unexpected more'),
    'an unknown field': (lambda state: state['metadata'].update(more=1), 'metadata: unexpected more'),
    'another image size': (change('metadata', 'config', 'image_size', 64), 'with image_size 64: must be 32; load it '),
    'another architecture': (change('metadata', 'config', 'd_model', 256), 'with d_model 256: must be 16; load it'),
    'no configuration': (change('metadata', 'config', None), 'with trunk None: must be '),
    'another type': (change('metadata', 'dtype', 'torch.bfloat16'), 'with dtype torch.bfloat16: must be torch.float32'),
    'other weights': (change('metadata', 'weights', '00ff'), r'with other weights \(fingerprint 00ff, must be '),
    'more conditioning frames': (change('metadata', 'max_conditioning_frames', 5),
                                 'max_conditioning_frames 5: must be 4 as in this tracker; create the tracker with'),
    'another policy': (change('metadata', 'memory_policy', 'iou_gated'),
                       "memory_policy 'iou_gated': must be 'published' as in this tracker; give both the same"),
    'an unknown kind of frame': (change('metadata', 'objects', 0, 'frames', 0, 1, 'prime'),
                                 r"frame \[.*'prime', False\]: must be a number, one of prompt, anchor, recent, pass"),
    'a note of the future': (change('metadata', 'objects', 0, 'notes', [[30, 5]]), 'frame 30: must be an integer betw'),
    'notes out of order': (change('metadata', 'objects', 0, 'notes', [[3, 5], [2, 5]]), 'their frames must increase'),
    'too many notes': (change('metadata', 'objects', 0, 'notes', [[n, 5] for n in range(11)]), 'at most 10 pairs'),
    'NaN': (change('frames', set_nan), 'frames: 8 of .* values are NaN or infinite; the state is damaged'),
    'other shapes': (change('pointers', lambda tensor: tensor[:, :8]), r'pointers \(\d+, 8\) of torch.float32: must'),
    'fewer rows': (change('frames', lambda tensor: tensor[1:]), r'frames \(.*: must be \('),
    'another type of tensor': (change('frames', lambda tensor: tensor.float()), 'of torch.float32: must be .*bfloat16'),
    'no tensor at all': (change('frames', [1.0]), 'frames of type list: must be a tensor'),
    'a number as text': (change('metadata', 'images', '30'), 'images 30: must be an integer'),
    'a limit below 0': (change('metadata', 'recent_frames', -1), 'recent_frames -1: must be an integer between 0'),
    'an id twice': (change('metadata', 'objects', 1, 'id', 1), 'object 1 is there twice'),
    'an id of 0': (change('metadata', 'objects', 1, 'id', 0), 'object id 0: must be an integer at least 1'),
    'a truth value as id': (change('metadata', 'objects', 0, 'id', True), 'object id True: must be an integer'),
    'frames out of order': (change('metadata', 'objects', 0, 'frames', lambda rows: rows[::-1]), 'object 1: '),
    'a frame of the future': (change('metadata', 'objects', 2, 'now', 3), 'object 4: frames .* before frame 3: not'),
    'frames out of reach': (change('metadata', 'objects', 2, 'now', 999), 'object 4: frames .* before frame 999: not'),
    'no conditioning frame': (change('metadata', 'objects', 3, 'frames',
                                     lambda rows: [[number, 'recent', False] for number, *_ in rows]),
                              'object 7: conditioning frames and their pointers differ'),
    'steps that decrease': (change('metadata', 'objects', 0, 'steps', [5, 4]), 'steps of object 1: must not decrease'),
    'no steps': (change('metadata', 'objects', 0, 'steps', []), 'steps of object 1: must be a list of 1 to 128'),
    'no objects': (change('metadata', 'objects', {}), 'objects of type dict: must be a list'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_a_state_that_does_not_fit_is_refused_and_the_tracker_stays_as_it_was(tracker, model, case):
    spoil, text = REFUSED[case]
    expected = tracker.fork(tracker.object_ids)
    other = StreamTracker(model)
    run(other, 0, 30)
    state = copied(other.state_dict())
    spoil(state)
    with pytest.raises(TrackerStateError, match=text):
        tracker.load_state_dict(state)
    assert tracker.object_ids == (1, 9, 4, 7)
    assert_equal(run(tracker, 30, 33), run(expected, 30, 33))


def test_a_state_of_other_weights_is_refused_whatever_they_are_called(tracker):
    changed = tiny_model()
    changed.load_state_dict(tracker.model.state_dict())
    StreamTracker(changed).load_state_dict(tracker.state_dict())
    with torch.no_grad():
        changed.obj_ptr_proj.layers[0].bias[0] += 1e-3
    with pytest.raises(TrackerStateError, match='with other weights'):
        StreamTracker(changed).load_state_dict(tracker.state_dict())


def test_a_state_of_another_image_size_or_limit_is_refused(tracker):
    larger = type(tracker.model)(replace(tracker.model.config, image_size=64), 'custom')
    with pytest.raises(TrackerStateError, match='with image_size 32: must be 64'):
        StreamTracker(larger).load_state_dict(tracker.state_dict())
    with pytest.raises(TrackerStateError, match='max_conditioning_frames 4: must be 2 as in this tracker'):
        StreamTracker(tracker.model, max_conditioning_frames=2).load_state_dict(tracker.state_dict())


def places(value, path=()):
    """Yield the path of every value in nested dicts and lists."""
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        yield (*path, key)
        if isinstance(part, (dict, list)):
            yield from places(part, (*path, key))


@pytest.mark.fuzz
def test_a_state_with_random_faults_is_refused_or_can_be_tracked_with(model, tracker, rounds):
    rng, state = random.Random(2), tracker.state_dict()
    paths = [path for path in places(state['metadata']) if path[0] in ('objects', 'images', 'known_moments',
                                                                        'recent_frames')]
    values = (None, True, -1, 0, 1, 2, 3, 29, 30, 31, 129, 2**60, 1.5, float('nan'), 'x', [], {}, [[1, True, False]])
    loaded, count = 0, rounds(600, 100_000)
    for _ in range(count):
        spoiled = copied(state)
        for path in rng.sample(paths, rng.choice((1, 1, 2))):
            part = spoiled['metadata']
            try:
                for key in path[:-1]:
                    part = part[key]
                if rng.random() < 0.2:
                    del part[path[-1]]
                else:
                    part[path[-1]] = rng.choice(values)
            except (LookupError, TypeError):
                pass  # an earlier fault has removed it
        restarted = StreamTracker(model)
        try:
            restarted.load_state_dict(spoiled)
        except TrackerStateError:
            assert restarted.object_ids == ()
            continue
        loaded += 1
        if loaded % 10 == 0:
            restarted.step(IMAGES[30], [Prompt(1, box=(5, 5, 20, 18))])
            late = restarted.fork(restarted.object_ids, 3)
            late.step(IMAGES[31])
            restarted.adopt(late, 1)
            restarted.step(IMAGES[32])
            StreamTracker(model).load_state_dict(restarted.state_dict())
    assert loaded > count / 100


# --- fingerprint

def test_equal_weights_have_equal_fingerprints_and_a_change_shows():
    one, other = tiny_model(), tiny_model()
    assert fingerprint(one) == fingerprint(one) == fingerprint(other)
    found = {fingerprint(one)}
    with torch.no_grad():
        one.no_mem_embed[0, 0, 3] += 1  # in place
        found.add(fingerprint(one))
        one.no_mem_embed[0, 0, [3, 4]] = one.no_mem_embed[0, 0, [4, 3]]
        found.add(fingerprint(one))
    other.half()
    found.add(fingerprint(other))
    other.memory_attention.norm.weight = torch.nn.Parameter(torch.ones_like(other.memory_attention.norm.weight) * 2)
    found.add(fingerprint(other))
    assert len(found) == 5


def test_an_approximation_has_a_fingerprint_of_its_own(nano):
    quantised = load_model('nano', device='cpu', int8_encoder=True)
    assert fingerprint(quantised) == fingerprint(load_model('nano', device='cpu', int8_encoder=True))
    assert fingerprint(quantised) != fingerprint(nano)


# --- files

@pytest.fixture
def file(tracker, tmp_path):
    path = tmp_path / 'objects.safetensors'
    save_state(path, tracker.state_dict(), {'image': '30'})
    return path


def test_a_file_without_objects_can_be_loaded(model, tracker, tmp_path):
    save_state(tmp_path / 'none', StreamTracker(model).state_dict())
    state, notes = load_state(tmp_path / 'none')
    tracker.load_state_dict(state)
    assert tracker.object_ids == () and notes == {}


@pytest.mark.fuzz
def test_a_file_with_a_flipped_bit_is_refused_or_equal(file, tracker, rounds):
    whole, state = file.read_bytes(), tracker.state_dict()
    header = 8 + int.from_bytes(whole[:8], 'little')
    rng = random.Random(1)
    bits = range(8 * len(whole)) if rounds(0, 1) else [
        *range(64), *rng.sample(range(64, 8 * header), 300), *rng.sample(range(8 * header, 8 * len(whole)), 100)]
    equal = 0
    for bit in bits:
        spoiled = bytearray(whole)
        spoiled[bit // 8] ^= 1 << bit % 8
        file.write_bytes(spoiled)
        try:
            loaded, notes = load_state(file)
        except TrackerStateError as error:
            assert str(file) in str(error)
            continue
        equal += 1
        assert same(loaded, state) and notes == {'image': '30'}
    assert equal < 20  # spaces between the fields of the header, and its padding


def test_a_truncated_or_longer_file_is_refused(file):
    whole = file.read_bytes()
    for length in [*range(20), *range(20, len(whole), len(whole) // 100), len(whole) - 1]:
        file.write_bytes(whole[:length])
        with pytest.raises(TrackerStateError, match='truncated or damaged'):
            load_state(file)
    file.write_bytes(whole + b'\0')
    with pytest.raises(TrackerStateError, match='truncated or damaged'):
        load_state(file)


@pytest.mark.parametrize('content', [b'', b'{}', b'not a file of tensors at all, but longer than eight bytes',
                                     (2**63).to_bytes(8, 'little') + b'{}', (2).to_bytes(8, 'little') + b'[]',
                                     (6).to_bytes(8, 'little') + b'"text"',
                                     (100_000).to_bytes(8, 'little') + b'[' * 100_000])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    (tmp_path / 'file').write_bytes(content)
    with pytest.raises(TrackerStateError, match='file: truncated or damaged'):
        load_state(tmp_path / 'file')


def test_a_checkpoint_is_named_as_a_foreign_file(tmp_path):
    safetensors.torch.save_file({'weight': torch.zeros(3)}, tmp_path / 'model.safetensors', {'format': 'pt'})
    with pytest.raises(ForeignFileError, match='but not the state of a tracker: give another path'):
        load_state(tmp_path / 'model.safetensors')
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / 'nothing')


def test_a_file_above_the_limit_is_refused_before_it_is_read(file):
    size = file.stat().st_size
    load_state(file, size)
    with pytest.raises(TrackerStateError, match=f'{size} bytes: must be at most {size - 1}'):
        load_state(file, size - 1)
    with file.open('r+b') as opened:
        opened.truncate(2**40)  # without data: reading it would need a terabyte of memory
    with pytest.raises(TrackerStateError, match='must be at most'):
        load_state(file, size)


def test_a_failure_to_write_leaves_the_file_that_was_there(file, tracker, monkeypatch):
    whole = file.read_bytes()
    run(tracker, 30, 31)
    with pytest.raises(OSError, match='cannot be written'):
        save_state(file.parent / 'no' / 'folder', tracker.state_dict())
    monkeypatch.setattr(safetensors.torch, 'save_file', lambda tensors, path, header: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_state(file, tracker.state_dict())
    assert file.read_bytes() == whole and [*file.parent.iterdir()] == [file]
