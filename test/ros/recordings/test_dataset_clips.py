"""Data sets in their published layouts are read as recordings."""
import cv2
import numpy as np
import pytest

from sam2_ros.evaluation.prompts import first_truth_prompts
from sam2_ros.messages.conversions import to_nanoseconds, to_rgb
from sam2_ros.recordings.dataset_clips import RATE
from sam2_ros.recordings.davis_folder import DavisFolder
from sam2_ros.recordings.recording import RecordingError, truth_masks
from sam2_ros.recordings.sav_folder import SavFolder
from testing.dataset_files import HEIGHT, WIDTH, davis_clip, indexed_png, jpeg, sav_video, scene


@pytest.fixture
def davis(tmp_path):
    for name in ('bear', 'camel', 'dog'):
        davis_clip(tmp_path / 'davis', f'480p/{name}', 6)
    davis_clip(tmp_path / 'davis', 'Full-Resolution/bear', 2)
    for year, names in (('2016', 'dog'), ('2017', 'camel\nbear\n')):
        (tmp_path / 'davis' / 'ImageSets' / year).mkdir(parents=True)
        (tmp_path / 'davis' / 'ImageSets' / year / 'val.txt').write_text(names)
    return tmp_path / 'davis'


def sav_folders(folder):
    """Write SA-V as its validation set comes: every fourth image annotated, one folder for each object.

    The second object lies on the first.
    """
    images = folder / 'JPEGImages_24fps' / 'sav_000007'
    images.mkdir(parents=True)
    for frame in range(9):
        (images / f'{frame:05}.jpg').write_bytes(jpeg(scene(frame)[0]))
    for number in (0, 2):
        labels = folder / 'Annotations_6fps' / 'sav_000007' / f'{number:03}'
        labels.mkdir(parents=True)
        for frame in range(0, 9, 4):
            (labels / f'{frame:05}.png').write_bytes(indexed_png(overlapping(frame)[number + 1].astype(np.uint8)))
    return folder


def overlapping(frame):
    whole = scene(frame)[1] == 1
    part = whole & (np.arange(HEIGHT)[:, None] > 30)
    return {1: whole, 3: part}


def opened(data, rate=RATE):
    """Return all clips of a data set."""
    return [data.clip(name, rate) for name in data.names]


# --- DAVIS

def test_clip_has_every_image_as_stored_at_an_even_rate(davis):
    clip = opened(DavisFolder(davis))[0]
    assert clip.name == 'bear' and len(clip.stamps) == 6
    assert np.diff(clip.stamps) == pytest.approx(1e9 / RATE, abs=1)
    for frame in range(6):
        message = clip.image(frame)
        assert bytes(message.data) == (davis / 'JPEGImages/480p/bear' / f'{frame:05}.jpg').read_bytes()
        assert to_nanoseconds(message.header.stamp) == clip.stamps[frame] > 0
        np.testing.assert_array_equal(clip.truth(frame), scene(frame)[1])
        assert clip.truth(frame).dtype == np.uint16 and clip.depth(frame) is None
    slow = opened(DavisFolder(davis), rate=10)[0]
    assert np.diff(slow.stamps).tolist() == [100_000_000] * 5


def test_a_split_selects_clips(davis):
    assert [clip.name for clip in opened(DavisFolder(davis))] == ['bear', 'camel', 'dog']
    assert [clip.name for clip in opened(DavisFolder(davis, split='2017/val'))] == ['camel', 'bear']
    with pytest.raises(RecordingError, match='split val: must be one of .*ImageSets/2016/val.txt, ImageSets/2017/val'):
        opened(DavisFolder(davis, split='val'))
    with pytest.raises(RecordingError, match='split test: must be one of'):
        opened(DavisFolder(davis, split='test'))


def test_image_without_labels_is_not_annotated(davis):
    (davis / 'Annotations/480p/dog/00003.png').unlink()
    clip = opened(DavisFolder(davis))[2]
    assert len(clip.stamps) == 6
    assert clip.truth(3) is None and clip.masks(3) is None and clip.truth(4) is not None


def test_a_clip_that_cannot_be_used_does_not_affect_the_others(davis):
    for path in (davis / 'JPEGImages/480p/camel').iterdir():
        path.unlink()
    data = DavisFolder(davis)
    assert data.names == ['bear', 'camel', 'dog']
    with pytest.raises(RecordingError, match='480p/camel: no images in it'):
        data.clip('camel')
    assert len(data.clip('dog').stamps) == 6


def test_damaged_label_file_is_named(davis):
    path = davis / 'Annotations/480p/dog/00003.png'
    path.write_bytes(path.read_bytes()[:60])
    clip = opened(DavisFolder(davis))[2]
    with pytest.raises(RecordingError, match='dog/00003.png: PNG is cut off'):
        clip.truth(3)


def lacks_annotations(folder):
    (folder / 'JPEGImages').mkdir(parents=True)
    return 'no folder Annotations: give the one that has'


