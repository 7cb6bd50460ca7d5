"""Findings of sam2_check about a machine and about messages of a camera, without processes or DDS."""
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from builtin_interfaces.msg import Time
from hypothesis import assume, example, given
from hypothesis import strategies as st
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.topic_endpoint_info import TopicEndpointInfo
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

import sam2_core
from sam2_core import load_model
from sam2_core.checkpoint import OFFICIAL
from sam2_ros.check import _guarded, cameras_of, main, parse
from sam2_ros.depth.depth_messages import depth_head
from sam2_ros.messages.conversions import from_pixels
from sam2_ros.messages.intensity import IntensityRange
from sam2_ros.perception.model_loading import LOAD_ERRORS, load
from sam2_ros.preflight.camera import (
    Topic,
    check_camera_info,
    check_connection,
    check_depth,
    check_image,
    check_pairs,
    check_rate,
    check_stamps,
    check_valid,
    loss,
)
from sam2_ros.preflight.findings import Finding, Verdict
from sam2_ros.preflight.machine import (
    check_device,
    check_machine,
    check_packages,
    check_shared_memory,
    check_transport,
    check_weights,
)
from sam2_ros.runtime.dds import PROFILE_VARIABLES, image_profile
from sam2_ros.runtime.parameters import Parameters
from testing.depth_codec import compressed_depth

GOOD, DOUBTFUL, BAD = Verdict
PERIOD = 33_333_333  # ns
START = 1_700_000_000_000_000_000
HEADER = Header(stamp=Time(sec=1_700_000_000), frame_id='camera')
BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)


def endpoint(node: str, qos: QoSProfile = BEST_EFFORT, kind: str = 'sensor_msgs/msg/Image') -> TopicEndpointInfo:
    return TopicEndpointInfo(node_name=node, node_namespace='/', topic_type=kind, qos_profile=qos)


def image_topic(message=None, **changes) -> Topic:
    """Return the topic of a camera without faults, with 640 x 480 pixels at 30 images per second."""
    if message is None:
        message = from_pixels(np.zeros((480, 640, 3), np.uint8), 'rgb8', HEADER)
    return Topic(**{'name': '/camera/image', 'type': 'sensor_msgs/msg/Image', 'publishers': [endpoint('driver')],
                    'subscriptions': [endpoint('sam2')], 'seconds': 3.0, 'last': message, 'ages': [0.01] * 90,
                    'stamps': [START + number * PERIOD for number in range(90)]} | changes)


def depth_topic(values: np.ndarray, encoding: str = '16UC1', **changes) -> Topic:
    return image_topic(from_pixels(values, encoding, HEADER), **{'name': '/camera/depth'} | changes)


def info_topic(**changes) -> Topic:
    return image_topic(camera_info(), name='/camera/camera_info', type='sensor_msgs/msg/CameraInfo',
                       publishers=[endpoint('driver', kind='sensor_msgs/msg/CameraInfo')], **changes)


def camera_info(width: int = 640, height: int = 480, focal: float = 500.0, frame: str = 'camera', d=(),
                middle: tuple[float, float] | None = None) -> CameraInfo:
    x, y = middle or (width / 2, height / 2)
    return CameraInfo(header=Header(frame_id=frame), width=width, height=height, distortion_model='plumb_bob',
                      d=[float(value) for value in d], k=[focal, 0.0, x, 0.0, focal, y, 0.0, 0.0, 1.0])


def metre(height: int = 480, width: int = 640) -> np.ndarray:
    return np.full((height, width), 1000, np.uint16) + np.arange(width, dtype=np.uint16) % 50


def worst(findings) -> Verdict:
    return max((finding.verdict for finding in findings), key=list(Verdict).index)


# --- the image

