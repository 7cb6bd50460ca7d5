"""The node in operation: /diagnostics in every state, and load shedding when it is too slow."""
import contextlib

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from sam2_ros.messages.conversions import from_pixels, to_nanoseconds
from sam2_ros.msg import Instance
from testing.peer import Peer, Scene, ids, instance_of, running_node

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
SCENE = Scene()


class Watch:
    """Subscriber to /diagnostics."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.names: set[str] = set()
        self.statuses: dict[str, DiagnosticStatus] = {}
        peer.node.create_subscription(DiagnosticArray, '/diagnostics', self._take, 10)

    def _take(self, array: DiagnosticArray) -> None:
        self.statuses = {status.name.partition(': ')[2]: status for status in array.status}

    def wait_for(self, name: str, level: bytes, text: str = '', image=None) -> DiagnosticStatus:
        """Wait for a status; the camera shows ``image`` repeatedly meanwhile."""
        def there() -> DiagnosticStatus | None:
            if image is not None:
                self.peer.stream(image)
            status = self.statuses.get(name)
            return status if status is not None and status.level == level and text in status.message else None
        try:
            return self.peer.wait_for(there, f'{name} at level {level!r} with {text!r}')
        except AssertionError as error:
            raise AssertionError(f'{error}\nat the end: {self.statuses.get(name)}') from None

    def values(self, name: str) -> dict[str, str]:
        return {item.key: item.value for item in self.statuses[name].values}


@contextlib.contextmanager
def watched_node(folder, parameters=None, **more):
    with running_node(folder, parameters, **more) as peer:
        yield peer, Watch(peer)


@pytest.fixture(scope='module')
def node(tmp_path_factory):
    """One node process for the tests that need nothing else at its start."""
    with running_node(tmp_path_factory.mktemp('node')) as peer:
        yield peer


@pytest.fixture
def watched(node):
    """Return a peer and a watch of this test; the node is configured anew, with the parameters it was started with."""
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP,
                       Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        assert node.change_state(transition)
    before = {name: node.parameter(name) for name in ('history_seconds', 'latency_target', 'shed_load')}
    with contextlib.closing(Peer(node.node.context.get_domain_id(), node.process)) as peer:
        peer.wait_until_active()
        yield peer, Watch(peer)
    for name, value in before.items():
        assert node.set_parameter(name, value)[0]


def test_a_model_that_cannot_be_loaded_is_named_until_it_can(tmp_path):
    with watched_node(tmp_path, {'checkpoint': '/no/such.pt'}, active=False) as (peer, watch):
        status = watch.wait_for('model', ERROR, 'checkpoint /no/such.pt: no such file')
        assert status.message.startswith('unconfigured, the model cannot be loaded')
        assert peer.set_parameter('checkpoint', '') == (True, '')
        assert peer.change_state(Transition.TRANSITION_CONFIGURE)
        assert watch.wait_for('model', OK, 'inactive: ros2 lifecycle set /sam2 activate').hardware_id == 'cpu'
        assert peer.change_state(Transition.TRANSITION_ACTIVATE)
        watch.wait_for('model', OK, 'active: nano on cpu')
        found = watch.values('model')
        assert (found['model'], found['device'], found['dtype'], found['image size']) == (
            'nano', 'cpu', 'float32', '256')


@pytest.mark.parametrize('compressed', [False, True], ids=['raw', 'compressed'])
def test_a_camera_is_told_with_its_figures_and_missed_when_it_stops(tmp_path, compressed):
    transport = {'image_transport': 'compressed' if compressed else 'raw'}
    with watched_node(tmp_path, transport, compressed=compressed) as (peer, watch):
        peer.start_object(3, SCENE.box(0, 1), SCENE.image(0))
        status = watch.wait_for('camera', OK, '1 objects', image=SCENE.image(0))
        found = watch.values('camera')
        assert status.name == 'sam2: camera'
        assert found['topic'] == ('/image/compressed' if compressed else '/image')
        assert float(found['input rate (images/s)']) > 0 < float(found['processed rate (images/s)'])
        assert 0 < float(found['latency p50 (ms)']) <= float(found['latency p95 (ms)']) <= float(
            found['latency p99 (ms)'])
        assert (found['objects tracked'], found['objects occluded'], found['objects lost']) == ('1', '0', '0')
        assert int(found['tracker memory (bytes)']) > 0 < int(found['history (images)'])
        watch.wait_for('camera', WARN, f'no image on {found["topic"]} for')
        watch.wait_for('camera', OK, image=SCENE.image(0))


def test_images_that_cannot_be_used_are_named_and_forgiven(watched):
    peer, watch = watched

    def show_infrared() -> bool:
        if peer.due():
            message = peer.message(SCENE.image(0))
            message.encoding = 'nv24'
            peer.send(message)
        return 'not supported' in watch.statuses.get('camera', DiagnosticStatus()).message
    peer.wait_for(show_infrared, 'the warning')
    assert watch.wait_for('camera', WARN, "encoding 'nv24': not supported; publish one of rgb8")
    watch.wait_for('camera', OK, image=SCENE.image(0))


def test_depth_that_stops_or_does_not_match_is_named_and_none_at_all_is_fine(watched):
    peer, watch = watched
    watch.wait_for('camera', OK, image=SCENE.image(0))
    assert watch.values('camera')['depth missing'] == '0'
    depths = peer.node.create_publisher(Image, '/depth', 5)
    infos = peer.node.create_publisher(CameraInfo, '/camera_info', 5)
    height, width = SCENE.image(0).shape[:2]

    def show(late: int = 0) -> None:
        """Show the next image with depth stamped ``late`` ns later."""
        if not peer.due():
            return
        message = peer.message(SCENE.image(0))
        peer.send(message)
        header = Header(frame_id=message.header.frame_id, stamp=shifted(message.header.stamp, late))
        depths.publish(from_pixels(np.full((height, width), 1000, np.uint16), '16UC1', header))
        infos.publish(CameraInfo(header=header, width=width, height=height,
                                 k=[300.0, 0.0, width / 2, 0.0, 300.0, height / 2, 0.0, 0.0, 1.0]))
    peer.wait_for(lambda: show() or int(watch.values('camera')['depth matched']) > 5, 'depth')
    watch.wait_for('camera', WARN, 'images have no depth: no depth on', image=SCENE.image(0))  # depth has stopped
    peer.wait_for(lambda: show(late=200_000_000) or 's newer than the image' in watch.values('camera')[
        'depth missing because'], 'depth that does not match')
    watch.wait_for('camera', WARN, 'newer than the image: must be within 0.02 s')
    assert float(watch.values('camera')['processed rate (images/s)']) > 0


def shifted(stamp: Time, nanoseconds: int) -> Time:
    seconds, rest = divmod(to_nanoseconds(stamp) + nanoseconds, 10**9)
    return Time(sec=seconds, nanosec=rest)


def test_every_camera_has_its_own_status(tmp_path):
    with running_node(tmp_path, {'cameras': '[front, rear]'}, camera='front', active=False) as peer:
        watch = Watch(peer)
        watch.wait_for('camera front', OK, '0 objects', image=SCENE.image(0))
        watch.wait_for('camera rear', WARN, 'no image on /rear/image for')
        watch.wait_for('camera front', OK, image=SCENE.image(0))


def test_a_clock_that_differs_is_named(watched):
    peer, watch = watched

    def show_ahead() -> bool:
        if peer.due():
            header = peer.header()
            header.stamp.sec += 100
            peer.send(peer.message(SCENE.image(0), header))
        return 'ahead of the clock' in watch.statuses.get('camera', DiagnosticStatus()).message
    peer.wait_for(show_ahead, 'the warning')
    watch.wait_for('camera', WARN, 'synchronise the clocks')


def test_a_node_that_is_too_slow_does_less_in_steps_and_comes_back(watched):
    peer, watch = watched
    peer.start_object(3, SCENE.box(0, 1), SCENE.image(0))
    overlays = peer.subscribe_pictures('overlay')
    peer.wait_for(lambda: peer.stream(SCENE.image(0)) or overlays, 'an overlay')
    assert peer.set_parameter('latency_target', 0.001) == (True, '')
    for level, text in enumerate(('no overlay, clouds and markers', 'half of the memory frames',
                                  'every second image'), 1):
        watch.wait_for('camera', WARN, f'load shedding level {level}: {text}', image=SCENE.image(0))
        assert watch.values('camera')['load shedding level'] == str(level)
    watch.wait_for('camera', WARN, 'latency_target 0.001 s is not held (p95', image=SCENE.image(0))

    overlays.clear()
    peer.instances.clear()
    peer.wait_for(lambda: peer.stream(SCENE.image(0)) or len(peer.instances) >= 10, 'ten results')
    assert overlays == []
    assert all(array.dropped for array in peer.instances[1:])
    assert instance_of(peer.instances[-1], 3).state == Instance.TRACKED

    assert peer.set_parameter('latency_target', 30.0) == (True, '')
    watch.wait_for('camera', OK, '1 objects', image=SCENE.image(0))
    assert watch.values('camera')['load shedding level'] == '0'
    peer.wait_for(lambda: peer.stream(SCENE.image(0)) or overlays, 'an overlay again')
    assert ids(peer.instances[-1]) == [3]


def test_a_node_that_may_not_shed_load_only_says_that_it_is_slow(watched):
    peer, watch = watched
    assert peer.set_parameter('shed_load', False)[0]
    assert peer.set_parameter('latency_target', 0.001)[0]
    peer.start_object(3, SCENE.box(0, 1), SCENE.image(0))
    watch.wait_for('camera', WARN, 'latency_target 0.001 s is not held', image=SCENE.image(0))
    assert watch.values('camera')['load shedding level'] == '0'
    assert peer.set_parameter('latency_target', 0.0) == (True, '')
    watch.wait_for('camera', OK, '1 objects', image=SCENE.image(0))


def test_parameters_change_what_runs(watched):
    peer, watch = watched
    watch.wait_for('camera', OK, image=SCENE.image(0))
    assert int(watch.values('camera')['history (images)']) > 0
    assert peer.set_parameter('history_seconds', 0.0) == (True, '')
    def forgotten() -> bool:
        peer.stream(SCENE.image(0))
        return watch.values('camera')['history (images)'] == '0'
    peer.wait_for(forgotten, 'no image to be kept')
    accepted, reason = peer.set_parameter('history_seconds', 61.0)
    assert not accepted and '61' in reason
    accepted, reason = peer.set_parameter('model', 'sam2.1_hiera_tiny')
    assert not accepted and 'clean it up first' in reason


def test_cleanup_forgets_everything_and_configure_starts_anew(watched):
    peer, watch = watched
    peer.start_object(3, SCENE.box(0, 1), SCENE.image(0))
    watch.wait_for('camera', OK, '1 objects', image=SCENE.image(0))
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
        assert peer.change_state(transition)
    watch.wait_for('model', OK, 'unconfigured: ros2 lifecycle set /sam2 configure')
    assert 'model' not in watch.values('model')
    assert 'camera' not in watch.statuses
    peer.wait_for(lambda: peer.node.count_publishers('/sam2/instances') == 0, 'the news that nothing is published')
    for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        assert peer.change_state(transition)
    peer.wait_until_active(SCENE.image(0))
    assert ids(peer.process_image(SCENE.image(0))) == []
    watch.wait_for('camera', OK, '0 objects', image=SCENE.image(0))
