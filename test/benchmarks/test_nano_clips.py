"""The sheets of real videos: what is shown of them."""
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks import nano_clips

ROOT = Path(__file__).resolve().parents[2]

BOX = (60, 50, 120, 90)


@pytest.fixture
def video(tmp_path):
    """Five frames of a bright thing that moves, as a file."""
    path = tmp_path / 'scene.avi'
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), 30, (320, 240))
    for frame in range(5):
        image = np.full((240, 320, 3), 40, np.uint8)
        cv2.rectangle(image, (60 + 2 * frame, 50), (119 + 2 * frame, 89), (60, 200, 240), cv2.FILLED)
        writer.write(image)
    writer.release()
    return path


def test_a_sheet_has_a_row_for_each_of_the_weights(video, monkeypatch):
    monkeypatch.setattr(nano_clips, 'SHOWN', (0, 2, 4))
    images = nano_clips.frames_of(video, 5)
    row = nano_clips.follow(nano_clips.nano(nano_clips.PACKAGED), images, BOX)
    assert len(row.pictures) == 3 and len(row.area) == 5 and row.area[0] == 1.0
    one, two = nano_clips.sheet({'a': row}), nano_clips.sheet({'a': row, 'b': row})
    tile = row.pictures[0]
    assert two.shape[0] - one.shape[0] == tile.shape[0] + nano_clips.TITLE + nano_clips.MARGIN
    assert one.shape[1] == 3 * (tile.shape[1] + nano_clips.MARGIN) + nano_clips.MARGIN
    edge = nano_clips.MARGIN
    last = one[-tile.shape[0] - edge:-edge, -tile.shape[1] - edge:-edge]
    assert np.array_equal(last, row.pictures[-1])


def test_absence_is_marked():
    image = np.zeros((240, 320, 3), np.uint8)
    mask = np.zeros((240, 320), bool)
    absent = nano_clips.picture(image, nano_clips.sighting(1, '', mask, 0.9, 0.1, nano_clips.Time()), 3, None)
    mask[50:90, 60:120] = True
    present = nano_clips.picture(image, nano_clips.sighting(1, '', mask, 0.9, 0.9, nano_clips.Time()), 3, None)
    caption = slice(-nano_clips.TITLE, None)
    assert not np.array_equal(absent[caption], present[caption])
    assert (present[:-30].max(axis=2) > 100).sum() > 1000  # the mask, tinted; there is nothing else in the picture


@pytest.mark.parametrize(('options', 'reason'), [
    ([], 'no box for scene: say --box scene=X0,Y0,X1,Y1'),
    (['--box', 'scene=1,2,3'], 'box scene=1,2,3: must be NAME=X0,Y0,X1,Y1'),
    (['--box', 'scene=10,10,50,50'], 'scene.avi: 5 frames can be read, 100 are needed')])
def test_what_cannot_be_done_is_said(video, options, reason):
    done = subprocess.run([sys.executable, 'benchmarks/nano_clips.py', str(video), *options], cwd=ROOT,
                          env={'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 2 and reason in done.stderr