def test_a_good_camera_is_good_in_everything():
    found = [*check_image(image_topic()),
             *check_depth(depth_topic(metre()), info_topic(), image_topic(), Parameters(), wanted=True)]
    assert worst(found) is GOOD, found
    assert [finding.what for finding in found] == [
        'rate', 'image', 'stamps', 'frame', 'depth size', 'depth stamps', 'depth values', 'camera_info']
    assert found[0].text == '30.0 images/s, 0% lost'
    assert found[1].text == '640 x 480 pixels, rgb8'


@pytest.mark.parametrize(('changes', 'what', 'text'), [
    ({'publishers': []}, 'publisher', 'nobody publishes /camera/image: is the camera running, in this ROS_DOMAIN_ID?'),
    ({'publishers': [], 'elsewhere': ['/usb_cam/image_raw']}, 'publisher', 'is on /usb_cam/image_raw: remap it'),
    ({'publishers': [endpoint('driver', kind='sensor_msgs/msg/PointCloud2')]}, 'type',
     '/camera/image is sensor_msgs/msg/PointCloud2, expected sensor_msgs/msg/Image'),
    ({'subscriptions': [endpoint('sam2', RELIABLE)]}, 'QoS',
     '/driver and /sam2 are incompatible: best effort publisher and reliable subscription; relax the subscription'),
    ({'subscriptions': [endpoint('sam2', QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT,
                                                durability=DurabilityPolicy.TRANSIENT_LOCAL))]}, 'QoS',
     'volatile publisher and transient local subscription'),
    ({'last': None, 'stamps': []}, 'rate', 'received nothing from /driver in 3 s'),
])
def test_what_keeps_images_from_coming_is_named(changes, what, text):
    finding, = check_image(image_topic(**changes))
    assert (finding.what, finding.verdict) == (what, BAD)
    assert text in finding.text


def test_one_of_several_subscriptions_that_fits_is_enough():
    """The node subscribes to camera_info twice, latched and not; only one of them matches a driver."""
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    assert check_connection(image_topic(subscriptions=[endpoint('sam2', latched), endpoint('sam2')])) is None


def test_a_reliable_camera_serves_a_listener_that_asks_for_less():
    assert check_connection(image_topic(publishers=[endpoint('driver', RELIABLE)])) is None


def test_an_encoding_that_is_not_supported_is_named():
    bayer = Image(header=HEADER, height=480, width=640, encoding='nv24', step=640)
    finding = [*check_image(image_topic(bayer))][1]
    assert (finding.what, finding.verdict) == ('image', BAD)
    assert "'nv24': not supported; publish one of rgb8" in finding.text


@pytest.mark.parametrize(('values', 'encoding', 'limits', 'verdict', 'text'), [
    ((20_000, 24_000), 'mono16', None, GOOD, '640 x 480 pixels, mono16, values 1962'),
    ((100, 4095), 'bayer_rggb16', None, DOUBTFUL, 'nearly all shown as black: set intensity_min and intensity_max'),
    ((100, 4095), 'bayer_rggb16', IntensityRange(0, 4095), GOOD, '640 x 480 pixels, bayer_rggb16'),
    ((20_000, 24_000), 'mono16', IntensityRange(0, 4095), DOUBTFUL, 'nearly all shown as white')])
def test_the_range_of_16_bit_images_is_checked(values, encoding, limits, verdict, text):
    pixels = np.linspace(*values, 480 * 640).astype(np.uint16).reshape(480, 640)
    finding = [*check_image(image_topic(from_pixels(pixels, encoding, HEADER)), limits)][1]
    assert (finding.what, finding.verdict) == ('image', verdict) and text in finding.text


def test_an_image_without_frame_is_named():
    message = from_pixels(np.zeros((8, 8, 3), np.uint8), 'rgb8', Header(stamp=HEADER.stamp))
    assert 'empty frame_id: set it' in [*check_image(image_topic(message))][-1].text


# --- rate

