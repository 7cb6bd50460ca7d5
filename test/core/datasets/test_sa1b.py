"""Pictures with one JSON file each: SA-1B, and the export of Roboflow for SAM 2."""
import json
import pickle
import struct

import cv2
import numpy as np
import pytest

from sam2_core.datasets import BrokenSample, coco, open_recordings
from sam2_core.training.recorded_clips import RecordedClips, split_recordings
from testing.dataset_files import HEIGHT, WIDTH, coco_folder, compressed, jpeg, polygon, runs, sav_video, scene

REAL = {'image': {'image_id': 10079, 'width': 2000, 'height': 1500, 'file_name': 'sa_10079.jpg'}, 'annotations': [
    {'bbox': [580.0, 771.0, 17.0, 17.0], 'area': 261,  # the first mask of sa_10079.json of SA-1B
     'segmentation': {'size': [1500, 2000], 'counts': 'g[bj0:_^14N101O001O00010O000001O0O101N2M4HenTP2'},
     'predicted_iou': 0.9159146547317505, 'point_coords': [[588.75, 785.9375]],
     'crop_box': [0.0, 0.0, 1256.0, 1006.0], 'id': 628432254, 'stability_score': 0.9885495901107788}]}


def annotation(frame: int, file_name: str, **image):
    """Return the content of a JSON file, with the fields of SA-1B; the run lengths are encoded by the tests."""
    labels = scene(frame)[1]
    objects = [{'segmentation': {'size': [HEIGHT, WIDTH], 'counts': compressed(runs(labels == number))}, 'id': number,
                'bbox': [0.0, 0.0, 1.0, 1.0], 'area': int((labels == number).sum()), 'predicted_iou': 0.95,
                'stability_score': 0.97, 'crop_box': [0.0, 0.0, WIDTH, HEIGHT], 'point_coords': [[1.0, 2.0]]}
               for number in (1, 3)]
    return {'image': {'image_id': frame, 'width': WIDTH, 'height': HEIGHT, 'file_name': file_name, **image},
            'annotations': objects}


def write(folder, name: str, frame: int = 0, content=None, suffix='.jpg'):
    """Write a picture and its JSON file; return the path of the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{name}{suffix}').write_bytes(jpeg(scene(frame)[0]))
    path = folder / f'{name}.json'
    path.write_text(json.dumps(annotation(frame, f'{name}{suffix}') if content is None else content))
    return path


def truth(frame: int):
    labels = scene(frame)[1]
    return np.stack([labels == 1, labels == 3])


def close(image, frame: int):
    return np.median(np.abs(image.astype(int) - scene(frame)[0])) <= 4


def test_pictures_are_recognised_and_read_with_their_masks(data, skipped):
    for number in (10, 2, 1):
        write(data, f'sa_{number}', number)
    pictures = open_recordings(data, skipped)
    assert [picture.name for picture in pictures] == [str(data / f'sa_{number}.jpg') for number in (1, 2, 10)]
    for picture, frame in zip(pictures, (1, 2, 10), strict=True):
        read = picture.read([0, 0])
        assert len(picture) == 1 and len(read.images) == 2 and close(read.images[0], frame)
        np.testing.assert_array_equal(read.masks[1], truth(frame))
    assert not skipped.all() and not skipped.doubts()


def test_a_mask_of_sa_1b_lies_in_its_box(data, skipped):
    data.mkdir(parents=True, exist_ok=True)
    (data / 'sa_10079.jpg').write_bytes(jpeg(np.zeros((1500, 2000, 3), np.uint8)))
    (data / 'sa_10079.json').write_text(json.dumps(REAL))
    picture, = open_recordings(data, skipped)
    (mask,), = picture.read([0]).masks
    rows, columns = np.nonzero(mask)
    box = [columns.min(), rows.min(), np.ptp(columns), np.ptp(rows)]
    assert box == REAL['annotations'][0]['bbox'] and mask.sum() == REAL['annotations'][0]['area']


def test_the_export_of_roboflow_is_trained_on_without_its_validation_and_test(data, skipped):
    for split, frame in (('train', 1), ('valid', 2), ('test', 3)):
        write(data / split, f'photo_{frame}_jpg.rf.0a1b2c{frame}', frame)
    picture, = open_recordings(data, skipped)
    assert close(picture.read([0]).images[0], 1)
    assert {name: 'which is not trained on' in reason for name, reason in skipped.all().items()} == {
        str(data / 'test'): True, str(data / 'valid'): True}
    assert f'--validation-data {data / "valid"} reads it' in skipped.all()[str(data / 'valid')]
    held_out, = open_recordings(data / 'valid', skipped)
    assert close(held_out.read([0]).images[0], 2)


def test_a_renamed_pair_belongs_together(data, skipped):
    """Tutorials of SAM 2 have the points in Roboflow's names replaced, in both files but not in file_name."""
    write(data / 'train', 'photo_rf_1', 4, annotation(4, 'photo.rf.1.jpg'))
    picture, = open_recordings(data, skipped)
    np.testing.assert_array_equal(picture.read([0]).masks[0], truth(4))


