"""Detection of nodes with the same full name, which would answer every prompt and process every image twice."""
from __future__ import annotations

from rclpy.node import Node

LEASE = 20  # seconds a killed node stays listed, by the defaults of DDS


def count_nodes(node: Node, full_name: str) -> int:
    """Return the number of nodes with a full name that ``node`` knows."""
    return sum(f'{namespace.rstrip("/")}/{name}' == full_name
               for name, namespace in node.get_node_names_and_namespaces())


def advice(full_name: str, count: int) -> str:
    """Return a warning about several nodes with one name, and the cure."""
    return (f'{count} nodes are named {full_name}: stop all but one, or rename them (-r __node:=NAME, or '
            f'node_name:=NAME of the launch files). A killed node stays listed for {LEASE} s')


class Namesakes:
    """Watch for other nodes with the full name of a node."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._count = 1

    def look(self) -> str:
        """Return a warning if other nodes have the same name, or ''. Log each change."""
        name = self._node.get_fully_qualified_name()
        count = max(1, count_nodes(self._node, name))  # the node discovers itself, too
        if count != self._count:
            if count > 1:
                self._node.get_logger().warning(advice(name, count))
            else:
                self._node.get_logger().info(f'no other node is named {name} any more')
            self._count = count
        return advice(name, count) if count > 1 else ''
