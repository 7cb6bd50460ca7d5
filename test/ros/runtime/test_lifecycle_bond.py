"""Bond of a node with a lifecycle manager, without a manager: what is told, and what is left behind."""
import time

import pytest
import rclpy

from sam2_ros.runtime import lifecycle_bond
from sam2_ros.runtime.guarded_node import GuardedExecutor, GuardedNode
from sam2_ros.runtime.lifecycle_bond import Bond, ManagerBond, why_no_bond
from testing.waiting import PATIENCE

needs_bondpy = pytest.mark.skipif(Bond is None, reason='needs bondpy (CONTRIBUTING.md)')


@pytest.fixture
def node(context):
    made = GuardedNode('bound', context=context)
    yield made
    made.destroy_node()


def topics(node) -> int:
    """Return how many publishers and subscriptions of the bond the node has."""
    return sum(entity.topic_name == '/bond' for entity in [*node.publishers, *node.subscriptions])


def test_a_bond_that_is_not_asked_for_or_not_possible_does_nothing(node, monkeypatch):
    bond = ManagerBond(node)
    bond.start(0.0)
    monkeypatch.setattr(lifecycle_bond, 'Bond', None)
    bond.start(0.1)
    bond.end()
    bond.free()
    bond.close()
    assert topics(node) == 0
    assert why_no_bond(0.0) == '' and why_no_bond(0.1).startswith('bond_heartbeat_period 0.1 needs the package bondpy')


@needs_bondpy
def test_no_reason_against_a_bond_where_bondpy_is():
    assert why_no_bond(0.1) == ''


@needs_bondpy
def test_a_bond_that_no_manager_joins_is_told(node, monkeypatch, capfd):
    monkeypatch.setattr(lifecycle_bond, 'CONNECT_TIMEOUT', 0.2)
    bond, logged = ManagerBond(node), ''
    bond.start(0.05)
    deadline = time.monotonic() + PATIENCE
    while 'no lifecycle manager on /bond knows' not in logged:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        logged += capfd.readouterr().err
    assert ('[WARN]' in logged and "knows 'bound' after 0.2 s: check its node_names and namespace, or set "
            'bond_heartbeat_period to 0.0' in logged)
    bond.free()


@needs_bondpy
def test_bonds_leave_no_topics_behind(node):
    executor = GuardedExecutor(node.failures, context=node.context)
    executor.add_node(node)
    bond = ManagerBond(node)
    for _ in range(3):
        bond.start(0.05)
        assert topics(node) == 2
        executor.spin_once(timeout_sec=0.1)
        bond.end()
        executor.spin_once(timeout_sec=0.1)
    bond.free()
    executor.spin_once(timeout_sec=0.1)
    assert topics(node) == 0 and node.failures.count == 0
    executor.shutdown()


@needs_bondpy
@pytest.mark.filterwarnings('error::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_bond_survives_the_shutdown_of_ros_and_forms_none_after_the_end(node):
    bond = ManagerBond(node)
    bond.start(0.01)
    rclpy.shutdown(context=node.context)
    thread = bond._bond.thread
    bond.close()
    bond.free()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    bond.start(0.01)
    assert topics(node) == 0