@example(lost=0.75, jitter=0.078125, period=1.0, seed=1)
@given(lost=st.floats(0, 0.75), jitter=st.floats(0, 0.08), period=st.floats(0.005, 1.0), seed=st.integers(0, 1000))
def test_lost_images_are_counted_by_the_gaps_they_leave(lost, jitter, period, seed):
    """The estimate is as accurate as so few images allow; a loss of zero is exact."""
    rng = np.random.default_rng(seed)
    kept = rng.random(400) >= lost
    stamps = (np.arange(400) + rng.uniform(-jitter, jitter, 400)) * period * 1e9 + START
    seen = stamps[kept]
    first, last = np.flatnonzero(kept)[[0, -1]]
    missing = 1 - kept[first:last + 1].mean()
    assume(missing <= 0.775)  # by chance, more may be missing than intended
    assert loss([int(stamp) for stamp in seen]) == pytest.approx(missing, abs=1e-6)


def test_no_loss_is_claimed_where_stamps_are_irregular():
    rng = np.random.default_rng(0)
    assert loss([int(START + stamp * 1e9) for stamp in np.cumsum(rng.exponential(0.1, 100))]) is None
    assert loss([START, START + PERIOD]) is None
    assert check_rate(image_topic(stamps=[START])).verdict is GOOD


@pytest.mark.parametrize(('missing', 'verdict'), [(0, GOOD), (4, DOUBTFUL), (60, BAD)])
def test_the_more_is_lost_the_worse_it_is(missing, verdict):
    stamps = [stamp for number, stamp in enumerate(image_topic().stamps) if not 10 < number <= 10 + missing]
    finding = check_rate(image_topic(stamps=stamps))
    assert finding.verdict is verdict
    assert ('image profile' in finding.text) == (verdict is not GOOD)


# --- stamps

@pytest.mark.parametrize(('changes', 'verdict', 'text'), [
    ({'ages': [0.05] * 9}, GOOD, '50 ms old'),
    ({'stamps': [0] * 9}, BAD, 'have the camera driver stamp them'),
    ({'ages': [-0.4] * 9}, BAD, '0.400 s ahead of the clock: synchronise the clocks'),
    ({'ages': [86400.0] * 9}, BAD, '86400.0 s old at arrival: set use_sim_time'),
    ({'stamps': [START, START + PERIOD, START - PERIOD]}, DOUBTFUL, 'are there two cameras on /camera/image?'),
])
def test_stamps_are_held_against_the_clock(changes, verdict, text):
    finding = check_stamps(image_topic(**changes))
    assert finding.verdict is verdict and text in finding.text


# --- depth and camera_info

def test_no_depth_is_all_right_unless_it_was_asked_for():
    nothing = depth_topic(metre(), publishers=[], last=None, stamps=[])
    finding, = check_depth(nothing, info_topic(), image_topic(), Parameters(), wanted=False)
    assert finding.verdict is GOOD and 'not in metres' in finding.text
    found = [*check_depth(nothing, info_topic(), image_topic(), Parameters(), wanted=True)]
    assert (found[0].what, found[0].verdict) == ('depth publisher', BAD)


def test_depth_of_another_size_is_named_with_the_cure():
    found = [*check_depth(depth_topic(metre(240, 320)), info_topic(), image_topic(), Parameters(), wanted=True)]
    assert found[0].verdict is BAD
    assert found[0].text.startswith('depth of 320 x 240 pixels: must be 640 x 480, as the image; use the depth that is '
                                    'aligned')


def test_depth_is_compared_with_the_size_of_a_compressed_image():
    import cv2
    data = cv2.imencode('.png', np.zeros((480, 640, 3), np.uint8))[1].tobytes()
    image = image_topic(CompressedImage(header=HEADER, format='png', data=data))
    good, small = (next(check_depth(depth_topic(values), info_topic(), image, Parameters(), wanted=True))
                   for values in (metre(), metre(240, 320)))
    assert (good.verdict, small.verdict) == (GOOD, BAD)


