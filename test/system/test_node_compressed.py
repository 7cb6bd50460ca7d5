"""The node with compressed images: JPEG and PNG, whole and broken, on a remapped topic."""
import pytest
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import CompressedImage

from sam2_core.metrics import iou
from sam2_ros.msg import Prompt
from testing.camera_images import compressed_message, roi
from testing.peer import Scene, running_node, whole_mask

SCENE = Scene()
TOPIC = '/wrist/colour/compressed'


@pytest.fixture(scope='module')
def node(tmp_path_factory):
    with running_node(tmp_path_factory.mktemp('compressed'), {'image_transport': 'compressed'},
                      ('-r', 'image:=/wrist/colour', '-p', f'qos_overrides.{TOPIC}.subscription.reliability:=reliable'),
                      compressed=True, image_topic='wrist/colour') as peer:
        yield peer


def test_the_qos_of_the_image_topic_can_be_overridden(node):
    (subscription,) = node.node.get_subscriptions_info_by_topic(TOPIC)
    assert subscription.qos_profile.reliability == ReliabilityPolicy.RELIABLE


@pytest.mark.parametrize('kind', ['jpeg', 'png'])
def test_tracks_in_compressed_images(node, kind):
    node.reset()
    answer = node.set_prompt(Prompt(id=3, box=roi(SCENE.box(0, 1))))
    while not answer.done():
        node.process_image(compressed_message(SCENE.image(0), node.header(), kind))
    assert answer.result().accepted, answer.result().reason
    for time in range(1, 6):
        message = compressed_message(SCENE.image(time), node.header(), kind)
        array = node.process_image(message)
        assert array.header == message.header
        assert (array.width, array.height) == (SCENE.width, SCENE.height)
        assert iou(whole_mask(array, 3), SCENE.mask(time, 1)) > 0.6


def test_broken_ones_are_skipped_and_named_in_the_log(node):
    for kind, kept in (('jpeg', -200), ('png', 5000), ('jpeg', 3)):
        bad = compressed_message(SCENE.image(0), node.header(), kind)
        del bad.data[kept:]
        node.send(bad)
        assert node.process_image(compressed_message(SCENE.image(0), node.header(), kind)).dropped == 1
    node.send(CompressedImage(header=node.header(), format='theora', data=b'abc'))
    assert node.process_image(compressed_message(SCENE.image(0), node.header(), 'jpeg')).dropped == 1
    assert '/wrist/colour/compressed: image skipped: ' in node.process.log
    assert 'cut off' in node.process.log and 'Traceback' not in node.process.log