def test_annotations_may_lie_in_a_folder_beside_the_images(data, skipped):
    (data / 'part' / 'annotations').mkdir(parents=True)
    write(data / 'part' / 'images', 'a', 5).replace(data / 'part' / 'annotations' / 'a.json')
    picture, = open_recordings(data, skipped)
    assert close(picture.read([0]).images[0], 5)


@pytest.mark.parametrize('make', [
    lambda mask: {'size': [HEIGHT, WIDTH], 'counts': runs(mask)}, lambda mask: [polygon(mask)]])
def test_masks_may_also_be_numbers_or_polygons(data, skipped, make):
    content = annotation(0, 'a.jpg')
    content['annotations'] = [{'segmentation': make(truth(0)[1])}]
    write(data, 'a', 0, content)
    (square,), = open_recordings(data, skipped)[0].read([0]).masks
    assert (square & truth(0)[1]).sum() / (square | truth(0)[1]).sum() > 0.93


def test_no_other_layout_is_taken_for_this_one(data, skipped):
    coco_folder(data / 'coco')
    assert len(open_recordings(data / 'coco', skipped)) == 4
    sav_video(data / 'sav', 1)
    assert len(open_recordings(data / 'sav', skipped)[0]) == 6
    labelme = {'shapes': [], 'imagePath': 'a.jpg'}
    write(data / 'labelme', 'a', 0, labelme)
    assert 'layout coco' in refused(data / 'labelme', skipped)
    write(data / 'auto', 'drive_auto', 3)  # a name as of SA-V
    assert close(open_recordings(data / 'auto', skipped)[0].read([0]).images[0], 3)


def refused(folder, skipped, name='auto'):
    with pytest.raises(ValueError, match='data ') as error:
        open_recordings(folder, skipped, name)
    return str(error.value)


# --- what is wrong is named

def broken(data, skipped, content=None, name='a', **image):
    """Return the error of a picture whose JSON was changed."""
    if content is None:
        content = annotation(0, 'a.jpg', **image)
    write(data, name, 0, content)
    picture, = open_recordings(data, skipped, 'sa1b')
    with pytest.raises(BrokenSample) as error:
        picture.read([0])
    return str(error.value)


def with_segmentation(segmentation):
    content = annotation(0, 'a.jpg')
    content['annotations'][1]['segmentation'] = segmentation
    return content


@pytest.mark.parametrize(('content', 'reason'), [
    ({'image': {}, 'annotations': 'none'}, 'a.json: not an annotation of one picture (ValueError: image is no object'),
    ({'annotations': []}, "a.json: not an annotation of one picture (KeyError: 'image')"),
    ([], 'a.json: not an annotation of one picture'),
    ({'image': {'file_name': 7}, 'annotations': []}, 'file_name 7 is no text'),
    ({'image': {'file_name': 'a.jpg'}, 'annotations': []}, 'a.json: no mask of an object'),
    ({'image': {'file_name': 'a.jpg'}, 'annotations': [{'bbox': [1, 2, 3, 4]}, 5]},
     'no mask of an object: 2 of 2 annotations without a mask are not used'),
    (with_segmentation({'size': [WIDTH, HEIGHT], 'counts': [HEIGHT * WIDTH]}),
     'a.jpg: annotation in a.json: mask of 96x128 for an image of 128x96'),
    (with_segmentation({'size': [HEIGHT, WIDTH], 'counts': [5, 5]}), 'run lengths add up to 10, must be 96 x 128'),
    (with_segmentation({'size': [HEIGHT, WIDTH], 'counts': 'Tg01\x01'}), 'does not occur in run-length text'),
    (with_segmentation({'size': [HEIGHT, WIDTH]}), "annotation in a.json: 'counts'"),
    (annotation(0, 'a.jpg', width=640, height=480), 'an image of 128x96, annotated in a.json as one of 640x480'),
    (annotation(0, 'a.jpg', width='wide'), 'must be whole numbers'),
])
def test_what_is_wrong_with_a_file_is_named(data, skipped, content, reason):
    assert reason in broken(data, skipped, content)


def test_a_file_that_is_cut_off_is_named_and_the_others_are_used(data, skipped):
    paths = [write(data, f'{number}', number) for number in range(3)]
    paths[1].write_text(paths[1].read_text()[:-40])
    source = RecordedClips(open_recordings(data, skipped), 2, 64, skipped)
    assert all(source.clip(number).visible.any() for number in range(6))
    (name, reason), = skipped.all().items()
    assert name == str(paths[1]) and 'not an annotation of one picture (JSONDecodeError' in reason


