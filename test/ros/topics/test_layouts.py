"""The layouts for RViz and Foxglove name existing topics, types and message fields."""
import importlib
import json
import re
from pathlib import Path

import pytest
import rclpy
import yaml
from rclpy.duration import Infinite
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import (
    DurabilityPolicy,
    LivelinessPolicy,
    QoSProfile,
    ReliabilityPolicy,
)

from sam2_ros.node import Sam2Node

CONFIG = Path(__file__).parents[3] / 'config'
RVIZ = yaml.safe_load((CONFIG / 'sam2.rviz').read_text())['Visualization Manager']
FOXGLOVE = json.loads((CONFIG / 'sam2_foxglove.json').read_text())
RVIZ_TYPES = {'Image': 'sensor_msgs/msg/Image', 'PointCloud2': 'sensor_msgs/msg/PointCloud2',
              'MarkerArray': 'visualization_msgs/msg/MarkerArray', 'PublishPoint': 'geometry_msgs/msg/PointStamped'}
FOXGLOVE_3D = {'sensor_msgs/msg/PointCloud2', 'visualization_msgs/msg/MarkerArray'}


@pytest.fixture
def node(ros_domain):
    """Yield an active node, which has all of its topics."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=ros_domain)
    node = Sam2Node(context=context, parameter_overrides=[Parameter('autostart', value=False),
                                                          Parameter('device', value='cpu')])
    assert node.trigger_configure() == node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    yield node
    node.close()
    node.destroy_node()
    rclpy.shutdown(context=context)


def topics(node: Sam2Node) -> dict[str, str]:
    """Return the names and types of all topics of the node."""
    return {endpoint.topic_name: f'{endpoint.msg_type.__module__.split(".")[0]}/msg/{endpoint.msg_type.__name__}'
            for endpoint in [*node.publishers, *node.subscriptions]}


def message_type(name: str):
    package, _, kind = name.partition('/msg/')
    return getattr(importlib.import_module(f'{package}.msg'), kind)


def policy(kind: type, name: str):
    return kind[name.upper().replace(' ', '_')]


def test_rviz_shows_topics_of_the_node_with_a_qos_that_fits(node):
    known = topics(node)
    shown = [item for item in [*RVIZ['Displays'], *RVIZ['Tools']] if 'Topic' in item]
    assert {item['Class'].partition('/')[2] for item in shown} == set(RVIZ_TYPES)
    for item in shown:
        topic = item['Topic']
        assert known[topic['Value']] == RVIZ_TYPES[item['Class'].partition('/')[2]]
        wanted = QoSProfile(depth=topic['Depth'], reliability=policy(ReliabilityPolicy, topic['Reliability Policy']),
                            durability=policy(DurabilityPolicy, topic['Durability Policy']),
                            liveliness=LivelinessPolicy.AUTOMATIC, deadline=Infinite,
                            liveliness_lease_duration=Infinite)
        if 'PublishPoint' in item['Class']:
            listener, = (item for item in node.subscriptions if item.topic_name == topic['Value'])
            given, asked = wanted, listener.qos_profile
        else:
            publisher, = (item for item in node.publishers if item.topic_name == topic['Value'])
            given, asked = publisher.qos_profile, wanted
        assert asked.reliability != ReliabilityPolicy.RELIABLE or given.reliability == ReliabilityPolicy.RELIABLE
        assert (asked.durability != DurabilityPolicy.TRANSIENT_LOCAL
                or given.durability == DurabilityPolicy.TRANSIENT_LOCAL)


def test_foxglove_lays_out_every_panel_once():
    def leaves(part):
        return [part] if isinstance(part, str) else leaves(part['first']) + leaves(part['second'])
    assert sorted(leaves(FOXGLOVE['layout'])) == sorted(FOXGLOVE['configById'])


def test_foxglove_shows_topics_of_the_node_and_fields_of_their_messages(node):
    known = topics(node)
    panels = {name.partition('!')[0]: panel for name, panel in FOXGLOVE['configById'].items()}
    assert known[panels['Image']['imageMode']['imageTopic']] == 'sensor_msgs/msg/Image'
    assert {known[topic] for topic in panels['3D']['topics']} == FOXGLOVE_3D
    assert known[panels['3D']['publish']['pointTopic']] == 'geometry_msgs/msg/PointStamped'
    assert known[panels['DiagnosticSummary']['topicToRender']] == 'diagnostic_msgs/msg/DiagnosticArray'
    paths = [item['value'] for panel in ('Plot', 'StateTransitions') for item in panels[panel]['paths']]
    for path in [*paths, panels['Table']['topicPath']]:
        topic, *fields = path.split('.')
        kind = message_type(known[topic])
        for field in fields:
            name, condition = re.fullmatch(r'(\w+)(?:\[:\](?:\{(\w+)==\d+\})?)?', field).groups()
            types = kind.get_fields_and_field_types()
            assert name in types, path
            inner = re.fullmatch(r'sequence<(.*)>', types[name])
            if inner:
                kind = message_type(inner.group(1).replace('/', '/msg/'))
                assert condition is None or condition in kind.get_fields_and_field_types()
