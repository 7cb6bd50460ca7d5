"""Put frames of an overlay beside each other in one picture.

    python contact_sheet.py cells/out/overlay.mp4 0 9 14 20 26 31 35 39

The picture is written beside the video, as contact_sheet.jpg.
"""
import argparse
from pathlib import Path

import cv2
import numpy as np

COLUMNS, WIDTH = 4, 240  # pictures side by side; pixels of a picture


def sheet(video: Path, wanted: list[int]) -> np.ndarray:
    """Return the frames of these numbers, uint8 BGR, in rows of COLUMNS."""
    capture, pictures = cv2.VideoCapture(str(video)), {}
    for number in range(max(wanted) + 1):
        ok, picture = capture.read()
        if not ok:
            raise SystemExit(f'{video}: has {number} frames')
        if number in wanted:
            height = round(WIDTH * picture.shape[0] / picture.shape[1])
            pictures[number] = cv2.resize(picture, (WIDTH, height), interpolation=cv2.INTER_AREA)
    blank = np.zeros_like(next(iter(pictures.values())))
    tiles = [pictures[number] for number in wanted] + [blank] * (-len(wanted) % COLUMNS)
    return np.concatenate([np.concatenate(tiles[at:at + COLUMNS], axis=1) for at in range(0, len(tiles), COLUMNS)])


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('video', type=Path)
    parser.add_argument('frames', type=int, nargs='+')
    options = parser.parse_args()
    cv2.imwrite(str(options.video.with_name('contact_sheet.jpg')), sheet(options.video, options.frames),
                [cv2.IMWRITE_JPEG_QUALITY, 85])
