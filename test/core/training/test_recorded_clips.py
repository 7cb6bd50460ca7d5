"""Labels of clips stay on their objects however the image is changed, and equal numbers give equal clips."""
import numpy as np
import pytest

from sam2_core.datasets import Labelled, SkippedFiles, open_recordings
from sam2_core.datasets.recordings import VISIBLE_PIXELS
from sam2_core.training.augmentation import ClipView, plain_view, random_view
from sam2_core.training.data import batches
from sam2_core.training.recorded_clips import RecordedClips
from testing.dataset_files import HEIGHT, WIDTH, coco_folder, davis_clip, indexed_png, sav_video, scene

SIZE = 64


@pytest.fixture
def skipped(tmp_path):
    return SkippedFiles(tmp_path / 'skipped.jsonl')


@pytest.fixture
def data(tmp_path):
    return tmp_path / 'data'


def two_boxes(height=150, width=200):
    """Return an image that shows its labels: all red pixels are one object, all green ones the other."""
    labels = np.zeros((height, width), np.uint8)
    labels[30:90, 20:110] = 1
    labels[100:140, 120:190] = 2
    image = np.stack([(labels == 1) * 255, (labels == 2) * 255, (labels == 0) * 255], -1).astype(np.uint8)
    return Labelled([image] * 5, [np.stack([labels == 1, labels == 2])] * 5)


@pytest.mark.parametrize('still', [False, True])
@pytest.mark.parametrize('seed', range(12))
def test_masks_move_with_the_image(seed, still):
    labelled = two_boxes()
    view = random_view(labelled, 96, np.random.default_rng(seed), still)
    clip = ClipView(view.maps, np.eye(3, 4), np.arange(2)).clip(labelled, 96)
    checked = 0
    for k in range(clip.masks.shape[1]):
        first = clip.frames[0][clip.masks[0, k]]
        if not len(first):  # the object appears later
            continue
        channel = first.mean(axis=0)[:2].argmax()
        for frame, mask in zip(clip.frames[..., channel], clip.masks[:, k], strict=True):
            if mask.any():
                checked += 1
                assert mask[frame > 250].all() and not mask[frame < 5].any()
    assert checked >= 3


def test_augmented_clips_differ_in_place_and_light(data, skipped):
    davis_clip(data, 'cup', frames=4)
    source = RecordedClips(open_recordings(data, skipped), 4, SIZE, skipped, seed=1)
    clips = [source.clip(i) for i in range(12)]
    assert len({clip.masks.tobytes() for clip in clips}) == 12
    brightness = [clip.frames.mean() for clip in clips]
    assert max(brightness) - min(brightness) > 20
    sides = [np.nonzero(clip.masks[:, 0])[2].mean() for clip in clips]
    assert min(sides) < SIZE / 2 < max(sides)


def test_whole_image_is_stretched_to_the_square():
    labelled = Labelled([scene(0)[0]], [np.stack([scene(0)[1] == 3])])
    clip = plain_view(labelled, SIZE).clip(labelled, SIZE)
    rows, columns = np.nonzero(clip.masks[0, 0])
    bounds = (79 * SIZE / WIDTH, 103 * SIZE / WIDTH, 59 * SIZE / HEIGHT, 82 * SIZE / HEIGHT)
    found = (columns.min(), columns.max() + 1, rows.min(), rows.max() + 1)
    np.testing.assert_allclose(found, bounds, atol=1)


def test_clips_are_whole_and_start_with_an_object(data, skipped):
    davis_clip(data, 'cup', frames=12)
    sav_video(data, 5)
    for name in ('davis', 'sav'):
        source = RecordedClips(open_recordings(data, skipped, name), 5, SIZE, skipped, chunk=3)
        for clip in source[0] + source[1]:
            assert clip.frames.shape == (5, SIZE, SIZE, 3) and clip.frames.dtype == np.uint8
            assert clip.masks.shape == (5, clip.visible.shape[1], SIZE, SIZE) and clip.masks.dtype == bool
            assert clip.visible[0].any()
            np.testing.assert_array_equal(clip.masks.sum(axis=(2, 3)) >= VISIBLE_PIXELS, clip.visible)
            assert (clip.masks.any(axis=(2, 3)) == clip.visible).all()


def test_object_that_comes_late_starts_a_clip_that_runs_backwards(data, skipped):
    def late(frame):
        image, labels = scene(frame)
        return image, labels if frame == 5 else 0 * labels

    davis_clip(data, 'late', frames=6, make=late)
    source = RecordedClips(open_recordings(data, skipped), 6, SIZE, skipped, augment=False)
    visible = source.clip(0).visible
    assert visible[0].all() and not visible[1:].any()


