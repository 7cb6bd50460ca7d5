"""Checks of the machine: Python packages, device, weights, transport and shared memory."""
from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

from sam2_ros.messages.tf2 import Tf2Missing, tf2_for
from sam2_ros.messages.vision import VisionMessagesMissing, require_vision_msgs
from sam2_ros.preflight.findings import Finding, Verdict, bad, doubtful, good
from sam2_ros.preflight.kept_file import check_kept_files
from sam2_ros.runtime.dds import PROFILE_VARIABLES, SHARED_MEMORY, TRANSPORT_VARIABLE, dead_segments, image_profile
from sam2_ros.runtime.lifecycle_bond import why_no_bond
from sam2_ros.runtime.parameter_rules import shown
from sam2_ros.runtime.parameters import Parameters

PACKAGES = {  # module -> how to install it
    'torch': 'pip install torch, built for the CUDA of this machine (docs/install.md)',
    'numpy': 'apt install python3-numpy', 'cv2': 'apt install python3-opencv',
    'safetensors': 'pip install safetensors', 'sam2_core': 'build the package and source its setup file',
    'sam2_ros.msg': 'build the package and source its setup file'}
OPTIONAL = {  # module -> what does not work without it
    'huggingface_hub': 'official weights cannot be downloaded', 'vision_msgs': 'no detections in and out',
    'tf2_ros': 'no positions in another frame than that of the camera',
    'bondpy': "no bond with Nav2's lifecycle manager"}
SEGMENT = 64 * 2**20  # bytes of shared memory that each process takes, see config/fastdds_images.xml
LITTLE_GPU_MEMORY = 2 * 2**30  # bytes
RECEIVE_BUFFER = 10 * 2**20  # bytes; an image arrives as many UDP packets at once


