"""Every layout of training data is read from real files; broken files are named and skipped."""
import json
import re

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sam2_core.datasets import BrokenSample, SkippedFiles, open_recordings, run_length
from sam2_core.datasets.coco import segmentation_mask
from sam2_core.datasets.image_files import read_image, read_labels
from sam2_core.training.recorded_clips import split_recordings
from testing.dataset_files import (
    HEIGHT,
    WIDTH,
    coco_folder,
    compressed,
    davis_clip,
    indexed_png,
    jpeg,
    runs,
    sav_video,
    scene,
)


def close(image, expected):
    """Return whether images are equal up to lossy compression."""
    return np.median(np.abs(image.astype(int) - expected)) <= 4


# --- images

@pytest.mark.parametrize('depth', [1, 2, 4, 8])
def test_indexed_png_gives_its_indices_not_its_colours(tmp_path, depth):
    indices = np.random.default_rng(depth).integers(0, min(1 << depth, 255), (13, 21), np.uint8)
    (tmp_path / 'labels.png').write_bytes(indexed_png(indices, depth))
    np.testing.assert_array_equal(read_labels(tmp_path / 'labels.png'), indices)


def test_index_255_is_void_and_grey_255_is_an_object(tmp_path):
    labels = np.full((8, 8), 255, np.uint8)
    labels[0, 0] = 3
    (tmp_path / 'indexed.png').write_bytes(indexed_png(labels))
    cv2.imwrite(str(tmp_path / 'grey.png'), labels)
    assert np.argwhere(read_labels(tmp_path / 'indexed.png')).tolist() == [[0, 0]]
    assert (read_labels(tmp_path / 'grey.png') == labels).all()


def test_grey_png_of_16_bits_keeps_large_ids(tmp_path):
    labels = np.array([[0, 1], [300, 65535]], np.uint16)
    cv2.imwrite(str(tmp_path / 'labels.png'), labels)
    np.testing.assert_array_equal(read_labels(tmp_path / 'labels.png'), labels)


@pytest.mark.parametrize(('name', 'content', 'reason'), [
    ('cut.jpg', jpeg(scene(0)[0])[:-300], 'cut off'),
    ('cut.png', cv2.imencode('.png', scene(0)[0])[1].tobytes()[:-300], 'cut off'),
    ('flipped.png', (lambda b: b[:400] + bytes([b[400] ^ 1]) + b[401:])(
        cv2.imencode('.png', np.random.default_rng(0).integers(0, 256, (60, 60), np.uint8))[1].tobytes()), 'checksum'),
    ('text.jpg', b'this is no image', 'not an image'), ('empty.png', b'', 'not an image')])
def test_broken_image_is_refused_by_name(tmp_path, name, content, reason):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenSample, match=f'{name}: .*{reason}'):
        read_image(tmp_path / name)


def test_missing_image_is_refused_by_name(tmp_path):
    with pytest.raises(BrokenSample, match='gone.jpg: No such file'):
        read_image(tmp_path / 'gone.jpg')


def test_colour_png_is_no_label(tmp_path):
    cv2.imwrite(str(tmp_path / 'mask.png'), scene(0)[0])
    with pytest.raises(BrokenSample, match='mask.png: a colour PNG.*indexed'):
        read_labels(tmp_path / 'mask.png')


# --- run lengths

