"""Objects that a node process keeps in a file: over SIGKILL, SIGTERM, and cleanup and configure."""
import contextlib
import json
import signal

import pytest
from lifecycle_msgs.msg import Transition

from sam2_core import StreamTracker, load_model, load_state
from sam2_core.metrics import iou
from sam2_core.prompts import Prompt as CorePrompt
from sam2_ros.messages.conversions import to_nanoseconds
from sam2_ros.msg import Instance, InstanceArray, InstanceEvent, Prompt
from testing.camera_images import roi
from testing.domains import own_domain
from testing.node_process import NodeProcess
from testing.peer import Peer, Scene, ids, instance_of, whole_mask
from testing.waiting import PROMPT_TIMEOUT

SCENE = Scene()
LABELS = {1: 'red cup', 2: 'blue cup'}


class Robot:
    """A node process that is started again with the same parameters, and the camera that it sees the scene by."""

    def __init__(self, domain, folder):
        self.file = folder / 'objects.safetensors'
        self._domain, self._folder, self._starts = domain, folder, 0
        self.process = self._start()
        self.peer = Peer(domain, self.process)
        self.peer.wait_until_active(SCENE.image(0))
        self.events = self.peer.subscribe(InstanceEvent, 'events', 100)

    def _start(self):
        self._starts += 1
        return NodeProcess(self._domain, self._folder / f'node_{self._starts}.log', {
            'prompt_timeout': PROMPT_TIMEOUT, 'keep_objects': str(self.file), 'keep_objects_period': 0.1})

    def respawn(self, time) -> InstanceArray:
        """Start the node again; return the instances of the first image that it processes, that of this time."""
        assert not self.process.alive
        self.process = self.peer.process = self._start()
        return self.first_image(time)

    def first_image(self, time) -> InstanceArray:
        self.peer.instances.clear()
        self.events.clear()

        def seen():
            self.peer.send(self.peer.message(SCENE.image(time)))
            self.peer.spin(0.3)
            return self.peer.instances
        self.peer.wait_for(seen, 'the first image')
        return self.peer.instances[0]


@pytest.fixture(scope='module')
def robot(tmp_path_factory):
    with own_domain() as domain:
        robot = Robot(domain, tmp_path_factory.mktemp('kept'))
        try:
            with contextlib.closing(robot.peer):
                yield robot
        finally:
            robot.process.kill()


def assert_both_cups(array, time):
    assert ids(array) == [1, 2]
    for object_id, label in LABELS.items():
        instance = instance_of(array, object_id)
        assert (instance.label, instance.state) == (label, Instance.TRACKED)
        assert iou(whole_mask(array, object_id), SCENE.mask(time, object_id)) > 0.8


def test_objects_survive_a_killed_node_and_what_was_reset_does_not_come_back(robot):
    peer, prompted = robot.peer, {}
    for object_id, label in LABELS.items():
        array = peer.start_object(object_id, SCENE.box(0, object_id), SCENE.image(0), label)
        prompted[object_id] = array.header.stamp
    for time in range(1, 9):
        peer.process_image(SCENE.image(time))
    assert_both_cups(peer.instances[-1], 8)
    robot.process.stop(signal.SIGKILL)
    expected = uninterrupted(robot.file, peer.instances, prompted)

    first = robot.respawn(11)
    assert_both_cups(first, 11)
    assert robot.events == []  # whoever saw them being added has nothing new to learn
    for object_id in LABELS:  # not bit for bit: kernels round by the addresses of their inputs
        assert iou(whole_mask(first, object_id), expected[object_id].mask) > 0.995

    status = peer.prompt(Prompt(box=roi(SCENE.box(11, 1))), SCENE.image(11))
    assert status.accepted and status.id == 3
    peer.reset()
    robot.process.stop(signal.SIGKILL)  # at once: the answer says that the reset is done
    assert ids(robot.respawn(11)) == []
    status = peer.prompt(Prompt(box=roi(SCENE.box(11, 1))), SCENE.image(11))
    assert status.accepted and status.id == 4  # those of objects that have ended are not given again


def uninterrupted(file, arrays, prompted):
    """Return the objects at time 11 of a tracker that has seen the images up to the kept state.

    Args:
        file: The file of the node.
        arrays: What the node has published for the images of time 0, several of them, and 1 to 8.
        prompted: Stamp of the image in which each object was prompted.
    """
    newest = json.loads(load_state(file)[1]['sam2_ros_camera'])['stamp']
    tracker = StreamTracker(load_model('nano', device='cpu'))
    for array, time in zip(arrays, [0] * (len(arrays) - 8) + [*range(1, 9)], strict=True):
        stamp = array.header.stamp
        tracker.step(SCENE.image(time), [CorePrompt(object_id, box=SCENE.box(0, object_id))
                                         for object_id, when in prompted.items() if when == stamp])
        if to_nanoseconds(stamp) == newest:
            return tracker.step(SCENE.image(11)).objects
    raise AssertionError(f'the file is of another image, {newest}')


def test_objects_survive_cleanup_and_sigterm(robot):
    peer = robot.peer
    peer.reset()
    for object_id, label in LABELS.items():
        peer.start_object(object_id, SCENE.box(0, object_id), SCENE.image(0), label)
    for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP,
                       Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
        assert peer.change_state(transition)
    assert_both_cups(robot.first_image(2), 2)
    code, _ = robot.process.stop(signal.SIGTERM)
    assert code == 0
    assert_both_cups(robot.respawn(4), 4)

    assert peer.change_state(Transition.TRANSITION_DEACTIVATE)
    assert peer.change_state(Transition.TRANSITION_CLEANUP)
    peer.reset()  # without a model
    assert peer.change_state(Transition.TRANSITION_CONFIGURE)
    assert peer.change_state(Transition.TRANSITION_ACTIVATE)
    assert ids(robot.first_image(4)) == []
    assert 'Traceback' not in robot.process.log and 'ERROR' not in robot.process.log
