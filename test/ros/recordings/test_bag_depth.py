"""Depth topics of bags as drivers name them: found by type, encoding, size and frame, never by name."""
import cv2
import numpy as np
import pytest

pytest.importorskip('rosbags', reason='needs rosbags (pip install rosbags rosbags-image)')

from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from sam2_ros.depth.depth_messages import depth_head
from sam2_ros.depth.matching import to_metres
from sam2_ros.messages.conversions import ImageError, from_pixels, to_rgb
from sam2_ros.recordings.bag_recording import BagRecording
from sam2_ros.recordings.recording import RecordingError
from testing.depth_codec import compressed_depth
from testing.recorded_camera import HEIGHT, WIDTH, header, jpeg, stamp, write

COLOUR = 'colour_optical_frame'
DRIVERS = {  # topics of colour, registered depth and its calibration; depth and infrared that are not registered
    'realsense': ('/camera/camera/color/image_raw', '/camera/camera/aligned_depth_to_color/image_raw',
                  '/camera/camera/aligned_depth_to_color/camera_info', '/camera/camera/depth/image_rect_raw'),
    'azure kinect': ('/rgb/image_raw', '/depth_to_rgb/image_raw', '/depth_to_rgb/camera_info', '/depth/image_raw'),
    'zed': ('/zed/zed_node/rgb/image_rect_color', '/zed/zed_node/registered/image', '/zed/zed_node/rgb/camera_info',
            '/zed/zed_node/disparity'),
    'orbbec': ('/camera/color/image_raw', '/camera/range/image_raw', '/camera/range/camera_info', '/camera/ir/raw'),
    'oak': ('/oak/rgb/image_raw', '/oak/stereo/image_raw', '/oak/stereo/camera_info', '/oak/right/range'),
    'simulated': ('/rgbd/image', '/rgbd/z', '/rgbd/camera_info', '/thermal/image'),
}


def image(value, encoding='16UC1', frame_id=COLOUR, size=(HEIGHT, WIDTH), number=0):
    """Return an image of one value."""
    kind = {'16UC1': np.uint16, 'mono16': np.uint16, '32FC1': np.float32, 'rgb8': np.uint8}[encoding]
    shape = (*size, 3) if encoding == 'rgb8' else size
    found = from_pixels(np.full(shape, value, kind), encoding, header(number))
    found.header.frame_id = frame_id
    return found


def info(focal, frame_id=COLOUR, size=(HEIGHT, WIDTH), number=0):
    """Return a calibration that is recognised by its focal length."""
    message = CameraInfo(header=header(number), height=size[0], width=size[1])
    message.header.frame_id = frame_id
    message.k[0] = focal
    return message


def bag(tmp_path, colour, *others):
    """Write a bag of a colour topic and of (topic, message)."""
    records = [(colour, image(9, 'rgb8'), stamp(0)), *((topic, message, stamp(0)) for topic, message in others)]
    return write(tmp_path / 'run', records)


def value(depth):
    return np.frombuffer(depth.data, np.float32 if depth.encoding == '32FC1' else np.uint16)[0]


