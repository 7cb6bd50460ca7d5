"""The depth of a camera in a bag: found by type, encoding, size and frame, as names differ between drivers."""
from __future__ import annotations

from collections.abc import Container
from typing import NamedTuple

from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo

from sam2_ros.messages.compressed_images import DEPTH_TRANSPORT
from sam2_ros.messages.frame_ids import same_frame
from sam2_ros.recordings.bag_files import COMPRESSED, DRAWN, IMAGE, ImageMessageHead, described, first_head, image_head
from sam2_ros.recordings.bag_storage import Channel
from sam2_ros.recordings.bag_topics import TopicChooser, Topics
from sam2_ros.recordings.recording import RecordingError

DEPTH_ONLY = ('16UC1', '32FC1')  # encodings of depth
MAYBE_DEPTH = ('mono16',)  # depth of some drivers, and infrared or label images of others
DRAWN_DEPTH = 'background_depth'  # published by this node, without the objects
_TRANSPORTS = ('/compressed', f'/{DEPTH_TRANSPORT}')


class DepthChoice(NamedTuple):
    """Topics of depth and its calibration."""

    depth: str
    info: str


def choose_depth(chooser: TopicChooser, images: Topics, infos: Topics, camera: str, taken: Container[str],
                 depth_topic: str = '', info_topic: str = '') -> DepthChoice | None:
    """Return the depth of a camera, or None if the bag has none that can be used.

    Depth is a topic with images of the encoding 16UC1 or 32FC1, registered to those of the camera: of their size and in
    their frame. The first whole image of each topic counts.

    Args:
        chooser: That of the bag; takes the problems.
        images: All topics of images.
        infos: All topics of CameraInfo.
        camera: Topic of the camera's images.
        taken: Topics that have another purpose.
        depth_topic: Topic that the user has named, or ''.
        info_topic: Calibration that the user has named, or ''.

    Raises:
        RecordingError: A topic that the user has named does not exist or cannot be used.
    """
    head = first_head(chooser.reader, images[camera])
    depth = chooser.wanted(images, depth_topic, '--depth-topic')
    if depth:
        _check(depth, images[depth], chooser, head)
    else:
        depth = _find(chooser, images, camera, taken, head)
        if not depth:
            return None
    info = chooser.wanted(infos, info_topic, '--camera-info-topic') or _info(chooser, infos, depth, camera, head)
    if info:
        return DepthChoice(depth, info)
    if depth_topic:
        raise RecordingError(f'depth on {depth} without a camera_info; {described(infos)}: '
                             f'record it too, or drop --depth-topic')
    chooser.problems.append(f'depth on {depth} is not used: there is no camera_info')
    return None


def _find(chooser: TopicChooser, images: Topics, camera: str, taken: Container[str],
          head: ImageMessageHead | None) -> str:
    """Return the only topic with registered depth, or ''; record a problem if the choice is the user's."""
    found: Topics = {}
    others = []
    for topic, connections in images.items():
        if topic == camera or topic in taken or topic.endswith((*DRAWN, DRAWN_DEPTH)):
            continue
        first = _depth_head(chooser, connections)
        if first is None or first.encoding not in (*DEPTH_ONLY, *MAYBE_DEPTH):
            continue
        if first.encoding in DEPTH_ONLY and _registered(first, head):
            found[topic] = connections
        else:
            others.append(f'{topic} ({_shown(first)})')
    for topic in sorted(found, key=len):  # the same depth by other transports; the raw one is read fastest
        for transport in _TRANSPORTS:
            found.pop(f'{topic}{transport}', None)
        if topic.endswith(f'/{DEPTH_TRANSPORT}'):
            found.pop(f'{topic.removesuffix(DEPTH_TRANSPORT)}compressed', None)
    if not found and others:
        chooser.problems.append(
            f'no depth is used: {", ".join(others)}; depth must be 16UC1 or 32FC1 and registered to the images '
            f'({_size_and_frame(head)}): record the depth that the driver aligns to them, or choose mono16 that is '
            f'depth with --depth-topic')
    return chooser.only(found, 'depth', '--depth-topic')


