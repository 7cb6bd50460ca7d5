"""What `from sam2_core import ...` offers, and what it costs."""
import subprocess
import sys

import pytest

import sam2_core


def test_every_name_is_there_and_no_other():
    assert all(getattr(sam2_core, name).__module__.startswith('sam2_core') for name in sam2_core.__all__
               if name != 'VARIANTS')
    assert 'nano' in sam2_core.VARIANTS
    assert set(sam2_core.__all__) <= set(dir(sam2_core))
    with pytest.raises(AttributeError, match="'sam2_core' has no attribute 'Tracker'"):
        sam2_core.Tracker  # noqa: B018


def test_who_measures_masks_does_not_wait_for_pytorch():
    subprocess.run([sys.executable, '-c', 'import sam2_core.metrics, sys; assert "torch" not in sys.modules'],
                   check=True)
