"""The command sam2_track: its files, its resumption after a kill, and what it refuses."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from sam2_core import Prompt, VideoPrompt, load_model, track_video
from sam2_core.datasets import SkippedFiles, open_recordings, run_length
from sam2_core.datasets.image_files import read_labels
from sam2_core.offline import run, track
from sam2_core.offline.outputs import fit_picture
from sam2_core.offline.resume import TrackFolder
from sam2_core.offline.store import FrameStore
from testing.dataset_files import jpeg, scene
from testing.small_edgetam import small_variant
from testing.video_files import decoded, write_video

ROOT = Path(__file__).parents[3]
COUNT, MIDDLE = 12, 7
BOXES = {1: (38, 16, 66, 44), 2: (78, 58, 102, 82)}  # of the disc and of the square in frame 7
OPTIONS = ['--model', 'nano', '--device', 'cpu', '--image-size', '64']


def boxes(frame=MIDDLE):
    return [word for box in BOXES.values() for word in ('--box', f'{",".join(map(str, box))}@{frame}')]


CORRECTED = (*boxes(), '--points', '1:50,30@2')


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp('videos') / 'clip.mp4', [scene(frame)[0] for frame in range(COUNT)])


@pytest.fixture
def out(tmp_path):
    return tmp_path / 'out'


def sam2_track(source, out, *words):
    return track.main([str(source), '--output', str(out), *OPTIONS, *map(str, words)])


def contents(folder):
    """Return the content of every result by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*'))
            if path.is_file() and '.sam2_track' not in path.parts}


@pytest.fixture(scope='module')
def whole(clip, tmp_path_factory):
    """Return the results of a run with CORRECTED that nothing interrupts."""
    out = tmp_path_factory.mktemp('runs') / 'whole'
    assert sam2_track(clip, out, *CORRECTED) == 0
    return contents(out)


@pytest.fixture(scope='module')
def expected():
    """Return the masks of track_video: frame -> object -> mask."""
    model = load_model('nano', device='cpu', image_size=64)

    def track_clip(path):
        prompts = [VideoPrompt(MIDDLE, Prompt(object_id, box=box)) for object_id, box in BOXES.items()]
        return {frame: result.objects for frame, result in track_video(model, path, prompts)}
    return track_clip


