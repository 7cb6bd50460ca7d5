"""Bags of every storage and compression are written and read as recordings of a camera."""
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rosbags', reason='needs rosbags (pip install rosbags rosbags-image)')

import yaml
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import CompressionMode, StoragePlugin
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from sam2_ros.messages.conversions import from_pixels, to_rgb
from sam2_ros.msg import Prompt
from sam2_ros.recordings.bag_index import KEPT, NAMED
from sam2_ros.recordings.bag_reader import BagReader
from sam2_ros.recordings.bag_recording import BagRecording
from sam2_ros.recordings.bag_writer import BagWriter, typestore
from sam2_ros.recordings.recording import RecordingError
from testing.recorded_camera import (
    DEPTH,
    IMAGE,
    INFO,
    LAG,
    PROMPT,
    SECOND,
    START,
    TRUTH,
    check_all,
    header,
    jpeg,
    labels,
    messages,
    picture,
    stamp,
    write,
)


@pytest.mark.parametrize('storage, mode', [
    *((storage, mode) for storage in (StoragePlugin.MCAP, StoragePlugin.SQLITE3)
      for mode in (CompressionMode.NONE, CompressionMode.FILE, CompressionMode.MESSAGE)),
    (StoragePlugin.MCAP, CompressionMode.STORAGE)])  # its chunks
@pytest.mark.parametrize('compressed', [False, True])
def test_images_and_all_other_topics_are_read_from_every_kind_of_bag(tmp_path, storage, mode, compressed):
    with BagRecording(write(tmp_path / 'run', messages(compressed=compressed), storage, mode)) as recording:
        assert recording.name == 'run'
        check_all(recording, compressed)


def split(tmp_path, storage=StoragePlugin.MCAP):
    """Write one bag in two files, as `ros2 bag record --max-bag-duration` does."""
    records = messages()
    middle = stamp(6)
    parts = [write(tmp_path / f'run_{i}', part, storage) for i, part in enumerate((
        [record for record in records if record[2] < middle], [record for record in records if record[2] >= middle]))]
    bag = tmp_path / 'run'
    bag.mkdir()
    infos = [yaml.safe_load((part / 'metadata.yaml').read_text())['rosbag2_bagfile_information'] for part in parts]
    for part in parts:
        for file in [*part.glob('*.mcap'), *part.glob('*.db3')]:
            shutil.copy(file, bag)
    whole = infos[0]
    counts = {}
    for info in infos:
        for topic in info['topics_with_message_count']:
            counts.setdefault(topic['topic_metadata']['name'], [topic, 0])[1] += topic['message_count']
    whole['topics_with_message_count'] = [topic | {'message_count': count} for topic, count in counts.values()]
    for name in ('relative_file_paths', 'files'):
        whole[name] += infos[1][name]
    whole['message_count'] = len(records)
    whole['duration'] = {'nanoseconds': infos[1]['starting_time']['nanoseconds_since_epoch']
                         + infos[1]['duration']['nanoseconds']
                         - whole['starting_time']['nanoseconds_since_epoch']}
    (bag / 'metadata.yaml').write_text(yaml.safe_dump({'rosbag2_bagfile_information': whole}))
    return bag


