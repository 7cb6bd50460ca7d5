"""Build other ROS packages against the ROS 2 wheels of a virtual environment.

    python tools/build_package.py INTO SOURCE...

For packages that are not on PyPI, for example vision_msgs and tf2 (CONTRIBUTING.md). SOURCE is the folder of a
package (CMake or Python), which may use those before it; INTO is the folder of the installation. Run with the python of
the virtual environment.
"""
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ros_wheels import CMAKE_ARGUMENTS, SITE_PACKAGES, build_environment


def main() -> None:
    """Build and install the packages, and print how to use them."""
    if len(sys.argv) < 3:
        sys.exit(f'usage: {sys.argv[0]} INTO SOURCE...')
    prefix, *sources = (Path(argument).resolve() for argument in sys.argv[1:])
    for source in sources:
        if not (source / 'package.xml').is_file():
            sys.exit(f'{source} has no package.xml: name the folder of one package')
    environment = build_environment()
    for name in ('CMAKE_PREFIX_PATH', 'AMENT_PREFIX_PATH'):
        environment[name] = f'{prefix}{os.pathsep}{environment[name]}'
    for source in sources:
        with tempfile.TemporaryDirectory() as build:
            for command in _commands(source, build, prefix):
                subprocess.run([str(part) for part in command], check=True, env=environment, cwd=build)
    print(f'\nTo use them:\nexport PYTHONPATH={prefix / SITE_PACKAGES} LD_LIBRARY_PATH={prefix / "lib"} '
          f'AMENT_PREFIX_PATH={prefix}:{sys.prefix}')


def _commands(source: Path, build: str, prefix: Path) -> Sequence[Sequence[object]]:
    """Return the commands that build and install a package."""
    if (source / 'CMakeLists.txt').is_file():
        return (['cmake', '-S', source, '-B', build, '-G', 'Ninja', f'-DCMAKE_INSTALL_PREFIX={prefix}',
                 *CMAKE_ARGUMENTS],
                ['cmake', '--build', build], ['cmake', '--install', build])
    return ([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-build-isolation', '--upgrade',
             '--target', prefix / SITE_PACKAGES, source],)


if __name__ == '__main__':
    main()