@pytest.mark.parametrize('encoding', ['16UC1', '32FC1'])
@pytest.mark.parametrize('driver', DRIVERS)
def test_the_registered_depth_of_a_driver_is_found(tmp_path, driver, encoding):
    colour, depth, calibration, other = DRIVERS[driver]
    path = bag(tmp_path, colour, (depth, image(800, encoding)), (calibration, info(500.0)),
               (other, image(5, encoding, 'depth_optical_frame')),  # of the same size, seen from elsewhere
               (f'{other}_small', image(6, encoding, size=(HEIGHT // 2, WIDTH // 2))),
               ('/other/camera_info', info(77.0, 'depth_optical_frame')))
    with BagRecording(path) as recording:
        assert recording.problems == []
        found, camera_info = recording.depth(0)
    assert (found.encoding, value(found), camera_info.k[0]) == (encoding, 800, 500.0)


@pytest.mark.parametrize(('frame_id', 'size'), [('thermal', (HEIGHT, WIDTH)), (COLOUR, (24, 32)), ('', (24, 32))])
def test_a_thermal_camera_is_not_taken_for_depth(tmp_path, frame_id, size):
    thermal = image(29315, frame_id=frame_id, size=size)
    path = bag(tmp_path, '/camera/image', ('/depth', thermal), ('/camera_info', info(500.0, frame_id, size)))
    with BagRecording(path) as recording:
        assert recording.depth(0) is None
        problem, = recording.problems
    assert f"/depth (16UC1, {size[1]} x {size[0]} in frame '{frame_id}')" in problem
    assert f"registered to the images ({WIDTH} x {HEIGHT} in frame '{COLOUR}')" in problem
    with pytest.raises(RecordingError, match='depth on /depth is 16UC1, .* registered to the images .*--depth-topic'):
        BagRecording(path, depth_topic='/depth')


def test_what_the_node_publishes_is_not_taken_for_depth(tmp_path):
    path = bag(tmp_path, '/camera/image', ('/camera/z', image(800)), ('/camera/camera_info', info(500.0)),
               ('/sam2/background_depth', image(900)), ('/sam2/label_image', image(3, 'mono16')))
    with BagRecording(path) as recording:
        assert value(recording.depth(0)[0]) == 800 and recording.problems == []


def test_one_of_several_registered_topics_is_chosen_by_the_user(tmp_path):
    path = bag(tmp_path, '/camera/image', ('/camera/z', image(800)), ('/camera/filtered', image(810)),
               ('/camera/camera_info', info(500.0)))
    with BagRecording(path) as recording:
        assert recording.depth(0) is None
        problem, = recording.problems
    assert problem.startswith('several topics of depth, none is used; there are /camera/filtered (sensor_msgs/msg/Image'
                              ', 1 messages), /camera/z') and problem.endswith('choose one with --depth-topic')
    with BagRecording(path, depth_topic='camera/filtered') as recording:
        assert value(recording.depth(0)[0]) == 810 and recording.problems == []


def test_of_two_cameras_with_depth_each_gets_its_own(tmp_path):
    records = []
    for number, name in enumerate(('front', 'wrist'), 1):
        records += [(f'/{name}/image', image(9, 'rgb8', name), stamp(0)),
                    (f'/{name}/z', image(100 * number, frame_id=name), stamp(0)),
                    (f'/{name}/z_info/camera_info', info(float(number), name), stamp(0))]
    path = write(tmp_path / 'run', records)
    for number, name in enumerate(('front', 'wrist'), 1):
        with BagRecording(path, image_topic=f'/{name}/image') as recording:
            depth, calibration = recording.depth(0)
            assert (value(depth), calibration.k[0], recording.problems) == (100 * number, number, [])


def test_mono16_is_depth_only_when_it_is_chosen(tmp_path):
    path = bag(tmp_path, '/camera/image', ('/camera/depth', image(800, 'mono16')), ('/camera/camera_info', info(5.0)))
    with BagRecording(path) as recording:
        assert recording.depth(0) is None
        assert recording.problems[0].endswith('choose mono16 that is depth with --depth-topic')
    with BagRecording(path, depth_topic='/camera/depth') as recording:
        assert value(recording.depth(0)[0]) == 800 and recording.problems == []


@pytest.mark.parametrize(('message', 'reason'), [
    (image(9, 'rgb8'), 'depth on /z is rgb8, .* must be 16UC1, mono16 or 32FC1'),
    (jpeg(0), 'depth on /z: no whole depth image; record .*, or the transport compressedDepth, or drop --depth-topic'),
    ((Image, b'\0\1\0\0'), 'depth on /z: no whole depth image; .*drop --depth-topic'),
])
def test_a_chosen_topic_that_cannot_be_depth_is_refused(tmp_path, message, reason):
    path = bag(tmp_path, '/camera/image', ('/z', message), ('/camera/camera_info', info(500.0)))
    with pytest.raises(RecordingError, match=reason):
        BagRecording(path, image_topic='/camera/image', depth_topic='/z')


def test_the_calibration_that_fits_is_preferred_to_the_one_beside(tmp_path):
    path = bag(tmp_path, '/camera/image', ('/camera/z', image(800)), ('/camera/camera_info', info(1.0, 'infrared')),
               ('/calibration', info(500.0)), ('/small', info(2.0, size=(24, 32))))
    with BagRecording(path) as recording:
        assert recording.depth(0)[1].k[0] == 500.0


def test_a_binned_camera_may_have_a_calibration_of_the_full_size(tmp_path):
    binned = info(500.0, size=(2 * HEIGHT, 2 * WIDTH))
    binned.binning_x = binned.binning_y = 2
    path = bag(tmp_path, '/camera/image', ('/camera/z', image(800)), ('/other', info(1.0, 'infrared')),
               ('/binned', binned))
    with BagRecording(path) as recording:
        assert recording.depth(0)[1].k[0] == 500.0


def test_a_colour_camera_of_any_name_is_a_camera(tmp_path):
    deep = cv2.imencode('.png', np.full((HEIGHT, WIDTH), 700, np.uint16))[1].tobytes()
    records = [('/depthai/rgb/compressed', jpeg(0), stamp(0)),
               ('/depthai/z/compressed', CompressedImage(header=header(0), format='png', data=deep), stamp(0)),
               ('/depthai/z/compressedDepth', CompressedImage(header=header(0), format='16UC1; compressedDepth png',
                                                              data=bytes(12) + deep), stamp(0))]
    with BagRecording(write(tmp_path / 'run', records)) as recording:
        assert recording.image(0) == jpeg(0)


# --- compressed

def packed(message, codec='png', number=0):
    """Return a depth image as compressedDepth."""
    pixels = np.frombuffer(message.data, np.float32 if message.encoding == '32FC1' else np.uint16)
    found = compressed_depth(pixels.reshape(message.height, message.width), header(number), codec)
    found.header.frame_id = message.header.frame_id
    return found


def as_png(message, name='16UC1'):
    """Return a depth image as the transport compressed sends it."""
    pixels = np.frombuffer(message.data, np.uint16).reshape(message.height, message.width)
    return CompressedImage(header=message.header, format=f'{name}; png compressed ',
                           data=cv2.imencode('.png', pixels)[1].tobytes())


def metres(depth):
    """Return the first depth of a message as the node reads it."""
    return to_metres(depth_head(depth).image(), 0.1, 10.0)[0].ravel()[0]


@pytest.mark.parametrize(('topic', 'message', 'expected'), [
    ('/camera/z/compressedDepth', packed(image(800)), 0.8),
    ('/camera/z/compressedDepth', packed(image(800), 'rvl'), 0.8),
    ('/camera/z/compressedDepth', packed(image(0.8, '32FC1')), 0.8),
    ('/camera/z/compressedDepth', packed(image(0.8, '32FC1'), 'rvl'), 0.8),
    ('/camera/z/compressed', as_png(image(800)), 0.8)])
def test_compressed_depth_is_found_and_read_as_it_was_recorded(tmp_path, topic, message, expected):
    other = packed(image(5, frame_id='depth_optical_frame'))
    path = bag(tmp_path, '/camera/image', (topic, message), ('/camera/camera_info', info(500.0)),
               ('/left/z/compressedDepth', other),
               ('/right/z/compressedDepth', packed(image(5, size=(HEIGHT // 2, WIDTH // 2)))))
    with BagRecording(path) as recording:
        assert recording.problems == []
        depth, camera_info = recording.depth(0)
    assert depth == message and camera_info.k[0] == 500.0
    assert metres(depth) == pytest.approx(expected, abs=1e-4)


def test_depth_that_was_recorded_by_several_transports_is_one_depth(tmp_path):
    path = bag(tmp_path, '/camera/image', ('/camera/z', image(800)), ('/camera/z/compressed', as_png(image(801))),
               ('/camera/z/compressedDepth', packed(image(802))), ('/camera/camera_info', info(500.0)))
    for topic, expected in (('', 0.8), ('/camera/z/compressed', 0.801), ('/camera/z/compressedDepth', 0.802)):
        with BagRecording(path, depth_topic=topic) as recording:
            assert recording.problems == [] and metres(recording.depth(0)[0]) == pytest.approx(expected)


def test_pictures_are_not_taken_for_depth(tmp_path):
    path = bag(tmp_path, '/camera/image', ('/camera/ir/compressed', as_png(image(800), 'mono16')),
               ('/camera/photo/compressed', jpeg(0)), ('/camera/camera_info', info(500.0)))
    with BagRecording(path, image_topic='/camera/image') as recording:
        assert recording.depth(0) is None
        assert '/camera/ir/compressed (mono16' in recording.problems[0]


def test_depth_with_a_broken_header_is_passed_over(tmp_path):
    broken = packed(image(7))
    del broken.data[20:]
    records = [('/camera/image', image(9, 'rgb8', number=number), stamp(number)) for number in range(2)]
    records += [('/camera/z/compressedDepth', message, stamp(number))
                for number, message in enumerate((broken, packed(image(800), number=1)))]
    records.append(('/camera/camera_info', info(500.0), stamp(0)))
    with BagRecording(write(tmp_path / 'run', records)) as recording:
        assert metres(recording.depth(1)[0]) == pytest.approx(0.8)
        with pytest.raises(ImageError, match="depth with format '16UC1; compressedDepth png': .*cut off"):
            depth_head(recording.depth(0)[0])


# --- 16-bit cameras

@pytest.mark.parametrize('encoding', ['mono16', '16UC1'])
@pytest.mark.parametrize('compressed', [False, True])
def test_a_thermal_camera_alone_is_the_camera(tmp_path, encoding, compressed):
    picture = image(29_315, 'mono16')
    picture.encoding = encoding
    records = [('/thermal/image/compressed', as_png(picture, encoding), stamp(0)) if compressed
               else ('/thermal/image', picture, stamp(0)), ('/camera/depth/image', image(800), stamp(0)),
               ('/sam2/label_image', image(1, 'mono16'), stamp(0))]
    path = write(tmp_path / 'run', records)
    with BagRecording(path) as recording:
        assert recording.stamps == [stamp(0)] and to_rgb(recording.image(0)).shape == (HEIGHT, WIDTH, 3)
