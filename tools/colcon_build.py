"""Build the package with colcon against the ROS 2 wheels of a virtual environment, into build/colcon/install.

Run with the python of the virtual environment. On a machine with ROS 2, use plain `colcon build`.
"""
import subprocess
import sys

from ros_wheels import CMAKE_ARGUMENTS, PREFIX, ROOT, build_environment

OUTPUT = ROOT / 'build' / 'colcon'


def main() -> int:
    """Run colcon and return its exit code."""
    environment = build_environment()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    return subprocess.run([
        str(PREFIX / 'bin' / 'colcon'), '--log-base', str(OUTPUT / 'log'), 'build', '--base-paths', str(ROOT),
        '--build-base', str(OUTPUT / 'build'), '--install-base', str(OUTPUT / 'install'),
        '--executor', 'sequential', '--cmake-args', '-G', 'Ninja', *CMAKE_ARGUMENTS,
    ], env=environment, cwd=OUTPUT).returncode


if __name__ == '__main__':
    sys.exit(main())
