"""Label topics in bags become training clips: bags are written, then read without ROS."""
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='needs rosbags (pip install rosbags rosbags-image)')

import cv2
import torch
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from sam2_core import load_model
from sam2_core.config import VARIANTS
from sam2_core.datasets import BrokenSample, SkippedFiles, open_recordings
from sam2_core.training.initialise import new_model
from sam2_core.training.recorded_clips import RecordedClips
from sam2_ros.messages.encodings import ImageError
from sam2_ros.recordings.label_bags import SEGMENT, _image, bag_format
from sam2_ros.train import main

ROOT = Path(__file__).resolve().parents[3]
STORE = get_typestore(Stores.ROS2_JAZZY)
for name in ('Instance', 'InstanceArray'):
    STORE.register(get_types_from_msg((ROOT / 'msg' / f'{name}.msg').read_text(), f'sam2_ros/msg/{name}'))
TYPES = STORE.types
HEIGHT, WIDTH = 72, 96
SECOND = 1_000_000_000


def make(name, **fields):
    """Return a message whose fields are zero unless they are given."""
    def default(kind, detail):
        if kind.name == 'NAME':
            return make(detail)
        if kind.name == 'BASE':
            return '' if detail[0] == 'string' else False if detail[0] == 'bool' else 0
        (inner, of), count = detail[0], detail[1]
        numbers = inner.name == 'BASE' and of[0] not in ('string',)
        return np.zeros(count, {'byte': 'uint8', 'octet': 'uint8'}.get(of[0], of[0])) if numbers else []

    values = {field: default(kind, detail) for field, (kind, detail) in STORE.fielddefs[name][1]}
    return TYPES[name](**values | fields)


def header(stamp):
    return make('std_msgs/msg/Header', stamp=make('builtin_interfaces/msg/Time', sec=stamp // SECOND,
                                                  nanosec=stamp % SECOND), frame_id='camera')


def image_message(pixels, encoding, stamp):
    return make('sensor_msgs/msg/Image', header=header(stamp), height=pixels.shape[0], width=pixels.shape[1],
                encoding=encoding, step=pixels.strides[0], data=np.frombuffer(pixels.tobytes(), np.uint8))


def jpeg_message(rgb, stamp):
    data = cv2.imencode('.jpg', cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].reshape(-1)
    return make('sensor_msgs/msg/CompressedImage', header=header(stamp), format='jpeg', data=data)


