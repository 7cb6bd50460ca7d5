"""A robot's cores and memory belong to all of its nodes. To be imported before torch."""
import contextlib
import ctypes
import os

# The threads of PyTorch's CPU kernels otherwise spin while they wait for each other, and burn the time of every other
# process: on two busy cores a frame of nano cost four times as much processor time. Read when torch is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'passive')

# Images come and go in one thread and are kept in another: as pieces of glibc's heap they leave holes that wander, and
# the process seems to grow for minutes. Blocks of their own are given back to the system at once. glibc raises the
# limit by itself unless it is set; the user's own setting stays.
_M_MMAP_THRESHOLD, _BYTES = -3, 512 * 1024
if 'MALLOC_MMAP_THRESHOLD_' not in os.environ:
    with contextlib.suppress(AttributeError, OSError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _BYTES)
