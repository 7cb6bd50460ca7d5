"""Depth of an image: matching by stamp, calibration, points and oriented boxes of objects."""
