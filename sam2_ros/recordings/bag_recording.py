"""A bag as a recording: images of one camera with depth, prompts and ground truth."""
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from sam2_ros.messages.conversions import ImageError, pixel_bytes
from sam2_ros.msg import Prompt
from sam2_ros.recordings.bag_depth import choose_depth
from sam2_ros.recordings.bag_files import COMPRESSED, IMAGE, described, first_head, is_camera, is_infrared
from sam2_ros.recordings.bag_index import Track, list_messages
from sam2_ros.recordings.bag_reader import BagReader
from sam2_ros.recordings.bag_storage import BagError
from sam2_ros.recordings.bag_topics import TopicChooser, as_named
from sam2_ros.recordings.recording import RecordedPrompt, RecordingError

INFO, PROMPT = 'sensor_msgs/msg/CameraInfo', 'sam2_ros/msg/Prompt'
TRUTH_ENCODINGS = {'mono8': 1, '8UC1': 1, 'mono16': 2, '16UC1': 2}  # bytes per pixel
DEPTH_WITHIN = 50_000_000  # largest difference in ns of an image's and its depth's stamps; the node allows less
_DECOMPRESS = 'decompress it with image_transport republish'


class BagRecording:
    """Images of one camera in a bag, a ``Recording`` (``sam2_ros.recordings.recording``).

    Images are Image or CompressedImage and may change in size. Those that are cut off or repeat a stamp are skipped and
    listed in ``problems``.

    Topics that are not given are found: the only topic of camera images; ground truth on a topic that ends in truth;
    the only topic of depth that is registered to the images, with a camera_info; the only topic of prompts.
    """

    def __init__(self, path: Path | str, image_topic: str = '', ground_truth_topic: str = '', depth_topic: str = '',
                 camera_info_topic: str = '', prompt_topic: str = '',
                 progress: Callable[[int, int], None] | None = None) -> None:
        """Read the bag once. Raises RecordingError if it cannot be used.

        progress: is called with the numbers of messages that are read and that there are.
        """
        self.path = Path(path)
        self.name = self.path.resolve().name
        self.problems: list[str] = []
        self._images: Track
        self._truths: Track | None = None
        self._depths: Track | None = None
        self._infos: Track | None = None
        try:
            self._reader = BagReader(self.path)
        except BagError as error:
            raise RecordingError(f'bag {self.path}: {error}') from None
        try:
            self._choose(image_topic, ground_truth_topic, depth_topic, camera_info_topic, prompt_topic)
            self._list(progress)
        except RecordingError as error:
            problems = ''.join(f'; {problem}' for problem in self._reader.problems)
            self.close()
            raise RecordingError(f'bag {self.path}: {error}{problems}') from None
        except Exception as error:  # a parser may fail anywhere in a damaged bag
            self.close()
            raise RecordingError(f'bag {self.path}: {type(error).__name__}: {error}; repair it with `mcap recover` or '
                                 f'`sqlite3 FILE .recover`') from error
        self.problems[:0] = self._reader.problems

    # --- topics

    def _choose(self, image_topic: str, truth_topic: str, depth_topic: str, info_topic: str, prompt_topic: str) -> None:
        """Choose the topics of images, ground truth, prompts and depth. Raises RecordingError."""
        chooser = TopicChooser(self._reader, self.problems)
        image_topics, infos = self._reader.by_topic((IMAGE, COMPRESSED)), self._reader.by_topic((INFO,))
        prompts = self._reader.by_topic((PROMPT,))
        truths = {topic: found for topic, found in image_topics.items() if topic.endswith('truth')}
        truth = chooser.wanted(image_topics, truth_topic, '--ground-truth-topic') or chooser.only(
            truths, 'ground truth', '--ground-truth-topic')
        image = chooser.wanted(image_topics, image_topic, '--image-topic')
        if not image:
            cameras = {topic: found for topic, found in image_topics.items()
                       if topic not in (truth, as_named(depth_topic)) and is_camera(self._reader, found)}
            if not cameras:
                cameras = {topic: found for topic, found in image_topics.items()
                           if topic not in (truth, as_named(depth_topic)) and is_infrared(self._reader, found)}
            for topic in [topic for topic in cameras if f'{topic}/compressed' in cameras]:
                del cameras[f'{topic}/compressed']  # the same camera
            if len(cameras) != 1:
                what = 'several topics of camera images' if cameras else 'no topic of camera images'
                raise RecordingError(f'{what}; {described(cameras or image_topics)}{chooser.foreign()}: choose one '
                                     f'with --image-topic')
            image, = cameras
        self._images = Track(image, image_topics[image])
        self._truths = Track(truth, image_topics[truth]) if truth else None
        if not truths and not truth:
            self.problems += [f'ground truth on {topic} is not used: it is {found[0].msgtype}; {_DECOMPRESS}'
                              for topic, found in image_topics.items() if topic.endswith('truth/compressed')]
        self._prompts = chooser.wanted(prompts, prompt_topic, '--prompt-topic') or chooser.only(
            prompts, 'prompts', '--prompt-topic')
        self._prompt_connections = prompts.get(self._prompts, [])
        depth = choose_depth(chooser, image_topics, infos, image, (truth,), depth_topic, info_topic)
        if depth is not None:
            self._depths = Track(depth.depth, image_topics[depth.depth])
            self._infos = Track(depth.info, infos[depth.info])
        if self._truths:
            head = first_head(self._reader, self._truths.connections)
            encoding = head.encoding if head is not None else ''
            if self._truths.kind != IMAGE or encoding not in TRUTH_ENCODINGS:
                raise RecordingError(f'ground truth on {truth} is {self._truths.kind} {encoding!r}: '
                                     f'must be {IMAGE} with mono8 or mono16, each pixel the id of its object'
                                     + (f'; {_DECOMPRESS}' if self._truths.kind == COMPRESSED else ''))

    # --- messages

    def _list(self, progress: Callable[[int, int], None] | None) -> None:
        """List the messages of the chosen topics and read the prompts. Raises RecordingError."""
        tracks = [track for track in (self._images, self._truths, self._depths, self._infos) if track]
        if self._prompts:
            tracks.append(Track(self._prompts, self._prompt_connections, in_order=False))  # an image may have several
        self.prompts: list[RecordedPrompt] = []
        by_name = {track.topic: track for track in tracks}

        def take(topic: str, time: int, raw: bytes) -> None:
            if topic != self._prompts:
                return
            try:
                self.prompts.append(RecordedPrompt(time, deserialize_message(raw, Prompt)))
            except Exception as error:  # the type of the error depends on the middleware
                by_name[topic].problems.append(f'{topic}: prompt recorded at {time / 1e9:.3f} skipped: {error}')
        list_messages(self._reader, tracks, take, progress)
        self.problems += [problem for track in tracks for problem in track.problems]
        self.stamps, self.arrivals = self._images.stamps, self._images.times
        self.labels = {prompt.message.id: prompt.message.label for prompt in self.prompts
                       if prompt.message.id and prompt.message.label}
        if not self.stamps:
            raise RecordingError(f'not one image on {self._images.topic} can be used: '
                                 f'{"; ".join(self._images.problems)}')
        if self.stamps == [0]:
            raise RecordingError(f'the images on {self._images.topic} have no stamps: the driver must '
                                 f'set header.stamp')
        if self._truths:
            self._pair(self._truths)

    def _pair(self, truths: Track) -> None:
        """Check the stamps and sizes of label images against those of the images. Raises RecordingError."""
        paired = len(set(truths.stamps) & set(self.stamps))
        if not paired:
            raise RecordingError(f'no stamp of {truths.topic} is that of an image on {self._images.topic}: ground '
                                 f'truth must carry the header of its image')
        others = self._of_other_size(truths)
        if len(others) == paired:
            truth, image = others[0]
            raise RecordingError(f'ground truth of {_pixels(truth)} pixels on {truths.topic}: must be '
                                 f'{_pixels(image)}, as the images')
        if paired < len(truths.stamps):
            self.problems.append(f'{truths.topic}: {len(truths.stamps) - paired} of {len(truths.stamps)} label images '
                                 f'have the stamp of no image')

    def _of_other_size(self, truths: Track) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Return the sizes of label images and of their images where they differ, as far as sizes are known."""
        found = []
        for stamp, size in zip(truths.stamps, truths.sizes, strict=True):
            place = self._images.place(stamp)
            if place is not None and self._images.sizes[place] not in ((0, 0), size):
                found.append((size, self._images.sizes[place]))
        return found

    # --- reading

    def image(self, index: int) -> Image | CompressedImage:
        """Return the message of an image, with its header. Raises RecordingError if it cannot be read."""
        return self._read(self._images, index, _type_of(self._images))

    def depth(self, index: int) -> tuple[Image | CompressedImage, CameraInfo] | None:
        """Return the depth image nearest to an image, within ``DEPTH_WITHIN``, and the calibration nearest to that.

        Returns None if there is none. Raises RecordingError if a message cannot be read.
        """
        if not self._depths or not self._infos or not self._depths.stamps or not self._infos.stamps:
            return None
        place = self._depths.nearest(self.stamps[index])
        stamp = self._depths.stamps[place]
        if abs(stamp - self.stamps[index]) > DEPTH_WITHIN:
            return None
        return (self._read(self._depths, place, _type_of(self._depths)),
                self._read(self._infos, self._infos.nearest(stamp), CameraInfo))

    def truth(self, index: int) -> np.ndarray | None:
        """Return the object id of every pixel as uint16 (H, W), 0 for none, or None without an annotation.

        Raises RecordingError for a label image that cannot be used.
        """
        place = self._truths.place(self.stamps[index]) if self._truths else None
        if self._truths is None or place is None:
            return None
        message = self._read(self._truths, place, Image)
        where = f'bag {self.path}: {self._truths.topic} at stamp {self.stamps[index] / 1e9:.3f}'
        if self._images.sizes[index] not in ((0, 0), (message.height, message.width)):
            raise RecordingError(f'{where}: label image of {message.width} x {message.height} pixels: must be '
                                 f'{_pixels(self._images.sizes[index])}, as its image')
        try:
            return _labels(message)
        except ImageError as error:
            raise RecordingError(f'{where}: {error}') from None

    def _read(self, track: Track, place: int, kind: type[Any]) -> Any:
        """Return a message. Raises RecordingError if it cannot be read."""
        try:
            return deserialize_message(track.message(place, self._reader), kind)
        except Exception as error:  # the type of the error depends on the middleware
            raise RecordingError(f'bag {self.path}: {track.topic} at stamp {track.stamps[place] / 1e9:.3f}: '
                                 f'{error}') from None

    def close(self) -> None:
        """Close the files. A closed recording cannot be read any more."""
        self._reader.close()

    def __enter__(self) -> BagRecording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _type_of(track: Track) -> type[Image] | type[CompressedImage]:
    return CompressedImage if track.kind == COMPRESSED else Image


def _pixels(size: tuple[int, int]) -> str:
    height, width = size
    return f'{width} x {height}'


def _labels(message: Image) -> np.ndarray:
    """Return the pixels of a label image as uint16 (H, W). Raises ImageError."""
    if message.encoding not in TRUTH_ENCODINGS:
        raise ImageError(f'encoding {message.encoding!r}: must be mono8 or mono16')
    size = TRUTH_ENCODINGS[message.encoding]
    pixels = pixel_bytes(message, size)
    return pixels.view('>u2' if message.is_bigendian else '<u2')[..., 0].astype(np.uint16) if size == 2 \
        else pixels[..., 0].astype(np.uint16)
