"""Nothing in a data set is skipped, or read as something else, without a report."""
import json
import os
import zlib

import cv2
import numpy as np
import pytest

from sam2_core.datasets import BrokenSample, open_recordings, run_length
from sam2_core.datasets.coco import segmentation_mask
from sam2_core.datasets.sav import annotation_step
from testing.dataset_files import HEIGHT, WIDTH, coco_folder, davis_clip, indexed_png, jpeg, runs, sav_video, scene


def named(found, folder):
    """Return the reasons by relative path."""
    return {name.removeprefix(f'{folder}/'): reason for name, reason in found.items()}


# --- DAVIS

def test_linked_clips_are_read(data, skipped, tmp_path):
    davis_clip(tmp_path / 'disk', 'cup', frames=3)
    for part in ('JPEGImages', 'Annotations'):
        (data / part).mkdir(parents=True)
        os.symlink(tmp_path / 'disk' / part / 'cup', data / part / 'cup')
    os.symlink('..', data / 'Annotations' / 'circle')
    os.symlink('gone', data / 'JPEGImages' / 'lost')
    clip, = open_recordings(data, skipped)
    assert len(clip) == 3 and clip.read([0]).masks[0].any()
    found = named(skipped.all(), data)
    assert 'a link to gone, which does not exist' in found['JPEGImages/lost']


def test_clips_without_labels_and_labels_without_images_are_named(data, skipped):
    for name in ('good', 'Case', 'bare', 'blind'):
        davis_clip(data, name, frames=2)
    (data / 'Annotations' / 'Case').rename(data / 'Annotations' / 'case')
    for path in (data / 'Annotations' / 'bare').iterdir():
        path.unlink()
    for path in (data / 'JPEGImages' / 'blind').iterdir():
        path.rename(path.with_suffix('.tif'))
    (data / 'JPEGImages' / 'empty').mkdir()
    (data / 'Annotations' / 'good' / '00001.png').rename(data / 'Annotations' / 'good' / '1.png')
    clip, = open_recordings(data, skipped)
    assert clip.name.endswith('good') and len(clip) == 1
    found = named(skipped.all(), data)
    assert found.keys() == {'Annotations/case', 'Annotations/blind', 'JPEGImages/Case', 'JPEGImages/bare',
                            'JPEGImages/empty', 'Annotations/good/1.png'}
    assert '2 label files without images' in found['Annotations/case'] and 'there is Case' in found['Annotations/case']
    assert '2 images without labels' in found['JPEGImages/bare']
    assert 'there is 00001: names must be equal' in found['Annotations/good/1.png']


@pytest.mark.parametrize('flat', [True, False])
def test_unrelated_pictures_are_not_taken_as_a_video(data, skipped, flat):
    davis_clip(data, 'a', frames=3)
    names = ('00000', '00001', '00002') if flat else ('cat', 'dog', 'house2')
    for part, suffix in (('JPEGImages', '.jpg'), ('Annotations', '.png')):
        for path, name in zip(sorted((data / part / 'a').iterdir()), names, strict=True):
            path.rename(data / part / ('' if flat else 'a') / f'{name}{suffix}')
        if flat:
            (data / part / 'a').rmdir()
    images = open_recordings(data, skipped)
    assert [len(image) for image in images] == [1, 1, 1]
    assert [image.name.rsplit('/', 1)[1] for image in images] == [f'{name}.jpg' for name in names]
    reason, = skipped.doubts().values()
    assert '3 labelled images are used as single images' in reason and not skipped.all()


def test_a_clip_with_two_files_for_one_frame_is_skipped(data, skipped):
    davis_clip(data, 'twice', frames=3)
    davis_clip(data, 'once', frames=3)
    (data / 'JPEGImages' / 'twice' / '1.jpg').write_bytes(b'')
    clip, = open_recordings(data, skipped)
    assert clip.name.endswith('once')
    assert '00001.jpg and 1.jpg are two files for one frame' in named(skipped.all(), data)['JPEGImages/twice']


def test_clips_are_not_read_in_two_resolutions(data, skipped):
    for name in ('480p/cup', 'Full-Resolution/cup'):
        davis_clip(data, name, frames=2)
    clip, = open_recordings(data, skipped)
    assert '480p' in clip.name
    assert list(named(skipped.all(), data)) == ['JPEGImages/Full-Resolution']


