"""Checks of the files that the parameter ``keep_objects`` names."""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sam2_ros.preflight.findings import Finding, bad, doubtful, good
from sam2_ros.runtime.kept_path import kept_path
from sam2_ros.runtime.parameters import Parameters

WHAT = 'kept objects'


def check_kept_files(parameters: Parameters) -> Iterator[Finding]:
    """Check that the file of each camera can be written, and read if there is one. Nothing is changed."""
    for camera in (parameters.cameras or ('',)) if parameters.keep_objects else ():
        yield _check(kept_path(parameters.keep_objects, camera))


def _check(path: Path) -> Finding:
    from sam2_core import TrackerStateError, load_state

    folder = next(folder for folder in path.parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return bad(WHAT, f'{path}: {folder} is not a folder that this user may write to: change its owner, or set '
                         f'keep_objects to another file')
    try:
        size = path.stat().st_size
        objects = len(load_state(path)[0]['metadata']['objects'])
    except FileNotFoundError:
        return good(WHAT, f'{path}, not written yet')
    except (TrackerStateError, OSError) as error:
        return doubtful(WHAT, f'the node will not use it: {error}')
    except (TypeError, KeyError):
        return doubtful(WHAT, f'the node will not use {path}: not the state of a tracker; set keep_objects to another '
                              f'file')
    return good(WHAT, f'{path}: {objects} object{"" if objects == 1 else "s"}, {size / 1e6:.1f} MB')
