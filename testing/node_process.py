"""Processes of nodes for tests and benchmarks."""
from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from sam2_ros.runtime.child_process import ChildProcess
from sam2_ros.runtime.dds import use_image_profile
from testing.waiting import PATIENCE

# for this process and its children, before rclpy reads them: only this machine, and images as our own nodes send them
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
use_image_profile()

NODE = (sys.executable, '-m', 'sam2_ros.node')


class NodeProcess:
    """A node in a process of its own, with its output in a log file."""

    def __init__(self, domain: int, log: Path, parameters: Mapping[str, object] | None = None,
                 arguments: Sequence[str] = (), command: Sequence[str] = NODE,
                 environment: Mapping[str, str] | None = None) -> None:
        """Start the process.

        Args:
            domain: ROS domain.
            log: File for its output; the ROS logs go into the same folder.
            parameters: Parameters of the node.
            arguments: ROS arguments, without --ros-args.
            command: Program and its other arguments.
            environment: Environment variables; None takes those of this process.
        """
        arguments = [*arguments]
        for name, value in (parameters or {}).items():
            arguments += ['-p', f'{name}:={str(value).lower() if isinstance(value, bool) else value}']
        self._process = ChildProcess(
            [*command, *(['--ros-args', *arguments] if arguments else [])],
            {**(environment or os.environ), 'ROS_DOMAIN_ID': str(domain), 'ROS_LOG_DIR': str(log.parent)}, log,
            detached=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.running

    @property
    def log(self) -> str:
        return self._process.log

    def stop(self, how: int = signal.SIGINT) -> tuple[int, float]:
        """Signal the process, wait for its end and return its exit code and the processor seconds that the end took."""
        before = sum(os.times()[2:4]) + self._processor_seconds()
        self._process.send_signal(how)
        try:
            code = self.wait()
        except TimeoutError as error:
            raise AssertionError(f'after signal {how}: {error}:\n{self.log}') from None
        return code, sum(os.times()[2:4]) - before

    def _processor_seconds(self) -> float:
        fields = Path(f'/proc/{self.pid}/stat').read_text().rpartition(')')[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf('SC_CLK_TCK')  # its own, and of children that have ended

    def kill(self) -> None:
        """Kill the process, if it is running."""
        if self.alive:
            self._process.kill()

    def wait(self) -> int:
        """Wait for the process to end by itself; return its exit code."""
        return self._process.wait(PATIENCE)
