"""Calibrations for tests, and an independent implementation of the lens models by their formulas."""
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from sam2_ros.depth.calibration import to_rays

HEADER = Header(stamp=Time(sec=5), frame_id='camera')
WIDTH, HEIGHT = 64, 48
SIZE = HEIGHT, WIDTH


def info(width: int = WIDTH, height: int = HEIGHT, focal: float = 60.0, d: Sequence[float] = (),
         model: str = 'plumb_bob', k: list[float] | None = None, frame: str = 'camera', **fields: Any) -> CameraInfo:
    """Return a calibration with its principal point in the middle of the image, unless ``k`` is given."""
    k = k or [focal, 0.0, (width - 1) / 2, 0.0, focal, (height - 1) / 2, 0.0, 0.0, 1.0]
    return CameraInfo(header=Header(stamp=Time(sec=5), frame_id=frame), width=width, height=height,
                      distortion_model=model, d=[float(value) for value in d], k=k,
                      p=[k[0], 0.0, k[2], 0.0, 0.0, k[4], k[5], 0.0, 0.0, 0.0, 1.0, 0.0], **fields)


def brown(x: np.ndarray, y: np.ndarray, d: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distort rays by OpenCV's model with up to 12 coefficients."""
    k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = [*d, *[0.0] * 12][:12]
    r2 = x * x + y * y
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x) + s1 * r2 + s2 * r2**2,
            y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y + s3 * r2 + s4 * r2**2)


def tilted(x: np.ndarray, y: np.ndarray, tx: float, ty: float) -> tuple[np.ndarray, np.ndarray]:
    """Project image coordinates onto a sensor that is rotated about x, then y, around its principal point."""
    about_x = np.array([[1, 0, 0], [0, math.cos(tx), math.sin(tx)], [0, -math.sin(tx), math.cos(tx)]])
    about_y = np.array([[math.cos(ty), 0, -math.sin(ty)], [0, 1, 0], [math.sin(ty), 0, math.cos(ty)]])
    rotation = about_y @ about_x
    u, v, w = np.tensordot(rotation, np.stack([x, y, np.ones_like(x)]), 1)
    return (rotation[2, 2] * u - rotation[0, 2] * w) / w, (rotation[2, 2] * v - rotation[1, 2] * w) / w


def kannala_brandt(x: np.ndarray, y: np.ndarray, d: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Distort rays by the fisheye model of Kannala and Brandt."""
    r = np.hypot(x, y)
    angle = np.arctan(r)
    image = angle * (1 + d[0] * angle**2 + d[1] * angle**4 + d[2] * angle**6 + d[3] * angle**8)
    scale = np.where(r > 0, image / np.where(r > 0, r, 1), 1)
    return x * scale, y * scale


def forward(calibration: CameraInfo, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pixels of rays (x, y, 1), float64."""
    d = [*calibration.d]
    if calibration.distortion_model == 'equidistant':
        x, y = kannala_brandt(x, y, d)
    else:
        x, y = brown(x, y, d)
        if len(d) == 14:
            x, y = tilted(x, y, *d[12:])
    k = calibration.k
    return k[0] * x + k[2], k[4] * y + k[5]


def miss(calibration: CameraInfo) -> np.ndarray:
    """Return by how many pixels each ray misses its pixel, (H, W); NaN for pixels without a ray."""
    rays = to_rays(calibration)
    x, y = forward(calibration, rays.x.astype(float), rays.y.astype(float))
    rows, columns = np.mgrid[:calibration.height, :calibration.width]
    return np.hypot(x - columns, y - rows)


def published(width: int, height: int, fx: float, fy: float, cx: float, cy: float, d: Sequence[float],
              model: str = 'plumb_bob') -> CameraInfo:
    """Return a calibration by the numbers with which it was published."""
    return info(width, height, d=d, model=model, k=[fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0])


EUROC = published(752, 480, 458.654, 457.296, 367.215, 248.375, [-0.28340811, 0.07395907, 0.00019359, 1.76187114e-05])
TUM_RGBD = published(640, 480, 517.306408, 516.469215, 318.643040, 255.313989,
                     [0.262383, -0.953104, -0.005358, 0.002628, 1.163314])
KITTI = published(1392, 512, 984.2439, 980.8141, 690.0, 233.1966,
                  [-0.3728755, 0.2037299, 0.002219027, 0.001383707, -0.07233722])
KINECT_COLOUR = published(  # Azure Kinect, in fractions of the image (pyk4a#69)
    640, 480, 0.47322 * 640, 0.63089 * 480, 0.49965 * 640, 0.50622 * 480,
    [0.44268873, -2.60381746, 0.00099612, -0.00035284, 1.55277371, 0.32462943, -2.43034673, 1.47894704],
    'rational_polynomial')
KINECT_DEPTH = published(  # Azure Kinect, 120 degrees (Azure-Kinect-Sensor-SDK#1488)
    512, 512, 0.49204 * 512, 0.49193 * 512, 0.50148 * 512, 0.49705 * 512,
    [4.72473669, 3.20922279, 5.87981e-06, 0.00012382, 0.17059646, 5.05585957, 4.7757802, 0.88649416],
    'rational_polynomial')
THIN_PRISM = published(640, 480, 500, 500, 320, 240,
                       [-0.2, 0.05, 0.001, 0.002, 0.01, 0.02, 0.01, 0.0, 0.001, 0.0005, -0.002, 0.0001])
TILTED = published(640, 480, 500, 500, 320, 240, [*THIN_PRISM.d, 0.05, -0.03])
TUM_VI = published(512, 512, 190.97847715, 190.97330705, 254.93170605, 256.8974429,
                   [0.0034823894, 0.0007150348, -0.0020532361, 0.0002029367], 'equidistant')  # 195 degrees
BARREL = info(320, 240, focal=140.0, d=[-0.35, 0.13, 0, 0, -0.02])  # folds back inside the image
BARREL_FOLD = math.sqrt(min(s.real for s in np.roots([7 * -0.02, 5 * 0.13, 3 * -0.35, 1])  # derivative of r (1 + ...)
                            if abs(s.imag) < 1e-9 and s.real > 0))

ODD = [0.0, -0.0, 1.0, -1.0, 1e-300, 1e300, -1e300, math.nan, math.inf, -math.inf, 0.5, 1e9]  # for random messages
