"""Results of a run as a bag for RViz and Foxglove."""
from __future__ import annotations

from pathlib import Path

import numpy as np
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import Header

from sam2_core.datasets.image_files import jpeg
from sam2_ros.drawing.label_images import label_image
from sam2_ros.drawing.overlay import draw_overlay
from sam2_ros.evaluation.report.processed_frames import Progress, processed
from sam2_ros.evaluation.results import Mode, Run
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.msg import PromptStatus
from sam2_ros.perception.instance_messages import instance_array
from sam2_ros.recordings.bag_writer import BagWriter
from sam2_ros.recordings.recording import Recording

INSTANCES, LABELS, OVERLAY = '/sam2/instances', '/sam2/label_image', '/sam2/overlay/compressed'
STATUS, IMAGE = '/sam2/prompt_status', '/image'
JPEG_QUALITY = 90


def write_results(run: Run, recording: Recording, path: Path, images: bool = False, opacity: float = 0.45,
                  progress: Progress | None = None) -> None:
    """Write an mcap bag with the messages that the node would have published.

    These are the instances, the label images, the overlay as JPEG and the answers to prompts. Each has the header of
    its image and is recorded at the time it was available.

    Args:
        run: Run to write.
        recording: Recording of the run.
        path: Folder of the new bag.
        images: True copies the images too, to /image or /image/compressed.
        opacity: Opacity of the overlay's colours, 0 to 1.
        progress: Function that is called with the number of images written and the total.

    Raises:
        FileExistsError: ``path`` exists.
    """
    with BagWriter(path) as bag:
        for output, message, frame in processed(run, recording, progress):
            if images:
                topic = f'{IMAGE}/compressed' if isinstance(message, CompressedImage) else IMAGE
                bag.write(topic, message, recording.arrivals[output.index])
            latency = 0 if run.mode == Mode.LOCK_STEP else output.available - output.stamp
            bag.write(INSTANCES, instance_array(frame, latency), output.available)
            bag.write(LABELS, from_pixels(label_image(frame), 'mono16', frame.header), output.available)
            picture = draw_overlay(frame.image, frame.objects, opacity)
            bag.write(OVERLAY, jpeg_message(picture, frame.header, JPEG_QUALITY), output.available)
        for answer in run.answers:
            header = Header()
            header.stamp.sec, header.stamp.nanosec = divmod(answer.applied or answer.stamp, 1_000_000_000)
            bag.write(STATUS, PromptStatus(header=header, id=answer.id, accepted=answer.accepted,
                                           reason=answer.reason), answer.answered)


def jpeg_message(rgb: np.ndarray, header: Header, quality: int) -> CompressedImage:
    """Return an image, uint8 RGB (H, W, 3), as a compressed image message; ``quality``: of JPEG, 0 to 100."""
    return CompressedImage(header=header, format='rgb8; jpeg compressed bgr8', data=jpeg(rgb, quality))
