#!/usr/bin/env python3
"""Build the messages of another package against the ROS 2 wheels of this virtual environment: SOURCE INTO.

For packages that are not on PyPI, such as vision_msgs (docs/development.md). SOURCE is the folder with its package.xml,
INTO where it is to be installed. Run with the venv's python.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

from ros_wheels import CMAKE_ARGUMENTS, SITE_PACKAGES, build_environment


def main():
    if len(sys.argv) != 3:
        sys.exit(f'usage: {sys.argv[0]} SOURCE INTO')
    source, prefix = (Path(argument).resolve() for argument in sys.argv[1:])
    if not (source / 'package.xml').is_file():
        sys.exit(f'{source} has no package.xml: name the folder of one package')
    environment = build_environment()
    with tempfile.TemporaryDirectory() as build:
        for command in (['cmake', '-S', source, '-B', build, '-G', 'Ninja', f'-DCMAKE_INSTALL_PREFIX={prefix}',
                         *CMAKE_ARGUMENTS],
                        ['cmake', '--build', build], ['cmake', '--install', build]):
            subprocess.run([str(part) for part in command], check=True, env=environment, cwd=build)
    print(f'\nto use it:\nexport PYTHONPATH={prefix / SITE_PACKAGES} LD_LIBRARY_PATH={prefix / "lib"} '
          f'AMENT_PREFIX_PATH={prefix}:{sys.prefix}')


if __name__ == '__main__':
    main()
