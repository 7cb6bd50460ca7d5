"""What the demo's depth camera says: its calibration, and exact depth made as imperfect as a real camera's."""
import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

JUMP = 0.03          # metres between neighbours that make an edge
FLYING = 0.5         # share of the pixels at an edge whose depth lies between its sides
LOST = 0.2           # share of the others at an edge that have none
HOLES = 3            # blotches without depth per image
HOLE_PIXELS = 0.01   # radius of a blotch, of the image's width


def worsen(metres: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Depth (H, W) as a structured-light camera sees it: float32, 0 where it sees nothing.

    Axial noise of 1.2 mm + 1.9 mm/m^2 (z - 0.4 m)^2 (Nguyen, Izadi, Lovell: Modeling Kinect Sensor Noise, 2012),
    flying pixels and lost ones along the edges of things, round holes.
    """
    z = np.where(np.isfinite(metres), metres, 0).astype(np.float32)
    kernel = np.ones((3, 3), np.uint8)
    near, far = cv2.erode(z, kernel), cv2.dilate(z, kernel)
    edge = far - near > JUMP
    sigma = 0.0012 + 0.0019 * (z - 0.4) ** 2
    z += random.standard_normal(z.shape, np.float32) * sigma
    dice, mix = random.random(z.shape, np.float32), random.random(z.shape, np.float32)
    z = np.where(edge & (dice < FLYING), near + mix * (far - near), z)
    z[edge & (dice > 1 - LOST)] = 0
    height, width = z.shape
    for x, y in random.random((HOLES, 2)):
        cv2.circle(z, (int(x * width), int(y * height)), max(1, round(HOLE_PIXELS * width)), 0, -1)
    z[metres == np.inf] = 0
    return z.astype(np.float32)


def to_camera_info(intrinsics: np.ndarray, width: int, height: int, header: Header) -> CameraInfo:
    """Of a pinhole without distortion, with camera matrix (3, 3)."""
    projection = np.column_stack([intrinsics, np.zeros(3)])
    return CameraInfo(header=header, width=width, height=height, distortion_model='plumb_bob', d=[0.0] * 5,
                      k=intrinsics.ravel(), r=np.eye(3).ravel(), p=projection.ravel())
