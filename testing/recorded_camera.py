"""A camera with depth, calibration, ground truth and prompts, as messages and as bags for tests."""
import cv2
import numpy as np
from rclpy.serialization import serialize_message
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from sensor_msgs.msg import CameraInfo, CompressedImage, RegionOfInterest
from std_msgs.msg import Header

from sam2_ros.messages.conversions import from_pixels, to_nanoseconds, to_rgb
from sam2_ros.msg import Prompt
from sam2_ros.recordings.bag_writer import type_name, typestore

HEIGHT, WIDTH = 48, 64
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
LAG = 20_000_000  # ns from a stamp to its recording
IMAGE, TRUTH, DEPTH = '/camera/image', '/camera/truth', '/camera/depth'
INFO, PROMPT = '/camera/camera_info', '/sam2/prompt'


def stamp(frame):
    return START + frame * SECOND // 10


def header(frame, offset=0):
    message = Header(frame_id='camera')
    message.stamp.sec, message.stamp.nanosec = divmod(stamp(frame) + offset, SECOND)
    return message


def picture(frame):
    """Return noise that differs for each frame."""
    return np.random.default_rng(frame).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)


def labels(frame):
    ids = np.zeros((HEIGHT, WIDTH), np.uint16)
    ids[10:20, frame:frame + 12] = 300
    return ids


def jpeg(frame):
    data = cv2.imencode('.jpg', picture(frame))[1].tobytes()
    return CompressedImage(header=header(frame), format='rgb8; jpeg compressed bgr8', data=data)


def messages(frames=12, compressed=False):
    """Return topic, message and recording time of everything that the camera publishes."""
    records = []
    for frame in range(frames):
        image = (f'{IMAGE}/compressed', jpeg(frame)) if compressed else (
            IMAGE, from_pixels(picture(frame), 'rgb8', header(frame)))
        info = CameraInfo(header=header(frame), height=HEIGHT, width=WIDTH)
        info.k[0] = 100.0 + frame
        depth = from_pixels(np.full((HEIGHT, WIDTH), 1000 + frame, np.uint16), '16UC1', header(frame, 3_000_000))
        records += [(*image, stamp(frame) + LAG), (INFO, info, stamp(frame) + LAG), (DEPTH, depth, stamp(frame) + LAG)]
        if frame % 4 == 0:
            records.append((TRUTH, from_pixels(labels(frame), 'mono16', header(frame)), stamp(frame) + 3 * LAG))
    click = Prompt(header=header(2), id=300, label='ball', box=RegionOfInterest(x_offset=2, y_offset=10, width=12,
                                                                               height=10))
    return [*records, (PROMPT, click, stamp(3))]


def write(path, records, storage=StoragePlugin.MCAP, mode=CompressionMode.NONE):
    """Write a bag of records: topic, message or (type, serialised message), and time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = Writer(path, version=9, storage_plugin=storage)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    with writer:
        connections = {}
        for topic, message, time in sorted(records, key=lambda record: record[2]):
            kind, raw = message if isinstance(message, tuple) else (type(message), serialize_message(message))
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, type_name(kind), typestore=typestore())
            writer.write(connections[topic], time, raw)
    return path


def check_all(recording, compressed=False, frames=12):
    assert list(recording.stamps) == [stamp(frame) for frame in range(frames)]
    assert list(recording.arrivals) == [stamp(frame) + LAG for frame in range(frames)]
    for frame in range(frames):
        image = recording.image(frame)
        assert to_nanoseconds(image.header.stamp) == stamp(frame) and image.header.frame_id == 'camera'
        if compressed:
            assert image == jpeg(frame)
        else:
            np.testing.assert_array_equal(to_rgb(image), picture(frame))
        depth, info = recording.depth(frame)
        assert np.frombuffer(depth.data, np.uint16)[0] == 1000 + frame
        assert info.k[0] == 100 + frame
        truth = recording.truth(frame)
        if frame % 4:
            assert truth is None
        else:
            assert truth.dtype == np.uint16
            np.testing.assert_array_equal(truth, labels(frame))
    prompt, = recording.prompts
    assert prompt.arrival == stamp(3) and prompt.message.id == 300 and prompt.message.box.width == 12
    assert recording.labels == {300: 'ball'}
    assert recording.problems == []
