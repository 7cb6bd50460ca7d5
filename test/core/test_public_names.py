"""Public names of sam2_core, and the cost of importing them."""
import subprocess
import sys

import pytest

import sam2_core


def test_all_public_names_exist_and_no_others():
    assert all(getattr(sam2_core, name).__module__.startswith('sam2_core') for name in sam2_core.__all__
               if name != 'VARIANTS')
    assert 'nano' in sam2_core.VARIANTS
    assert set(sam2_core.__all__) <= set(dir(sam2_core))
    with pytest.raises(AttributeError, match="'sam2_core' has no attribute 'Tracker'"):
        sam2_core.Tracker  # noqa: B018


def test_metrics_load_without_pytorch():
    subprocess.run([sys.executable, '-c', 'import sam2_core.metrics, sys; assert "torch" not in sys.modules'],
                   check=True)
