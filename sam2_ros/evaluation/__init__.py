"""Evaluation of the node on recordings."""
