"""The node under a lifecycle manager: the transitions of Nav2's manager in its order, and its bond with the node."""
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import GetState

from sam2_ros.runtime.lifecycle_bond import Bond
from testing.peer import Scene, ids, running_node
from testing.waiting import PATIENCE

SCENE = Scene()
STATE_AFTER = {  # of each transition, as Nav2's manager expects it
    Transition.TRANSITION_CONFIGURE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_ACTIVATE: State.PRIMARY_STATE_ACTIVE,
    Transition.TRANSITION_DEACTIVATE: State.PRIMARY_STATE_INACTIVE,
    Transition.TRANSITION_CLEANUP: State.PRIMARY_STATE_UNCONFIGURED,
    Transition.TRANSITION_UNCONFIGURED_SHUTDOWN: State.PRIMARY_STATE_FINALIZED}
STARTUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE
RESET = Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP
MANAGED = {'autostart': False, 'bond_heartbeat_period': 0.1}
WITHOUT_BONDPY = (sys.executable, '-c', 'import sys; sys.modules["bondpy"] = None; '
                  'from sam2_ros.runtime.executables import main_of; main_of("sam2_node")')
needs_bondpy = pytest.mark.skipif(Bond is None, reason='needs bondpy (CONTRIBUTING.md)')


class Manager:
    """Nav2's lifecycle manager, with bondpy in the place of bondcpp."""

    def __init__(self, peer):
        self.peer = peer
        self.bond = None
        self.formed, self.broken = [], []
        self.statuses = []  # of the node
        if Bond is not None:
            from bond.msg import Status
            peer.node.create_subscription(Status, self.topic, self._on_status, 10)

    def change(self, *transitions):
        for transition in transitions:
            assert self.peer.change_state(transition)
            assert self.peer.ask(GetState, 'get_state').current_state.id == STATE_AFTER[transition]

    def connect(self):
        """Form a bond, as the manager does after each activation."""
        self.formed, self.broken = [], []
        self.bond = Bond(self.peer.node, self.topic, 'sam2', lambda: self.broken.append(1),
                         lambda: self.formed.append(1))
        self.bond.heartbeat_timeout, self.bond.heartbeat_period = 4.0, 0.1  # bond_timeout, and the manager's period
        self.bond.start()
        self.peer.wait_for(lambda: self.formed, 'the bond to form')
        # bondpy counts the time without a heartbeat from the second one
        self.peer.wait_for(lambda: self.bond.heartbeat_timer.timer.is_alive(), 'another heartbeat')

    @property
    def topic(self) -> str:
        return f'{self.peer.public}/bond'

    def disconnect(self):
        if self.bond is not None:
            if not self.bond.is_broken():
                self.bond.break_bond()
                self.peer.wait_for(self.bond.is_broken, 'the node to answer')
            self.bond.shutdown()
            self.peer.node.destroy_subscription(self.bond.sub)
            self.peer.node.destroy_publisher(self.bond.pub)
            self.bond = None

    def _on_status(self, status):
        if self.bond is None or status.instance_id != self.bond.instance_id:
            self.statuses.append(status)

    def ended(self) -> bool:
        """Return whether the node has told that it ends, rather than fallen silent."""
        return any(not status.active for status in self.statuses)


@pytest.fixture(scope='module')
def manager(tmp_path_factory):
    """Yield the manager of a node in a namespace."""
    with running_node(tmp_path_factory.mktemp('managed'), MANAGED if Bond is not None else {'autostart': False},
                      ('-r', '__ns:=/robot'), namespace='/robot', active=False) as peer:
        manager = Manager(peer)
        yield manager
        manager.disconnect()


def test_the_transitions_of_nav2_work_in_its_order(manager):
    for transitions in (STARTUP, RESET, STARTUP):
        manager.change(*transitions)
    manager.peer.wait_until_active()
    manager.peer.start_object(3, SCENE.box(0, 1), SCENE.image(0))
    manager.change(Transition.TRANSITION_DEACTIVATE)  # pause
    manager.change(Transition.TRANSITION_ACTIVATE)  # resume
    manager.peer.wait_until_active(SCENE.image(1))
    assert ids(manager.peer.process_image(SCENE.image(1))) == [3]
    manager.change(*RESET)
    assert 'Traceback' not in manager.peer.process.log


@needs_bondpy
def test_the_bond_forms_on_each_activation_and_ends_on_deactivation(manager):
    for _ in range(2):
        manager.statuses.clear()
        manager.change(*STARTUP)
        manager.connect()
        assert not manager.broken and {(status.id, status.active) for status in manager.statuses} == {('sam2', True)}
        manager.change(Transition.TRANSITION_DEACTIVATE)
        manager.peer.wait_for(lambda: manager.broken, 'the end of the bond')
        assert manager.ended() and len({status.instance_id for status in manager.statuses}) == 1
        manager.disconnect()
        manager.change(Transition.TRANSITION_CLEANUP)
    assert manager.peer.process.log.count('bond with the lifecycle manager formed') == 2


@needs_bondpy
def test_the_node_goes_on_when_the_manager_ends(manager):
    manager.change(*STARTUP)
    manager.connect()
    manager.disconnect()
    manager.peer.wait_for(lambda: 'the lifecycle manager has ended the bond' in manager.peer.process.log, 'the log')
    manager.peer.wait_until_active()
    assert manager.peer.state() == 'active'
    manager.change(Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE)
    manager.connect()  # a new manager
    manager.change(*RESET)
    manager.disconnect()


def test_shutdown_finalises_the_node(manager):
    """Runs last: a node that is finalised cannot be used again."""
    manager.change(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN)
    code, _ = manager.peer.process.stop()
    assert code == 0 and 'Traceback' not in manager.peer.process.log, manager.peer.process.log


@needs_bondpy
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_the_manager_notices_the_end_of_the_process(tmp_path, how):
    with running_node(tmp_path, MANAGED, active=False) as peer:
        manager = Manager(peer)
        manager.change(*STARTUP)
        manager.connect()
        with ThreadPoolExecutor(1) as pool:
            end = pool.submit(peer.process.kill if how == signal.SIGKILL else peer.process.stop)
            deadline = time.monotonic() + PATIENCE
            while not (manager.broken and end.done()):  # by its last message, or after four seconds without a heartbeat
                assert time.monotonic() < deadline
                peer.spin(0.1)
        assert how == signal.SIGKILL or end.result()[0] == 0
        assert 'Traceback' not in peer.process.log, peer.process.log
        assert manager.ended() == (how == signal.SIGINT)
        manager.disconnect()


def test_a_bond_without_bondpy_is_told_and_the_node_works(tmp_path):
    with running_node(tmp_path, {'bond_heartbeat_period': 0.1, 'prompt_timeout': 20.0},
                      command=WITHOUT_BONDPY) as peer:
        peer.start_object(3, SCENE.box(0, 1), SCENE.image(0))
        assert ids(peer.process_image(SCENE.image(1))) == [3]
        assert '[WARN]' in peer.process.log and (
            'bond_heartbeat_period 0.1 needs the package bondpy, which is not installed: sudo apt install '
            'ros-$ROS_DISTRO-bondpy, or set bond_heartbeat_period to 0.0, and bond_timeout') in peer.process.log
        assert not peer.node.count_publishers('/bond')
