"""Configuration of Fast DDS for large images, and removal of shared memory that killed processes leave behind.

Without the profile config/fastdds_images.xml, most best-effort images are lost.
"""
from __future__ import annotations

import fcntl
import os
import re
import sys
import time
from pathlib import Path

# Fast DDS of Jazzy reads only the first variable; that of Kilted warns about the first and prefers the second.
PROFILE_VARIABLES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
# If the user sets this variable, a profile with its own transports would silently override it.
TRANSPORT_VARIABLE = 'FASTDDS_BUILTIN_TRANSPORTS'
PROFILE = Path('config', 'fastdds_images.xml')
SHARED_MEMORY = Path('/dev/shm')
# Lock of one process's segment: fastrtps_ID up to Fast DDS 2 (Jazzy), fastdds_ID since Fast DDS 3 (Kilted). Locks of
# ports (fastdds_port7000_el, sem.fastdds_port7000_mutex) are kept: Fast DDS reuses them by their number, and a process
# may be about to open one.
_LOCK_NAME = re.compile(r'((?:fastrtps|fastdds)_[0-9a-f]{16})_el')
_LOCKING_TIME = 10.0  # seconds; a process creates the file shortly before it locks it


def image_profile() -> Path:
    """Return the path of config/fastdds_images.xml in the source tree, if run from it, or in the installation.

    Raises:
        FileNotFoundError: There is none; the text names all places that were searched.
    """
    prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p] + [sys.prefix]
    places = [Path(__file__).resolve().parents[2] / PROFILE]
    places += [Path(prefix, 'share', 'sam2_ros') / PROFILE for prefix in prefixes]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f'{PROFILE} is in none of: {", ".join(map(str, places))}; '
                            'build the package (colcon build, or make interfaces) and source its setup file')


def image_profile_environment() -> dict[str, str]:
    """Return the environment variables by which Fast DDS uses the image profile.

    The result is empty if the user has chosen a profile or transports.

    Raises:
        FileNotFoundError: There is no image profile.
    """
    if any(os.environ.get(name) for name in (*PROFILE_VARIABLES, TRANSPORT_VARIABLE)):
        return {}
    return dict.fromkeys(PROFILE_VARIABLES, str(image_profile()))


def use_image_profile() -> None:
    """Use the image profile in this process unless the user has chosen a profile or transports.

    Call this before ``rclpy.init()``: Fast DDS reads the environment once.
    """
    os.environ.update(image_profile_environment())


def dead_segments(folder: Path = SHARED_MEMORY) -> list[Path]:
    """Return the paths of the segments of killed processes: those whose lock file no process has locked.

    With the image profile, each takes 64 MiB until it is removed. Fast DDS neither reuses nor removes it.
    """
    matches = [(path, _LOCK_NAME.fullmatch(path.name)) for path in folder.glob('fast*_el')]
    return sorted(folder / match[1] for path, match in matches if match and _is_free(path))


def _is_free(lock: Path) -> bool:
    """Return True if no process holds a lock on the file or may be about to take it."""
    try:
        with lock.open('rb') as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < _LOCKING_TIME:
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, removed, or owned by another user
        return False
    return True


def remove_dead_segments(folder: Path = SHARED_MEMORY) -> int:
    """Remove the segments of killed processes. Return the number of bytes that were freed."""
    freed = 0
    for segment in dead_segments(folder):
        try:
            size = segment.stat().st_blocks * 512 if segment.exists() else 0  # only the lock may remain
            segment.unlink(missing_ok=True)
            Path(f'{segment}_el').unlink()
        except OSError:  # owned by another user, or another process is removing it
            continue
        freed += size
    return freed
