"""Fast DDS and whole camera images: the profile that lets them through, without which most best-effort images are
lost, and the shared memory it takes for them.
"""
import fcntl
import os
import re
import sys
import time
from pathlib import Path

# Jazzy's Fast DDS reads only the first name, Kilted's only warns about it and prefers the second.
PROFILE_VARIABLES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
# A profile with transports of its own would silently overrule this choice of the user.
TRANSPORT_VARIABLE = 'FASTDDS_BUILTIN_TRANSPORTS'
PROFILE = Path('config', 'fastdds_images.xml')
SHARED_MEMORY = Path('/dev/shm')
# Locks of one process's segment: fastrtps_ID up to Fast DDS 2 (Jazzy), fastdds_ID since 3 (Kilted). Those of ports
# (fastdds_port7000_el, sem.fastdds_port7000_mutex) are shared by number: Fast DDS takes them over when it needs them,
# and one that a process is about to open must not vanish.
_LOCK_NAME = re.compile(r'((?:fastrtps|fastdds)_[0-9a-f]{16})_el')
_LOCKING_TIME = 10.0  # seconds; a process makes the file before it locks it


def image_profile():
    """Return the path of ``config/fastdds_images.xml``: of the source tree when run from it, else the installed one.

    Raises FileNotFoundError naming every place looked at.
    """
    prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p] + [sys.prefix]
    places = [Path(__file__).resolve().parents[2] / PROFILE]
    places += [Path(prefix, 'share', 'sam2_ros') / PROFILE for prefix in prefixes]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f'{PROFILE} is in none of: {", ".join(map(str, places))}; '
                            'build the package (colcon build, or make interfaces) and source its setup file')


def image_profile_environment():
    """Return the variables to set, names to values, for Fast DDS to use the image profile.

    Empty when the user has chosen a profile or transports. FileNotFoundError as ``image_profile``.
    """
    if any(os.environ.get(name) for name in (*PROFILE_VARIABLES, TRANSPORT_VARIABLE)):
        return {}
    return dict.fromkeys(PROFILE_VARIABLES, str(image_profile()))


def use_image_profile():
    """Give this process the image profile unless its user has chosen a profile or transports.

    Call it before ``rclpy.init()``: Fast DDS reads the environment once.
    """
    os.environ.update(image_profile_environment())


def dead_segments(folder=SHARED_MEMORY):
    """Return the segments (paths) of processes that were killed. Whoever lives holds a lock on the file beside its own.

    With the image profile each takes 64 MiB until it is removed; nobody else does that, nor ever uses it again.
    """
    matches = [(path, _LOCK_NAME.fullmatch(path.name)) for path in folder.glob('fast*_el')]
    return sorted(folder / match[1] for path, match in matches if match and _is_free(path))


def _is_free(lock):
    try:
        with lock.open('rb') as file:
            if time.time() - os.fstat(file.fileno()).st_mtime < _LOCKING_TIME:
                return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, gone, or another user's
        return False
    return True


def remove_dead_segments(folder=SHARED_MEMORY):
    """Remove the segments of processes that were killed and return how many bytes that freed."""
    freed = 0
    for segment in dead_segments(folder):
        try:
            size = segment.stat().st_blocks * 512 if segment.exists() else 0  # only the lock may be left
            segment.unlink(missing_ok=True)
            Path(f'{segment}_el').unlink()
        except OSError:  # another user's, or another process is just doing the same
            continue
        freed += size
    return freed
