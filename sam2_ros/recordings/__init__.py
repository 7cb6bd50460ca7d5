"""Stored cameras: bags and data sets, read as recordings and as training data."""
