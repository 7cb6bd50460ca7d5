"""A model that is fast enough to track through many frames."""
import pytest

from sam2_core import load_model


@pytest.fixture(scope='session')
def small():
    return load_model('nano', device='cpu', image_size=64)
