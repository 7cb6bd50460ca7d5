"""What all tests share: nothing leaves this machine, and tests over DDS do not hear each other."""
import os
from pathlib import Path

import pytest

import sam2_ros.runtime.threads  # noqa: F401  before torch
from sam2_ros.runtime.dds import remove_dead_segments

SYSTEM = Path(__file__).parent / 'system'
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'


def pytest_addoption(parser):
    parser.addoption('--fuzz', action='store_true', help='run the tests marked fuzz at their full length (make fuzz)')


@pytest.fixture(scope='session')
def rounds(request):
    """Return the number of random inputs for a test: ``rounds(few, many)``, many under --fuzz."""
    return lambda few, many: many if request.config.getoption('--fuzz') else few


def pytest_collection_modifyitems(items):
    for item in items:
        if SYSTEM in item.path.parents:
            item.add_marker('system')
    # whole files are dealt out to processes in this order: a long one at the end would keep one of them busy alone
    long = {item.path for item in items if item.get_closest_marker('slow') or item.get_closest_marker('system')}
    items.sort(key=lambda item: item.path not in long)


def pytest_sessionfinish():
    remove_dead_segments()  # nodes are killed in many tests


@pytest.fixture
def ros_domain(monkeypatch):
    """A ROS_DOMAIN_ID of this test alone, for this process and those it starts."""
    coordinator = pytest.importorskip('domain_coordinator', reason='needs ROS 2 or its wheels (make setup)')
    with coordinator.domain_id() as number:
        monkeypatch.setenv('ROS_DOMAIN_ID', str(number))
        yield number
