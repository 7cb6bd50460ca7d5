"""Subscriptions of sam2_check to the topics of cameras, as the node makes them, and to the node itself."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import GetState
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.task import Future
from rclpy.topic_endpoint_info import TopicEndpointInfo
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.messages.intensity import given_range
from sam2_ros.messages.qos import LATCHED
from sam2_ros.messages.tf2 import Tf2Missing
from sam2_ros.preflight.camera import Topic, check_depth, check_image, full_name
from sam2_ros.preflight.findings import Finding, Verdict, bad, doubtful, good
from sam2_ros.preflight.frames import FrameWatch
from sam2_ros.runtime.image_transports import (
    OWN_TYPES,
    ImageSubscription,
    TransportMissing,
    check_transport,
    depth_transport_of,
    image_transport_of,
    transport_topic,
)
from sam2_ros.runtime.namesakes import advice, count_nodes
from sam2_ros.runtime.parameters import Parameters

DISCOVERY = 5.0  # seconds; maximum wait for the first messages, which take 0.2 to 3 s
ABSENT = 1.0  # seconds; wait for a node that nothing has been seen of yet
ANSWER = 5.0  # seconds; maximum wait for the node to report its state
ELSEWHERE = 8  # maximum number of other topics to name if one is missing
TYPES = {Image: 'sensor_msgs/msg/Image', CompressedImage: 'sensor_msgs/msg/CompressedImage',
         CameraInfo: 'sensor_msgs/msg/CameraInfo'}


@dataclass(frozen=True)
class CheckedCamera:
    """Topics of one camera to check, as the user named them."""

    name: str  # empty: the only camera
    image: str
    depth: str
    camera_info: str
    depth_wanted: bool = False  # True: the user named the depth topic


class Listener:
    """Subscriber to the topics of cameras that collects what the checks need."""

    def __init__(self, node: Node, sam2: Node, parameters: Parameters, cameras: list[CheckedCamera]) -> None:
        """Subscribe to the topics of all cameras, to /diagnostics and to the state of the node sam2.

        Args:
            node: The node that subscribes.
            sam2: A node with the name and the remappings of the node that will use the cameras.
            parameters: Parameters of that node.
            cameras: The cameras to check.
        """
        self._node, self._sam2, self._parameters = node, sam2.get_fully_qualified_name(), parameters
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        self._listened = False  # later messages do not count
        self._images: list[ImageSubscription] = []
        self._cameras = []
        for camera in cameras:
            topics = [self._subscribe_images(sam2, camera.image, 'image_transport',
                                             image_transport_of(parameters, camera.name))]
            if parameters.use_depth:
                topics += [self._subscribe_images(sam2, camera.depth, 'depth_transport',
                                                  depth_transport_of(parameters, camera.name)),
                           self._subscribe_info(sam2.resolve_topic_name(camera.camera_info))]
            self._cameras.append((camera, topics))
        self._frames = self._watch_frames()
        self._statuses: dict[str, DiagnosticStatus] = {}
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, QoSProfile(depth=10))
        self._get_state = node.create_client(GetState, f'{self._sam2}/get_state')

    def _watch_frames(self) -> FrameWatch | None:
        target = self._parameters.target_frame if self._parameters.use_depth else ''
        try:
            return FrameWatch(self._node, target) if target else None
        except Tf2Missing:  # the check of the packages reports it
            return None

    def _subscribe_images(self, sam2: Node, name: str, parameter: str, transport: str) -> Topic:
        """Subscribe as the node ``sam2`` does to the topic that it calls ``name``."""
        topic = Topic(sam2.resolve_topic_name(transport_topic(sam2, name, transport)),
                      TYPES[OWN_TYPES[transport]] if transport in OWN_TYPES else '')
        try:
            check_transport(parameter, transport)
        except TransportMissing as error:
            topic.unreadable = str(error)
        else:
            self._images.append(ImageSubscription(self._node, sam2.resolve_topic_name(name), transport,
                                                  self._keeper(topic), topic.name))
        return topic

    def _subscribe_info(self, name: str) -> Topic:
        topic = Topic(name, TYPES[CameraInfo])
        keep = self._keeper(topic)
        self._node.create_subscription(CameraInfo, name, keep, qos_profile_sensor_data,
                                       qos_overriding_options=QoSOverridingOptions.with_default_policies())
        # some drivers publish it once, latched
        self._node.create_subscription(CameraInfo, name, keep, LATCHED,
                                       event_callbacks=SubscriptionEventCallbacks(use_default_callbacks=False))
        return topic

    def _keeper(self, topic: Topic) -> Callable[[Image | CompressedImage | CameraInfo], None]:
        """Return a callback that stores what the checks of a topic need."""
        def keep(message: Image | CompressedImage | CameraInfo) -> None:
            if self._listened:
                return
            stamp = to_nanoseconds(message.header.stamp)
            topic.stamps.append(stamp)
            topic.ages.append((self._node.get_clock().now().nanoseconds - stamp) / 1e9)
            topic.last = message
            if self._frames is not None and topic.type != TYPES[CameraInfo]:
                self._frames.note(topic.name, message.header)
        return keep

    def _on_diagnostics(self, array: DiagnosticArray) -> None:
        for status in array.status:
            if status.name.startswith(f'{self._sam2.lstrip("/")}: '):
                self._statuses[status.name] = status

    def listen(self, seconds: float) -> None:
        """Collect messages for a number of seconds, once the cameras have been discovered."""
        topics = [topic for _, found in self._cameras for topic in found]
        self._spin(DISCOVERY, lambda: all(topic.last is not None for topic in topics))
        for topic in topics:
            topic.stamps.clear()
            topic.ages.clear()
            topic.seconds = seconds
        self._spin(seconds, lambda: False)
        self._listened = True
        known = self._node.get_topic_names_and_types()
        for topic in topics:
            if not topic.stamps and topic.type != TYPES[CameraInfo]:
                topic.last = None  # the camera has stopped since it was discovered
            topic.publishers = self._node.get_publishers_info_by_topic(topic.name)
            topic.elsewhere = [name for name, types in known if topic.type in types
                               and self._node.count_publishers(name)
                               and not name.startswith(f'{self._sam2}/')][:ELSEWHERE]

    def _of(self, node: str, endpoints: list[TopicEndpointInfo]) -> list[TopicEndpointInfo]:
        return [endpoint for endpoint in endpoints if full_name(endpoint) == node]

    def _spin(self, seconds: float, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0 and not done():
            self._executor.spin_once(timeout_sec=min(left, 0.1))
            if self._frames is not None:
                self._frames.poll()

    def findings(self) -> Iterator[Finding]:
        """Yield the findings about each camera, the clock and the node. Call ``listen`` first."""
        node = list(self._check_node([topics[0] for _, topics in self._cameras]))
        for camera, (image, *others) in self._cameras:
            for topic in (image, *others):  # only now: discovery of a busy node may take until it has answered
                endpoints = self._node.get_subscriptions_info_by_topic(topic.name)
                topic.subscriptions = (self._of(self._sam2, endpoints)
                                       or self._of(self._node.get_fully_qualified_name(), endpoints))
            chosen = self._parameters
            found = [*check_image(image, given_range(chosen.intensity_min, chosen.intensity_max))]
            if others:
                depth, info = others
                found += check_depth(depth, info, image, self._parameters, camera.depth_wanted)
            placed = None if self._frames is None else self._frames.check(image, self._parameters.transform_wait)
            if placed is not None:
                found.append(placed)
            for finding in found:
                yield replace(finding, what=f'{camera.name} {finding.what}') if camera.name else finding
        yield from self._check_clock()
        yield from node

    def _check_clock(self) -> Iterator[Finding]:
        simulated = self._node.get_parameter('use_sim_time').value
        published = self._node.count_publishers('/clock')
        if published and not simulated:
            yield doubtful('clock', '/clock is published, by a bag or a simulator: set use_sim_time if the images come '
                                    'from there (--ros-args -p use_sim_time:=true)')
        elif simulated and not published:
            yield bad('clock', 'use_sim_time is set and nobody publishes /clock: play the bag with --clock, or set '
                               'use_sim_time to false')

    def _check_node(self, images: list[Topic]) -> Iterator[Finding]:
        count = count_nodes(self._node, self._sam2)
        if count > 1:
            yield bad('node', f'{advice(self._sam2, count)}; check again then')
            return
        # the services of a busy node are discovered later than its images
        self._spin(ANSWER if count else ABSENT, self._get_state.service_is_ready)
        if not self._get_state.service_is_ready():
            yield doubtful('node', f'{self._sam2} is not running: ros2 launch sam2_ros sam2.launch.py')
            return
        state = self._ask_state()
        if not state:
            yield bad('node', f'{self._sam2} does not report its state within {ANSWER:g} s: see its log, restart it')
            return
        steps = {'unconfigured': 'configure', 'inactive': 'activate'}
        if state != 'active':
            yield doubtful('node', f'{self._sam2} is {state}' + (
                f': ros2 lifecycle set {self._sam2} {steps[state]}' if state in steps else ''))
        else:
            self._spin(ANSWER, lambda: not self._missing(images))
            if missing := self._missing(images):
                yield bad('node', f'{self._sam2} is active, but is not subscribed to {", ".join(missing)}: remap its '
                                  f'topic image (image_topic:=... of the launch file)')
            else:
                yield good('node', f'{self._sam2} is active')
        verdicts = {DiagnosticStatus.WARN: Verdict.DOUBTFUL, DiagnosticStatus.ERROR: Verdict.BAD}
        for name, status in sorted(self._statuses.items()):
            if status.level in verdicts:
                yield Finding('node says', verdicts[status.level], f'{name.partition(": ")[2]}: {status.message}')

    def _ask_state(self) -> str:
        """Return the lifecycle state of the node, or '' if it does not answer.

        It is asked each second: an answer is lost if the node has not discovered sam2_check yet.
        """
        futures: list[Future] = []
        for _ in range(round(ANSWER)):
            futures.append(self._get_state.call_async(GetState.Request()))
            self._spin(1.0, lambda: any(future.done() for future in futures))
            for future in futures:
                if future.done():
                    return str(future.result().current_state.label)
        return ''

    def _missing(self, images: list[Topic]) -> list[str]:
        """Return the topics to which the node ``sam2`` is not subscribed, as far as they have been discovered."""
        return [image.name for image in images
                if not self._of(self._sam2, self._node.get_subscriptions_info_by_topic(image.name))]

    def close(self) -> None:
        """Stop receiving messages."""
        for subscription in self._images:
            subscription.destroy()
        self._executor.shutdown()