def packed_topic(depth: np.ndarray, codec: str = 'rvl', cut: int = 0) -> Topic:
    message = compressed_depth(depth, HEADER, codec)
    del message.data[len(message.data) - cut:]
    kind = 'sensor_msgs/msg/CompressedImage'
    return image_topic(message, name='/camera/depth/compressedDepth', type=kind,
                       publishers=[endpoint('driver', kind=kind)])


@pytest.mark.parametrize('codec', ['png', 'rvl'])
def test_compressed_depth_is_checked_as_raw_depth(codec):
    found = {finding.what: finding for finding in check_depth(packed_topic(metre(), codec), info_topic(), image_topic(),
                                                              Parameters(), wanted=True)}
    assert {finding.verdict for finding in found.values()} <= {GOOD, DOUBTFUL}
    assert found['depth size'].text == f'640 x 480 pixels, as the image, 16UC1; compressedDepth {codec}'
    assert found['depth values'].text.startswith('100% of the pixels between')


def test_damaged_depth_and_depth_of_another_size_are_named(monkeypatch):
    found = {finding.what: finding for finding in check_depth(packed_topic(metre(), cut=1000), info_topic(),
                                                              image_topic(), Parameters(), wanted=True)}
    assert found['depth values'].verdict is BAD and 'cut off; send it whole' in found['depth values'].text
    monkeypatch.setattr('sam2_ros.depth.depth_messages.decode_depth_file', lambda file: pytest.fail('decoded'))
    found = {finding.what: finding for finding in check_depth(packed_topic(metre(48, 64)), info_topic(), image_topic(),
                                                              Parameters(), wanted=True)}
    assert found['depth size'].verdict is BAD and 'depth values' not in found


def test_depth_in_a_strange_encoding_is_named():
    depth = depth_topic(np.zeros((480, 640), np.uint8), 'mono8')
    found = {finding.what: finding
             for finding in check_depth(depth, info_topic(), image_topic(), Parameters(), wanted=True)}
    assert found['depth values'].verdict is BAD
    assert 'must be 16UC1 (millimetres) or 32FC1 (metres)' in found['depth values'].text


@pytest.mark.parametrize(('offset', 'every', 'verdict', 'text'), [
    (0, 1, GOOD, '100% of the images have depth'), (0.005, 1, GOOD, '100%'),
    (0, 2, DOUBTFUL, 'within 0.01 s (depth_tolerance), the others are 0.'),
    (0, 10, BAD, 'depth_tolerance'),
    (5.0, 1, BAD, 'no image has depth with a matching stamp, the nearest is 2.033 s away')])
def test_depth_has_to_be_of_the_time_of_the_image(offset, every, verdict, text):
    images = image_topic().stamps
    depths = [stamp + int(offset * 1e9) for stamp in images[::every]]
    finding = check_pairs(images, depths, 0.01)
    assert finding.verdict is verdict, finding
    assert text in finding.text


@pytest.mark.parametrize('encoding', ['16UC1', '32FC1'])
@pytest.mark.parametrize(('share', 'verdict'), [(1.0, GOOD), (0.5, GOOD), (0.1, DOUBTFUL)])
def test_the_share_of_valid_depth_is_told(encoding, share, verdict):
    metres = np.zeros((100, 100))
    metres[:int(100 * share)] = np.linspace(1.4, 1.6, 100)
    values = (metres * 1000).astype(np.uint16) if encoding == '16UC1' else metres.astype(np.float32)
    if encoding == '32FC1':
        values[values == 0] = np.nan
    finding = check_valid(depth_head(from_pixels(values, encoding, HEADER)), Parameters())
    assert finding.verdict is verdict
    assert finding.text.startswith(f'{share:.0%} of the pixels between 0.1 and 10 m')


def test_depth_in_another_unit_is_named():
    finding = check_valid(depth_head(from_pixels(np.full((9, 9), 1500, np.float32), '32FC1', HEADER)), Parameters())
    assert finding.verdict is BAD and 'the largest is 1500 m: is the unit wrong?' in finding.text


