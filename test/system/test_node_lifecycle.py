"""Lifecycle of the node: start, transitions, models that cannot be loaded, the end."""
import signal
from pathlib import Path

import pytest
from lifecycle_msgs.msg import Transition

import sam2_core
from sam2_core.metrics import iou
from sam2_ros.msg import Prompt
from testing.camera_images import image_message, roi
from testing.node_process import NodeProcess
from testing.peer import Scene, ids, instance_of, running_node, whole_mask

SCENE = Scene()


@pytest.fixture(scope='module')
def node(tmp_path_factory):
    """Yield the peer of a node in a namespace, without autostart."""
    with running_node(tmp_path_factory.mktemp('lifecycle'), {'autostart': False},
                      ('-r', '__ns:=/robot'), namespace='/robot', active=False) as peer:
        assert peer.state() == 'unconfigured'
        yield peer


@pytest.fixture
def peer(node):
    """Return the shared node, active and without objects."""
    if node.state() == 'unconfigured':
        assert node.change_state(Transition.TRANSITION_CONFIGURE)
    if node.state() == 'inactive':
        assert node.change_state(Transition.TRANSITION_ACTIVATE)
    node.wait_until_active()
    node.reset()
    return node


def test_objects_survive_deactivate_and_activate(peer):
    peer.start_object(4, SCENE.box(0, 1), SCENE.image(0), 'red')
    peer.start_object(9, SCENE.box(0, 2), SCENE.image(0), 'blue')
    assert peer.change_state(Transition.TRANSITION_DEACTIVATE)
    assert peer.state() == 'inactive'
    peer.wait_until_deaf()
    answer = peer.set_prompt(Prompt(box=roi(SCENE.box(0, 1))))
    peer.wait_for(answer.done, 'an answer of the inactive node')
    assert not answer.result().accepted and answer.result().reason == 'the node is inactive: activate it first'
    assert peer.change_state(Transition.TRANSITION_ACTIVATE)
    peer.wait_until_active(SCENE.image(1))
    array = peer.process_image(SCENE.image(1))
    assert ids(array) == [4, 9]
    assert (instance_of(array, 4).label, instance_of(array, 9).label) == ('red', 'blue')
    assert iou(whole_mask(array, 4), SCENE.mask(1, 1)) > 0.6
    assert iou(whole_mask(array, 9), SCENE.mask(1, 2)) > 0.6


def test_whoever_waits_is_answered_when_the_node_is_deactivated(peer):
    answer = peer.set_prompt(Prompt(box=roi(SCENE.box(0, 1))))
    assert peer.state() == 'active'  # services are served in order: the prompt has arrived
    assert peer.change_state(Transition.TRANSITION_DEACTIVATE)
    peer.wait_for(answer.done, 'the waiting call')
    assert not answer.result().accepted
    assert answer.result().reason == 'the node was deactivated before the prompt was applied'


def test_reset_works_while_inactive(peer):
    peer.start_object(4, SCENE.box(0, 1), SCENE.image(0))
    assert peer.change_state(Transition.TRANSITION_DEACTIVATE)
    peer.reset()
    assert peer.change_state(Transition.TRANSITION_ACTIVATE)
    peer.wait_until_active()
    assert ids(peer.process_image(SCENE.image(0))) == []


def test_cleanup_forgets_and_the_node_can_be_configured_again(peer):
    peer.start_object(4, SCENE.box(0, 1), SCENE.image(0))
    assert peer.change_state(Transition.TRANSITION_DEACTIVATE)
    assert not peer.set_parameter('image_size', 320)[0], 'there is a model'
    assert peer.change_state(Transition.TRANSITION_CLEANUP)
    assert peer.state() == 'unconfigured'
    answer = peer.set_prompt(Prompt(box=roi(SCENE.box(0, 1))))
    peer.wait_for(answer.done, 'an answer of the unconfigured node')
    assert 'unconfigured' in answer.result().reason
    assert peer.set_parameter('image_size', 320)[0]
    assert peer.change_state(Transition.TRANSITION_CONFIGURE)
    assert peer.change_state(Transition.TRANSITION_ACTIVATE)
    peer.wait_until_active()
    assert ids(peer.process_image(SCENE.image(0))) == []
    assert 'nano (320 pixels' in peer.process.log