def picture(frame):
    """Return a camera image and the masks of objects 7 and 12, which overlap; 12 is hidden in frames 3 to 5."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    image = np.repeat((80 + 30 * np.sin(columns / 8)).astype(np.uint8)[..., None], 3, axis=2)
    masks = {7: (columns - 20 - 3 * frame) ** 2 + (rows - 30) ** 2 <= 144,
             12: (abs(columns - 45) < 14) & (abs(rows - 36) < 9)}
    image[masks[12]] = (40, 60, 200)
    image[masks[7]] = (210, 50, 40)
    if 3 <= frame <= 5:
        masks[12] = np.zeros_like(masks[12])
    return image, masks


def instances_message(frame, stamp, height=HEIGHT):
    found = []
    for number, mask in picture(frame)[1].items():
        rows, columns = np.nonzero(mask)
        roi, crop = make('sensor_msgs/msg/RegionOfInterest'), make('sensor_msgs/msg/Image')
        if len(rows):
            y0, y1, x0, x1 = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
            roi = make('sensor_msgs/msg/RegionOfInterest', x_offset=int(x0), y_offset=int(y0), width=int(x1 - x0),
                       height=int(y1 - y0))
            crop = image_message(mask[y0:y1, x0:x1].astype(np.uint8) * 255, 'mono8', stamp)
        found.append(make('sam2_ros/msg/Instance', id=number, roi=roi, mask=crop))
    return make('sam2_ros/msg/InstanceArray', header=header(stamp), height=height, width=WIDTH, instances=found)


def label_message(frame, stamp):
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    for number, mask in picture(frame)[1].items():
        labels[mask & (labels == 0)] = number
    return image_message(labels, 'mono16', stamp)


def write_bag(path, frames=8, labels=('instances',), compressed=False, storage=StoragePlugin.MCAP, drop=(), lag=0,
              height=HEIGHT, more=(), stamp_of=lambda stamp: stamp, encode=lambda rgb: (rgb[..., ::-1].copy(), 'bgr8')):
    """Write a camera at 10 Hz with labels 70 ms later, as a node publishes them.

    more: topics of other cameras with the same stamps, or of other instances; stamp_of: of labels; encode: returns
    pixels and encoding of an image.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    camera = ('/camera/image/compressed', 'sensor_msgs/msg/CompressedImage') if compressed \
        else ('/camera/image', 'sensor_msgs/msg/Image')
    topics = {'image': camera, 'depth': ('/camera/depth', 'sensor_msgs/msg/Image'),
              'instances': ('/sam2/instances', 'sam2_ros/msg/InstanceArray'),
              'label_image': ('/sam2/label_image', 'sensor_msgs/msg/Image'),
              **{topic: (topic, 'sam2_ros/msg/InstanceArray' if 'instances' in topic else 'sensor_msgs/msg/Image')
                 for topic in more}}
    with Writer(path, version=9, storage_plugin=storage) as writer:
        connections = {name: writer.add_connection(topic, kind, typestore=STORE)
                       for name, (topic, kind) in topics.items() if name in ('image', 'depth', *labels, *more)}
        records = []
        for frame in range(frames):
            stamp = 1_700_000_000 * SECOND + frame * SECOND // 10
            rgb = picture(frame)[0]
            records.append((stamp, 'image', jpeg_message(rgb, stamp) if compressed
                            else image_message(*encode(rgb), stamp)))
            records.append((stamp + 1, 'depth', image_message(np.ones((HEIGHT, WIDTH), np.uint16), '16UC1', stamp)))
            records += [(stamp, topic, image_message(rgb, 'rgb8', stamp)) for topic in more if 'instances' not in topic]
            if frame in drop:
                continue
            for name in (*labels, *(topic for topic in more if 'instances' in topic)):
                message = instances_message(frame, stamp_of(stamp) + lag, height) if 'instances' in name \
                    else label_message(frame, stamp_of(stamp) + lag)
                records.append((stamp + 70_000_000, name, message))
        for time, name, message in sorted(records, key=lambda record: record[0]):
            writer.write(connections[name], time, STORE.serialize_cdr(message, message.__msgtype__))


@pytest.fixture
def skipped(tmp_path):
    return SkippedFiles(tmp_path / 'skipped.jsonl')


def open_bags(folder, skipped, **topics):
    return open_recordings(folder, skipped, formats={'bag': bag_format(**topics)})


@pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize('compressed', [False, True])
def test_instances_become_masks_of_the_image_with_their_stamp(tmp_path, skipped, storage, compressed):
    write_bag(tmp_path / 'data' / 'run', storage=storage, compressed=compressed, drop=(1, 4))
    bag, = open_bags(tmp_path / 'data', skipped)
    assert len(bag) == 6
    read = bag.read([1, 3, 5])
    for frame, image, masks in zip((2, 5, 7), *read, strict=True):
        expected, truth = picture(frame)
        assert np.median(np.abs(image.astype(int) - expected)) <= 2 * compressed
        np.testing.assert_array_equal(masks, np.stack([truth[7], truth[12]]))


def test_label_images_become_masks(tmp_path, skipped):
    write_bag(tmp_path / 'data' / 'run', labels=('label_image',))
    bag, = open_bags(tmp_path / 'data', skipped)
    _, masks = bag.read([0, 4])
    for frame, found in zip((0, 4), masks, strict=True):
        _, truth = picture(frame)
        np.testing.assert_array_equal(found, np.stack([truth[7], truth[12] & ~truth[7]]))


def test_topics_can_be_named(tmp_path, skipped):
    write_bag(tmp_path / 'data' / 'run', labels=('instances', 'label_image'))
    named, = open_bags(tmp_path / 'data', skipped, image_topic='/camera/image', label_topic='/sam2/label_image')
    assert (named.image_topic, named.label_topic) == ('/camera/image', '/sam2/label_image')
    found, = open_bags(tmp_path / 'data', skipped)
    assert (found.image_topic, found.label_topic) == ('/camera/image', '/sam2/instances')
    with pytest.raises(ValueError, match='nothing to train on'):
        open_bags(tmp_path / 'data', skipped, image_topic='/other')
    reason, = skipped.all().values()
    assert 'no images on /other; there are ' in reason
    assert '/camera/image (sensor_msgs/msg/Image, 8 messages)' in reason


