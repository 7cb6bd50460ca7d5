"""Signals at chosen moments: executables get a signal when a module is imported or a function is called."""
import json
import os
import signal
import subprocess
import sys

import pytest

from testing.domains import own_domain

SIGINT, SIGTERM = signal.SIGINT, signal.SIGTERM
# an executable (argv[1:]) that gets a signal when the module argv[0] is imported
AT_IMPORT = """
import os, signal, sys
module, number = sys.argv[1].split("/")
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            os.kill(os.getpid(), int(number))
            os.kill(os.getpid(), int(number))
sys.meta_path.insert(0, Finder())
sys.argv = sys.argv[2:]
from sam2_ros.runtime import executables
sys.exit(executables.run(sys.argv[0]))
"""
# Large modules are imported once; then a child process for each moment (argv[1], as JSON) runs the executable.
AT_CALL = '''
import gc, json, os, signal, sys
import rclpy, torch
import sam2_ros.node, sam2_ros.demo.camera, sam2_ros.perception.model_loading, sam2_ros.evaluate
from sam2_ros.runtime import executables
from sam2_ros.runtime.stopping import STOPPING

def raising(owner, name, number, moment):
    """Replace a function by one that raises a signal before, after or instead of its call."""
    function = getattr(owner, name)
    def replacement(*arguments, **options):
        if moment == "after":
            result = function(*arguments, **options)
        try:
            for _ in range(2):  # twice, as when a user presses Ctrl-C again
                os.kill(os.getpid(), number)
        except KeyboardInterrupt:
            if moment != "swallowed":
                raise
        if moment == "before":
            result = function(*arguments, **options)
        while moment in ("for ever", "swallowed"):
            torch.zeros(10).sum()
        return result
    setattr(owner, name, replacement)

gc.freeze()  # child processes share the memory
for name, owner, function, number, moment, arguments in json.loads(sys.argv[1]):
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        raising(eval(owner), function, number, moment)
        if moment == "swallowed":
            executables.GRACE = 0.1
        sys.argv = [name, *arguments]
        sys.exit(executables.run(name))
    os.close(writing)
    text = b"".join(iter(lambda: os.read(reading, 4096), b"")).decode()
    status = os.waitpid(child, 0)[1]
    print(json.dumps([os.waitstatus_to_exitcode(status), text]), flush=True)
'''


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-c', *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(('executable', 'module', 'number', 'code'), [
    ('sam2_node', 'sam2_ros.node', SIGINT, 0), ('sam2_node', 'torch._C', SIGINT, 0),
    ('sam2_node', 'sam2_ros.topics.camera_topics', SIGTERM, 0), ('sam2_demo_camera', 'cv2', SIGINT, 0),
    ('sam2_check', 'rclpy._rclpy_pybind11', SIGINT, 130), ('sam2_compare', 'rich.console', SIGTERM, 143),
    ('sam2_train', 'numpy', SIGINT, 130)])
def test_a_signal_while_modules_are_imported_ends_an_executable_in_silence(executable, module, number, code):
    process = run(AT_IMPORT, f'{module}/{int(number)}', executable)
    assert (process.returncode, process.stdout, process.stderr) == (code, '', '')


ROS = ['--ros-args', '-p', 'device:=cpu']
SMALL = ['--ros-args', '-p', 'width:=64', '-p', 'height:=64']
MOMENTS = [
    ('sam2_node', 'rclpy', 'init', SIGINT, 'before', ROS),
    ('sam2_node', 'sam2_ros.node', 'GuardedExecutor', SIGTERM, 'before', ROS),
    ('sam2_node', 'sam2_ros.perception.model_loading', 'load_model', SIGINT, 'for ever', ROS),
    ('sam2_node', 'sam2_ros.perception.model_loading', '_warm_up', SIGINT, 'swallowed', ROS),
    ('sam2_demo_camera', 'sam2_ros.demo.camera.DemoCamera', '_wait', SIGINT, 'after', SMALL),
    ('sam2_evaluate', 'sam2_ros.evaluate', 'load', SIGINT, 'for ever', ['no.mcap', '--output', 'nowhere']),
]


@pytest.fixture(scope='module')
def ends():
    """Return exit code and output for each of MOMENTS."""
    pytest.importorskip('rclpy', reason='needs ROS 2 or its wheels (make setup)')
    with own_domain() as domain:
        process = subprocess.run([sys.executable, '-c', AT_CALL, json.dumps(MOMENTS)], capture_output=True, text=True,
                                 env={**os.environ, 'ROS_DOMAIN_ID': str(domain)})
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.mark.parametrize('number', range(len(MOMENTS)), ids=[' '.join(map(str, moment[:5])) for moment in MOMENTS])
def test_a_signal_at_any_later_moment_ends_it_too(ends, number):
    executable, *_, sent, moment, _ = MOMENTS[number]
    code, output = ends[number]
    assert code == (128 + sent if executable == 'sam2_evaluate' else 0), output
    assert 'Traceback' not in output and 'rror' not in output
    assert output.count('still busy') == (moment == 'swallowed')
