"""Entry points of the executables. They handle signals before anything large is imported."""
from __future__ import annotations

import gc
import sys
from functools import partial
from importlib import import_module
from typing import NoReturn

from sam2_core import __version__
from sam2_ros.runtime.stopping import STOPPING

MODULES = {'sam2_node': 'sam2_ros.node', 'sam2_demo_camera': 'sam2_ros.demo.camera', 'sam2_check': 'sam2_ros.check',
           'sam2_evaluate': 'sam2_ros.evaluate', 'sam2_compare': 'sam2_ros.compare', 'sam2_train': 'sam2_ros.train',
           'sam2_export': 'sam2_core.export.cli', 'sam2_track': 'sam2_core.offline.track',
           'sam2_segment': 'sam2_core.offline.segment'}
UNTIL_STOPPED = ('sam2_node', 'sam2_demo_camera')  # a signal is their regular end
RESUMABLE = ('sam2_train', 'sam2_track')  # they save their state at a signal, so they handle signals themselves
GRACE, GRACE_OF_TOOLS = 2.0, 4.0  # seconds from a signal to the end; some tools must end a child process first


def install(name: str) -> None:
    """Let a signal end this process at any moment: a node with exit code 0, a tool with 128 plus its number."""
    if name in UNTIL_STOPPED:
        STOPPING.install(name, lambda number: 0, GRACE)
    else:
        STOPPING.install(name, lambda number: 128 + number, GRACE_OF_TOOLS)


def run(name: str) -> int:
    """Run an executable by its name and return its exit code."""
    install(name)
    if sys.argv[1:] == ['--version']:  # before the imports, which take seconds
        print(f'{name} {__version__}')
        return 0
    try:
        if name == 'sam2_node':  # --help and wrong arguments are answered before PyTorch is imported
            import_module('sam2_ros.runtime.node_help').parse(sys.argv[1:])
        main = import_module(MODULES[name]).main
        if name in UNTIL_STOPPED:
            return main()
        if name in RESUMABLE:
            STOPPING.release()
            return main()
        with STOPPING.interrupting():
            return main()
    except KeyboardInterrupt:
        return 128 + (STOPPING.received or 2)
    finally:
        STOPPING.finish()
        gc.freeze()  # collecting PyTorch's modules at exit would take a second


def main_of(name: str) -> NoReturn:
    """Run an executable for ``python -m`` and exit. Its module gets its own name instead of __main__."""
    sys.exit(run(name))


node, demo_camera, check, evaluate, compare, train, export, track, segment = (partial(run, name) for name in MODULES)
