"""Depth camera of the tabletop: its calibration, the encoding of its depth, and the errors of a real camera."""
from __future__ import annotations

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

EDGE = 0.03  # difference in depth between neighbouring pixels that makes an edge, metres
FLYING = 0.5  # share of the edge pixels whose depth lies between both sides of the edge
LOST = 0.2  # share of the edge pixels without depth
HOLES = 3  # round holes without depth per image
HOLE_RADIUS = 0.01  # relative to the width of the image
FARTHEST = 65.535  # largest depth that 16UC1 can express, metres


def worsen(metres: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Add the errors of a structured-light camera to exact depth.

    Axial noise has a standard deviation of 1.2 mm + 1.9 mm/m^2 (z - 0.4 m)^2 (Nguyen, Izadi, Lovell: Modeling Kinect
    Sensor Noise, 2012). At the edges of objects some pixels are lost and some float between both sides; there are
    round holes.

    Args:
        metres: Exact depth (H, W), inf or NaN where there is none.
        random: Source of the noise.

    Returns:
        Depth in metres, float32 (H, W), 0 where the camera measures nothing.
    """
    z = np.where(np.isfinite(metres), metres, 0).astype(np.float32)
    kernel = np.ones((3, 3), np.uint8)
    near, far = cv2.erode(z, kernel), cv2.dilate(z, kernel)
    edge = far - near > EDGE
    sigma = 0.0012 + 0.0019 * (z - 0.4) ** 2
    z += random.standard_normal(z.shape, np.float32) * sigma
    dice, mix = random.random(z.shape, np.float32), random.random(z.shape, np.float32)
    z = np.where(edge & (dice < FLYING), near + mix * (far - near), z)
    z[edge & (dice > 1 - LOST)] = 0
    height, width = z.shape
    for x, y in random.random((HOLES, 2)):
        cv2.circle(z, (int(x * width), int(y * height)), max(1, round(HOLE_RADIUS * width)), 0, -1)
    z[metres == np.inf] = 0
    return z.astype(np.float32)


def to_millimetres(metres: np.ndarray) -> np.ndarray:
    """Return depth in metres (H, W) as a 16UC1 image has it: uint16 millimetres, 0 where it is too far."""
    return np.where(metres < FARTHEST, metres * 1000, 0).round().astype(np.uint16)


def to_camera_info(intrinsics: np.ndarray, width: int, height: int, header: Header) -> CameraInfo:
    """Return the calibration of a pinhole camera without distortion from its camera matrix (3, 3)."""
    projection = np.column_stack([intrinsics, np.zeros(3)])
    return CameraInfo(header=header, width=width, height=height, distortion_model='plumb_bob', d=[0.0] * 5,
                      k=intrinsics.ravel(), r=np.eye(3).ravel(), p=projection.ravel())
