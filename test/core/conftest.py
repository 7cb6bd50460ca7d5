"""Fixtures of the tests of sam2_core: a small scene with known masks, and a model to run on it."""
import cv2
import numpy as np
import pytest

from sam2_core import load_model
from sam2_core.datasets import SkippedFiles


@pytest.fixture(scope='session')
def nano():
    return load_model('nano', device='cpu')


class Scene:
    """Two discs that move over a textured table, with exact truth."""

    def __init__(self, height: int = 240, width: int = 320, seed: int = 3) -> None:
        rng = np.random.default_rng(seed)
        coarse = rng.integers(90, 140, (height // 8, width // 8, 3), np.uint8)
        self.table = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        self.discs = {1: ((70, 70), (5, 0), 34, (220, 40, 40)), 2: ((240, 175), (-5, 0), 30, (40, 60, 220))}

    def truth(self, object_id: int, frame: int) -> np.ndarray:
        (x, y), (dx, dy), radius, _ = self.discs[object_id]
        rows, columns = np.ogrid[:self.table.shape[0], :self.table.shape[1]]
        return (columns - x - dx * frame) ** 2 + (rows - y - dy * frame) ** 2 <= radius ** 2

    def image(self, frame: int, without: tuple[int, ...] = ()) -> np.ndarray:
        image = self.table.copy()
        for object_id, (_, _, _, colour) in self.discs.items():
            if object_id not in without:
                image[self.truth(object_id, frame)] = colour
        return image

    def box(self, object_id: int, frame: int = 0) -> tuple[float, float, float, float]:
        rows, columns = np.nonzero(self.truth(object_id, frame))
        return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.fixture(scope='session')
def scene():
    return Scene()


@pytest.fixture
def skipped(tmp_path):
    """Return the record of files that a data set skips."""
    return SkippedFiles(tmp_path / 'out' / 'skipped.jsonl')


@pytest.fixture
def data(tmp_path):
    """Return the folder of a data set, which does not exist yet."""
    return tmp_path / 'data'
