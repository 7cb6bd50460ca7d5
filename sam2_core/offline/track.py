"""Track objects through a video or a folder of pictures, forwards and backwards from where they are prompted.

    sam2_track video.mp4 --box 310,200,420,330@60 --output out
    sam2_track slices/ --points "120,80;40,200,-" --output out
    sam2_track video.mp4 --prompts prompts.json --output out

Run the same command again to continue a run that was stopped or killed.

Exit codes:
    0    complete
    1    complete, but some frames could not be read; they are listed, and have no masks
    2    could not start, or could not go on
    3    stopped early; run the same command again to continue
    130  second Ctrl-C, or one before the first frame

Prompts, files and options are described in docs/how-to/track-a-video.md.
"""
from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from sam2_core import __version__
from sam2_core.arguments import number, whole
from sam2_core.checkpoint import load_model
from sam2_core.fingerprint import fingerprint
from sam2_core.memory_policy import MEMORY_POLICIES
from sam2_core.model_choice import ModelChoice, choose_model, low_score_warning, model_lines
from sam2_core.offline import outputs
from sam2_core.offline.display import TrackDisplay
from sam2_core.offline.frames import FrameSource
from sam2_core.offline.options import TYPES, add_model, add_prompts, add_range, say
from sam2_core.offline.outputs import KINDS, VIDEO, ResultFiles
from sam2_core.offline.pictures import PictureFrames
from sam2_core.offline.prompt_options import video_prompts
from sam2_core.offline.prompts import BOTH, DIRECTIONS, TrackPlan, VideoPrompt, plan_prompts, read_video_prompts
from sam2_core.offline.resume import (
    BACKWARD,
    FILES,
    FORWARD,
    TrackFolder,
    fingerprint_frames,
    fingerprint_prompts,
)
from sam2_core.offline.run import Callbacks, TrackRun
from sam2_core.offline.sources import open_frames
from sam2_core.offline.tracking import check_against_frames
from sam2_core.offline.video import VideoFrames
from sam2_core.progress import progress_bar
from sam2_core.scores import score_correction, unit
from sam2_core.stopping import COMPLETE, INTERRUPTED, LEFT, NO_START, StopSignals

