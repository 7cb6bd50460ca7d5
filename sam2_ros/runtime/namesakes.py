"""Notice other nodes of the same full name: each prompt would be answered twice, each image processed twice."""
from __future__ import annotations

from rclpy.node import Node

LEASE = 20  # seconds that a killed node stays listed, as DDS has it by default


def count_nodes(node: Node, full_name: str) -> int:
    """Return how many nodes of this name are known to ``node``."""
    return sum(f'{namespace.rstrip("/")}/{name}' == full_name
               for name, namespace in node.get_node_names_and_namespaces())


def advice(full_name: str, count: int) -> str:
    """Return what is wrong with so many nodes of one name, and the cure."""
    return (f'{count} nodes are named {full_name}: stop all but one, or rename them (-r __node:=NAME; node_name:=NAME '
            f'of the launch files). A node that was killed stays listed for {LEASE} s')


class Namesakes:
    """Other nodes of a node's full name."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._count = 1

    def look(self) -> str:
        """Return what is wrong with the node's name now, empty if nothing is; log each change."""
        name = self._node.get_fully_qualified_name()
        count = max(1, count_nodes(self._node, name))  # the node learns of itself by discovery as well
        if count != self._count:
            if count > 1:
                self._node.get_logger().warning(advice(name, count))
            else:
                self._node.get_logger().info(f'no other node is named {name} any more')
            self._count = count
        return advice(name, count) if count > 1 else ''
