"""Figures of a run against the ground truth."""