@pytest.mark.parametrize('storage', [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_split_bag_is_one_recording(tmp_path, storage):
    with BagRecording(split(tmp_path, storage)) as recording:
        check_all(recording)


def without_chunks(path):
    """Return the mcap file as the recorder's preset fastwrite leaves it: no chunks, no index (mcap.dev/spec)."""
    content, parts, at = path.read_bytes(), [b'\x89MCAP0\r\n'], 8
    while True:
        kind, size = content[at], int.from_bytes(content[at + 1:at + 9], 'little')
        body = content[at + 9:at + 9 + size]
        if kind == 0x0f:  # the data ends
            break
        if kind == 0x06:  # a chunk: times 8 + 8, size 8, checksum 4, compression as text, size 8, records
            name = int.from_bytes(body[28:32], 'little')
            assert name == 0
            parts.append(body[40:])
        elif kind != 0x07:  # of the index
            parts.append(content[at:at + 9 + size])
        at += 9 + size
    end = b'\x0f' + (4).to_bytes(8, 'little') + bytes(4) + b'\x02' + (20).to_bytes(8, 'little') + bytes(20)
    path.write_bytes(b''.join(parts) + end + b'\x89MCAP0\r\n')


def test_mcap_without_chunks_is_read_too(tmp_path):
    bag = write(tmp_path / 'run', messages())
    file, = bag.glob('*.mcap')
    without_chunks(file)
    with BagRecording(bag) as recording:
        check_all(recording)
        np.testing.assert_array_equal(to_rgb(recording.image(3)), picture(3))  # a step back


def test_bag_without_metadata_is_read_from_its_files(tmp_path):
    bag = split(tmp_path)
    (bag / 'metadata.yaml').unlink()
    with BagRecording(bag) as recording:
        problem, = recording.problems
        assert 'without metadata.yaml' in problem
        recording.problems.clear()
        check_all(recording)


def test_file_of_a_split_bag_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path):
    bag = split(tmp_path)
    last = bag / 'run_1.mcap'
    last.write_bytes(last.read_bytes()[:-40_000])
    with BagRecording(bag) as recording:
        count = len(recording.stamps)
        assert 6 < count < 12 and list(recording.stamps) == [stamp(frame) for frame in range(count)]
        text = '\n'.join(recording.problems)
        assert 'run_1.mcap: the recorder did not finish it' in text
        assert f'of the {len(messages())} messages that metadata.yaml counts are there' in text
        np.testing.assert_array_equal(to_rgb(recording.image(count - 1)), picture(count - 1))


def test_missing_file_of_a_split_bag_is_named_with_its_messages(tmp_path):
    bag = split(tmp_path)
    (bag / 'run_1.mcap').unlink()
    with BagRecording(bag) as recording:
        assert list(recording.stamps) == [stamp(frame) for frame in range(6)]
        assert any(problem.startswith('run_1.mcap is missing, with 19 messages: metadata.yaml lists it')
                   for problem in recording.problems)


def test_images_are_read_in_any_order(tmp_path):
    with BagRecording(write(tmp_path / 'run', messages(60))) as recording:
        order = [*range(0, 60, 7), 59, 0, 30, 30, 29, 31, *np.random.default_rng(3).integers(0, 60, 40)]
        for frame in order:
            np.testing.assert_array_equal(to_rgb(recording.image(int(frame))), picture(int(frame)))


def test_reading_in_order_reads_the_bag_once(tmp_path, monkeypatch):
    starts = []
    original = BagReader.messages
    with BagRecording(write(tmp_path / 'run', messages(30))) as recording:
        monkeypatch.setattr(BagReader, 'messages', lambda self, channels, start=None, stop=None: (
            starts.append(start) or original(self, channels, start, stop)))
        for frame in range(30):
            recording.image(frame), recording.truth(frame), recording.depth(frame)
        assert len(starts) == 4  # images, truth, depth and camera_info, each once
        assert len(recording._images._read) <= KEPT


def test_several_prompts_for_one_image_are_all_read(tmp_path):
    records = messages() + [(PROMPT, Prompt(header=header(2), id=number), stamp(5) + number) for number in (1, 2)]
    with BagRecording(write(tmp_path / 'run', records)) as recording:
        assert [prompt.message.id for prompt in recording.prompts] == [300, 1, 2]
        assert recording.problems == []


# --- odd clocks and drivers

def test_stamps_that_go_back_are_sorted_and_repeated_ones_dropped(tmp_path):
    order = [0, 1, 3, 2, 4, 4, 5]
    records = [(IMAGE, from_pixels(picture(frame), 'rgb8', header(frame)), START + SECOND + i * 1000)
               for i, frame in enumerate(order)]
    with BagRecording(write(tmp_path / 'run', records)) as recording:
        assert list(recording.stamps) == [stamp(frame) for frame in range(6)]
        for frame in range(6):
            np.testing.assert_array_equal(to_rgb(recording.image(frame)), picture(frame))
        text = '\n'.join(recording.problems)
        assert 'stamps go back 1 times' in text
        assert '1 messages skipped that have the stamp of an earlier one' in text


def test_images_without_stamps_are_refused(tmp_path):
    image = from_pixels(picture(0), 'rgb8', Header())
    bag = write(tmp_path / 'run', [(IMAGE, image, START), (IMAGE, image, START + 1)])
    with pytest.raises(RecordingError, match='images on /camera/image have no stamps: the driver must set'):
        BagRecording(bag)


def test_broken_messages_are_reported_and_skipped(tmp_path):
    records = [record for record in messages() if record[0] != PROMPT]
    for i, (topic, message, time) in enumerate(records):
        if topic in (IMAGE, TRUTH) and time in (stamp(4) + LAG, stamp(8) + 3 * LAG):
            records[i] = topic, (Image, serialize_message(message)[:-10]), time
    records.append((PROMPT, (Prompt, b'\0\1\0\0' + bytes(8) + b'\xff' * 40), stamp(2)))
    with BagRecording(write(tmp_path / 'run', records)) as recording:
        assert list(recording.stamps) == [stamp(frame) for frame in range(12) if frame != 4]
        assert recording.truth(recording.stamps.index(stamp(8))) is None
        assert recording.prompts == []
        image, truth, unpaired, prompt = sorted(recording.problems, key=lambda text: (
            'prompt' in text, 'no image' in text, TRUTH in text))
        assert f'{IMAGE}: message recorded at {(stamp(4) + LAG) / 1e9:.3f} skipped: cut off: ' in image
        assert f'{TRUTH}: message recorded at {(stamp(8) + 3 * LAG) / 1e9:.3f} skipped: cut off: ' in truth
        assert f'{PROMPT}: prompt recorded at {stamp(2) / 1e9:.3f} skipped' in prompt
        assert '1 of 2 label images have the stamp of no image' in unpaired  # its image is the broken one


def test_many_broken_messages_are_counted(tmp_path):
    records = messages(30)
    broken = [(topic, (Image, serialize_message(message)[:40]) if topic == IMAGE and i % 3 else message, time)
              for i, (topic, message, time) in enumerate(records)]
    wanted = sum(isinstance(message, tuple) for _, message, _ in broken)
    assert wanted > NAMED
    with BagRecording(write(tmp_path / 'run', broken), ground_truth_topic='') as recording:
        assert len(recording.stamps) == 30 - wanted
        assert f'{IMAGE}: {wanted} messages skipped that are cut off or broken' in recording.problems


def test_damage_in_the_middle_of_a_file_loses_only_the_messages_there(tmp_path):
    """Ten bytes of a compressed chunk are overwritten; the rest of five seconds of images is still read."""
    records = [(IMAGE, from_pixels(np.kron(picture(frame), np.ones((16, 16, 1), np.uint8)), 'rgb8', header(frame)),
                stamp(frame)) for frame in range(50)]
    bag = write(tmp_path / 'run', records, mode=CompressionMode.STORAGE)
    file, = bag.glob('*.mcap')
    content = bytearray(file.read_bytes())
    content[len(content) // 2:len(content) // 2 + 10] = b'\xa5' * 10
    file.write_bytes(content)
    with BagRecording(bag) as recording:
        assert 30 <= len(recording.stamps) < 50
        lost, = recording.problems
        assert lost == f'{IMAGE}: {50 - len(recording.stamps)} messages lie in parts of the bag that cannot be read'
        for i, found in enumerate(recording.stamps):
            expected = picture((found - START) // (SECOND // 10))
            np.testing.assert_array_equal(to_rgb(recording.image(i))[::16, ::16], expected)


# --- ground truth

def test_truth_without_an_image_of_its_stamp_is_counted(tmp_path):
    records = messages()
    records += [(TRUTH, from_pixels(labels(1), 'mono16', header(1, 5)), stamp(1) + 3 * LAG)]
    with BagRecording(write(tmp_path / 'run', records)) as recording:
        assert recording.problems == [f'{TRUTH}: 1 of 4 label images have the stamp of no image']
        assert recording.truth(1) is None


def test_mono8_truth_becomes_uint16(tmp_path):
    records = [(IMAGE, from_pixels(picture(0), 'rgb8', header(0)), stamp(0)),
               ('/other', from_pixels(labels(0).astype(bool).astype(np.uint8) * 7, 'mono8', header(0)), stamp(0))]
    with BagRecording(write(tmp_path / 'run', records), image_topic=IMAGE, ground_truth_topic='other') as recording:
        assert recording.truth(0).dtype == np.uint16
        np.testing.assert_array_equal(recording.truth(0) == 7, labels(0) == 300)


@pytest.mark.parametrize('truth, reason', [
    (lambda: from_pixels(labels(0), 'mono16', header(0, 1)), 'no stamp of /camera/truth is that of an image on'),
    (lambda: from_pixels(labels(0)[:20], 'mono16', header(0)), 'truth of 64 x 20 pixels .*must be 64 x 48'),
    (lambda: from_pixels(picture(0), 'rgb8', header(0)), "'rgb8': must be .*mono8 or mono16"),
    (lambda: jpeg(0), 'must be sensor_msgs/msg/Image with mono8 .*; decompress it with image_transport republish'),
])
def test_truth_that_cannot_be_used_is_refused(tmp_path, truth, reason):
    records = [(IMAGE, from_pixels(picture(0), 'rgb8', header(0)), stamp(0)), (TRUTH, truth(), stamp(0))]
    with pytest.raises(RecordingError, match=reason):
        BagRecording(write(tmp_path / 'run', records))


def test_compressed_truth_beside_its_raw_topic_is_named(tmp_path):
    records = [(IMAGE, from_pixels(picture(0), 'rgb8', header(0)), stamp(0)),
               (f'{TRUTH}/compressed', jpeg(0), stamp(0))]
    with BagRecording(write(tmp_path / 'run', records)) as recording:
        assert recording.problems == [f'ground truth on {TRUTH}/compressed is not used: it is '
                                      f'sensor_msgs/msg/CompressedImage; decompress it with image_transport republish']


# --- topics

def test_one_of_several_cameras_must_be_chosen(tmp_path):
    records = messages() + [('/left/image', from_pixels(picture(0), 'rgb8', header(0)), stamp(0))]
    bag = write(tmp_path / 'run', records)
    with pytest.raises(RecordingError) as failure:
        BagRecording(bag)
    text = str(failure.value)
    assert '/camera/image (sensor_msgs/msg/Image, 12 messages), /left/image (sensor_msgs/msg/Image, 1 messages)' in text
    assert '--image-topic' in text and DEPTH not in text and TRUTH not in text
    with BagRecording(bag, image_topic='left/image') as recording:
        np.testing.assert_array_equal(to_rgb(recording.image(0)), picture(0))


def test_raw_and_compressed_images_of_one_camera_are_one_camera(tmp_path):
    records = messages() + [record for record in messages(compressed=True) if record[0].endswith('/compressed')]
    with BagRecording(write(tmp_path / 'run', records)) as recording:
        assert isinstance(recording.image(0), Image)
    with BagRecording(tmp_path / 'run', image_topic=f'{IMAGE}/compressed') as recording:
        assert isinstance(recording.image(0), CompressedImage)


@pytest.mark.parametrize('option', ['image_topic', 'ground_truth_topic', 'depth_topic', 'camera_info_topic',
                                    'prompt_topic'])
def test_a_missing_topic_is_named_with_the_existing_ones(tmp_path, option):
    with pytest.raises(RecordingError) as failure:
        BagRecording(write(tmp_path / 'run', messages()), **{option: '/nowhere'})
    text = str(failure.value)
    assert f'--{option.replace("_", "-")} /nowhere' in text and 'messages)' in text


def test_depth_without_calibration_is_skipped_and_reported(tmp_path):
    records = [record for record in messages() if record[0] != INFO]
    bag = write(tmp_path / 'run', records)
    with BagRecording(bag) as recording:
        assert recording.depth(0) is None
        assert recording.problems == [f'depth on {DEPTH} is not used: there is no camera_info']
    with pytest.raises(RecordingError, match='without a camera_info; there are none: record it too'):
        BagRecording(bag, depth_topic=DEPTH)


def test_depth_of_another_time_is_not_used_for_an_image(tmp_path):
    records = [record for record in messages() if record[0] != DEPTH or record[2] != stamp(5) + LAG]
    with BagRecording(write(tmp_path / 'run', records)) as recording:
        assert recording.depth(4) and recording.depth(5) is None and recording.depth(6)


def test_several_prompt_topics_are_ignored_until_one_is_chosen(tmp_path):
    records = messages() + [('/other/prompt', Prompt(header=header(0), id=1), stamp(0))]
    bag = write(tmp_path / 'run', records)
    with BagRecording(bag) as recording:
        assert recording.prompts == []
        assert 'several topics of prompts' in recording.problems[0] and '--prompt-topic' in recording.problems[0]
    with BagRecording(bag, prompt_topic='/other/prompt') as recording:
        assert [prompt.message.id for prompt in recording.prompts] == [1]


# --- files that cannot be used

def no_file(folder):
    return folder / 'nothing', 'there is no such file or folder'


def empty_folder(folder):
    (folder / 'empty').mkdir()
    return folder / 'empty', 'give a folder with metadata.yaml'


def ros_1(folder):
    (folder / 'old.bag').write_bytes(b'#ROSBAG V2.0\n')
    return folder / 'old.bag', 'a bag of ROS 1; convert it'


def cut_file(folder):
    bag = write(folder / 'run', messages())
    file, = bag.glob('*.mcap')
    file.write_bytes(file.read_bytes()[:5000])
    return bag, 'not one message in it; .*run.mcap: the recorder did not finish it .*mcap recover'


def not_a_database(folder):
    bag = write(folder / 'run', messages(), StoragePlugin.SQLITE3)
    file, = bag.glob('*.db3')
    file.write_bytes(b'nothing' * 1000)
    return bag, 'run.db3 cannot be read: .*sqlite3 FILE .recover'


def other_compression(folder):
    bag = write(folder / 'run', messages(), mode=CompressionMode.FILE)
    file, = bag.glob('*.mcap.zstd')
    file.write_bytes(b'brotli' + file.read_bytes())
    return bag, 'run.mcap.zstd cannot be read: .*`ros2 bag convert` where its compression is not zstd'


def empty_file(folder):
    (folder / 'run.mcap').touch()
    return folder / 'run.mcap', 'run.mcap cannot be read: it is empty'


def empty_bag(folder):
    return write(folder / 'run', []), 'there is not one message in it'


def folder_of_bags(folder):
    for name in ('b', 'a'):
        write(folder / 'all' / name, messages(2))
    return folder / 'all', 'a folder of bags, give one or several of them: a, b'


def bags_in_one_folder(folder):
    for name in ('kitchen', 'garage'):
        file, = write(folder / name, messages(2)).glob('*.mcap')
        (folder / 'all').mkdir(exist_ok=True)
        shutil.copy(file, folder / 'all')
    return folder / 'all', 'several bags in one folder, give one of them: garage.mcap, kitchen.mcap'


def no_images(folder):
    return write(folder / 'run', [(INFO, CameraInfo(), START)]), 'no topic of camera images; there are none'


@pytest.mark.parametrize('make', [no_file, empty_folder, ros_1, cut_file, not_a_database, other_compression,
                                  empty_file, empty_bag, folder_of_bags, bags_in_one_folder, no_images])
def test_bag_that_cannot_be_used_is_named_with_a_cure(tmp_path, make):
    bag, reason = make(tmp_path)
    with pytest.raises(RecordingError, match=reason) as failure:
        BagRecording(bag)
    assert str(failure.value).startswith(f'bag {bag}: ')


# --- writing

def test_our_types_are_written_with_the_hash_that_ros_knows():
    share = Path(sys.prefix) / 'share' / 'sam2_ros' / 'msg'
    if not share.is_dir():
        pytest.skip('the interfaces are installed elsewhere')
    for path in share.glob('*.json'):
        known = {entry['type_name']: entry['hash_string'] for entry in json.loads(path.read_text())['type_hashes']}
        kind = f'sam2_ros/msg/{path.stem}'
        assert typestore().hash_rihs01(kind) == known[kind]


def test_written_bag_is_read_back_and_never_overwritten(tmp_path):
    with BagWriter(tmp_path / 'out') as writer:
        for topic, message, time in messages():
            writer.write(topic, message, time)
    with BagRecording(tmp_path / 'out') as recording:
        check_all(recording)
    with pytest.raises(FileExistsError, match='out: exists already; remove it'):
        BagWriter(tmp_path / 'out')