def test_depth_that_is_cut_off_is_named():
    message = from_pixels(metre(), '16UC1', HEADER)
    message.data = message.data[:1000]
    finding = check_valid(depth_head(message), Parameters())
    assert finding.verdict is BAD and 'send the whole image' in finding.text


@pytest.mark.parametrize(('info', 'verdict', 'text'), [
    (camera_info(), GOOD, 'focal length 500 pixels'),
    (camera_info(focal=0.0), BAD, 'camera_info not calibrated: fx 0 and fy 0'),
    (camera_info(1280, 720), BAD, 'camera_info of 1280 x 720 pixels: must be 640 x 480, as the image'),
    (camera_info(frame='other'), BAD, "frame 'other': must be 'camera', as the image")])
def test_calibration_has_to_be_that_of_the_image(info, verdict, text):
    finding = check_camera_info(info, image_topic())
    assert finding.verdict is verdict and text in finding.text


@pytest.mark.parametrize(('info', 'text'), [
    (camera_info(d=[-0.35, 0.13, 0, 0, -0.02], focal=280.0), 'focal length 280 pixels; the lens model covers 7'),
    (camera_info(middle=(160.0, 120.0)), 'principal point at (160, 120) of 640 x 480 pixels, far from the middle')])
def test_a_calibration_that_may_mislead_is_doubtful(info, text):
    finding = check_camera_info(info, image_topic())
    assert finding.verdict is DOUBTFUL and text in finding.text


def test_depth_in_another_frame_of_the_same_size_is_named():
    depth = depth_topic(metre())
    depth.last.header = Header(stamp=HEADER.stamp, frame_id='depth_optical')
    found = next(check_depth(depth, info_topic(), image_topic(), Parameters(), wanted=True))
    assert found.verdict is BAD and "depth in frame 'depth_optical': must be 'camera', as the image" in found.text


def test_images_without_a_stamp_have_no_depth():
    finding = check_pairs([0, 0], [0, 0], 0.02)
    assert finding.verdict is BAD and 'no depth can be found for it' in finding.text


def test_depth_that_is_the_same_everywhere_is_doubtful():
    finding = check_valid(depth_head(from_pixels(np.full((90, 90), 1500, np.uint16), '16UC1', HEADER)), Parameters())
    assert finding.verdict is DOUBTFUL and 'all depth is exactly 1.5 m' in finding.text


# --- the machine

def test_missing_packages_are_named_with_the_cure():
    found = [*check_packages({'json': '', 'no_such_module': 'pip install it'}, {'no_such_extra': 'no sauce'})]
    assert [finding.verdict for finding in found] == [BAD, GOOD]
    assert found[0].text.endswith(': pip install it')
    assert 'no no_such_extra (no sauce)' in found[1].text
    assert json.__version__ in found[1].text


def test_a_gpu_that_is_not_there_is_named():
    import torch
    assert check_device('cpu').verdict is DOUBTFUL
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    assert check_device('').verdict is DOUBTFUL
    finding = check_device('cuda:1')
    assert finding.verdict is BAD and 'this machine has 0 CUDA devices' in finding.text


@pytest.mark.parametrize('device', ['tpu', 'cuda:x', 'cuda:99', 'gpu', '0', 'mps'])
def test_a_device_is_refused_in_the_words_of_the_node(device):
    with pytest.raises(ValueError) as error:
        load_model('nano', device=device)
    finding = check_device(device)
    assert (finding.verdict, finding.text) == (BAD, str(error.value))


def test_a_bond_needs_its_package(monkeypatch):
    monkeypatch.setattr('sam2_ros.runtime.lifecycle_bond.Bond', None)
    found = [*check_machine(Parameters(bond_heartbeat_period=0.1), 'rmw_fastrtps_cpp', {})]
    assert any(finding.verdict is DOUBTFUL and 'bond_heartbeat_period 0.1 needs the package bondpy' in finding.text
               for finding in found)