def test_long_bag_becomes_several_recordings(tmp_path, skipped):
    write_bag(tmp_path / 'data' / 'run', frames=2 * SEGMENT + 30)
    parts = open_bags(tmp_path / 'data', skipped)
    assert [len(part) for part in parts] == [SEGMENT, SEGMENT, 30]
    expected, _ = picture(2 * SEGMENT)
    np.testing.assert_array_equal(parts[2].read([0]).images[0], expected)


def test_bags_that_cannot_be_used_are_named(tmp_path, skipped):
    data = tmp_path / 'data'
    write_bag(data / 'good')
    write_bag(data / 'no_labels', labels=())
    write_bag(data / 'other_stamps', lag=1)
    write_bag(data / 'cut')
    file = next((data / 'cut').glob('*.mcap'))
    file.write_bytes(file.read_bytes()[:3000])
    (data / 'text').mkdir()
    (data / 'text' / 'metadata.yaml').write_text('hello: world')
    bags = open_bags(data, skipped)
    assert [bag.path.name for bag in bags] == ['good']
    reasons = {Path(file).name: reason for file, reason in skipped.all().items()}
    assert set(reasons) == {'no_labels', 'other_stamps', 'cut', 'text'}
    assert 'no label topic' in reasons['no_labels'] and 'no stamp' in reasons['other_stamps']


def test_folders_of_killed_recorders_and_linked_folders_are_found(tmp_path, skipped):
    """They have no metadata.yaml, and a link back to the folder above does no harm."""
    write_bag(tmp_path / 'elsewhere' / 'run', storage=StoragePlugin.SQLITE3)
    (tmp_path / 'elsewhere' / 'run' / 'metadata.yaml').unlink()
    write_bag(tmp_path / 'elsewhere' / 'cut')
    (tmp_path / 'elsewhere' / 'cut' / 'metadata.yaml').unlink()
    file = tmp_path / 'elsewhere' / 'cut' / 'cut.mcap'
    file.write_bytes(file.read_bytes()[:-20_000])
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'linked').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere' / 'back').symlink_to(tmp_path / 'data')
    bags = open_bags(tmp_path / 'data', skipped)
    assert sorted((bag.path.name, len(bag)) for bag in bags) == [('cut.mcap', 7), ('run.db3', 8)]
    (name, reason), = skipped.all().items()
    assert name.endswith('cut.mcap (in part)') and 'the recorder did not finish it' in reason


@pytest.mark.parametrize(('kind', 'named'), [('odd_msgs/msg/Odd', ''), ('sam2_ros/msg/InstanceArray', 'definition')])
def test_only_the_definition_of_the_labels_is_needed(tmp_path, skipped, kind, named):
    """rosbag2 writes an empty definition in the language "unknown" if it finds none."""
    write_bag(tmp_path / 'data' / 'run', storage=StoragePlugin.SQLITE3)
    with sqlite3.connect(tmp_path / 'data' / 'run' / 'run.db3') as database:
        database.execute("UPDATE topics SET name = '/odd', type = 'odd_msgs/msg/Odd' WHERE name = '/camera/depth'")
        database.execute("INSERT INTO message_definitions VALUES (99, 'odd_msgs/msg/Odd', 'ros2msg', ']] odd', '')")
        database.execute("UPDATE message_definitions SET encoding = 'unknown', encoded_message_definition = '' "
                         'WHERE topic_type = ?', (kind,))
    database.close()
    bag, = open_bags(tmp_path / 'data', skipped)
    if named:
        with pytest.raises(BrokenSample, match='its definition is not in the bag; record it with mcap'):
            bag.read([0])
    else:
        np.testing.assert_array_equal(bag.read([0]).masks[0][0], picture(0)[1][7])


def test_labels_of_another_size_are_refused(tmp_path, skipped):
    write_bag(tmp_path / 'data' / 'run', height=20)
    bag, = open_bags(tmp_path / 'data', skipped)
    with pytest.raises(BrokenSample, match='run.*instance 7: mask of 25x25 in a box of 25x25 in an image of 96x20'):
        bag.read([0])


@pytest.mark.parametrize(('pixels', 'encoding', 'declared'), [
    (np.full((HEIGHT, WIDTH), 900, np.float32), '32FC1', ''),
    (np.full((HEIGHT, WIDTH), 90, np.uint8), '16SC1', '16SC1; png compressed '),
    (np.full((HEIGHT, WIDTH), 90, np.uint8), 'yuv444', 'yuv444; png compressed ')])
