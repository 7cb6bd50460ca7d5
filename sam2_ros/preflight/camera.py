"""What sam2_check makes of one camera's topics: judgements of what has been listened to, without ROS at work."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from rclpy.qos import QoSCompatibility, qos_check_compatible
from rclpy.topic_endpoint_info import TopicEndpointInfo
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from sam2_ros.depth.calibration import DepthError, calibrate, doubt, info_of_image
from sam2_ros.depth.matching import NO_STAMP, check_registered, is_of_one_time, usable_metres
from sam2_ros.messages.conversions import ImageError, to_rgb
from sam2_ros.preflight.findings import Finding, bad, doubtful, good
from sam2_ros.runtime.parameters import Parameters

OLD = 1.0  # seconds
AHEAD = 0.005
LOSS_TOLERATED, LOSS_BAD = 0.01, 0.1
REGULAR = 0.9  # share of the gaps between stamps that have to be multiples of the period
LITTLE_DEPTH = 0.2  # share of valid pixels
PROFILE_CURE = 'give the camera driver the image profile, see transport'


@dataclass
class Topic:
    """A topic and what came on it while sam2_check listened."""

    name: str  # in full
    type: str  # as expected, 'sensor_msgs/msg/Image'
    publishers: Sequence[TopicEndpointInfo] = ()
    listeners: Sequence[TopicEndpointInfo] = ()  # of the node sam2; of sam2_check while that does not run
    seconds: float = 0.0  # listened
    stamps: list[int] = field(default_factory=list)  # ns, of each message
    ages: list[float] = field(default_factory=list)  # seconds, at arrival
    last: Image | CompressedImage | CameraInfo | None = None
    elsewhere: Sequence[str] = ()  # other topics of this type


def check_image(image: Topic) -> Iterator[Finding]:
    problem = check_connection(image)
    if problem:
        yield problem
        return
    yield check_rate(image)
    try:
        picture = to_rgb(image.last)
    except ImageError as error:
        yield bad('image', f'{image.name}: {error}')
    else:
        height, width = picture.shape[:2]
        kind = image.last.format if isinstance(image.last, CompressedImage) else image.last.encoding
        yield good('image', f'{width} x {height} pixels, {kind}')
    yield check_stamps(image)
    if image.last.header.frame_id:
        yield good('frame', image.last.header.frame_id)
    else:
        yield bad('frame', f'{image.name} has an empty frame_id: set it in the camera driver, TF needs it')


def check_connection(topic: Topic) -> Finding | None:
    """Why nothing can come, or came, on a topic; None when something did."""
    if not topic.publishers:
        others = f'; {topic.type} is on {", ".join(topic.elsewhere)}: remap it' if topic.elsewhere else ''
        return bad('publisher', f'nobody publishes {topic.name}: is the camera running, in this ROS_DOMAIN_ID?{others}')
    types = {publisher.topic_type for publisher in topic.publishers}
    if topic.type not in types:
        return bad('type', f'{topic.name} is {" and ".join(sorted(types))}, expected {topic.type}: choose another '
                           f'topic, or image_transport raw or compressed')
    for publisher in topic.publishers:
        results = [(qos_check_compatible(publisher.qos_profile, listener.qos_profile), listener)
                   for listener in topic.listeners]
        if results and all(verdict == QoSCompatibility.ERROR for (verdict, _), _ in results):
            (_, reason), listener = results[0]
            return bad('QoS', f'{topic.name}: {full_name(publisher)} and {full_name(listener)} do not fit: '
                              f'{reason.replace("ERROR: ", "").strip(" ;").lower()}; ask for less with the parameters '
                              f'qos_overrides.{topic.name}.subscription.*')
    if topic.last is None:
        names = ', '.join(full_name(publisher) for publisher in topic.publishers)
        return bad('rate', f'{topic.name}: {names} sends nothing that arrives in {topic.seconds:.0f} s: is it '
                           f'streaming? If it is, {PROFILE_CURE}')
    return None


def check_rate(topic: Topic) -> Finding:
    """How many arrive, and how many seem to be lost on the way."""
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
    """Share of the images that are missing between the first and the last; None where stamps are not regular.

    The period is that of the shorter gaps; a gap of n periods misses n - 1 images.
    """
    gaps = np.diff(np.sort(np.asarray(stamps, np.float64)))
    gaps = gaps[gaps > 0]
    if len(gaps) < 5:
        return None
    periods = gaps / np.percentile(gaps, 10)
    periods /= np.median(periods[periods < 1.5])  # the jitter of one gap is no measure
    for longest in (1.5, 2.5, 4.5, 8.5):  # the longer a gap the better it tells the period, once it can be counted
        counted = periods[periods < longest]
        periods *= np.round(counted).sum() / counted.sum()
    if np.mean(np.abs(periods - np.round(periods)) < 0.25) < REGULAR:
        return None
    steps = np.maximum(np.round(periods), 1)
    return float(1 - (len(steps) + 1) / (steps.sum() + 1))


def check_stamps(topic: Topic) -> Finding:
    """Against the clock that the node would have."""
    if not all(topic.stamps):
        return bad('stamps', f'{topic.name} has messages with stamp 0: have the camera stamp them; late prompts, depth '
                             f'and TF go by it')
    backwards = sum(later < earlier for earlier, later in zip(topic.stamps, topic.stamps[1:], strict=False))
    age = float(np.median(topic.ages))
    if age < -AHEAD:
        return bad('stamps', f'{-age:.3f} s ahead of the clock: synchronise the clocks (chrony, PTP), or set '
                             f'use_sim_time when a bag is played')
    if age > OLD:
        return bad('stamps', f'{age:.1f} s old at arrival: set use_sim_time when a bag is played, synchronise the '
                             f'clocks (chrony, PTP), or find what delays the images')
    if backwards:
        return doubtful('stamps', f'{backwards} of {len(topic.stamps)} go back in time: are there two cameras on '
                                  f'{topic.name}?')
    return good('stamps', f'{1000 * age:.0f} ms old at arrival')


def check_depth(depth: Topic, info: Topic, image: Topic, parameters: Parameters, wanted: bool) -> Iterator[Finding]:
    """``wanted``: named by the user; otherwise having none is all right."""
    if not depth.publishers and not wanted:
        yield good('depth', f'none, nobody publishes {depth.name}: results are in pixels, without metres')
        return
    problem = check_connection(depth)
    if problem:
        yield _named('depth', problem)
    else:
        yield from _check_depth_image(depth, image, parameters)
    problem = check_connection(info)
    if problem:
        yield _named('camera_info', problem)
    else:
        frame_id = depth.last.header.frame_id if depth.last is not None else ''
        yield check_camera_info(info.last, image, parameters.rectified, frame_id)


def _named(what: str, finding: Finding) -> Finding:
    return Finding(f'{what} {finding.what}', finding.verdict, finding.text)


def _check_depth_image(depth: Topic, image: Topic, parameters: Parameters) -> Iterator[Finding]:
    size = _size(image.last) if image.last is not None else None
    if size:
        try:
            check_registered(depth.last, image.last.header.frame_id, size)
            yield good('depth size', f'{depth.last.width} x {depth.last.height} pixels, as the image, '
                                     f'{depth.last.encoding}')
        except DepthError as error:
            yield bad('depth size', f'{error}')
    if image.stamps:
        yield check_pairs(image.stamps, depth.stamps, parameters.depth_tolerance)
    yield check_valid(depth.last, parameters)


def _size(message: Image | CompressedImage) -> tuple[int, int] | None:
    """(height, width) in pixels; None when it cannot be told."""
    if isinstance(message, Image):
        return message.height, message.width
    try:
        return to_rgb(message).shape[:2]
    except ImageError:
        return None


def check_pairs(images: Sequence[int], depths: Sequence[int], tolerance: float) -> Finding:
    """Whether each image has a depth of its time. Stamps: ns; tolerance: seconds."""
    if not all(images):
        return bad('depth stamps', NO_STAMP)
    first, last = min(depths), max(depths)
    # those outside had theirs before or after sam2_check listened
    inside = [stamp for stamp in images if first - tolerance * 1e9 <= stamp <= last + tolerance * 1e9]
    if not inside:
        distance = min(abs(image - depth) for image in images for depth in (first, last)) / 1e9 if images else 0.0
        return bad('depth stamps', f'no image has a depth of its time, the nearest is {distance:.3f} s away: have the '
                                   f'camera stamp both with the moment of exposure, by one clock')
    nearest = [(stamp, min(depths, key=lambda depth: abs(depth - stamp))) for stamp in inside]
    distances = [abs(stamp - depth) / 1e9 for stamp, depth in nearest]
    matched = sum(is_of_one_time(stamp, depth, tolerance) for stamp, depth in nearest) / len(nearest)
    text = f'{matched:.0%} of the images have depth within {tolerance:g} s'
    if matched >= 0.95:
        return good('depth stamps', text)
    make = doubtful if matched >= 0.5 else bad
    return make('depth stamps', f'{text} (depth_tolerance), the others are {np.median(distances):.3f} s away (median): '
                                f'raise it for what does not move, or have the camera synchronise colour and depth')


def check_valid(message: Image, parameters: Parameters) -> Finding:
    """How much of a depth image says something."""
    try:
        metres, _ = usable_metres(message, parameters)
    except (DepthError, ImageError) as error:
        return bad('depth values', f'{error}')
    known = metres[np.isfinite(metres)]
    share = len(known) / metres.size
    text = f'{share:.0%} of the pixels between {parameters.depth_min:g} and {parameters.depth_max:g} m'
    if share < LITTLE_DEPTH:
        return doubtful('depth values', f'{text}: is the lens covered, the scene too near, the range (depth_min, '
                                        f'depth_max) right?')
    if len(known) > 1 and known.min() == known.max():  # as in a simulation, at most
        return doubtful('depth values', f'{text}, and all depth is exactly {known[0]:g} m: does the camera measure it?')
    return good('depth values', text)


def check_camera_info(info: CameraInfo, image: Topic, rectified: bool = False, depth_frame: str = '') -> Finding:
    """Judge a calibration as the node would; depth_frame: of the depth image, where the image names none."""
    size = _size(image.last) if image.last is not None else None
    try:
        if size:
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
    return f'{endpoint.node_namespace.rstrip("/")}/{endpoint.node_name}'
