"""Simulated RGB-D camera above a table with moving objects."""
