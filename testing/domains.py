"""ROS domains for tests: each one in which nothing else on this machine takes part."""
from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path

NUMBERS = range(100, 0, -1)  # people count their domains from 0; from 102 on, ports may be taken by other programs
RESERVATIONS = 32768  # TCP port of domain 0: ROS 2's own tests (domain_coordinator) reserve a domain in the same way
DISCOVERY, PORTS = 7400, 250  # first UDP port of domain 0, and ports for each domain


@contextlib.contextmanager
def own_domain() -> Iterator[int]:
    """Yield the id of a domain without participants; until the end no other test takes it."""
    busy = _domains_in_use()
    for number in NUMBERS:
        if number in busy:
            continue
        with socket.socket() as reservation:
            try:
                reservation.bind(('', RESERVATIONS + number))
            except OSError:
                continue
            yield number
            return
    raise RuntimeError(f'ROS domains {NUMBERS[-1]} to {NUMBERS[0]}: all in use')


def _domains_in_use() -> set[int]:
    """Return the domains of which a UDP port is bound."""
    tables = [table for table in (Path('/proc/net/udp'), Path('/proc/net/udp6')) if table.exists()]
    ports = [int(port, 16) for table in tables
             for port in re.findall(r'^ *\d+: [0-9A-F]+:([0-9A-F]{4}) ', table.read_text(), re.MULTILINE)]
    return {(port - DISCOVERY) // PORTS for port in ports if port >= DISCOVERY}
