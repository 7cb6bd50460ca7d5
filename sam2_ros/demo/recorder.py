"""Recorder of the demo: subscribes like a planner, compares with the ground truth, and draws the received frames.

It reports on standard output, one JSON object per line. SIGINT ends the recording and writes the pictures; SIGTERM ends
the process at once.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from sam2_ros.demo.pictures import contact_sheet, write_video
from sam2_ros.demo.recording import DemoRecording, to_labels
from sam2_ros.messages.conversions import to_nanoseconds, to_rgb
from sam2_ros.msg import InstanceArray, PromptStatus
from sam2_ros.runtime.dds import use_image_profile

REPORT_EVERY = 0.5  # seconds


class Recorder(Node):
    """Node that records a stream.

    Its parameters are ``output`` (folder for the results), ``rate`` (images per second of the camera) and ``truth``
    (whether the camera publishes ground truth).
    """

    def __init__(self) -> None:
        super().__init__('recorder')
        self.output = Path(self.declare_parameter('output', 'demo').value)
        self.rate = self.declare_parameter('rate', 15.0).value
        self.recording = DemoRecording()
        self.refused: list[str] = []
        self._instances = self.create_subscription(InstanceArray, '/sam2/instances', self._on_instances,
                                                   QoSProfile(depth=100))
        self._statuses = self.create_subscription(PromptStatus, '/sam2/prompt_status', self._on_status,
                                                  QoSProfile(depth=100))
        self._needed = [self._instances, self._statuses]
        if self.declare_parameter('truth', True).value:
            self._needed.append(self.create_subscription(Image, '/camera/truth', self._on_truth, QoSProfile(depth=10)))
        self._timer = self.create_timer(0.05, self._connect)
        self.create_timer(REPORT_EVERY, self._report)

    def _connect(self) -> None:
        """Subscribe to the image last: the camera counts a subscriber as ready."""
        if all(subscription.get_publisher_count() for subscription in self._needed):
            self.destroy_timer(self._timer)
            self.create_subscription(Image, 'image', self._on_image, qos_profile_sensor_data)

    def _on_image(self, message: Image) -> None:
        self.recording.add_image(to_nanoseconds(message.header.stamp), to_rgb(message))

    def _on_truth(self, message: Image) -> None:
        self.recording.add_truth(to_nanoseconds(message.header.stamp), to_labels(message))

    def _on_instances(self, message: InstanceArray) -> None:
        self.recording.add_instances(message, self.get_clock().now().nanoseconds)

    def _on_status(self, message: PromptStatus) -> None:
        if not message.accepted:
            self.refused.append(f'prompt for id {message.id} refused: {message.reason}')

    def _report(self) -> None:
        report(phase='recording', figures=self.recording.figures())


def report(**values: Any) -> None:
    """Print one line of JSON for the process that started the recorder."""
    print(json.dumps(values), flush=True)


def write(recorder: Recorder) -> None:
    """Write the pictures and the figures into the output folder."""
    recording = recorder.recording
    recorder.output.mkdir(parents=True, exist_ok=True)
    if recording.frames and recording.first_stamp is not None:
        sheet = contact_sheet(recording.frames, recording.first_stamp)
        cv2.imwrite(str(recorder.output / 'overlay.png'), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
        write_video(recorder.output / 'overlay.mp4', recording.frames, recording.first_stamp, recorder.rate,
                    lambda done, total: report(phase='writing', done=done, total=total))
    figures = recording.figures()
    (recorder.output / 'figures.json').write_text(json.dumps(figures, indent=2) + '\n')
    report(phase='done', figures=figures, tracked=recording.tracked, refused=recorder.refused,
           low_scores=recording.low_scores())


def main(args: list[str] | None = None) -> int:
    """Record until SIGINT, then write the results; return the exit code."""
    cv2.setNumThreads(1)
    use_image_profile()
    # Without rclpy's handlers SIGTERM ends the process, and SIGINT raises KeyboardInterrupt.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    recorder = Recorder()
    try:
        rclpy.spin(recorder)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        recorder.destroy_node()
        rclpy.try_shutdown()
    write(recorder)
    return 0


if __name__ == '__main__':
    sys.exit(main())