INCOMPLETE = 1  # exit code: some frames could not be read
SHOWN = 20  # unreadable frames that are listed at the end


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``sam2_track``."""
    options = argparse.ArgumentParser('sam2_track', description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    options.add_argument('source', type=Path, metavar='VIDEO|FOLDER',
                         help='video file, folder of JPEG, PNG or TIFF pictures, or TIFF stack')
    options.add_argument('--output', type=Path, required=True, metavar='DIR', help='new folder for the results')
    options.add_argument('--overwrite', action='store_true', help='remove the results of an earlier run in DIR')

    prompts = add_prompts(options, 'prompts', 'FRAME', 'The first prompt of an object starts it, later options correct '
                          'it')
    prompts.add_argument('--direction', choices=DIRECTIONS, default=BOTH,
                         help='follow objects from their first prompt in this direction (default: %(default)s)')

    frames = options.add_argument_group('frames')
    frames.add_argument('--start', type=whole(0), default=0, metavar='FRAME', help='first frame (default: %(default)s)')
    frames.add_argument('--end', type=whole(1), metavar='FRAME', help='frame after the last one (default: all)')
    add_range(frames)

    add_model(options)
    memory = options.add_argument_group('memory')
    memory.add_argument('--memory-policy', choices=MEMORY_POLICIES, default='published',
                        help="rule that selects the frames in an object's memory (default: %(default)s)")

    results = options.add_argument_group('results')
    results.add_argument('--write', nargs='+', choices=KINDS, default=list(outputs.DEFAULT), metavar='KIND',
                         help=f'files to write: {", ".join(KINDS)} (default: {" ".join(outputs.DEFAULT)})')
    results.add_argument('--save-every', type=number(least=0), default=60.0, metavar='SECONDS',
                         help='interval of the states to continue from (default: %(default)s)')
    return options


class TrackJob(NamedTuple):
    """A run that is ready to start."""

    run: TrackRun
    source: FrameSource
    plan: TrackPlan
    choice: ModelChoice
    folder: TrackFolder
    settings: dict[str, str]


def prepare(options: argparse.Namespace) -> TrackJob:
    """Check everything that the user gave and load the model; nothing is written.

    Raises ValueError or OSError with the cure.
    """
    folder = TrackFolder(options.output)
    folder.check_free()
    if bool(options.given) == (options.prompts is not None):
        raise ValueError('no prompts: give --box, --points or --prompts FILE' if options.prompts is None else
                         f'prompts {options.prompts}: beside --box or --points; write them into the file')
    choice = choose_model(options.model, options.checkpoint, options.device)
    source = _open(options, folder)
    prompts = (read_video_prompts(options.prompts, len(source)) if options.prompts is not None
               else video_prompts(options.given, options.start))
    plan = plan_prompts(prompts, len(source), options.direction, options.start, options.end)
    check_against_frames(plan, source)
    settings = _settings(options, source, prompts, choice)
    if not options.overwrite:
        folder.check(settings)
    for line in model_lines(choice):
        say(line)
    model = load_model(choice.name, choice.checkpoint, choice.device, TYPES[options.dtype], options.image_size)
    if any(item.prompt.mask is not None for item in prompts):
        check_against_frames(plan, source, model.image_size)
    settings |= {'model': model.name, 'weights': fingerprint(model), 'image size': str(model.image_size)}
    correction = score_correction(model.name, options.checkpoint)
    score = unit if correction is None else correction.__call__
    files = ResultFiles(options.output, source, plan.objects, options.write, score)
    run = TrackRun(model, source, plan, folder, files, score, f'{source.name}, {model.name}', options.save_every,
                   options.memory_policy)
    return TrackJob(run, source, plan, choice, folder, settings)


def _open(options: argparse.Namespace, folder: TrackFolder) -> FrameSource:
    path: Path = options.source
    if path.is_file() and (index := folder.known_index(path)) is not None:
        return VideoFrames(path, index, say)
    with progress_bar('counting frame', 0) as (write, move):
        return open_frames(path, options.range, write, lambda done, total: move(done / total, done))


def _settings(options: argparse.Namespace, source: FrameSource, prompts: list[VideoPrompt],
              choice: ModelChoice) -> dict[str, str]:
    """Return the settings that must not change when a run is continued, except those that the model tells."""
    settings = {'frames': fingerprint_frames(source), 'checkpoint': 'its own' if options.checkpoint else 'published',
                'prompts': fingerprint_prompts(prompts),
                'start': str(options.start), 'end': str(options.end), 'direction': options.direction,
                'dtype': options.dtype, 'memory policy': options.memory_policy,
                'device': choice.device.type, 'write': ' '.join(sorted(options.write)),
                'version': __version__}
    if choice.name is not None:
        settings['model'] = choice.name
    if isinstance(source, PictureFrames):
        settings['range'] = str(source.value_range)
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """Track and return the exit code, as ``--help`` lists them."""
    options = parser().parse_args(arguments)
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')  # it reports codecs that are not there
    try:
        job = prepare(options)
    except (ValueError, OSError, torch.cuda.OutOfMemoryError) as error:
        say(f'sam2_track: {error}')
        return NO_START
    except KeyboardInterrupt:
        say('sam2_track: interrupted before the first frame')
        return INTERRUPTED
    try:
        with job.folder.locked():
            return _run(job, options)
    except (OSError, torch.cuda.OutOfMemoryError) as error:
        say(f'sam2_track: {error}; when that is cured, run the same command again to continue')
    except (ValueError, ArithmeticError) as error:
        say(f'sam2_track: {error}')
    return NO_START


def _run(job: TrackJob, options: argparse.Namespace) -> int:
    if options.overwrite:
        job.folder.clear()
    elif job.folder.check(job.settings):
        say(f'{options.output}: complete already; start again with --overwrite')
        return COMPLETE
    job.folder.write_settings(job.settings)
    if isinstance(job.source, VideoFrames):
        job.folder.keep_index(job.source)
    if job.run.resume():
        done, phase = job.run.progress.done, job.run.progress.phase
        say(f'continues {options.output}: {done} of {len(job.run.frames(phase))} frames of the {phase} phase are done')
    lengths = {BACKWARD: len(job.run.frames(BACKWARD)), FORWARD: len(job.run.frames(FORWARD)),
               FILES: len(job.run.frames(FILES)) if VIDEO in options.write else 0}
    with StopSignals() as stop, progress_bar('frame', 0) as (write, move):
        display = TrackDisplay(lengths, write, move, sys.stderr.isatty())
        callbacks = Callbacks(
            stop=lambda: bool(stop), moved=display.moved,
            unreadable=lambda error: write(f'skipped: {error}'),
            low_score=lambda low: write(low_score_warning(low, job.choice, job.plan.objects[low.object_id])))
        complete = job.run.run(callbacks)
    if not complete:
        say('stopped: run the same command again to continue')
        return LEFT
    job.folder.finish(job.settings)
    say(f'done: {_count(len(job.plan.objects), "object")} in {_count(len(job.run.frames(FORWARD)), "frame")}, '
         f'{options.output}')
    return _unreadable(job.run.progress.unreadable)


def _unreadable(found: dict[str, str]) -> int:
    if not found:
        return COMPLETE
    say(f'{_count(len(found), "frame")} could not be read and got no masks:')
    for frame, reason in list(found.items())[:SHOWN]:
        say(f'  frame {frame}: {reason}')
    if len(found) > SHOWN:
        say(f'  and {len(found) - SHOWN} more')
    return INCOMPLETE


def _count(number: int, what: str) -> str:
    return f'{number} {what}{"" if number == 1 else "s"}'


if __name__ == '__main__':
    sys.exit(main())
