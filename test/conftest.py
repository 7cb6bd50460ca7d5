"""What all tests share: nothing leaves this machine, and tests over DDS do not hear each other."""
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import sam2_ros.runtime.threads  # noqa: F401  before torch
from sam2_ros.runtime.dds import remove_dead_segments
from testing.domains import own_domain

# one thread in each process: sums do not depend on the number of cores, and test processes share these
os.environ['OMP_NUM_THREADS'] = '1'
SYSTEM = Path(__file__).parent / 'system'
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
# what the shell of a user may say about discovery, logs and the width of the terminal
for name in ('ROS_DISCOVERY_SERVER', 'ROS_LOCALHOST_ONLY', 'ROS_STATIC_PEERS', 'RCUTILS_COLORIZED_OUTPUT',
             'RCUTILS_CONSOLE_OUTPUT_FORMAT', 'RCUTILS_LOGGING_BUFFERED_STREAM', 'RCUTILS_LOGGING_USE_STDOUT',
             'COLUMNS', 'LINES', 'FORCE_COLOR', 'NO_COLOR'):
    os.environ.pop(name, None)
# a busy machine may take long to draw an input and to run a test on it
settings.register_profile('any machine', deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile('any machine')


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


@pytest.fixture(scope='session', autouse=True)
def ros_logs(tmp_path_factory):
    """Have nodes write their logs into a temporary folder instead of the home of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('ROS_LOG_DIR', str(tmp_path_factory.mktemp('ros_logs')))
        yield


@pytest.fixture
def ros_domain(monkeypatch):
    """Set a ROS_DOMAIN_ID of this test alone, for this process and those it starts."""
    pytest.importorskip('rclpy', reason='needs ROS 2 or its wheels (make setup)')
    with own_domain() as number:
        monkeypatch.setenv('ROS_DOMAIN_ID', str(number))
        yield number