def test_a_missing_picture_and_one_without_annotation_are_named(data, skipped):
    write(data, 'a')
    write(data, 'b').with_suffix('.jpg').rename(data / 'B.jpg')
    (data / 'c.jpg').write_bytes(jpeg(scene(0)[0]))
    assert len(open_recordings(data, skipped)) == 1
    assert skipped.all() == {
        str(data / 'b.json'): 'no picture b.jpg beside it; there is B: names must be equal',
        f'{data}: 2 pictures': 'have no JSON file of their name, such as B.jpg'}


def test_two_pictures_of_one_name_are_told_apart_by_file_name(data, skipped):
    write(data, 'a', 0, annotation(1, 'a.png'))
    cv2.imwrite(str(data / 'a.png'), cv2.cvtColor(scene(1)[0], cv2.COLOR_RGB2BGR))
    picture, = open_recordings(data, skipped)
    assert close(picture.read([0]).images[0], 1)
    reason = broken(data, skipped, annotation(1, 'a.tif'))
    assert "a.jpg and a.png have its name, and file_name is 'a.tif'" in reason


def test_a_file_name_of_another_picture_is_refused(data, skipped):
    (data / 'other').mkdir(parents=True)
    (data / 'b.jpg').write_bytes(jpeg(scene(0)[0]))
    assert 'file_name is b.jpg, which is there beside a.jpg' in broken(data, skipped, annotation(0, 'b.jpg'))


def exif(data: bytes, orientation: int) -> bytes:
    """Return a JPEG with an orientation in its EXIF data."""
    body = b'Exif\0\0II*\0\x08\0\0\0\x01\0' + struct.pack('<HHIHHI', 0x0112, 3, 1, orientation, 0, 0)
    return data[:2] + b'\xff\xe1' + struct.pack('>H', len(body) + 2) + body + data[2:]


def test_a_photo_is_rotated_if_its_masks_fit_only_so(data, skipped):
    path = write(data, 'a', 0)
    stored = np.ascontiguousarray(np.rot90(scene(0)[0]))  # shown after a quarter clockwise, orientation 6
    path.with_suffix('.jpg').write_bytes(exif(jpeg(stored), 6))
    read = open_recordings(data, skipped)[0].read([0])
    assert close(read.images[0], 0)
    np.testing.assert_array_equal(read.masks[0], truth(0))
    path.with_suffix('.jpg').write_bytes(exif(jpeg(scene(0)[0]), 3))
    assert 'EXIF orientation 3' in broken_read(open_recordings(data, skipped)[0])


def broken_read(picture):
    with pytest.raises(BrokenSample) as error:
        picture.read([0])
    return str(error.value)


def test_annotations_that_are_not_used_are_counted_once(data, skipped):
    content = annotation(0, 'a.jpg')
    content['annotations'] += [{**content['annotations'][0], 'id': 9}, {'bbox': [1, 2, 3, 4]},
                               {**content['annotations'][1], 'iscrowd': 1}]
    path = write(data, 'a', 0, content)
    picture, = open_recordings(data, skipped)
    picture = pickle.loads(pickle.dumps(picture))  # as in a worker process
    for _ in range(2):
        np.testing.assert_array_equal(picture.read([0]).masks[0], truth(0))
    assert skipped.doubts() == {str(path): '1 of 5 annotations without a mask are not used; 1 of 5 annotations of '
                                           'crowds are not used; 1 of 5 annotations listed twice are not used'}


# --- training

def test_copies_of_one_picture_stay_on_one_side_of_a_split(data, skipped):
    for number in range(8):
        for copy in 'abc':
            write(data / 'train', f'photo{number}_jpg.rf.{copy}{number}f0', number)
    training, validation = split_recordings(open_recordings(data, skipped), 0.4)
    sides = [{recording.name.split('.rf.')[0] for recording in side} for side in (training, validation)]
    assert all(sides) and not sides[0] & sides[1]


def test_many_masks_are_read_within_a_bound_of_memory(data, skipped, monkeypatch):
    monkeypatch.setattr(coco, '_MASK_BYTES', 2 * HEIGHT * WIDTH // 4)
    write(data, 'a', 0)
    read = open_recordings(data, skipped)[0].read([0])
    assert read.images[0].shape == (HEIGHT // 2, WIDTH // 2, 3) and read.masks[0].nbytes == HEIGHT * WIDTH // 2
    for small, mask in zip(read.masks[0], truth(0), strict=True):  # a pixel is on if at least two of its four are
        np.testing.assert_array_equal(small, mask.reshape(HEIGHT // 2, 2, WIDTH // 2, 2).sum((1, 3)) >= 2)


def test_clips_are_cut_from_pictures(data, skipped):
    for number in range(2):
        write(data, f'{number}', number)
    source = RecordedClips(open_recordings(data, skipped), 3, 64, skipped, augment=False)
    for number in range(2):
        clip = source.clip(number)
        assert clip.masks.shape == (3, 2, 64, 64) and clip.visible.all()