def _check(depth: str, connections: list[Channel], chooser: TopicChooser, head: ImageMessageHead | None) -> None:
    """Raise RecordingError if a topic cannot be the depth of a camera."""
    first = _depth_head(chooser, connections)
    if first is None:
        raise RecordingError(f'depth on {depth}: no whole depth image; record {IMAGE}, or the transport '
                             f'{DEPTH_TRANSPORT}, or drop --depth-topic')
    if first.encoding not in (*DEPTH_ONLY, *MAYBE_DEPTH) or not _registered(first, head):
        raise RecordingError(f'depth on {depth} is {_shown(first)}: must be 16UC1, mono16 or 32FC1 and registered to '
                             f'the images ({_size_and_frame(head)}); record the depth that the driver aligns to them, '
                             f'or drop --depth-topic')


def _depth_head(chooser: TopicChooser, connections: list[Channel]) -> ImageMessageHead | None:
    """Return encoding, size and frame of the first depth image on a topic, or None if it has none.

    The encoding of a compressed depth image is that of the image before compression.
    """
    if connections[0].msgtype == IMAGE:
        return first_head(chooser.reader, connections)
    for _, _, raw in chooser.reader.messages(connections):
        try:
            head = image_head(raw, COMPRESSED)
        except ValueError:  # cut off
            continue
        name = head.encoding.partition(';')[0].strip()
        if name not in (*DEPTH_ONLY, *MAYBE_DEPTH):
            return None
        if head.bits == 16:  # neither damaged nor reduced to 8 bits
            deep = name in MAYBE_DEPTH and DEPTH_TRANSPORT in head.encoding
            return head._replace(encoding='16UC1' if deep else name)
    return None


def _registered(depth: ImageMessageHead, image: ImageMessageHead | None) -> bool:
    """Return whether size and frame of depth are those of an image, as far as they are known."""
    if image is None:
        return True
    same_size = not image.height or (depth.height, depth.width) == (image.height, image.width)
    return same_size and same_frame(depth.frame_id, image.frame_id)


def _info(chooser: TopicChooser, infos: Topics, depth: str, camera: str, head: ImageMessageHead | None) -> str:
    """Return the topic of the calibration: beside the depth or the images, or the only one; those that fit first."""
    beside = [topic for topic in map(_camera_info_beside, (depth, camera)) if topic in infos]
    fitting = {topic: connections for topic, connections in infos.items() if _fits(chooser, connections, head)}
    preferred = [topic for topic in beside if topic in fitting]
    if preferred:
        return preferred[0]
    if len(fitting) == 1:
        return next(iter(fitting))
    return next(iter(beside), '') or chooser.only(fitting or infos, 'camera_info', '--camera-info-topic')


def _camera_info_beside(topic: str) -> str:
    for suffix in _TRANSPORTS:
        topic = topic.removesuffix(suffix)
    return f'{topic.rpartition("/")[0]}/camera_info'


def _fits(chooser: TopicChooser, connections: list[Channel], head: ImageMessageHead | None) -> bool:
    """Return whether the first calibration on a topic is that of an image, as far as size and frame tell."""
    for _, _, raw in chooser.reader.messages(connections):
        try:
            info = deserialize_message(raw, CameraInfo)
        except Exception:  # the type of the error depends on the middleware
            continue
        if head is None:
            return True
        full = info.binning_x <= 1 and info.binning_y <= 1 and not info.roi.width
        other_size = full and head.height and (info.height, info.width) != (head.height, head.width)
        return not other_size and same_frame(info.header.frame_id, head.frame_id)
    return False


def _shown(head: ImageMessageHead) -> str:
    return f'{head.encoding}, {_size_and_frame(head)}'


def _size_and_frame(head: ImageMessageHead | None) -> str:
    """Return size and frame of an image as text."""
    if head is None:
        return 'of unknown size'
    size = f'{head.width} x {head.height}' if head.height else 'of unknown size'
    return f"{size} in frame '{head.frame_id}'"