def test_edgetam_tracks_with_a_local_file(clip, out, tmp_path, monkeypatch):
    path = small_variant(monkeypatch, tmp_path)
    assert sam2_track(clip, out, *boxes(), '--model', 'edgetam', '--checkpoint', path, '--write', 'objects') == 0
    model = load_model('edgetam', path, device='cpu', image_size=64)
    prompts = [VideoPrompt(MIDDLE, Prompt(object_id, box=box)) for object_id, box in BOXES.items()]
    for frame, result in track_video(model, clip, prompts):
        assert list(result.objects) == [1, 2]
        for object_id, item in result.objects.items():
            written = cv2.imread(str(out / f'Objects/clip/{object_id}/{frame:05}.png'), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(written > 0, item.mask)


def test_every_frame_has_its_files(clip, out, expected, capsys):
    assert sam2_track(clip, out, *boxes(), '--write', 'davis', 'objects', 'images', 'coco', 'video') == 0
    masks = expected(clip)
    images = decoded(clip)
    found = json.loads((out / 'masks.json').read_text())
    assert [image['file_name'] for image in found['images']] == [f'JPEGImages/clip/{frame:05}.jpg'
                                                                for frame in range(COUNT)]
    by_place = {(item['image_id'] - 1, item['track_id']): item for item in found['annotations']}
    for frame in range(COUNT):
        for object_id, item in masks[frame].items():
            written = cv2.imread(str(out / f'Objects/clip/{object_id}/{frame:05}.png'), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(written, item.mask * np.uint8(255))
            assert ((frame, object_id) in by_place) == item.mask.any()
            if item.mask.any():
                entry = by_place[frame, object_id]
                np.testing.assert_array_equal(
                    run_length.decode(entry['segmentation']['counts'], *entry['segmentation']['size']), item.mask)
                assert entry['area'] == item.mask.sum()
                x, y, width, height = entry['bbox']
                assert (x, y, x + width, y + height) == item.box
        labels = read_labels(out / f'Annotations/clip/{frame:05}.png')
        covered = np.logical_or.reduce([item.mask for item in masks[frame].values()])
        np.testing.assert_array_equal(labels > 0, covered)
        for object_id, item in masks[frame].items():
            assert item.mask[labels == object_id].all()
        written = cv2.imread(str(out / f'JPEGImages/clip/{frame:05}.jpg'))[..., ::-1]
        assert np.abs(written.astype(int) - images[frame]).mean() < 4
    overlay = decoded(out / 'overlay.mp4')
    assert len(overlay) == COUNT
    assert np.abs(overlay[0][:90].astype(int) - images[0][:90]).max() > 60  # an outline
    text = capsys.readouterr().err
    assert text.startswith('model: nano (packaged')
    assert f'done: 2 objects in {COUNT} frames, {out}' in text


def test_the_folder_is_a_data_set_to_train_on(clip, out, tmp_path, expected):
    assert sam2_track(clip, out, *boxes(), '--write', 'davis', 'images', 'coco') == 0
    for layout in ('davis', 'coco'):
        recordings = open_recordings(out, SkippedFiles(tmp_path / 'skipped'), layout)
        frames = sum(len(recording) for recording in recordings)
        assert frames == (COUNT if layout == 'davis' else sum(any(item.mask.any() for item in objects.values())
                                                              for objects in expected(clip).values()))


def test_where_objects_overlap_the_higher_score_is_shown(clip, out):
    box = '30,10,80,60'
    assert sam2_track(clip, out, '--box', box, '--box', box, '--box', '38,16,66,44', '--write', 'davis', 'coco') == 0
    annotations = json.loads((out / 'masks.json').read_text())['annotations']
    first = {item['track_id']: item for item in annotations if item['image_id'] == 1}
    labels = read_labels(out / 'Annotations/clip/00000.png')
    masks = {object_id: run_length.decode(item['segmentation']['counts'], *labels.shape)
             for object_id, item in first.items()}
    scores = {object_id: item['score'] for object_id, item in first.items()}
    both = masks[1] & masks[3]
    assert both.any()
    assert scores[1] != scores[3]
    assert set(np.unique(labels[both])) <= ({3} if scores[3] > scores[1] else {1, 2})


def test_more_than_254_objects_are_16_bit_labels_in_every_frame(clip, out):
    box = ','.join(map(str, BOXES[1]))
    assert sam2_track(clip, out, '--box', f'300:{box}@2', '--write', 'davis', '--direction', 'forward') == 0
    kinds = {cv2.imread(str(path), cv2.IMREAD_UNCHANGED).dtype for path in (out / 'Annotations/clip').iterdir()}
    assert kinds == {np.dtype(np.uint16)}
    assert set(np.unique(read_labels(out / 'Annotations/clip/00002.png'))) == {0, 300}


def test_pictures_give_their_names_to_the_results(tmp_path, out):
    (tmp_path / 'stack').mkdir()
    for number in (2, 10, 1):
        cv2.imwrite(str(tmp_path / f'stack/slice{number}.tif'), scene(number)[0][..., 0].astype(np.uint16) * 40)
    assert sam2_track(tmp_path / 'stack', out, '--points', '40,30;5,5,-') == 0
    assert [path.name for path in sorted((out / 'Annotations/stack').iterdir())] == [
        'slice1.png', 'slice10.png', 'slice2.png']
    assert [image['file_name'] for image in json.loads((out / 'masks.json').read_text())['images']] == [
        'slice1.tif', 'slice2.tif', 'slice10.tif']
    assert len(decoded(out / 'overlay.mp4')) == 3


def test_a_picture_that_cannot_be_read_is_listed_and_has_no_mask(tmp_path, out, capsys):
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for number in range(5):
        (folder / f'{number}.jpg').write_bytes(jpeg(scene(number)[0])[:500 if number == 2 else None])
    assert sam2_track(folder, out, '--box', '10,16,38,44@3') == 1
    assert [path.stem for path in sorted((out / 'Annotations/pictures').iterdir())] == ['0', '1', '3', '4']
    assert [image['id'] for image in json.loads((out / 'masks.json').read_text())['images']] == [1, 2, 4, 5]
    assert len(decoded(out / 'overlay.mp4')) == 5
    text = capsys.readouterr().err
    assert text.count('skipped: frame 2: 2.jpg: JPEG is cut off') == 1
    assert '1 frame could not be read and got no masks:\n  frame 2: 2.jpg: JPEG is cut off' in text


@pytest.mark.parametrize('killed_at', [[0], [3, 9, 14], [7, 8], [19, 20, 25], [28]])
def test_a_run_that_is_killed_continues_to_the_same_result(clip, out, whole, killed_at, monkeypatch):
    """Break off after some frames as a kill does, between a result and the next state, and start again."""
    words = (*CORRECTED, '--save-every', '0.01')

    class Killed(BaseException):
        pass

    steps = iter(killed_at)
    count, limit = 0, next(steps)
    moved = track.TrackDisplay.moved

    def break_off(self, *values):
        nonlocal count, limit
        moved(self, *values)
        count += 1
        if count - 1 == limit:
            limit = next(steps, -1)
            raise Killed

    monkeypatch.setattr(track.TrackDisplay, 'moved', break_off)
    for _ in killed_at:
        with pytest.raises(Killed):
            sam2_track(clip, out, *words)
    assert sam2_track(clip, out, *words) == 0
    assert contents(out) == whole


def test_a_killed_process_continues_to_the_same_result(clip, out, whole):
    words = [str(clip), *CORRECTED, *OPTIONS, '--save-every', '0', '--output', str(out)]
    command = [sys.executable, '-m', 'sam2_core.offline.track', *words]
    masks = out / 'Annotations/clip'
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (masks.is_dir() and len(list(masks.iterdir())) >= 3):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode in (-signal.SIGKILL, 0)  # on a busy machine it may have come to its end
    assert track.main(words) == 0
    assert contents(out) == whole


def test_a_signal_saves_the_state_and_the_command_continues(clip, out, whole, monkeypatch, capsys):
    write = run.TrackRun._save
    monkeypatch.setattr(track.TrackDisplay, 'moved', lambda self, phase, frame, done, length:
                        os.kill(os.getpid(), signal.SIGINT) if (phase, done) == ('forward', 4) else None)
    saved = []
    monkeypatch.setattr(run.TrackRun, '_save', lambda self, *values: (saved.append(values), write(self, *values)))
    assert sam2_track(clip, out, *CORRECTED) == 3
    assert len(saved) == 2  # at the end of the backward pass, and at the signal
    assert 'stopped: run the same command again to continue' in capsys.readouterr().err
    monkeypatch.undo()
    assert sam2_track(clip, out, *CORRECTED) == 0
    assert f'continues {out}: 4 of {COUNT} frames of the forward phase are done' in capsys.readouterr().err
    assert contents(out) == whole


def test_a_full_disk_ends_the_run_and_it_continues_when_there_is_room(clip, out, whole, monkeypatch, capsys):
    append = FrameStore.append

    def full(self, frame, item):
        if self.size > 1000:
            raise OSError(28, 'No space left on device')
        append(self, frame, item)

    monkeypatch.setattr(FrameStore, 'append', full)
    assert sam2_track(clip, out, *CORRECTED, '--save-every', '0') == 2
    assert 'No space left on device; when that is cured, run the same command again' in capsys.readouterr().err
    monkeypatch.undo()
    assert sam2_track(clip, out, *CORRECTED) == 0
    assert contents(out) == whole


def test_a_complete_run_is_left_alone_until_it_is_to_be_overwritten(clip, out, capsys):
    assert sam2_track(clip, out, *boxes()) == 0
    before = contents(out)
    assert sam2_track(clip, out, *boxes()) == 0
    assert f'{out}: complete already; start again with --overwrite' in capsys.readouterr().err
    assert contents(out) == before
    assert sam2_track(clip, out, *boxes(5), '--write', 'davis', '--overwrite') == 0
    assert {name.partition('/')[0] for name in contents(out)} == {'Annotations'}


@pytest.mark.parametrize('change, reason', [
    (['--box', '1,1,20,20'], 'prompts was 2 prompts, .*, is 3 prompts'),
    (['--image-size', '96'], 'image size was 64, is 96'),
    (['--direction', 'forward'], 'direction was both, is forward'),
    (['--end', '10'], 'end was None, is 10'),
    (['--memory-policy', 'iou_gated'], 'memory policy was published, is iou_gated'),
    (['--write', 'davis'], 'write was coco davis video, is davis'),
])
def test_results_of_other_settings_are_not_mixed(clip, out, capsys, change, reason):
    assert sam2_track(clip, out, *boxes()) == 0
    before = contents(out)
    assert sam2_track(clip, out, *boxes(), *change) == 2
    assert contents(out) == before
    text = capsys.readouterr().err
    assert re.search(f'output {out} holds a run with other settings: {reason}', text)
    assert 'name another folder, or start again with --overwrite' in text


def test_results_of_another_video_are_not_mixed(tmp_path, out, capsys):
    clip = write_video(tmp_path / 'clip.mp4', [scene(frame)[0] for frame in range(COUNT)])
    assert sam2_track(clip, out, *boxes()) == 0
    write_video(clip, [scene(frame + 1)[0] for frame in range(COUNT)])
    assert sam2_track(clip, out, *boxes()) == 2
    assert 'frames was clip, 12 frames, ' in capsys.readouterr().err


@pytest.mark.parametrize('name', ['settings.json', 'state.safetensors'])
def test_a_damaged_state_is_refused_with_the_cure(clip, out, monkeypatch, capsys, name):
    monkeypatch.setattr(track.TrackDisplay, 'moved', lambda self, phase, frame, done, length:
                        os.kill(os.getpid(), signal.SIGTERM) if done == 3 else None)
    assert sam2_track(clip, out, *boxes()) == 3
    monkeypatch.undo()
    path = out / '.sam2_track' / name
    path.write_bytes(path.read_bytes()[:-20])
    assert sam2_track(clip, out, *boxes()) == 2
    assert 'start again with --overwrite' in capsys.readouterr().err
    assert sam2_track(clip, out, *boxes(), '--overwrite') == 0


def test_two_processes_do_not_write_to_one_folder(clip, out, capsys):
    with TrackFolder(out).locked():
        assert sam2_track(clip, out, *boxes()) == 2
    assert f'output {out}: another sam2_track is writing to it; wait for it, or name another' in capsys.readouterr().err
    assert sam2_track(clip, out, *boxes(), '--write', 'coco') == 0


def test_a_folder_with_other_files_is_refused(clip, out, capsys):
    out.mkdir()
    (out / 'thesis.tex').write_text('three years of work')
    assert sam2_track(clip, out, *boxes(), '--overwrite') == 2
    assert f'output {out}: holds other files, such as thesis.tex; name a new folder' in capsys.readouterr().err
    assert (out / 'thesis.tex').exists()


@pytest.mark.parametrize('words, reason', [
    ([], 'no prompts: give --box, --points or --prompts FILE'),
    (['--box', '1,1,9,9@12'], 'prompt on frame 12: must be on frames 0 to 11'),
    (['--box', '500,1,509,9'], r'frame 0, object 1: box (500, 1, 509, 9): outside the image of 128 x 96 pixels'),
    (['--points', '5,5,-'], 'a new object cannot start from points off the object alone'),
    (['--box', '1,1,9,9', '--start', '12'], 'start 12: must be 0 to 11'),
    (['--box', '1,1,9,9', '--range', '0,9'], 'range 0,9: a video has 8 bits'),
    (['--prompts', 'none.json'], 'prompts none.json: No such file or directory'),
    (['--prompts', 'none.json', '--box', '1,1,9,9'], 'prompts none.json: beside --box or --points'),
    (['--box', '1,1,9,9', '--checkpoint', 'none.pt'], 'none.pt'),
    (['--box', '1,1,9,9', '--image-size', '50'], '50'),
])
def test_what_cannot_be_tracked_is_refused_and_leaves_nothing(clip, out, capsys, words, reason):
    assert sam2_track(clip, out, *words) == 2
    assert reason in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize('words', [['--box', '1,1,9,9@12'], ['--prompts', 'none.json'], []])
def test_bad_prompts_are_refused_before_the_model_is_loaded(clip, out, words, monkeypatch):
    monkeypatch.setattr(track, 'load_model', None)
    assert sam2_track(clip, out, *words) == 2


def test_a_result_that_is_not_finite_ends_the_run_with_the_cure(clip, out, monkeypatch, capsys):
    load = track.load_model

    def spoilt(*values):
        model = load(*values)
        for parameter in model.memory_attention.parameters():
            parameter.data.fill_(float('nan'))
        return model

    monkeypatch.setattr(track, 'load_model', spoilt)
    assert sam2_track(clip, out, *boxes()) == 2
    assert "the model's result is not finite" in capsys.readouterr().err


def test_scores_that_stay_low_are_reported_once(tmp_path, out, monkeypatch, capsys):
    monkeypatch.setattr('sam2_core.scores.LOW_SCORE', 1.01)  # any score is low
    clip = write_video(tmp_path / 'long.mp4', [scene(0)[0]] * 30)
    assert sam2_track(clip, out, '--box', '10,16,38,44', '--write', 'davis') == 0
    assert capsys.readouterr().err.count('object 1: the score stays low') == 1


def test_pictures_of_other_sizes_are_fitted_into_the_video():
    tall = np.full((40, 10, 3), 200, np.uint8)
    fitted = fit_picture(tall, (20, 30))
    assert fitted.shape == (20, 30, 3)
    np.testing.assert_array_equal(np.flatnonzero(fitted.any(axis=(0, 2))), np.arange(12, 17))  # 5 wide, centred
    assert fit_picture(tall, (40, 10)) is tall


def test_neither_ros_nor_sam2_ros_is_imported(clip, out):
    code = ('import sys\nfrom sam2_core.offline.track import main\n'
            f'code = main({[str(clip), "--output", str(out), *OPTIONS, *boxes()]!r})\n'
            'print(code, sorted(name for name in sys.modules if name.split(".")[0] in ("rclpy", "sam2_ros")))')
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert process.stdout == '0 []\n', process.stderr
