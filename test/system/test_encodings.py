"""Cameras of every family of encodings, and depth by every transport, through one node over DDS."""
import contextlib

import numpy as np
import pytest
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from sam2_core.metrics import iou
from sam2_ros.msg import Instance, Prompt
from sam2_ros.srv import SegmentImage
from sam2_ros.tabletop.scene import TabletopScene
from testing.camera_images import image_message, roi
from testing.depth_codec import compressed_depth
from testing.domains import own_domain
from testing.encoded_images import encoded, encoded_file
from testing.node_process import NodeProcess
from testing.peer import FRAME_ID, Peer, Scene, instance_of, whole_mask

SCENE = Scene(240, 180)
TABLE = TabletopScene(seed=3, width=320, height=240)
FRAME, CAN, TEA = 70, 2, 3
RAW = ['bayer_rggb8', 'bayer_bggr8', 'bayer_gbrg16', 'bayer_grbg16', 'mono16', 'rgb16', 'bgr16', 'nv12', 'nv21',
       'yuv420', 'uyvy', 'yuyv']
FILES = ['bayer_grbg8', 'bayer_rggb16', 'mono16', 'rgb16']


@pytest.fixture(scope='module')
def cameras(tmp_path_factory):
    """Yield the peers of two cameras of a node: one with raw images and depth, one with compressed ones."""
    folder = tmp_path_factory.mktemp('encodings')
    with own_domain() as domain, contextlib.ExitStack() as stack:
        process = NodeProcess(domain, folder / 'node.log', {
            'cameras': '[plain,packed]', 'image_transports': '[raw,compressed]',
            'depth_transports': '[raw,compressedDepth]', 'depth_wait': 2.0})
        stack.callback(process.kill)
        peers = {name: stack.enter_context(contextlib.closing(Peer(domain, process, compressed=name == 'packed',
                                                                   camera=name))) for name in ('plain', 'packed')}
        for peer in peers.values():
            peer.wait_until_active(SCENE.image(0))
        yield peers


@pytest.fixture
def plain(cameras):
    cameras['plain'].reset()
    return cameras['plain']


@pytest.fixture
def packed(cameras):
    cameras['packed'].reset()
    return cameras['packed']


def track(peer, make) -> float:
    """Start the red disc with a prompt and show three more images; return the IoU with the truth in the last one."""
    answer = peer.set_prompt(Prompt(id=1, box=roi(SCENE.box(0, 1))))
    while not answer.done():
        peer.process_image(make(SCENE.image(0)))
    assert answer.result().accepted, answer.result().reason
    for time in range(1, 4):
        message = make(SCENE.image(time))
        array = peer.process_image(message)
        assert array.header == message.header and (array.width, array.height) == (240, 180)
    return iou(whole_mask(array, 1), SCENE.mask(3, 1))


@pytest.mark.parametrize('encoding', RAW)
def test_tracks_in_raw_images(plain, encoding):
    big = encoding in ('mono16', 'bgr16', 'bayer_grbg16')
    assert track(plain, lambda rgb: encoded(rgb, encoding, plain.header(), big)) > 0.6


@pytest.mark.parametrize('encoding', FILES)
def test_tracks_in_compressed_images(packed, encoding):
    assert track(packed, lambda rgb: encoded_file(rgb, encoding, packed.header())) > 0.6


def test_a_thermal_image_of_a_request_is_segmented(plain):
    request = SegmentImage.Request(image=encoded(SCENE.image(5), 'mono16', plain.header()),
                                   prompts=[Prompt(id=1, box=roi(SCENE.box(5, 1)))])
    answer = plain.ask(SegmentImage, 'segment_image', request)
    assert answer.success, answer.reason
    assert iou(whole_mask(answer.result, 1), SCENE.mask(5, 1)) > 0.6


def test_an_odd_size_is_refused_with_the_cure_and_the_objects_stay(plain):
    plain.start_object(1, SCENE.box(0, 1), SCENE.image(0))

    def skip_an_odd_one() -> None:
        odd = encoded(SCENE.image(0), 'nv12', plain.header())
        odd.width = 239
        plain.send(odd)
        array = plain.process_image(SCENE.image(0))
        assert array.dropped == 1 and instance_of(array, 1).roi.width

    def named() -> bool:  # the log is throttled, and an image that follows at once may replace the odd one
        skip_an_odd_one()
        return '/plain/image: image skipped: image of 239 x 180 pixels' in plain.process.log
    skip_an_odd_one()
    plain.wait_for(named, 'the log to name the odd size')
    assert 'crop or pad a row or column' in plain.process.log