def test_images_that_the_node_refuses_are_not_trained_on_either(pixels, encoding, declared):
    if declared:
        message = make('sensor_msgs/msg/CompressedImage', header=header(1), format=declared,
                       data=cv2.imencode('.png', pixels)[1].reshape(-1))
    else:
        message = image_message(pixels, encoding, 1)
    with pytest.raises(ImageError, match=f"encoding '{encoding}': not supported; publish one of"):
        _image(message)


def test_a_thermal_camera_is_trained_on_with_each_image_in_its_own_range(tmp_path, skipped):
    write_bag(tmp_path / 'data' / 'run', encode=lambda rgb: (20_000 + 10 * rgb[..., 0].astype(np.uint16), 'mono16'))
    bag, = open_bags(tmp_path / 'data', skipped)
    clip = bag.read([0, 1])
    for frame, image in enumerate(clip.images):
        red = picture(frame)[0][..., 0].astype(float)
        grey = image[..., 0].astype(float)
        assert image.shape == (HEIGHT, WIDTH, 3) and grey.max() - grey.min() > 200
        scale, offset = np.polyfit(red.ravel(), grey.ravel(), 1)
        assert np.abs(scale * red + offset - grey).max() < 1.5
        np.testing.assert_array_equal(clip.masks[frame][0], picture(frame)[1][7])


def test_ambiguous_cameras_and_labels_are_refused(tmp_path, skipped):
    write_bag(tmp_path / 'data' / 'cameras', more=('/left/image',))
    write_bag(tmp_path / 'data' / 'labels', more=('/arm/instances',))
    with pytest.raises(ValueError, match='nothing to train on'):
        open_bags(tmp_path / 'data', skipped)
    reasons = {Path(file).name: reason for file, reason in skipped.all().items()}
    assert '/left/image' in reasons['cameras'] and '--image-topic' in reasons['cameras']
    assert '/arm/instances' in reasons['labels'] and '--label-topic' in reasons['labels']
    bag, = open_bags(tmp_path / 'data' / 'cameras', skipped, image_topic='/left/image')
    assert bag.image_topic == '/left/image'


def test_labels_that_are_not_used_are_counted(tmp_path, skipped):
    first, step = 1_700_000_000 * SECOND, SECOND // 10
    changed = {first: 0, first + step: first + 2 * step, first + 3 * step: first + 5}
    write_bag(tmp_path / 'data' / 'run', stamp_of=lambda stamp: changed.get(stamp, stamp))
    bag, = open_bags(tmp_path / 'data', skipped)
    assert len(bag) == 5 and not skipped.all()
    doubts, = skipped.doubts().values()
    assert doubts == ('/sam2/instances: 1 labels without a stamp are not used; 1 of 6 labels have the stamp of no '
                      'usable image; 1 labels are followed by one of the same stamp, which is used')


def test_bags_become_clips(tmp_path, skipped):
    write_bag(tmp_path / 'data' / 'a')
    write_bag(tmp_path / 'data' / 'b', labels=('label_image',), compressed=True)
    source = RecordedClips(open_bags(tmp_path / 'data', skipped), 4, 64, skipped, chunk=4)
    clips = source[0]
    assert all(clip.visible[0].any() and clip.frames.shape == (4, 64, 64, 3) for clip in clips)
    assert not skipped.all()


def test_a_bag_trains_a_model(tmp_path):
    torch.manual_seed(0)
    torch.save({'model': new_model(VARIANTS['nano']).state_dict()}, tmp_path / 'nano.pt')
    write_bag(tmp_path / 'data' / 'good')
    write_bag(tmp_path / 'data' / 'bad', labels=())
    assert main(['--data', str(tmp_path / 'data'), '--checkpoint', str(tmp_path / 'nano.pt'), '--image-size', '64',
                 '--frames', '3', '--batch', '1', '--steps', '2', '--workers', '0', '--device', 'cpu',
                 '--image-topic', '/camera/image', '--output', str(tmp_path / 'run')]) == 0
    assert load_model('nano', checkpoint=tmp_path / 'run' / 'weights.safetensors', device='cpu').image_size == 64
    assert [Path(file).name for file in SkippedFiles(tmp_path / 'run' / 'skipped.jsonl').all()] == ['bad']


def test_reading_bags_needs_no_ros():
    """Neither rclpy nor a message package is imported."""
    code = ('import sys; import sam2_ros.recordings.label_bags; '
            'print([m for m in sys.modules if m.split(".")[0] in ("rclpy", "sensor_msgs", "std_msgs")])')
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'