def has_empty_annotations(folder):
    (folder / 'JPEGImages').mkdir(parents=True)
    (folder / 'Annotations').mkdir()
    return 'Annotations: no PNG files in it'


def lacks_images(folder):
    davis_clip(folder, 'bear', 2)
    for path in (folder / 'JPEGImages' / 'bear').iterdir():
        path.unlink()
    return 'JPEGImages/bear: no images in it'


def lists_what_is_not_there(folder):
    davis_clip(folder, 'bear', 2)
    (folder / 'ImageSets').mkdir()
    (folder / 'ImageSets' / 'val.txt').write_text('bear\nfox\n')
    return 'Annotations/fox: no annotation in it'


@pytest.mark.parametrize('make', [lacks_annotations, has_empty_annotations, lacks_images, lists_what_is_not_there])
def test_folder_that_cannot_be_used_is_named(tmp_path, make):
    reason = make(tmp_path / 'davis')
    with pytest.raises(RecordingError, match=reason):
        opened(DavisFolder(tmp_path / 'davis', split='val' if make is lists_what_is_not_there else ''))


def test_images_are_in_the_order_of_their_numbers(davis):
    for folder in ('JPEGImages', 'Annotations'):
        for path in (davis / folder / '480p/dog').iterdir():
            path.rename(path.with_name(f'{4 * int(path.stem)}{path.suffix.upper()}'))
        (davis / folder / '480p/dog' / '._0.png').write_bytes(b'')
    clip = DavisFolder(davis).clip('dog')
    assert len(clip.stamps) == 6 and not clip.problems
    for frame in range(6):
        assert bytes(clip.image(frame).data) == jpeg(scene(frame)[0])
        np.testing.assert_array_equal(clip.truth(frame), scene(frame)[1])


def test_two_files_for_one_image_are_refused(davis):
    (davis / 'JPEGImages/480p/dog' / '3.png').write_bytes(b'')
    with pytest.raises(RecordingError, match='dog: 00003.jpg and 3.png are two files for one frame'):
        DavisFolder(davis).clip('dog')


def test_linked_clips_are_found_and_a_flat_folder_is_refused(davis, tmp_path):
    for folder in ('JPEGImages', 'Annotations'):
        (davis / folder / '480p/dog').rename(tmp_path / folder)
        (davis / folder / '480p/dog').symlink_to(tmp_path / folder)
    assert DavisFolder(davis).names == ['bear', 'camel', 'dog']
    (davis / 'Annotations/480p/00000.png').write_bytes(b'')
    with pytest.raises(RecordingError, match='480p: PNG files that lie in no folder of a clip'):
        DavisFolder(davis)


def test_clips_that_are_not_evaluated_are_named(davis):
    for path in (davis / 'Annotations/480p/dog').iterdir():
        path.unlink()
    (davis / 'Annotations/480p/lost').symlink_to('nowhere')
    data = DavisFolder(davis)
    assert data.names == ['bear', 'camel']
    assert [problem.partition('480p')[2] for problem in data.problems] == [
        '/lost: a link to nowhere, which does not exist', ' have no annotation: dog']
    assert DavisFolder(davis, '2017/val').problems == data.problems[:1]


def test_doubts_about_a_clip_are_problems(davis):
    (davis / 'Annotations/480p/dog/00003.png').rename(davis / 'Annotations/480p/dog/3.png')
    (davis / 'JPEGImages/480p/dog/00005.jpg').rename(davis / 'JPEGImages/480p/dog/last.jpg')
    one, other = DavisFolder(davis).clip('dog').problems
    assert '2 annotations have the name of no image, such as 3; there is 00003: names must be equal' in one
    assert '00004 and last are not numbered alike' in other


@pytest.mark.parametrize(('value', 'turned', 'reason'), [
    (6, True, 'the annotation fits the rotated image only'), (6, False, None), (3, False, 'cannot be known')])
def test_photos_are_never_rotated(davis, value, turned, reason):
    image, labels = scene(0)
    exif = b'Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0' + bytes([value]) + bytes(6)
    data = jpeg(image)
    (davis / 'JPEGImages/480p/dog/00000.jpg').write_bytes(
        data[:2] + b'\xff\xe1' + (len(exif) + 2).to_bytes(2, 'big') + exif + data[2:])
    (davis / 'Annotations/480p/dog/00000.png').write_bytes(indexed_png(np.rot90(labels, -1) if turned else labels))
    clip = DavisFolder(davis).clip('dog')
    assert to_rgb(clip.image(0)).shape == image.shape
    if reason is None:
        np.testing.assert_array_equal(clip.truth(0), labels)
    else:
        with pytest.raises(RecordingError, match=f'00000.jpg: EXIF orientation {value}: .*{reason}'):
            clip.truth(0)


# --- SA-V

