"""Topics and services of the node."""
