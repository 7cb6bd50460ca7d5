"""The Fast DDS profile that lets whole camera images through; without it most best-effort images are lost."""
import os
import sys
from pathlib import Path

# Jazzy's Fast DDS reads only the first name, Kilted's only warns about it and prefers the second.
PROFILE_VARIABLES = ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE')
# A profile with transports of its own would silently overrule this choice of the user.
TRANSPORT_VARIABLE = 'FASTDDS_BUILTIN_TRANSPORTS'
PROFILE = Path('config', 'fastdds_images.xml')


def image_profile():
    """Return the path of ``config/fastdds_images.xml``: of the source tree when run from it, else the installed one.

    Raises FileNotFoundError naming every place looked at.
    """
    prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p] + [sys.prefix]
    places = [Path(__file__).resolve().parent.parent / PROFILE]
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
