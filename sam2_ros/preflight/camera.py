"""Checks of one camera's topics, given the messages that arrived. No ROS node is needed."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from rclpy.qos import QoSCompatibility, qos_check_compatible
from rclpy.topic_endpoint_info import TopicEndpointInfo
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from sam2_ros.depth.calibration import DepthError, calibrate, doubt, info_of_image
from sam2_ros.depth.depth_messages import DepthHead, DepthMessage, depth_head
from sam2_ros.depth.matching import NO_STAMP, check_registered, is_of_one_time, usable_metres
from sam2_ros.messages.conversions import ImageError, to_rgb
from sam2_ros.messages.encodings import find_encoding
from sam2_ros.messages.intensity import IntensityRange, range_of
from sam2_ros.preflight.findings import Finding, bad, doubtful, good
from sam2_ros.runtime.parameters import Parameters

OLD = 1.0  # seconds; maximum age of images at arrival
AHEAD = 0.005  # seconds; maximum lead of stamps over the clock
LOSS_TOLERATED, LOSS_BAD = 0.01, 0.1  # shares of lost images above which the rate is doubtful and bad
REGULAR = 0.9  # minimum share of the gaps between stamps that are multiples of the period
FEW_LEVELS = 16  # of 256, in which the model finds no contrast
LITTLE_DEPTH = 0.2  # share of valid pixels below which depth is doubtful
PROFILE_CURE = 'give the camera driver the image profile, see transport'


@dataclass
class Topic:
    """A topic and the messages that arrived on it."""

    name: str  # full name
    type: str  # expected type, for example 'sensor_msgs/msg/Image'; empty: that of a plugin of image_transport
    publishers: Sequence[TopicEndpointInfo] = ()
    subscriptions: Sequence[TopicEndpointInfo] = ()  # those of the node sam2 or, if it is not running, of sam2_check
    seconds: float = 0.0  # duration of the measurement
    stamps: list[int] = field(default_factory=list)  # ns, of each message
    ages: list[float] = field(default_factory=list)  # age of each message at arrival, seconds
    last: Image | CompressedImage | CameraInfo | None = None
    elsewhere: Sequence[str] = ()  # other topics of the same type
    unreadable: str = ''  # why nobody could subscribe


def check_image(image: Topic, given: IntensityRange | None = None) -> Iterator[Finding]:
    """Check the images of a camera: connection, rate, encoding, stamps and frame.

    Args:
        image: Topic of the images.
        given: Range of 16-bit images that the parameters of the node give.
    """
    problem = check_connection(image)
    if problem:
        yield problem
        return
    assert image.last is not None  # otherwise there is a problem
    yield check_rate(image)
    yield _check_pixels(image.name, image.last, given)
    yield check_stamps(image)
    if image.last.header.frame_id:
        yield good('frame', image.last.header.frame_id)
    else:
        yield bad('frame', f'{image.name} has an empty frame_id: set it in the camera driver, TF needs it')


def _check_pixels(name: str, message: Image | CompressedImage, given: IntensityRange | None) -> Finding:
    """Check that an image can be decoded, and that its 16-bit values are not all shown as black or as white."""
    chosen: list[IntensityRange] = []

    def choose(pixels: np.ndarray) -> IntensityRange:
        chosen.append(range_of(pixels))
        return chosen[0]
    try:
        rgb = to_rgb(message, given, choose)
    except ImageError as error:
        return bad('image', f'{name}: {error}')
    kind = message.format if isinstance(message, CompressedImage) else message.encoding
    text = f'{rgb.shape[1]} x {rgb.shape[0]} pixels, {kind}'
    if chosen:
        return good('image', f'{text}, values {chosen[0].low} to {chosen[0].high} shown as black to white')
    encoding = find_encoding(kind.partition(';')[0].strip())
    low, high = np.percentile(rgb[::8, ::8], (2, 98))
    if encoding is not None and encoding.bits == 16 and (high < FEW_LEVELS or low > 255 - FEW_LEVELS):
        return doubtful('image', f'{text}, nearly all shown as {"black" if high < FEW_LEVELS else "white"}: set '
                                 f'intensity_min and intensity_max to the values of the sensor (12 bits: 0 and 4095)')
    return good('image', text)


def check_connection(topic: Topic) -> Finding | None:
    """Return why no message arrived on a topic, or None if one did."""
    if topic.unreadable:
        return bad('transport', topic.unreadable)
    if not topic.publishers:
        others = f'; {topic.type} is on {", ".join(topic.elsewhere)}: remap it' if topic.elsewhere else ''
        return bad('publisher', f'nobody publishes {topic.name}: is the camera running, in this ROS_DOMAIN_ID?{others}')
    types = {publisher.topic_type for publisher in topic.publishers}
    if topic.type and topic.type not in types:
        return bad('type', f'{topic.name} is {" and ".join(sorted(types))}, expected {topic.type}: choose another '
                           f'topic, or the transport that has this type (image_transport, depth_transport)')
    for publisher in topic.publishers:
        results = [(qos_check_compatible(publisher.qos_profile, subscription.qos_profile), subscription)
                   for subscription in topic.subscriptions]
        if results and all(verdict == QoSCompatibility.ERROR for (verdict, _), _ in results):
            (_, reason), subscription = results[0]
            return bad('QoS', f'{topic.name}: {full_name(publisher)} and {full_name(subscription)} are incompatible: '
                              f'{reason.replace("ERROR: ", "").strip(" ;").lower()}; relax the subscription with the '
                              f'parameters qos_overrides.{topic.name}.subscription.*')
    if topic.last is None:
        names = ', '.join(full_name(publisher) for publisher in topic.publishers)
        return bad('rate', f'{topic.name}: received nothing from {names} in {topic.seconds:.0f} s: is it streaming? '
                           f'If so, {PROFILE_CURE}')
    return None


def check_rate(topic: Topic) -> Finding:
    """Check how many images arrive and how many are lost."""
    text = f'{len(topic.stamps) / topic.seconds:.1f} images/s'
    lost = loss(topic.stamps)
    if lost is None:
        return good('rate', f'{text}; the stamps are not regular enough to tell whether any are lost')
    text = f'{text}, {lost:.0%} lost'
    if lost > LOSS_TOLERATED:
        make = bad if lost > LOSS_BAD else doubtful
        return make('rate', f'{text} on the way, or skipped by the camera: {PROFILE_CURE}')
    return good('rate', text)


def loss(stamps: Sequence[int]) -> float | None:
    """Return the share of images missing between the first and the last, or None if stamps are irregular.

    The shorter gaps between stamps (ns) give the period; n - 1 images are missing in a gap of n periods.
    """
    gaps = np.diff(np.sort(np.asarray(stamps, np.float64)))
    gaps = gaps[gaps > 0]
    if len(gaps) < 5:
        return None
    periods = gaps / np.percentile(gaps, 10)
    periods /= np.median(periods[periods < 1.5])  # a single gap has too much jitter
    for longest in (1.5, 2.5, 4.5, 8.5):  # longer gaps, once countable, refine the period
        counted = periods[periods < longest]
        periods *= np.round(counted).sum() / counted.sum()
    if np.mean(np.abs(periods - np.round(periods)) < 0.25) < REGULAR:
        return None
    steps = np.maximum(np.round(periods), 1)
    return float(1 - (len(steps) + 1) / (steps.sum() + 1))


def check_stamps(topic: Topic) -> Finding:
    """Check stamps against the clock that the node uses."""
    if not all(topic.stamps):
        return bad('stamps', f'{topic.name} has messages with stamp 0: have the camera driver stamp them; late '
                             f'prompts, depth and TF need stamps')
    backwards = sum(later < earlier for earlier, later in zip(topic.stamps, topic.stamps[1:], strict=False))
    age = float(np.median(topic.ages))
    if age < -AHEAD:
        return bad('stamps', f'{-age:.3f} s ahead of the clock: synchronise the clocks (chrony, PTP), or set '
                             f'use_sim_time if a bag is played')
    if age > OLD:
        return bad('stamps', f'{age:.1f} s old at arrival: set use_sim_time if a bag is played, synchronise the '
                             f'clocks (chrony, PTP), or find what delays the images')
    if backwards:
        return doubtful('stamps', f'{backwards} of {len(topic.stamps)} go back in time: are there two cameras on '
                                  f'{topic.name}?')
    return good('stamps', f'{1000 * age:.0f} ms old at arrival')


def check_depth(depth: Topic, info: Topic, image: Topic, parameters: Parameters, wanted: bool) -> Iterator[Finding]:
    """Check the depth and the calibration of a camera.

    Args:
        depth: Topic of the depth.
        info: Topic of the calibration.
        image: Topic of the images.
        parameters: Parameters of the node.
        wanted: True if the user named the topic. Otherwise it is fine to have no depth.
    """
    if not depth.publishers and not wanted and not depth.unreadable:
        yield good('depth', f'none (nobody publishes {depth.name}): results are in pixels, not in metres')
        return
    problem = check_connection(depth)
    if problem:
        yield _named('depth', problem)
    else:
        yield from _check_depth_image(depth, depth.last, image, parameters)
    problem = check_connection(info)
    if problem:
        yield _named('camera_info', problem)
    else:
        frame_id = depth.last.header.frame_id if depth.last is not None else ''
        yield check_camera_info(info.last, image, parameters.rectified, frame_id)


def _named(what: str, finding: Finding) -> Finding:
    return Finding(f'{what} {finding.what}', finding.verdict, finding.text)


def _check_depth_image(depth: Topic, last: DepthMessage, image: Topic, parameters: Parameters) -> Iterator[Finding]:
    """Check the last depth image by itself, and the stamps of all of them against those of the images."""
    size = _size(image.last) if image.last is not None else None
    try:
        head = depth_head(last)
    except ImageError as error:
        yield bad('depth values', f'{error}')
        return
    usable = True
    if image.last is not None and size:
        try:
            check_registered(head, image.last.header.frame_id, size)
            kind = last.format if isinstance(last, CompressedImage) else last.encoding
            yield good('depth size', f'{head.width} x {head.height} pixels, as the image, {kind}')
        except DepthError as error:
            usable = isinstance(last, Image)  # a compressed image of another size may be huge
            yield bad('depth size', f'{error}')
    if image.stamps:
        yield check_pairs(image.stamps, depth.stamps, parameters.depth_tolerance)
    if usable:
        yield check_valid(head, parameters)


def _size(message: Image | CompressedImage) -> tuple[int, int] | None:
    """Return (height, width) in pixels, or None if the image cannot be decoded."""
    if isinstance(message, Image):
        return message.height, message.width
    try:
        return to_rgb(message).shape[:2]
    except ImageError:
        return None


def check_pairs(images: Sequence[int], depths: Sequence[int], tolerance: float) -> Finding:
    """Check that each image has depth with a matching stamp. Stamps are in ns, the tolerance in seconds."""
    if not all(images):
        return bad('depth stamps', NO_STAMP)
    first, last = min(depths), max(depths)
    # the depth of the other images arrived before or after the measurement
    inside = [stamp for stamp in images if first - tolerance * 1e9 <= stamp <= last + tolerance * 1e9]
    if not inside:
        distance = min(abs(image - depth) for image in images for depth in (first, last)) / 1e9 if images else 0.0
        return bad('depth stamps', f'no image has depth with a matching stamp, the nearest is {distance:.3f} s away: '
                                   f'have the camera stamp both at the moment of exposure, with one clock')
    nearest = [(stamp, min(depths, key=lambda depth: abs(depth - stamp))) for stamp in inside]
    distances = [abs(stamp - depth) / 1e9 for stamp, depth in nearest]
    matched = sum(is_of_one_time(stamp, depth, tolerance) for stamp, depth in nearest) / len(nearest)
    text = f'{matched:.0%} of the images have depth within {tolerance:g} s'
    if matched >= 0.95:
        return good('depth stamps', text)
    make = doubtful if matched >= 0.5 else bad
    return make('depth stamps', f'{text} (depth_tolerance), the others are {np.median(distances):.3f} s away (median): '
                                f'raise it if the scene is static, or have the camera synchronise colour and depth')


def check_valid(depth: DepthHead, parameters: Parameters) -> Finding:
    """Check how much of a depth image is valid."""
    try:
        metres, _ = usable_metres(depth.image(), parameters)
    except (DepthError, ImageError) as error:
        return bad('depth values', f'{error}')
    known = metres[np.isfinite(metres)]
    share = len(known) / metres.size
    text = f'{share:.0%} of the pixels between {parameters.depth_min:g} and {parameters.depth_max:g} m'
    if share < LITTLE_DEPTH:
        return doubtful('depth values', f'{text}: is the lens covered, the scene too near, or the range '
                                        f'(depth_min, depth_max) wrong?')
    if len(known) > 1 and known.min() == known.max():  # possible in a simulation only
        return doubtful('depth values', f'{text}, and all depth is exactly {known[0]:g} m: does the camera measure it?')
    return good('depth values', text)


def check_camera_info(info: CameraInfo, image: Topic, rectified: bool = False, depth_frame: str = '') -> Finding:
    """Check a calibration by the rules of the node.

    Args:
        info: The calibration.
        image: Topic of the images.
        rectified: Value of the parameter.
        depth_frame: Frame of the depth image, which is used if the image has no frame.
    """
    size = _size(image.last) if image.last is not None else None
    try:
        if image.last is not None and size:
            info_of_image([info], image.last.header.frame_id or depth_frame, size)
        calibration = calibrate(info, rectified)
    except DepthError as error:
        return bad('camera_info', f'{error}')
    text, covered = f'focal length {calibration.focal:.0f} pixels', calibration.coverage()
    if covered < 1:
        return doubtful('camera_info', f'{text}; the lens model covers {100 * covered:.3g} % of the image: there is no '
                                       f'depth elsewhere; calibrate with a model that fits the whole image')
    reason = doubt(info, rectified, image.name)
    return doubtful('camera_info', f'{text}; {reason}') if reason else good('camera_info', text)


def full_name(endpoint: TopicEndpointInfo) -> str:
    """Return the full name of the node of an endpoint."""
    return f'{endpoint.node_namespace.rstrip("/")}/{endpoint.node_name}'