# --- depth

class DepthOf:
    """Publishers of depth and camera_info of a camera, beside its peer."""

    def __init__(self, peer, kind, topic) -> None:
        self.peer = peer
        self.rgb, self.labels, metres = TABLE.render_depth(FRAME)
        self.metres = metres.astype(np.float32)
        self.millimetres = np.where(np.isfinite(metres), metres * 1000, 0).round().astype(np.uint16)
        self._depth = peer.node.create_publisher(kind, f'{peer.public}/{topic}', 5)
        self._info = peer.node.create_publisher(CameraInfo, f'{peer.public}/camera_info', QoSProfile(depth=5))
        peer.wait_for(lambda: self._depth.get_subscription_count() and self._info.get_subscription_count(),
                      'the node to listen to depth')

    def show(self, make):
        message = self.peer.message(self.rgb)
        self._info.publish(CameraInfo(header=message.header, width=TABLE.width, height=TABLE.height,
                                      k=TABLE.intrinsics.ravel().tolist(), d=[0.0] * 5, distortion_model='plumb_bob'))
        self._depth.publish(make(message.header))
        return self.peer.process_image(message)

    def centres(self, make) -> np.ndarray:
        """Return the positions of two objects in one image with this depth, in metres, (2, 3)."""
        def located() -> list[Instance]:  # the first depth is lost if the node has not discovered its camera yet
            header = self.show(make).header
            prompts = [Prompt(header=header, id=object_id, box=roi(self.box(object_id))) for object_id in (CAN, TEA)]
            answer = self.peer.ask(SegmentImage, 'segment_image', SegmentImage.Request(prompts=prompts))
            assert answer.success, answer.reason
            instances = list(answer.result.instances)
            return instances if all(item.has_depth for item in instances) else []
        found = [item.box_center.position for item in self.peer.wait_for(located, 'the positions of two objects')]
        return np.array([[position.x, position.y, position.z] for position in found])

    def box(self, object_id):
        rows, columns = np.nonzero(self.labels == object_id)
        return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.fixture(scope='module')
def depth_of(cameras):
    return (DepthOf(cameras['plain'], Image, 'depth'),
            DepthOf(cameras['packed'], CompressedImage, 'depth/compressedDepth'))


@pytest.fixture(scope='module')
def from_raw(depth_of):
    raw, _ = depth_of
    return raw.centres(lambda header: image_message(raw.millimetres, header, '16UC1'))


@pytest.mark.parametrize('codec', ['png', 'rvl'])
def test_compressed_millimetres_give_the_positions_of_raw_depth(depth_of, from_raw, codec):
    _, packed = depth_of
    found = packed.centres(lambda header: compressed_depth(packed.millimetres, header, codec))
    np.testing.assert_array_equal(found, from_raw)


@pytest.mark.parametrize('codec', ['png', 'rvl'])
def test_compressed_metres_give_the_positions_of_raw_depth(depth_of, from_raw, codec):
    """The inverse depth has steps of 0.1 mm at 1 m."""
    _, packed = depth_of
    found = packed.centres(lambda header: compressed_depth(packed.metres, header, codec))
    assert np.abs(found - from_raw).max() < 0.003


def test_damaged_depth_costs_the_depth_of_its_image_only(depth_of):
    _, packed = depth_of
    packed.peer.reset()
    for object_id in (CAN, TEA):
        packed.peer.send_prompt(Prompt(id=object_id, box=roi(packed.box(object_id))))
    arrays = []
    packed.peer.wait_for(lambda: arrays.append(packed.show(
        lambda header: compressed_depth(packed.millimetres, header, 'rvl'))) or len(arrays[-1].instances) == 2, 'both')
    assert all(item.has_depth for item in arrays[-1].instances)

    def damaged(header):
        message = compressed_depth(packed.millimetres, header, 'rvl')
        del message.data[-2000:]
        return message
    array = packed.show(damaged)
    assert [(item.has_depth, item.roi.width > 0) for item in array.instances] == [(False, True)] * 2
    array = packed.show(lambda header: compressed_depth(packed.millimetres, header, 'rvl'))
    assert all(item.has_depth for item in array.instances) and array.header.frame_id == FRAME_ID