def test_index_255_is_void_beside_an_object_and_alone_in_the_colours_of_davis(data, skipped):
    def frame(t):
        image, labels = scene(t)
        labels[labels == 3] = 255
        return image, labels

    davis_clip(data, 'cup', frames=2, make=frame)
    clip, = open_recordings(data, skipped)
    assert clip.read([0]).masks[0].shape[0] == 1
    only = np.where(scene(1)[1] == 1, 255, 0).astype(np.uint8)
    path = data / 'Annotations' / 'cup' / '00001.png'
    path.write_bytes(indexed_png(only))
    with pytest.raises(BrokenSample, match='may be an object or void'):
        clip.read([0, 1])
    png = bytearray(indexed_png(only))
    at = png.index(b'PLTE')
    png[at + 4 + 765:at + 4 + 768] = bytes((224, 224, 192))
    length = int.from_bytes(png[at - 4:at], 'big')
    png[at + 4 + length:at + 8 + length] = zlib.crc32(png[at:at + 4 + length]).to_bytes(4, 'big')
    path.write_bytes(bytes(png))
    assert not clip.read([0, 1]).masks[1].any()


# --- COCO

def coco(data, change, name='instances_train.json'):
    """Write a COCO folder, change its JSON file with ``change``, and return the file."""
    coco_folder(data)
    path = data / 'annotations' / 'instances_train.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path.rename(path.with_name(name))


def dangling(content):
    content['annotations'][0]['image_id'] = 77
    content['annotations'][1]['image_id'] = '0'
    content['annotations'][2]['image_id'] = None


def same_id(content):
    content['images'][1]['id'] = content['images'][0]['id']


def same_file(content):
    content['images'][1]['file_name'] = content['images'][0]['file_name']


def nameless(content):
    del content['images'][0]['file_name']


@pytest.mark.parametrize(('change', 'key', 'reason', 'left'), [
    (dangling, ': 3 annotations', 'name an image_id that no usable image has, such as 77; an id of an image is 0', 3),
    (same_id, ': 2 images', 'share an id with another, such as 0.jpg', 2),
    (same_file, ': 2 entries', 'list an image twice, such as 0.jpg', 2),
    (nameless, ': 1 images', 'have no id or no file_name', 3)])
def test_what_is_wrong_in_a_coco_file_is_counted(data, skipped, change, key, reason, left):
    path = coco(data, change)
    assert len(open_recordings(data, skipped)) == left
    assert reason in skipped.all()[f'{path}{key}']


def test_ids_of_images_may_be_strings(data, skipped):
    def change(content):
        for item in content['images']:
            item['id'] = str(item['id'])
        for item in content['annotations']:
            item['image_id'] = str(item['image_id'])

    coco(data, change)
    assert len(open_recordings(data, skipped)) == 4 and not skipped.all()


def test_annotations_that_are_not_used_are_counted(data, skipped):
    def change(content):
        content['annotations'][0]['segmentation'] = []
        content['annotations'].append(content['annotations'][1])
        content['annotations'][4]['id'] = content['annotations'][3]['id']
        content['images'].append({'id': 9, 'file_name': '9.jpg', 'height': 1, 'width': 1})

    path = coco(data, change)
    assert len(open_recordings(data, skipped)) == 4 and not skipped.all()
    assert set(skipped.doubts()[str(path)].split('; ')) == {
        '4 crowds are not used', '1 boxes or key points without a mask are not used',
        '1 annotations that are listed twice are not used', '1 annotations have the id of another',
        '1 images have no mask of an object'}


@pytest.mark.parametrize(('name', 'reason'), [
    ('instances_val2017.json', 'validation or test split'), ('test.json', 'validation or test split'),
    ('person_keypoints_train2017.json', 'key points'), ('stuff_train2017.json', 'key points or stuff'),
    ('more_train.json', 'listed by instances_train.json too')])
def test_other_files_beside_those_to_train_on_are_skipped(data, skipped, name, reason):
    path = coco(data, lambda content: None)
    other = path.with_name(name)
    other.write_text(path.read_text())
    images = open_recordings(data, skipped)
    assert len(images) == 4 and {image.source for image in images} == {path}
    (key, found), = skipped.all().items()
    assert key.startswith(str(other)) and reason in found


def test_one_file_of_coco_can_be_named(data, skipped):
    path = coco(data, lambda content: None)
    other = path.with_name('instances_val.json')
    other.write_text(path.read_text())
    (data / 'train').rename(data / 'val')
    assert len(open_recordings(other, skipped)) == 4 and not skipped.all()
    with pytest.raises(FileNotFoundError):
        open_recordings(other, skipped, 'davis')