def check_every_fourth_frame(clip, truths):
    for frame in range(len(clip.stamps)):
        if frame % 4:
            assert clip.truth(frame) is None and clip.masks(frame) is None
        else:
            masks = clip.masks(frame)
            assert set(masks) == set(truths(frame))
            for object_id, mask in truths(frame).items():
                np.testing.assert_array_equal(masks[object_id], mask)


def test_video_has_every_frame_and_every_fourth_is_annotated(tmp_path):
    sav_video(tmp_path, 3, annotated=4)
    clip, = opened(SavFolder(tmp_path))
    assert clip.name == 'sav_000003' and len(clip.stamps) == 13
    assert np.diff(clip.stamps) == pytest.approx(1e9 / 24, abs=1)
    check_every_fourth_frame(clip, lambda frame: {1: scene(frame)[1] == 1, 2: scene(frame)[1] == 3})
    np.testing.assert_array_equal(clip.truth(8) == 2, scene(8)[1] == 3)


def test_frames_of_a_video_are_read_in_any_order(tmp_path):
    sav_video(tmp_path, 3, annotated=4)
    clip, = opened(SavFolder(tmp_path))
    video = cv2.VideoCapture(str(tmp_path / 'sav_000003.mp4'))
    stored = [cv2.cvtColor(video.read()[1], cv2.COLOR_BGR2RGB) for _ in range(13)]
    for frame in [*range(13), 12, 3, 3, 9, 0]:
        np.testing.assert_array_equal(to_rgb(clip.image(frame)), stored[frame])


def test_manual_masklets_come_before_automatic_ones(tmp_path):
    sav_video(tmp_path, 3, kind='auto')
    sav_video(tmp_path, 3, annotated=2)
    sav_video(tmp_path, 4, kind='auto')
    assert [len(clip.stamps) for clip in opened(SavFolder(tmp_path))] == [5, 21]


def test_objects_of_the_validation_set_may_overlap(tmp_path):
    clip, = opened(SavFolder(sav_folders(tmp_path)))
    assert clip.name == 'sav_000007' and len(clip.stamps) == 9
    check_every_fourth_frame(clip, overlapping)
    expected = np.zeros((HEIGHT, WIDTH), np.uint16)
    expected[overlapping(4)[1]] = 1
    expected[overlapping(4)[3]] = 3
    np.testing.assert_array_equal(clip.truth(4), expected)
    whole, part = first_truth_prompts(clip)
    assert np.count_nonzero(whole.message.mask.data) == np.count_nonzero(overlapping(0)[1])
    assert part.message.id == 3
    np.testing.assert_array_equal(truth_masks(clip, 4)[1], overlapping(4)[1])


def test_objects_of_the_validation_set_have_one_number_and_one_mask_each(tmp_path):
    labels = sav_folders(tmp_path) / 'Annotations_6fps' / 'sav_000007'
    path = labels / '002' / '00004.png'
    path.write_bytes(indexed_png(scene(4)[1]))
    with pytest.raises(RecordingError, match='00004.png: ids 1, 3: must be the mask of one object'):
        SavFolder(tmp_path).clip('sav_000007').masks(4)
    (labels / '2').mkdir()
    with pytest.raises(RecordingError, match='is the same object: remove one'):
        SavFolder(tmp_path).clip('sav_000007')
    (labels / '2').rename(labels / '²')
    with pytest.raises(RecordingError, match='²: must be the number of an object'):
        SavFolder(tmp_path).clip('sav_000007')


def test_a_list_selects_videos(tmp_path):
    for number in (3, 4):
        sav_video(tmp_path, number)
    (tmp_path / 'sav_val.txt').write_text('sav_000004\n')
    assert [clip.name for clip in opened(SavFolder(tmp_path, split='sav_val'))] == ['sav_000004']
    (tmp_path / 'sav_val.txt').write_text('sav_000009\n')
    with pytest.raises(RecordingError, match='no sav_000009_manual.json or sav_000009_auto.json'):
        opened(SavFolder(tmp_path, split='sav_val'))


def test_video_that_does_not_fit_its_annotation_is_named(tmp_path):
    sav_video(tmp_path, 3, annotated=4, frames=5, claimed=13)
    with pytest.raises(RecordingError, match='4 annotated frames of 13 .video_frame_count., and sav_000003.mp4 has 5'):
        opened(SavFolder(tmp_path))


def test_folder_without_sav_is_named(tmp_path):
    with pytest.raises(RecordingError, match='neither JPEGImages_24fps with Annotations_6fps nor'):
        opened(SavFolder(tmp_path))


def test_truth_masks_of_a_clip_are_given_by_object(tmp_path):
    davis_clip(tmp_path, 'bear', 2)
    clip, = opened(DavisFolder(tmp_path))
    assert set(truth_masks(clip, 1)) == {1, 3}


def test_rate_must_be_positive(tmp_path):
    davis_clip(tmp_path, 'bear', 2)
    with pytest.raises(RecordingError, match='rate 0: must be positive'):
        opened(DavisFolder(tmp_path), rate=0)
