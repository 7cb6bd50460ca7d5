"""Fixtures of the tests with a node process."""
import pytest


@pytest.fixture
def peer(node):
    """Return the shared ``node`` of a test file without objects."""
    node.reset()
    node.instances.clear()
    node.statuses.clear()
    return node
