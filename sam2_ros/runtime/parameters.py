"""The parameters of the node: name, type, default, range and description.

This is the only place that describes a parameter. ``ros2 param describe`` and ``sam2_node --help`` read it, and
``make parameters`` writes config/sam2.yaml and the table in the documentation from it. ``parameter_rules`` checks
values, and ``node_parameters`` declares and reads them on a node.
"""
from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MODEL, LIVE, START = 'on configure', 'immediately', 'at startup'  # when a new value takes effect


def _parameter(default: Any, description: str, *, when: str = LIVE, limits: tuple | None = None,
               choices: tuple[str, ...] = (), section: str = '', see: str = '') -> Any:
    """Return a field of ``Parameters``.

    Args:
        default: The default, which sets the type. A tuple stands for a list of names.
        description: What it is, its unit and the special values in words, in whole sentences.
        when: When a new value takes effect: MODEL, LIVE or START.
        limits: (lowest, highest) or (lowest, highest, step), inclusive.
        choices: The values that are allowed. Empty: all.
        section: Title of the section that begins with this parameter.
        see: Page of the documentation with more about it, relative to docs/.
    """
    return field(default=default, metadata={'description': description, 'when': when, 'limits': limits,
                                            'choices': choices, 'section': section, 'see': see})


@dataclass(frozen=True)
class Parameters:
    """Values of the node's parameters at one moment, in the order of the documentation."""

    autostart: bool = _parameter(
        True, 'Configure and activate the node as soon as it runs. false: wait for ros2 lifecycle set NODE configure, '
        'then activate.', when=START, section='Startup')
    bond_heartbeat_period: float = _parameter(
        0.0, "Seconds between heartbeats of the bond with Nav2's lifecycle manager while the node is active; Nav2 uses "
        '0.1. Needs bondpy. 0: no bond.', when=MODEL, limits=(0.0, 2.0),
        see='how-to/operate.md#nav2s-lifecycle-manager')

    model: str = _parameter(
        'nano', 'Model variant: nano (packaged), edgetam, or sam2_hiera_* or sam2.1_hiera_* with tiny, small, '
        'base_plus or large (downloaded once). Empty: detect the variant from the checkpoint.', when=MODEL,
        section='Model')
    checkpoint: str = _parameter(
        '', 'Path of a weights file, .pt as published or .safetensors. Empty: the weights that come with the model.',
        when=MODEL, see='reference/sam2_core.md#checkpoints')
    device: str = _parameter(
        '', 'Device that runs the model: cpu, cuda or cuda:N. Empty: cuda if there is a GPU, else cpu.', when=MODEL)
    dtype: str = _parameter('float32', 'Floating-point type in which the model computes.', when=MODEL,
                            choices=('float32', 'bfloat16', 'float16'))
    image_size: int = _parameter(
        0, 'Side of the square to which images are resized for the model, in pixels, a multiple of 32, for edgetam of '
        '256. 0: the size the model was trained with.', when=MODEL, limits=(0, 4096, 32))
    compile: bool = _parameter(
        False, 'Compile the model when it is loaded. Meant for a GPU: configuring takes minutes, each image less time. '
        'Needs a C compiler.', when=MODEL)
    memory_pooling: int = _parameter(
        1, 'Average memory tokens over n x n blocks before cross-attention, an approximation. 1: off. 2: faster, less '
        'accurate.', when=MODEL, limits=(1, 2), see='reference/benchmarks.md#approximations')
    int8_encoder: bool = _parameter(
        False, 'Run the image encoder in 8-bit integers, an approximation. Only on a CPU with dtype float32.',
        when=MODEL, see='reference/benchmarks.md#approximations')
    memory_policy: str = _parameter(
        'published', "Rule that selects the frames in an object's memory. published: the most recent frames. "
        'distractor_aware: also frames in which the model separated the object from a look-alike. iou_gated: the most '
        'recent frames with a confident mask.', when=MODEL, choices=('published', 'distractor_aware', 'iou_gated'),
        see='how-to/tune.md#look-alikes')

    image_transport: str = _parameter(
        'raw', 'Transport of the camera images. raw: sensor_msgs/Image on image. compressed: '
        'sensor_msgs/CompressedImage on image/compressed. Other plugins of image_transport need image_transport_py.',
        when=MODEL, section='Cameras', see='reference/node.md#other-encodings-and-transports')
    image_transports: tuple[str, ...] = _parameter(
        (), 'Transport of the images of each camera, in the order of cameras. Empty: image_transport for all.',
        when=MODEL)
    intensity_min: int = _parameter(
        0, 'Value of a 16-bit image that is shown as black to the model. intensity_min and intensity_max 0: chosen '
        'from the images, see intensity_max.', limits=(0, 65534), see='reference/node.md#16-bit-images')
    intensity_max: int = _parameter(
        0, 'Value of a 16-bit image that is shown as white to the model. intensity_min and intensity_max 0: for mono16 '
        'and 16UC1, a range that follows the images slowly; for colour and Bayer, the full range of 65535.',
        limits=(0, 65535))
    cameras: tuple[str, ...] = _parameter(
        (), 'Names of the cameras. Each camera has its own topics, NAME/image and ~/NAME/..., and its own objects; all '
        'of them share the model. Empty: one camera, on image and ~/...', when=START)
    on_time_jump: str = _parameter(
        'keep', 'What to do with the objects when image stamps jump back by more than a second, as when a bag '
        'restarts. keep: keep tracking them. reset: forget them all.', choices=('keep', 'reset'))

    max_objects: int = _parameter(
        32, 'Maximum number of objects tracked at a time in each camera; prompts for more are refused.',
        limits=(1, 65535), section='Prompts')
    prompt_timeout: float = _parameter(
        5.0, 'Seconds of wall-clock time a prompt waits for its image before it is refused.', limits=(0.1, 600.0))
    history_seconds: float = _parameter(
        2.0, 'Seconds of image history to keep; prompts drawn on older images are refused. 0: no history.',
        limits=(0.0, 60.0))
    history_bytes: int = _parameter(
        268435456, 'Maximum size of the image history of each camera, with its depth, in bytes; the oldest images are '
        'dropped first. 0: no history.', limits=(0, 2**40))
    catch_up_images: int = _parameter(
        4, 'Number of stored images a late prompt is tracked through to catch up, one per live image. 0: join the '
        'live stream without catching up.', limits=(0, 1000))

    lost_after: float = _parameter(
        2.0, 'Seconds, by image stamps, that an object stays OCCLUDED before it is LOST.',
        limits=(0.0, 1e6), section='Track states')
    forget_after: float = _parameter(
        0.0, 'Seconds, by image stamps, that an object may be OCCLUDED or LOST before it is forgotten. 0: never.',
        limits=(0.0, 1e6))
    reappear_visibility: float = _parameter(
        0.7, 'Visibility at or above which an occluded or lost object is TRACKED again at once.', limits=(0.5, 1.0))
    reappear_images: int = _parameter(
        3, 'Consecutive images in which an occluded or lost object must be visible before it is TRACKED again, where '
        'reappear_visibility is not reached.', limits=(1, 1000))

    keep_objects: str = _parameter(
        '', 'File that keeps the objects over cleanup, configure and a restart of the process: an absolute path, or '
        'one that begins with ~. It ends in .safetensors. Several cameras have one file each, with NAME before the '
        'suffix. Empty: objects end with cleanup.', when=MODEL, section='Restarts',
        see='how-to/operate.md#keep-objects-over-a-restart')
    keep_objects_period: float = _parameter(
        5.0, 'Seconds between two saves of the objects while there are any. Prompts, removals and deactivation are '
        'saved at once.', limits=(0.1, 3600.0))

    use_depth: bool = _parameter(
        True, 'Subscribe to depth and camera_info, and publish the positions of objects in metres.', when=MODEL,
        section='Depth: sensor_msgs/Image on depth, registered to the image, and CameraInfo on camera_info',
        see='how-to/depth.md')
    depth_transport: str = _parameter(
        'raw', 'Transport of the depth images. raw: sensor_msgs/Image on depth. compressedDepth or compressed: '
        'sensor_msgs/CompressedImage on depth/compressedDepth or depth/compressed. Other plugins of image_transport '
        'need image_transport_py.', when=MODEL)
    depth_transports: tuple[str, ...] = _parameter(
        (), 'Transport of the depth of each camera, in the order of cameras. Empty: depth_transport for all.',
        when=MODEL)
    rectified: bool = _parameter(
        False, 'true: the image and its depth are rectified (image_rect); P of camera_info is used instead of K and D.')
    depth_tolerance: float = _parameter(
        0.02, 'Maximum difference between the stamps of an image and its depth, in seconds.', limits=(0.0, 10.0))
    depth_wait: float = _parameter(
        0.05, 'Maximum time a finished result waits for the depth of its image, in seconds. Applies only while depth '
        'images arrive.', limits=(0.0, 10.0))
    depth_min: float = _parameter(
        0.1, 'Minimum valid depth in metres; nearer readings are ignored.', limits=(0.0, 1000.0))
    depth_max: float = _parameter(
        10.0, 'Maximum valid depth in metres; farther readings are ignored.', limits=(0.0, 1000.0))
    edge_erosion: int = _parameter(
        2, 'Pixels to ignore along the edge of a mask, where depth readings mix object and background. 0: none.',
        limits=(0, 100))
    cloud_stride: int = _parameter(
        2, 'Publish every n-th row and column of the depth image in ~/points and ~/background_points. 1: all.',
        limits=(1, 100))

    target_frame: str = _parameter(
        '', 'Frame of positions: target_pose in ~/instances, clouds, markers, ~/detections_3d, TF frames of objects. '
        'tf2 transforms them at the stamp of the image; needs tf2_ros. Empty: the frame of the camera.', when=MODEL,
        section='Frames: positions in another frame than that of the camera, and TF',
        see='how-to/depth.md#positions-in-the-map-frame')
    transform_wait: float = _parameter(
        0.05, 'Maximum time a finished result waits for the transform into target_frame at its stamp, in seconds. '
        'Applies only while transforms arrive.', limits=(0.0, 10.0))
    publish_tf: bool = _parameter(
        False, 'Publish a TF frame for each object while it is TRACKED with depth. Its parent is target_frame, or the '
        'frame of the camera. Needs tf2_ros.', when=MODEL, see='how-to/depth.md#look-an-object-up-in-tf')
    tf_names: str = _parameter(
        'id', 'Names of the TF frames of objects. id: NODE/ID, such as sam2/3. label: NODE/LABEL_ID, such as '
        'sam2/mug_3. With several cameras, NODE/CAMERA takes the place of NODE.', choices=('id', 'label'))

    detections_topic: str = _parameter(
        '', 'Topic of vision_msgs/Detection2DArray whose boxes become prompts; with several cameras, relative to each '
        'camera. Empty: none.', when=MODEL, section='Detector',
        see='how-to/detectors.md')
    detections_classes: tuple[str, ...] = _parameter((), 'Classes of detections to track. Empty: all.')
    detections_min_score: float = _parameter(
        0.5, 'Minimum score of a detection; detections with lower scores are ignored.', limits=(0.0, 1.0))
    detections_iou: float = _parameter(
        0.5, 'IoU of the boxes at or above which a detection and a known object, or two detections, count as the same '
        'object.', limits=(0.0, 1.0))
    detections_width: int = _parameter(
        0, "Width of the detector's input in pixels, if its boxes are in pixels of that. 0: they are in pixels of the "
        'image.', limits=(0, 65535))
    detections_height: int = _parameter(
        0, "Height of the detector's input in pixels, if its boxes are in pixels of that. 0: they are in pixels of the "
        'image.', limits=(0, 65535))
    detections_fit: str = _parameter(
        'stretch', 'How the image is fitted into detections_width x detections_height. stretch: each side by its own '
        'scale. letterbox: one scale, with equal bars on two sides. corner: one scale, with bars on the right or at '
        'the bottom. crop: one scale, and two sides are cut off equally.',
        choices=('stretch', 'letterbox', 'corner', 'crop'))

    latency_target: float = _parameter(
        0.0, 'Target latency from image stamp to published result, in seconds. 0: none.', limits=(0.0, 60.0),
        section='Latency', see='how-to/tune.md#load-shedding')
    shed_load: bool = _parameter(
        True, 'Reduce the load while latency_target is exceeded: stop overlay and clouds, then attend to half of the '
        'recent frames, then skip every second image. false: only warn on /diagnostics.')

    class_names: tuple[str, ...] = _parameter(
        (), 'Labels in the order of their values in ~/class_image, from 1. Other labels get the next free values.',
        section='Outputs')
    overlay_opacity: float = _parameter(
        0.45, 'Opacity of the object colours in ~/overlay. 0: outlines only.', limits=(0.0, 1.0))
    segment_all_seconds: float = _parameter(
        5.0, 'Maximum duration of a ~/segment_all call that sets no time_limit, in seconds.', limits=(0.01, 600.0))
