"""Demo camera: streams the synthetic tabletop with its ground truth, or a video file, as a camera driver would."""
from __future__ import annotations

if __name__ == '__main__':  # before the imports below, which take seconds
    from sam2_ros.runtime.executables import main_of

    main_of('sam2_demo_camera')

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from rcl_interfaces.msg import ParameterDescriptor
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from sam2_core import __version__
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.runtime.dds import use_image_profile
from sam2_ros.runtime.executables import install
from sam2_ros.runtime.node_arguments import ARGUMENT_ERRORS, why, without_ros_arguments
from sam2_ros.runtime.stopping import STOPPING
from sam2_ros.tabletop.depth_noise import to_camera_info, to_millimetres, worsen
from sam2_ros.tabletop.scene import TabletopScene

FRAME_ID = 'camera_optical_frame'
JPEG_QUALITY = 90
LINGER = 1.0  # seconds from the last image to the end of the process, so that the image arrives
PARAMETERS = {
    'clip': ('', 'Video file to stream. Empty streams the synthetic tabletop.'),
    'loop': (False, 'Restart the clip when it ends instead of stopping.'),
    'rate': (0.0, 'Images per second. 0 uses the rate of the clip, or 15 for the tabletop.'),
    'width': (640, 'Image width in pixels; tabletop only.'),
    'height': (480, 'Image height in pixels; tabletop only.'),
    'seed': (0, 'Seed of the tabletop: colours, textures, motion and noise.'),
    'seconds': (0.0, 'Duration of the stream in seconds. 0 stops at the end of the clip; the tabletop never stops.'),
    'image_transport': ('raw', 'raw publishes sensor_msgs/Image on image, compressed publishes JPEG on '
                               'image/compressed.'),
    'depth': ('', 'Encoding of the depth images, 16UC1 or 32FC1; tabletop only. Empty publishes no depth.'),
    'depth_noise': (False, 'Add the noise, holes and edge errors of a structured-light camera to the depth images.'),
    'distance': (0.82, 'Distance from the camera to the middle of the table in metres, within 3 %; tabletop only.'),
    'subscribers': (0, 'Number of image subscribers to wait for before the first image is published.'),
    'hold': (False, 'Repeat the first image with new stamps until the service ~/start is called.'),
}


@dataclass(frozen=True)
class SourceImage:
    """One image of a source with what the source knows about it."""

    rgb: np.ndarray  # uint8 (H, W, 3)
    truth: np.ndarray | None = None  # uint16 (H, W), object id of each pixel, 0 for none; None: unknown
    depth: np.ndarray | None = None  # float32 (H, W), metres; None: not requested or unknown


class SettingError(ValueError):
    """Error in a parameter or in the file that it names; the text has the value and the cure."""


class TabletopSource:
    """Images of the synthetic tabletop, in order."""

    def __init__(self, seed: int, width: int, height: int, rate: float, distance: float = 0.82,
                 noise: bool = False) -> None:
        """Create the scene.

        Args:
            seed: Seed of the ``TabletopScene``.
            width: Width of the images, pixels.
            height: Height of the images, pixels.
            rate: Images per second; 0 means 15.
            distance: Distance from the camera to the middle of the table, metres.
            noise: True adds the errors of a real camera to depth.

        Raises:
            ValueError: A size or the distance is out of range.
        """
        self.rate = rate or 15.0
        self.scene = TabletopScene(seed, width, height, self.rate, distance)
        self._noise = noise
        self._next = 0

    def read(self, with_depth: bool = False) -> SourceImage:
        """Return the next image, with depth on request: rendering it takes time."""
        number = self._next
        self._next += 1
        if not with_depth:
            return SourceImage(*self.scene.render(number))
        rgb, truth, depth = self.scene.render_depth(number)
        if self._noise:
            depth = worsen(depth, np.random.default_rng((self.scene.seed, number)))
        return SourceImage(rgb, truth, depth)