def check_machine(parameters: Parameters, middleware: str, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Run all checks of this module.

    Args:
        parameters: Parameters of the node.
        middleware: Name of the RMW implementation in use.
        environment: Environment variables of the user's shell.
    """
    packages = list(check_packages())
    yield from packages
    if any(finding.verdict is Verdict.BAD for finding in packages):
        return  # the other checks import them
    try:
        if parameters.detections_topic:
            require_vision_msgs(f"detections_topic '{parameters.detections_topic}'")
    except VisionMessagesMissing as error:
        yield bad('packages', str(error))
    try:
        for name in ('target_frame', 'publish_tf'):
            if value := getattr(parameters, name):
                tf2_for(f'{name} {shown(value)}')
    except Tf2Missing as error:
        yield bad('packages', str(error))
    if problem := why_no_bond(parameters.bond_heartbeat_period):
        yield doubtful('packages', problem)
    yield check_device(parameters.device)
    yield check_weights(parameters.model, parameters.checkpoint, parameters.dtype, parameters.image_size)
    yield from check_kept_files(parameters)
    yield check_transport(middleware, environment)
    if 'fastrtps' in middleware:
        yield check_shared_memory(SHARED_MEMORY)


def check_packages(required: Mapping[str, str] = PACKAGES, optional: Mapping[str, str] = OPTIONAL) -> Iterator[Finding]:
    """Check that Python modules can be imported.

    Args:
        required: Modules, and how to install them.
        optional: Modules, and what does not work without them.
    """
    found = [f'Python {platform.python_version()}']
    for name in [*required, *optional]:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            if name in required:
                yield bad('packages', f'{name} cannot be imported ({error}): {required[name]}')
            else:
                found.append(f'no {name} ({optional[name]})')
        else:
            found.append(f'{name} {_version(name, module)}'.rstrip())
    yield good('packages', ', '.join(found))


def _version(name: str, module: ModuleType) -> str:
    """Return the version of a module, or '' if it is unknown."""
    if version := getattr(module, '__version__', ''):
        return version
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # installed without metadata, for example by apt
        return ''


def check_device(device: str) -> Finding:
    """Check the device that the parameter ``device`` selects."""
    import torch

    from sam2_core.checkpoint import checked_device
    try:
        chosen = checked_device(device or None)
    except ValueError as error:
        return bad('device', f'{error}')
    if chosen.type != 'cuda':
        return doubtful('device', f'{chosen} with {os.cpu_count()} cores, no GPU: nano takes about 0.1 s per image, '
                                  f'edgetam one or two seconds, sam2.1_hiera_tiny several; use a GPU for the larger '
                                  f'models')
    index = chosen.index or 0
    free, total = torch.cuda.mem_get_info(index)
    text = f'{chosen}: {torch.cuda.get_device_name(index)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free'
    if free < LITTLE_GPU_MEMORY:
        return doubtful('device', f'{text}: stop other programs on the GPU, or use a smaller model')
    return good('device', text)


def check_weights(model: str, checkpoint: str, dtype: str = 'float32', image_size: int = 0) -> Finding:
    """Read the weights as the node does on configure, and check that the model takes this size of image.

    Nothing is downloaded. The arguments are the values of the parameters.
    """
    import torch

    from sam2_core.checkpoint import OFFICIAL, cached_weights, find_weights, read_checkpoint, verify
    from sam2_core.config import VARIANTS, variant
    try:
        if checkpoint:
            name, _ = read_checkpoint(Path(checkpoint), dtype=getattr(torch, dtype))
            if model and name != model:
                return bad('weights', f'{checkpoint} is {name}, the parameter model is {model!r}: set model:={name}, '
                                      f"or model:='' to detect it from the checkpoint")
            variant(name, image_size or None)
            return good('weights', f'{name}, from {checkpoint}')
        if model not in VARIANTS:
            return bad('weights', f'model {model!r}: must be one of {", ".join(VARIANTS)}')
        variant(model, image_size or None)
        if model not in OFFICIAL:
            read_checkpoint(find_weights(model), model)
            return good('weights', f'{model}, packaged; small, made for tests: set model:=edgetam or larger '
                                   f'for real images')
        official = OFFICIAL[model]
        cached = cached_weights(model)
        if cached is None:
            size = f' ({official.size / 1e6:.0f} MB)' if official.size else ''
            return doubtful('weights', f'{model} is not cached, configure downloads it{size} from the Hugging Face '
                                       f'hub: without a connection, set checkpoint to a local file')
        verify(cached, official)
    except (ImportError, OSError, ValueError) as error:
        return bad('weights', f'{error}')
    return good('weights', f'{model}, cached, sha256 verified')


def check_transport(middleware: str, environment: Mapping[str, str]) -> Finding:
    """Check whether the settings of this shell let whole images through."""
    domain = f'{middleware}, domain {environment.get("ROS_DOMAIN_ID") or 0}'
    if 'fastrtps' not in middleware:
        try:
            limit = int(Path('/proc/sys/net/core/rmem_max').read_text())
        except OSError:  # hidden in a container
            return good('transport', f'{domain}, net.core.rmem_max unknown')
        if limit < RECEIVE_BUFFER:
            return doubtful('transport', f'{domain}: net.core.rmem_max is {limit} bytes, larger images are lost: '
                                         f'sudo sysctl -w net.core.rmem_max={2**31 - 1}')
        return good('transport', domain)
    if environment.get(TRANSPORT_VARIABLE):
        return doubtful('transport', f'{domain}: {TRANSPORT_VARIABLE} is set, so the image profile is not used: unset '
                                     f'it if images are lost')
    chosen = {name: environment.get(name, '') for name in PROFILE_VARIABLES}
    exports = ' '.join(f'{name}={image_profile()}' for name in PROFILE_VARIABLES)
    for name, path in chosen.items():
        if path and (problem := _profile_problem(Path(path))):
            return bad('transport', f'{domain}: {name}={path}: {problem}; export {exports}')
    if not any(chosen.values()):
        return doubtful('transport', f'{domain}: sam2_node uses the image profile by itself, the camera driver does '
                                     f'not: export {exports} where the driver is started')
    if not all(chosen.values()) or len({*chosen.values()}) > 1:
        return doubtful('transport', f'{domain}: Fast DDS reads one of {" and ".join(PROFILE_VARIABLES)}, depending on '
                                     f'its version, and they differ: export {exports}')
    return good('transport', f'{domain}, image profile {chosen[PROFILE_VARIABLES[0]]}')


def _profile_problem(path: Path) -> str:
    """Return why Fast DDS cannot read a profile, or '' if it can. Fast DDS itself only logs the reason."""
    try:
        ElementTree.parse(path)
    except FileNotFoundError:
        return 'no such file'
    except (OSError, ElementTree.ParseError) as error:
        return f'not readable as XML ({error})'
    return ''


def check_shared_memory(folder: Path) -> Finding:
    """Check that a camera and the node have enough shared memory."""
    try:
        room = os.statvfs(folder)
    except OSError as error:
        return bad('shared memory', f'{folder} cannot be used ({error.strerror}): mount a tmpfs there')
    free = room.f_bavail * room.f_frsize
    text = f'{free / 2**20:.0f} MiB free in {folder}'
    if dead := dead_segments(folder):
        text += f', {len(dead)} segments left behind by killed processes, which sam2_node removes at startup'
    if free < 2 * SEGMENT:
        return bad('shared memory', f'{text}, camera and node need {2 * SEGMENT / 2**20:.0f} MiB: in a '
                                    f'container, use docker run --shm-size=1g or --ipc=host')
    return good('shared memory', text)
