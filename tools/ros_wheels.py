"""Settings of CMake for builds against the ROS 2 wheels of the virtual environment that runs this module."""
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PREFIX = Path(sys.prefix)
SITE_PACKAGES = f'lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages'
CMAKE_ARGUMENTS = [
    f'-DPython3_EXECUTABLE={sys.executable}',
    f'-DPYTHON_INSTALL_DIR={SITE_PACKAGES}',  # otherwise, Python of Debian installs into dist-packages
    f'-DCMAKE_PROJECT_INCLUDE={ROOT / "tools" / "ros_wheels.cmake"}',
    '-DBUILD_TESTING=OFF', '-Wno-dev']


def build_environment() -> dict[str, str]:
    """Return the environment variables of a build. Exit if this is not a virtual environment with the wheels."""
    if sys.prefix == sys.base_prefix:
        sys.exit(f'{sys.prefix} is not a virtual environment: run this with the python of one (make setup)')
    if not (PREFIX / 'share' / 'rclpy').is_dir():
        sys.exit(f'{sys.prefix} has no ROS 2 wheels: pip install -r requirements/ros-jazzy.txt')
    environment = dict(os.environ, AMENT_PREFIX_PATH=str(PREFIX), CMAKE_PREFIX_PATH=str(PREFIX),
                       PATH=f"{PREFIX / 'bin'}{os.pathsep}{os.environ['PATH']}")
    # the interpreter has libraries of the wheels in LD_LIBRARY_PATH, which cmake and the compiler must not use
    for name in ('PYTHONPATH', 'LD_LIBRARY_PATH', '_ROS_WHEELS_BOOTSTRAP_COMPLETE'):
        environment.pop(name, None)
    return environment