def test_detections_need_their_messages(monkeypatch):
    monkeypatch.setattr('sam2_ros.messages.vision.vision_msgs', None)
    found = [*check_machine(Parameters(detections_topic='boxes'), 'rmw_fastrtps_cpp', {})]
    assert any(finding.verdict is BAD and "detections_topic 'boxes' needs the package vision_msgs" in finding.text
               for finding in found)


def test_a_check_that_fails_itself_is_a_failure_and_ends_nothing():
    def findings():
        yield Finding('one', GOOD, 'fine')
        raise KeyError('depth')
    good, bad = _guarded('topics', findings())
    assert (good.verdict, bad.verdict, bad.what) == (GOOD, BAD, 'topics')
    assert "the check itself failed (KeyError: 'depth')" in bad.text


@pytest.fixture
def empty_cache(monkeypatch, tmp_path):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    return tmp_path


def cached(folder: Path, model: str, content: bytes) -> None:
    """Put a file into a Hugging Face cache as its published weights."""
    official = OFFICIAL[model]
    repository = folder / f'models--{official.repository.replace("/", "--")}'
    snapshot = repository / 'snapshots' / 'abc'
    snapshot.mkdir(parents=True)
    (repository / 'refs').mkdir()
    (repository / 'refs' / 'main').write_text('abc')
    (snapshot / official.filename).write_bytes(content)


def test_weights_that_are_not_here_are_no_failure_and_not_fetched(empty_cache):
    finding = check_weights('sam2.1_hiera_tiny', '')
    assert finding.verdict is DOUBTFUL
    assert 'configure downloads it (156 MB)' in finding.text
    assert not [*empty_cache.iterdir()]


def test_weights_that_were_cut_off_are_named(empty_cache):
    cached(empty_cache, 'sam2.1_hiera_tiny', b'half of it')
    finding = check_weights('sam2.1_hiera_tiny', '')
    assert finding.verdict is BAD
    assert '10 bytes, the published file has 156008466: delete it' in finding.text


@pytest.mark.parametrize(('model', 'checkpoint', 'verdict', 'text'), [
    ('nano', '', GOOD, 'nano, packaged'),
    ('sam3', '', BAD, "model 'sam3': must be one of nano"),
    ('', '', BAD, "model '': must be one of nano"),
    ('nano', '/no/such.pt', BAD, 'checkpoint /no/such.pt: no such file'),
    ('nano', 'NANO', GOOD, 'nano, from '), ('', 'NANO', GOOD, 'nano, from '),
    ('sam2.1_hiera_tiny', 'NANO', BAD, "is nano, the parameter model is 'sam2.1_hiera_tiny': set model:=nano")])
def test_weights_are_looked_for_as_the_node_would(model, checkpoint, verdict, text):
    nano = Path(sam2_core.__file__).parent / 'weights' / 'nano.safetensors'
    finding = check_weights(model, str(nano) if checkpoint == 'NANO' else checkpoint)
    assert finding.verdict is verdict, finding
    assert text in finding.text


@pytest.mark.parametrize(('model', 'image_size', 'verdict', 'text'), [
    ('nano', 288, GOOD, 'nano, packaged'),
    ('edgetam', 512, DOUBTFUL, 'edgetam is not cached'),
    ('edgetam', 320, BAD, 'image_size 320: must be a multiple of 256 for a model with a spatial perceiver')])
def test_an_image_size_that_the_model_does_not_take_is_found(empty_cache, model, image_size, verdict, text):
    finding = check_weights(model, '', image_size=image_size)
    assert finding.verdict is verdict, finding
    assert text in finding.text


