"""Checks of sam2_check: the machine, the topics of cameras, and a running node."""
