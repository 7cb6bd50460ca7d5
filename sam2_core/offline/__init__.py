"""Tracking in a video or a folder of pictures, forwards and backwards, without a robot."""