@pytest.mark.parametrize('transition', [Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE,
                                        Transition.TRANSITION_CLEANUP, 99])
def test_an_invalid_transition_is_refused_and_tracking_goes_on(peer, transition):
    peer.start_object(4, SCENE.box(0, 1), SCENE.image(0))
    assert not peer.change_state(transition)
    assert peer.state() == 'active'
    assert ids(peer.process_image(SCENE.image(1))) == [4]


@pytest.mark.parametrize(('name', 'value', 'reason'), [
    ('model', 'sam3', 'sam3'),
    ('model', '', 'neither a model name nor a checkpoint'),
    ('checkpoint', '{folder}/broken.safetensors', 'broken.safetensors: not a whole safetensors file'),
    ('device', 'tpu', "device 'tpu': must be 'cpu', 'cuda' or 'cuda:N'"),
])
def test_a_model_that_cannot_be_loaded_leaves_the_node_unconfigured(peer, tmp_path, name, value, reason):
    whole = Path(sam2_core.__file__).parent / 'weights' / 'nano.safetensors'
    (tmp_path / 'broken.safetensors').write_bytes(whole.read_bytes()[:100_000])
    usual = peer.parameter(name)
    assert peer.change_state(Transition.TRANSITION_DEACTIVATE) and peer.change_state(Transition.TRANSITION_CLEANUP)
    assert peer.set_parameter(name, value.format(folder=tmp_path))[0]
    try:
        assert not peer.change_state(Transition.TRANSITION_CONFIGURE)
        assert peer.state() == 'unconfigured'
    finally:
        assert peer.set_parameter(name, usual)[0]
    (line,) = [line for line in peer.process.log.splitlines() if reason in line]
    assert 'the model cannot be loaded: ' in line
    assert 'Traceback' not in peer.process.log


def test_nor_can_it_when_the_node_starts_itself_and_it_stays_up(tmp_path):
    with running_node(tmp_path, {'checkpoint': '/no/such/file.pt'}, active=False) as peer:
        peer.wait_for(lambda: 'the model cannot be loaded: checkpoint /no/such/file.pt: no such file'
                      in peer.process.log, 'the reason in the log')
        assert peer.state() == 'unconfigured'
        assert peer.set_parameter('checkpoint', '')[0]
        assert peer.change_state(Transition.TRANSITION_CONFIGURE)
        assert peer.state() == 'inactive'


@pytest.mark.parametrize('how', [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_node_cleanly_while_it_works(tmp_path, how):
    with running_node(tmp_path) as peer:
        peer.start_object(1, SCENE.box(0, 1), SCENE.image(0))
        waiting = peer.set_prompt(Prompt(box=roi(SCENE.box(0, 1))))
        for _ in range(5):
            peer.send(image_message(SCENE.image(0), peer.header()))
        code, work = peer.process.stop(how)
        assert code == 0, peer.process.log
        assert work < 2, 'seconds of a processor'
        assert 'Traceback' not in peer.process.log and 'rror' not in peer.process.log
        waiting.cancel()


def test_a_signal_while_nothing_runs(tmp_path):
    with running_node(tmp_path, {'autostart': False}, active=False) as peer:
        assert peer.state() == 'unconfigured'
        code, work = peer.process.stop()
        assert (code, 'Traceback' in peer.process.log) == (0, False)
        assert work < 2, 'seconds of a processor'


def test_a_parameter_out_of_range_at_start_ends_the_process_with_the_reason(tmp_path, ros_domain):
    process = NodeProcess(ros_domain, tmp_path / 'node.log', {'image_size': 100})
    assert process.wait() == 1
    assert 'image_size' in process.log and '100' in process.log and 'Traceback' not in process.log
