#!/usr/bin/env python3
"""Build the package with colcon against the ROS 2 wheels of this virtual environment, into build/colcon/install.

Run with the venv's python. On a real ROS 2 machine plain `colcon build` does this.
"""
import subprocess
import sys

from ros_wheels import CMAKE_ARGUMENTS, PREFIX, ROOT, build_environment

OUTPUT = ROOT / 'build' / 'colcon'


def main():
    environment = build_environment()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    return subprocess.run([
        str(PREFIX / 'bin' / 'colcon'), '--log-base', str(OUTPUT / 'log'), 'build', '--base-paths', str(ROOT),
        '--build-base', str(OUTPUT / 'build'), '--install-base', str(OUTPUT / 'install'),
        '--executor', 'sequential', '--cmake-args', '-G', 'Ninja', *CMAKE_ARGUMENTS,
    ], env=environment, cwd=OUTPUT).returncode


if __name__ == '__main__':
    sys.exit(main())