def test_image_becomes_a_clip_in_motion(data, skipped):
    coco_folder(data)
    source = RecordedClips(open_recordings(data, skipped), 6, SIZE, skipped, seed=3)
    moved = 0
    for number in range(8):
        clip = source.clip(number)
        places = [np.argwhere(mask).mean(axis=0) for mask in clip.masks[clip.visible[:, 0], 0]]
        moved += np.linalg.norm(places[-1] - places[0]) > 1.5
    assert moved >= 5


def test_short_recording_is_played_to_and_fro(data, skipped):
    davis_clip(data, 'cup', frames=3)
    source = RecordedClips(open_recordings(data, skipped), 7, SIZE, skipped, augment=False)
    frames = source.clip(0).frames.astype(int)
    assert all((frames[t] == frames[t - 4]).all() for t in (4, 5, 6))
    assert (frames[1] == frames[3]).all() and (frames[0] != frames[1]).any() and (frames[1] != frames[2]).any()


def test_of_too_many_objects_eight_are_drawn_at_random(data, skipped):
    def crowd(_):
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        for k in range(12):
            labels[8 * k:8 * k + 7, 10:110] = k + 1
        return np.repeat(labels[..., None] * 20, 3, axis=2), labels

    davis_clip(data, 'crowd', frames=2, make=crowd)
    source = RecordedClips(open_recordings(data, skipped), 2, SIZE, skipped)
    clips = [source.clip(i) for i in range(6)]
    assert max(clip.masks.shape[1] for clip in clips) == 8
    assert RecordedClips(source.recordings, 2, SIZE, skipped, augment=False).clip(0).masks.shape[1] == 8


def test_every_recording_is_used_once_in_an_epoch(data, skipped):
    for i in range(5):
        davis_clip(data, f'clip{i}', frames=2, make=lambda f, i=i: (np.full((64, 64, 3), 40 * i, np.uint8),
                                                                   np.ones((64, 64), np.uint8)))
    source = RecordedClips(open_recordings(data, skipped), 2, SIZE, skipped, augment=False)
    orders = [[round(source.clip(number).frames.mean() / 40) for number in range(5 * epoch, 5 * epoch + 5)]
              for epoch in range(4)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len(set(map(tuple, orders))) > 1


def test_equal_numbers_give_equal_clips_in_any_process(data, skipped):
    for i in range(3):
        davis_clip(data, f'clip{i}', frames=6)
    (data / 'JPEGImages' / 'clip1' / '00002.jpg').write_bytes(b'broken')
    recordings = open_recordings(data, skipped)

    def source():
        return RecordedClips(recordings, 3, SIZE, skipped, seed=4, chunk=2)

    here = [clips for _, clips in zip(range(4), batches(source(), 1, 0, workers=0), strict=False)]
    there = [clips for _, clips in zip(range(2), batches(source(), 1, 2, workers=2), strict=False)]
    for (mine,), (other,) in zip(here[2:], there, strict=True):
        assert all((a == b).all() for a, b in zip(mine, other, strict=True))
    ranks = [next(batches(source(), 1, 1, 0, rank, 2))[0] for rank in (0, 1)]
    for rank, (mine,) in zip(ranks, here[2:], strict=True):
        assert all((a == b).all() for a, b in zip(mine, rank, strict=True))


def test_broken_recordings_are_named_once_and_replaced(data, skipped):
    for i in range(4):
        davis_clip(data, f'clip{i}', frames=3)
    (data / 'JPEGImages' / 'clip1' / '00001.jpg').write_bytes(b'broken')
    (data / 'Annotations' / 'clip2' / '00001.png').write_bytes(b'broken')
    for label in (data / 'Annotations' / 'clip3').glob('*.png'):
        label.write_bytes(indexed_png(np.zeros((HEIGHT, WIDTH), np.uint8)))
    source = RecordedClips(open_recordings(data, skipped), 3, SIZE, skipped)
    assert len([source.clip(i) for i in range(12)]) == 12
    found = {name.split('data/')[1]: reason for name, reason in skipped.all().items()}
    assert set(found) == {'JPEGImages/clip1/00001.jpg', 'Annotations/clip2/00001.png', 'JPEGImages/clip3'}
    assert 'no object' in found['JPEGImages/clip3']


def test_an_error_for_broken_recordings_names_the_file_with_the_reasons(data, skipped):
    davis_clip(data, 'cup', frames=3)
    for image in (data / 'JPEGImages' / 'cup').glob('*.jpg'):
        image.write_bytes(b'broken')
    source = RecordedClips(open_recordings(data, skipped), 3, SIZE, skipped)
    with pytest.raises(ValueError, match='none of the 1 recordings.*skipped.jsonl'):
        source.clip(0)