def test_an_image_that_lies_in_two_places_is_not_guessed(data, skipped):
    coco(data, lambda content: None)
    (data / '0.jpg').write_bytes(jpeg(scene(9)[0]))
    (data / 'train' / '1.jpg').rename(data / 'train' / '1.JPG')
    assert len(open_recordings(data, skipped)) == 2
    found = skipped.all()
    assert 'several files have this name' in found['0.jpg'] and 'there is 1.JPG' in found['1.jpg']


@pytest.mark.parametrize(('polygon', 'reason'), [
    ([.1, .1, .5, .1, .5, .9], 'parts of the image'), ([200, 5, 240, 5, 240, 30], 'outside the image'),
    ([5, -30, 20, -30, 20, -5], 'outside the image')])
def test_polygons_in_other_units_are_refused(polygon, reason):
    with pytest.raises(ValueError, match=reason):
        segmentation_mask([polygon], HEIGHT, WIDTH)


def test_run_lengths_are_whole_numbers():
    with pytest.raises(ValueError, match='whole numbers'):
        run_length.decode([2.5, 1.5], 2, 2)


def test_an_image_without_a_size_is_as_large_as_its_run_lengths(data, skipped):
    def change(content):
        for item in content['images']:
            del item['width'], item['height']
        content['annotations'] = [item for item in content['annotations'] if not item['iscrowd']]

    coco(data, change)
    path = data / 'train' / '0.jpg'
    path.write_bytes(jpeg(cv2.resize(scene(0)[0], (WIDTH // 2, HEIGHT // 2))))
    with pytest.raises(BrokenSample, match='0.jpg: an image of 64x48, annotated in .* as one of 128x96'):
        open_recordings(data, skipped)[0].read([0])


# --- SA-V

def test_videos_without_masklets_are_named_and_suffixes_may_be_upper_case(data, skipped):
    sav_video(data, 1)
    sav_video(data, 2)
    (data / 'sav_000001.mp4').rename(data / 'sav_000001.MP4')
    (data / 'sav_000002_manual.json').unlink()
    masklets, = open_recordings(data, skipped)
    assert masklets.video.name == 'sav_000001.MP4'
    assert 'no sav_000002_manual.json' in named(skipped.all(), data)['sav_000002.mp4']


def test_masklets_in_linked_folders_are_read(data, skipped, tmp_path):
    sav_video(tmp_path / 'disk', 1)
    data.mkdir()
    os.symlink(tmp_path / 'disk', data / 'sav_000')
    assert len(open_recordings(data, skipped)) == 1


def test_objects_that_cannot_be_told_apart_are_refused(data, skipped):
    sav_video(data, 1)
    path = data / 'sav_000001_manual.json'
    content = json.loads(path.read_text())
    del content['masklet'][2][0]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match='nothing to train on'):
        open_recordings(data, skipped)
    assert 'lists 1 masks in one frame and 2 in another' in skipped.all()[str(path)]


@pytest.mark.parametrize('annotated', [2, 3, 24, 90])
@pytest.mark.parametrize('rest', range(4))
def test_the_step_of_sav_is_found_from_the_length_of_the_video(annotated, rest):
    assert annotation_step(annotated, 4 * (annotated - 1) + 1 + rest) == 4


def rotated(path, matrix):
    """Write a rotation into the track header of a video, as phones do."""
    content = path.read_bytes()
    at = content.index(b'tkhd') + 4 + 40
    path.write_bytes(content[:at] + b''.join(value.to_bytes(4, 'big', signed=True) for value in matrix)
                     + content[at + 36:])


QUARTER = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
HALF = (-(1 << 16), 0, 0, 0, -(1 << 16), 0, 0, 0, 1 << 30)


@pytest.mark.parametrize('drawn', ['stored', 'shown', 'either'])
def test_a_video_is_rotated_where_its_masks_fit_only_so(data, skipped, drawn):
    sav_video(data, 1, annotated=2)
    rotated(data / 'sav_000001.mp4', HALF if drawn == 'either' else QUARTER)
    path = data / 'sav_000001_manual.json'
    if drawn == 'shown':
        content = json.loads(path.read_text())
        content['masklet'] = [[{'size': [WIDTH, HEIGHT], 'counts': runs(np.rot90(scene(4 * i)[1] == 1, -1))}]
                              for i in range(2)]
        path.write_text(json.dumps(content))
    masklets, = open_recordings(data, skipped)
    if drawn == 'either':
        with pytest.raises(BrokenSample, match='players rotate it by 180 degrees.*cannot be known'):
            masklets.read([0])
        return
    read = masklets.read([0, 1])
    for image, masks in zip(*read, strict=True):
        assert image.shape[:2] == masks.shape[1:]
        assert image[masks[0]].mean(axis=0)[0] > 180  # the disc is red