@pytest.mark.parametrize(('value', 'dtype', 'text'), [
    (float('nan'), 'float32', '1 of 371 tensors are not finite: no_mem_embed; in no_mem_embed 96 of 96'),
    (70_000.0, 'float16', '1 of 371 tensors exceed 65504, the largest torch.float16; no_mem_embed reaches 70000')])
def test_weights_without_finite_numbers_are_refused_as_the_node_refuses_them(tmp_path, value, dtype, text):
    weights = load_model('nano', device='cpu').state_dict()
    weights['no_mem_embed'].fill_(value)
    torch.save({'model': weights}, tmp_path / 'mine.pt')
    for model in ('', 'nano'):
        finding = check_weights(model, str(tmp_path / 'mine.pt'), dtype)
        assert finding.verdict is BAD
        assert text in finding.text
    with pytest.raises(LOAD_ERRORS) as caught:
        load(Parameters(model='nano', checkpoint=str(tmp_path / 'mine.pt'), dtype=dtype, device='cpu'))
    assert str(caught.value) == finding.text


@pytest.mark.parametrize(('environment', 'verdict', 'text'), [
    ({}, DOUBTFUL, 'the camera driver does not: export FASTRTPS_DEFAULT_PROFILES_FILE='),
    (dict.fromkeys(PROFILE_VARIABLES, str(image_profile())), GOOD, 'image profile'),
    ({PROFILE_VARIABLES[0]: str(image_profile())}, DOUBTFUL, 'depending on its version'),
    (dict.fromkeys(PROFILE_VARIABLES, '/no/such.xml'), BAD, '/no/such.xml: no such file'),
    (dict.fromkeys(PROFILE_VARIABLES, __file__), BAD, 'test_check.py: not readable as XML'),
    ({'FASTDDS_BUILTIN_TRANSPORTS': 'UDPv4'}, DOUBTFUL, 'FASTDDS_BUILTIN_TRANSPORTS is set')])
def test_the_image_profile_has_to_be_in_the_environment(environment, verdict, text):
    finding = check_transport('rmw_fastrtps_cpp', {**environment, 'ROS_DOMAIN_ID': '7'})
    assert finding.verdict is verdict
    assert text in finding.text and 'rmw_fastrtps_cpp, domain 7' in finding.text


def test_shared_memory_has_to_be_there():
    assert 'mount a tmpfs' in check_shared_memory(Path('/no/such/folder')).text
    assert check_shared_memory(Path('/proc')).verdict is BAD  # a file system without any room


def test_segments_of_killed_processes_are_counted(tmp_path):
    for name in ('fastrtps_0123456789abcdef_el', 'fastdds_0123456789abcdef_el'):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    assert '2 segments left behind by killed processes' in check_shared_memory(tmp_path).text


# --- the command line

def names(arguments: list[str], **parameters) -> list[tuple]:
    cameras = cameras_of(parse(arguments), Parameters(**parameters))
    return [(camera.name, camera.image, camera.depth, camera.camera_info) for camera in cameras]


def test_cameras_are_those_of_the_node_unless_others_are_named():
    assert names([]) == [('', 'image', 'depth', 'camera_info')]
    assert names([], cameras=('front',)) == [('front', 'front/image', 'front/depth', 'front/camera_info')]
    assert names(['--cameras', 'left', 'right'], cameras=('front',))[1][1] == 'right/image'
    assert names(['--image-topic', '/a', '--image-topic', '/b', '--depth-topic', '/da', '--depth-topic', '/db']) == [
        ('/a', '/a', '/da', 'camera_info'), ('/b', '/b', '/db', 'camera_info')]


@pytest.mark.parametrize(('arguments', 'text'), [
    (['--image-topic', '/a', '--depth-topic', '/b', '--depth-topic', '/c'], '--depth-topic is given 2 times'),
    (['--cameras', 'a', '--image-topic', '/b'], 'give one of them'), (['--seconds', '0'], '--seconds 0: must lie')])
def test_arguments_that_do_not_fit_are_named(arguments, text, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert text in capsys.readouterr().err