@given(mask=arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_run_lengths_come_back_as_the_mask(mask):
    np.testing.assert_array_equal(run_length.decode(runs(mask), *mask.shape), mask)
    np.testing.assert_array_equal(run_length.decode(compressed(runs(mask)), *mask.shape), mask)


def test_text_written_by_pycocotools_is_understood():
    rows, columns = np.mgrid[:48, :64]
    disc = (columns - 30) ** 2 + (rows - 20) ** 2 <= 15 ** 2
    text = 'Tg01Z1:I4L4M2N2N2O0O2O0O2O0000000O20N100000001N101N101N2N2N3L4L7Faj0'  # pycocotools 2.0.10
    np.testing.assert_array_equal(run_length.decode(text, 48, 64), disc)


@pytest.mark.parametrize('counts', ['Tg01Z1:I4L', 'Tg01\x01', 'Tg01Zp', [5, 5], [-1, 3073]])
def test_run_lengths_that_do_not_fit_are_refused(counts):
    with pytest.raises(ValueError, match='run'):
        run_length.decode(counts, 48, 64)


# --- DAVIS

def test_davis_clip_is_read_with_its_ids(data, skipped):
    davis_clip(data, '480p/cup')
    clip, = open_recordings(data, skipped)
    assert len(clip) == 10 and clip.name.endswith('480p/cup')
    read = clip.read([2, 7])
    for frame, image, masks in zip((2, 7), *read, strict=True):
        expected, labels = scene(frame)
        assert close(image, expected)
        np.testing.assert_array_equal(masks, np.stack([labels == 1, labels == 3]))


def test_frames_without_labels_are_not_used(data, skipped):
    davis_clip(data, 'cup')
    for frame in range(10):
        if frame % 5:
            (data / 'Annotations' / 'cup' / f'{frame:05}.png').unlink()
    clip, = open_recordings(data, skipped, 'davis')
    assert len(clip) == 2 and not skipped.all()
    assert close(clip.read([1]).images[0], scene(5)[0])


def test_label_without_image_is_named(data, skipped):
    davis_clip(data, 'cup')
    (data / 'JPEGImages' / 'cup' / '00004.jpg').unlink()
    clip, = open_recordings(data, skipped)
    assert len(clip) == 9
    assert [name.endswith('cup/00004.png') for name in skipped.all()] == [True]


def test_labels_of_another_size_are_refused(data, skipped):
    davis_clip(data, 'cup')
    (data / 'Annotations' / 'cup' / '00003.png').write_bytes(indexed_png(np.ones((50, 60), np.uint8)))
    clip, = open_recordings(data, skipped)
    with pytest.raises(BrokenSample, match='00003.png: labels of 60x50 for an image of 128x96'):
        clip.read([2, 3])


# --- SA-V

def test_sav_masks_meet_every_fourth_frame_of_the_video(data, skipped):
    sav_video(data / 'sav_000', 7)
    masklets, = open_recordings(data, skipped)
    assert len(masklets) == 6
    read = masklets.read([0, 2, 5])
    for frame, image, masks in zip((0, 8, 20), *read, strict=True):
        expected, labels = scene(frame)
        assert close(image, expected)
        np.testing.assert_array_equal(masks, np.stack([labels == 1, labels == 3]))


def test_hidden_masklet_is_empty(data, skipped):
    sav_video(data, 7)
    path = data / 'sav_000007_manual.json'
    content = json.loads(path.read_text())
    content['masklet'][1][0] = {'size': [HEIGHT, WIDTH], 'counts': compressed([HEIGHT * WIDTH])}
    content['masklet'][2] = []
    path.write_text(json.dumps(content))
    masklets, = open_recordings(data, skipped)
    masks = masklets.read([0, 1, 2]).masks
    assert [[bool(mask.any()) for mask in frame] for frame in masks] == [[True, True], [False, True], [False, False]]


def test_what_is_broken_in_sav_is_named(data, skipped):
    for number in (1, 2, 3, 4):
        sav_video(data, number)
    (data / 'sav_000001.mp4').unlink()
    (data / 'sav_000002_manual.json').write_text('{"video_id": ')
    (data / 'sav_000003.mp4').write_bytes((data / 'sav_000003.mp4').read_bytes()[:200])
    recordings = open_recordings(data, skipped)
    assert [re.search(r'sav_(\d+)', r.name).group(1) for r in recordings] == ['000004']
    reasons = {name.rsplit('/', 1)[1]: reason for name, reason in skipped.all().items()}
    assert {'sav_000001_manual.json', 'sav_000002_manual.json', 'sav_000003.mp4'} <= set(reasons)
    assert 'no video sav_000001.mp4' in reasons['sav_000001_manual.json']


@pytest.mark.parametrize(('frames', 'claimed', 'reason'), [
    (21, 45, 'the masks would lie on other frames'), (21, 9, 'no even step fits'), (5, 21, 'no even step fits'),
    (11, 21, 'the masks would lie on other frames'),  # encoded again at half the rate
    (21, 21, None), (24, 24, None)])
def test_masklets_are_compared_with_the_video(data, skipped, frames, claimed, reason):
    sav_video(data, 1, annotated=6, frames=frames, claimed=claimed)
    if reason is None:
        masklets, = open_recordings(data, skipped)
        image, = masklets.read([5]).images
        assert close(image, scene(20)[0]) and not skipped.all() and not skipped.doubts()
        return
    with pytest.raises(ValueError, match='nothing to train on'):
        open_recordings(data, skipped)
    text, = skipped.all().values()
    assert text == (f'6 annotated frames of {claimed} (video_frame_count), and sav_000001.mp4 has {frames}: {reason}')


@pytest.mark.parametrize(('frames', 'claimed', 'doubt'), [
    (23, 21, 'video_frame_count is 21, sav_000001.mp4 has 23'), (40, 40, 'one of 7 frames is annotated, 3.4 a second')])
def test_masklets_that_disagree_slightly_with_the_video_are_named(data, skipped, frames, claimed, doubt):
    sav_video(data, 1, annotated=6, frames=frames, claimed=claimed)
    assert len(open_recordings(data, skipped)) == 1 and not skipped.all()
    assert doubt in skipped.doubts()[str(data / 'sav_000001_manual.json')]


# --- COCO

def test_coco_objects_are_read_from_polygons_and_run_lengths(data, skipped):
    coco_folder(data)
    images = open_recordings(data, skipped)
    assert len(images) == 4 and all(len(image) == 1 for image in images)
    for i, image in enumerate(images):
        expected, labels = scene(3 * i)
        read = image.read([0])
        assert close(read.images[0], expected)
        disc, square = read.masks[0]  # without the crowd
        np.testing.assert_array_equal(square, labels == 3)
        truth = labels == 1
        assert (disc & truth).sum() / (disc | truth).sum() > 0.93  # an outline is not quite the mask


def test_polygons_cover_the_area_they_enclose():
    mask = segmentation_mask([[10, 5, 40.5, 8, 30, 44.25, 12, 30], [50, 40, 60, 40, 60, 45, 50, 45]], 48, 64)
    assert mask.sum() == pytest.approx(779.3 + 50, rel=0.025)  # by the shoelace formula
    assert mask[40:45, 50:60].all() and not mask[39, 50:60].any() and not mask[45, 50:60].any()


def test_what_is_broken_in_coco_is_named(data, skipped):
    coco_folder(data)
    (data / 'train' / '0.jpg').unlink()
    path = data / 'annotations' / 'instances_train.json'
    content = json.loads(path.read_text())
    content['annotations'][3]['segmentation'] = [[1, 2, 3, 4]]
    path.write_text(json.dumps(content))
    (data / 'annotations' / 'captions.json').write_text('[]')
    images = open_recordings(data, skipped)
    assert len(images) == 3
    assert [name.split('/')[-1] for name in skipped.all()] == ['captions.json', '0.jpg']
    with pytest.raises(BrokenSample, match=r'1.jpg: annotation in instances_train.json: polygon \[1, 2, 3, 4\]'):
        images[0].read([0])


def test_coco_images_of_another_size_than_annotated_are_refused(data, skipped):
    """Images that were shrunk for training without their polygons, which would not fit."""
    coco_folder(data)
    path = data / 'train' / '1.jpg'
    path.write_bytes(jpeg(cv2.resize(scene(3)[0], (WIDTH // 2, HEIGHT // 2))))
    images = open_recordings(data, skipped)
    with pytest.raises(BrokenSample, match='1.jpg: an image of 64x48, annotated in .* as one of 128x96'):
        images[1].read([0])
    images[0].read([0])


def test_coco_annotations_without_any_mask_are_named(data, skipped):
    coco_folder(data)
    path = data / 'annotations' / 'instances_train.json'
    content = json.loads(path.read_text())
    for annotation in content['annotations']:
        del annotation['segmentation']
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='nothing to train on in the layout coco.*1 files were skipped'):
        open_recordings(data, skipped)
    assert 'none of 12 annotations is the mask of an object' in skipped.all()[str(path)]


# --- folders

def test_unknown_layout_is_refused_with_the_known_ones(data, skipped):
    (data / 'pictures').mkdir(parents=True)
    with pytest.raises(ValueError, match='unknown layout.*davis.*sav.*coco'):
        open_recordings(data, skipped)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        open_recordings(data / 'nowhere', skipped)


def test_added_data_moves_no_recording_to_the_other_split(data, skipped):
    for i in range(30):
        davis_clip(data, f'first{i}', frames=1)
    training, validation = split_recordings(open_recordings(data, skipped), 0.3)
    assert 3 <= len(validation) <= 15 and len(training) + len(validation) == 30
    for i in range(5):
        davis_clip(data, f'later{i}', frames=1)
    _, more = split_recordings(open_recordings(data, skipped), 0.3)
    assert {r.name for r in more if 'first' in r.name} == {r.name for r in validation}


def test_split_leaves_recordings_for_training_and_for_validation(data, skipped):
    davis_clip(data, 'a', frames=1)
    davis_clip(data, 'b', frames=1)
    for share in (1e-9, 0.999999):
        training, validation = split_recordings(open_recordings(data, skipped), share)
        assert len(training) == len(validation) == 1


def test_skipped_files_of_several_processes_are_counted_once(tmp_path):
    path = tmp_path / 'skipped.jsonl'
    for writer in (SkippedFiles(path), SkippedFiles(path)):
        for _ in range(2):
            writer.add(BrokenSample('a.jpg', 'cut off'))
        writer.add(BrokenSample('b.jpg', 'no image'))
    assert SkippedFiles(path).all() == {'a.jpg': 'cut off', 'b.jpg': 'no image'}
    assert len(path.read_text().splitlines()) == 4