class VideoSource:
    """Images of a video file, in order."""

    def __init__(self, path: str, rate: float = 0.0, loop: bool = False) -> None:
        """Open a video file.

        Args:
            path: Video file.
            rate: Images per second; 0 means the rate of the file.
            loop: True starts again at the end.

        Raises:
            SettingError: The file does not exist, or OpenCV cannot read it as a video.
        """
        if not Path(path).is_file():
            raise SettingError(f'clip {path!r}: there is no such file')
        self._path, self._loop = path, loop
        self._video = cv2.VideoCapture(path)
        self.rate = rate or self._video.get(cv2.CAP_PROP_FPS)
        self.width = int(self._video.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.height = int(self._video.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.frames = int(self._video.get(cv2.CAP_PROP_FRAME_COUNT))
        if not self._video.isOpened() or not self.rate > 0 or not self.width or not self.height:
            raise SettingError(f'clip {path!r}: OpenCV cannot read it as a video')

    def read(self, with_depth: bool = False) -> SourceImage | None:
        """Return the next image, None after the last one. A video has no depth."""
        found, bgr = self._video.read()
        if not found and self._loop:
            self._video = cv2.VideoCapture(self._path)
            found, bgr = self._video.read()
        return SourceImage(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)) if found else None


class DemoCamera(Node):
    """Camera node: publishes ``image`` and, with the same stamp, ``~/truth``, ``depth`` and ``camera_info``.

    ``~/truth`` is a mono16 image whose pixels are object ids.
    """

    def __init__(self, **options: Any) -> None:
        """Open the source that the parameters describe.

        Args:
            **options: Options of ``rclpy.node.Node``.

        Raises:
            SettingError: A parameter is out of range, or the clip cannot be read.
        """
        super().__init__('camera', **options)
        for name, (default, description) in PARAMETERS.items():
            self.declare_parameter(name, default, ParameterDescriptor(description=description))
        self._source = self._open_source()
        self._seconds = self._value('seconds')
        self._subscribers = self._value('subscribers')
        transport = self._value('image_transport')
        if transport not in ('raw', 'compressed'):
            raise SettingError(f'image_transport {transport!r}: must be raw or compressed')
        self._compressed = transport == 'compressed'
        kind, topic = (CompressedImage, 'image/compressed') if self._compressed else (Image, 'image')
        self._images = self.create_publisher(kind, topic, qos_profile_sensor_data)
        self._truth = self.create_publisher(Image, '~/truth', QoSProfile(depth=10))
        self._encoding = self._depth_encoding()
        if self._encoding:
            self._depths = self.create_publisher(Image, 'depth', qos_profile_sensor_data)
            self._infos = self.create_publisher(CameraInfo, 'camera_info', qos_profile_sensor_data)
        self._held = self._source.read(bool(self._encoding)) if self._value('hold') else None
        self.create_service(Trigger, '~/start', self._start)
        self.sent = 0  # images published
        self._streamed = 0  # images of the source; a held image counts once
        self._timer = self.create_timer(0.05, self._wait)

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _open_source(self) -> TabletopSource | VideoSource:
        rate = self._value('rate')
        if not 0 <= rate <= 1000:
            raise SettingError(f'rate {rate}: must lie between 0 and 1000 images per second')
        if self._value('clip'):
            return VideoSource(self._value('clip'), rate, self._value('loop'))
        try:
            return TabletopSource(self._value('seed'), self._value('width'), self._value('height'), rate,
                                  self._value('distance'), self._value('depth_noise'))
        except ValueError as error:
            raise SettingError(str(error)) from None

    def _depth_encoding(self) -> str:
        encoding = self._value('depth')
        if encoding not in ('', '16UC1', '32FC1'):
            raise SettingError(f'depth {encoding!r}: must be 16UC1, 32FC1 or empty')
        if encoding and self._value('clip'):
            raise SettingError(f'depth {encoding!r} with a clip: a video has no depth; set only one of the two')
        return encoding

    def _wait(self) -> None:
        if self._images.get_subscription_count() < self._subscribers:
            return
        self.destroy_timer(self._timer)
        self.get_logger().info(f'streaming {self._value("clip") or "the tabletop"} at {self._source.rate:.3g} images/s')
        self._timer = self.create_timer(1 / self._source.rate, self._publish)

    def _start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._held is not None
        response.message = '' if response.success else 'the camera is not holding an image'
        self._held = None
        return response

    def _publish(self) -> None:
        over = self._seconds and self._streamed >= self._seconds * self._source.rate
        wanted = bool(self._encoding) and self._depths.get_subscription_count() > 0
        image = self._held or (None if over else self._source.read(wanted))
        if image is None:
            self.get_logger().info(f'end of the stream after {self._streamed} images')
            self.destroy_timer(self._timer)
            self._timer = self.create_timer(LINGER, self._end)
            return
        # A real camera stamps the exposure: the time that rendering took must not count as latency.
        header = Header(stamp=self.get_clock().now().to_msg(), frame_id=FRAME_ID)
        if self._compressed:
            bgr = cv2.cvtColor(image.rgb, cv2.COLOR_RGB2BGR)
            data = cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
            self._images.publish(CompressedImage(header=header, format='rgb8; jpeg compressed bgr8', data=data))
        else:
            self._images.publish(from_pixels(image.rgb, 'rgb8', header))
        if isinstance(self._source, TabletopSource) and self._encoding:
            self._publish_depth(self._source.scene, image.depth, header)
        if image.truth is not None and self._truth.get_subscription_count():
            self._truth.publish(from_pixels(image.truth, 'mono16', header))
        self.sent += 1
        self._streamed += self._held is None

    def _publish_depth(self, scene: TabletopScene, metres: np.ndarray | None, header: Header) -> None:
        self._infos.publish(to_camera_info(scene.intrinsics, scene.width, scene.height, header))
        if metres is None:  # depth had no subscriber when the image was rendered
            return
        depth = to_millimetres(metres) if self._encoding == '16UC1' else metres
        self._depths.publish(from_pixels(depth, self._encoding, header))

    def _end(self) -> None:
        raise ExternalShutdownException


def main(args: list[str] | None = None) -> int:
    """Stream until the source ends or SIGINT arrives, then print the number of images as JSON; return the exit code."""
    install('sam2_demo_camera')
    parser = argparse.ArgumentParser(prog='sam2_demo_camera', description=__doc__,
                                     epilog=f'ROS parameters (--ros-args -p NAME:=VALUE): {", ".join(PARAMETERS)}')
    parser.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    parser.add_argument('--clip', metavar='FILE', help='video file to stream instead of the tabletop; same as '
                        '--ros-args -p clip:=FILE')
    options = parser.parse_args(without_ros_arguments(sys.argv[1:] if args is None else args))
    cv2.setNumThreads(1)  # leave the cores to the model
    use_image_profile()
    try:
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    except ARGUMENT_ERRORS as error:
        print(f'sam2_demo_camera: {why(error)}', file=sys.stderr)
        return 1
    STOPPING.act_on_signal(rclpy.try_shutdown)
    node = None
    try:
        try:
            node = DemoCamera(parameter_overrides=[Parameter('clip', value=options.clip)] if options.clip else None)
        except (SettingError, *ARGUMENT_ERRORS) as error:
            if not rclpy.ok():
                raise
            rclpy.logging.get_logger('camera').fatal(why(error))
            return 1
        rclpy.spin(node)
    except ExternalShutdownException:
        pass
    except Exception:  # rclpy raises various exceptions when it is shut down while it creates a node or publishes
        if rclpy.ok():
            raise
    finally:
        if node is not None:
            print(json.dumps({'images': node.sent}), flush=True)
            node.destroy_node()
        rclpy.try_shutdown()
    return 0
