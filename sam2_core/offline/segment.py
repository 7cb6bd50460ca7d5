"""Segment images, without a video and without ROS.

    sam2_segment photo.jpg --box 120,80,300,260 --output masks
    sam2_segment photo.jpg --points "210,160;250,90,-" --multimask --output masks
    sam2_segment photo.jpg --box 1:120,80,300,260 --points "1:250,90,-" --output masks
    sam2_segment folder --prompts prompts.yaml --output masks
    sam2_segment folder --everything --output masks

Exit codes:
    0    every image was segmented
    1    an image could not be segmented, the others were
    2    nothing could be segmented, or the options are wrong

Prompts, files and options are described in docs/how-to/segment-images.md.
"""
from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sam2_core import __version__
from sam2_core.arguments import number, whole
from sam2_core.automatic_masks import Filters
from sam2_core.checkpoint import load_model
from sam2_core.finite import NotFiniteError
from sam2_core.model_choice import PACKAGED, ModelChoice, choose_model, cure, model_lines
from sam2_core.offline.frames import FrameError
from sam2_core.offline.image_masks import ImageMask, find_everything, find_objects, write_masks
from sam2_core.offline.image_set import ImageSet
from sam2_core.offline.options import TYPES, add_model, add_prompts, add_range, say
from sam2_core.offline.prompt_file import SET
from sam2_core.offline.prompt_options import video_prompts
from sam2_core.offline.prompts import VideoPrompt, read_video_prompts
from sam2_core.progress import progress_bar
from sam2_core.prompts import PromptError
from sam2_core.scores import LOW_SCORE
from sam2_core.segmenter import ImageSegmenter

NANO_FILTERS = Filters(min_iou=0.6, min_stability=0.6)  # nano predicts lower values than the published models


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``sam2_segment``."""
    options = argparse.ArgumentParser('sam2_segment', description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    options.add_argument('images', type=Path, nargs='+', metavar='IMAGE',
                         help='image file, folder of images, or TIFF stack, of which each page is an image')
    options.add_argument('--output', type=Path, required=True, metavar='DIR',
                         help='folder for the results; results of images of the same names are replaced')
    prompts = add_prompts(options, 'prompts, in pixels of the image as viewers show it', 'IMAGE',
                          'IMAGE is the number of the image, from 0, if there are several')
    prompts.add_argument('--everything', action='store_true', help='find all objects, without prompts')
    prompts.add_argument('--multimask', action='store_true',
                         help='write three masks per object (whole, part, subpart) instead of one')
    everything = options.add_argument_group('with --everything')
    everything.add_argument('--points-per-side', type=whole(1, 256), metavar='N',
                            help='clicks per side of the grid (default: 32)')
    everything.add_argument('--min-score', type=number(least=0, below=1), metavar='SCORE',
                            help=f'minimum predicted IoU (default: {Filters.min_iou}; nano {NANO_FILTERS.min_iou})')
    everything.add_argument('--min-stability', type=number(least=0, below=1), metavar='SHARE',
                            help=f'minimum stability of a mask (default: {Filters.min_stability}; nano '
                                 f'{NANO_FILTERS.min_stability})')
    everything.add_argument('--min-area', type=whole(0), metavar='PIXELS',
                            help='drop islands and fill holes that are smaller (default: 0, off)')
    add_model(options)
    results = options.add_argument_group('images and results')
    add_range(results)
    results.add_argument('--no-masks', action='store_true', help='write no mask files; the JSON has all masks')
    results.add_argument('--no-overlay', action='store_true', help='write no overlay')
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``sam2_segment`` and return its exit code."""
    options = parser().parse_args(arguments)
    try:
        images = ImageSet(options.images, options.range, say)
        prompts = _read_prompts(options, images)
        choice = choose_model(options.model, options.checkpoint, options.device)
        for line in model_lines(choice):
            say(line)
        model = load_model(choice.name, choice.checkpoint, choice.device, TYPES[options.dtype], options.image_size)
        options.output.mkdir(parents=True, exist_ok=True)
    except (ValueError, OSError, torch.OutOfMemoryError) as error:  # of frames, prompts, checkpoints, connections
        say(f'sam2_segment: {error}')
        return 2
    return _run(options, images, prompts, ImageSegmenter(model), choice)


def _run(options: argparse.Namespace, images: ImageSet, prompts: dict[int, list[VideoPrompt]] | None,
         segmenter: ImageSegmenter, choice: ModelChoice) -> int:
    """Segment the images one by one; ``prompts``: by the number of the image, None for everything."""
    todo = range(len(images)) if prompts is None else sorted(prompts)
    if len(todo) < len(images):
        say(f'{len(images) - len(todo)} of {len(images)} images have no prompt and are left out')
    done, low = 0, 0
    with progress_bar('image', 0, shown=len(todo) > 1) as (write, move):
        for count, index in enumerate(todo):
            name = images.name(index)
            try:
                image = images.read(index)
                masks = _segment(options, segmenter, image, None if prompts is None else prompts[index])
                write_masks(options.output, name, images.path(index), image, masks, segmenter.model,
                            files=not options.no_masks, overlay=not options.no_overlay)
            except (FrameError, PromptError, NotFiniteError, OSError, torch.OutOfMemoryError) as error:
                write(f'sam2_segment: {images.path(index)}: {error}')
                continue
            done += 1
            write(_summary(name, masks, options))
            low += _is_low(masks)
            move((count + 1) / len(todo), count + 1)
    if low:
        say(f'{low} of {done} images have an object with a score below {LOW_SCORE}, whose mask may be wrong: '
             f'{cure(choice)}')
    return 0 if done == len(todo) else 1 if done else 2


def _segment(options: argparse.Namespace, segmenter: ImageSegmenter, image: np.ndarray,
             prompts: Iterable[VideoPrompt] | None) -> list[ImageMask]:
    if prompts is not None:
        return find_objects(segmenter, image, prompts, options.multimask)
    given = {'min_iou': options.min_score, 'min_stability': options.min_stability, 'min_area': options.min_area}
    filters = replace(NANO_FILTERS if segmenter.model.name == PACKAGED else Filters(),
                      **{key: value for key, value in given.items() if value is not None})
    return find_everything(segmenter, image, options.points_per_side or 32, filters)


def _read_prompts(options: argparse.Namespace, images: ImageSet) -> dict[int, list[VideoPrompt]] | None:
    """Return the prompts by the number of their image, or None for everything. Raises ValueError."""
    given = [*(['--box or --points'] if options.given else []), *(['--prompts'] if options.prompts else []),
             *(['--everything'] if options.everything else [])]
    if len(given) != 1:
        raise PromptError(f'{" and ".join(given) or "no prompts"}: give --box or --points, --prompts FILE, or '
                          f'--everything')
    for name in ('points_per_side', 'min_score', 'min_stability', 'min_area'):
        if getattr(options, name) is not None and not options.everything:
            raise PromptError(f'--{name.replace("_", "-")} without --everything: leave it out')
    if options.everything:
        if options.multimask:
            raise PromptError('--multimask with --everything, which chooses among the masks of each click: leave one '
                              'out')
        return None
    if options.prompts:
        prompts = read_video_prompts(options.prompts, len(images))
    else:
        if len(images) > 1 and any(item.frame is None for item in options.given):
            raise PromptError(f'{len(images)} images: say for each --box and --points which image it is for, as '
                              f'@NUMBER from 0, or use --everything')
        prompts = video_prompts(options.given, 0)
    by_image: dict[int, list[VideoPrompt]] = defaultdict(list)
    for item in prompts:
        if not 0 <= item.frame < len(images):
            raise PromptError(f'prompt for image {item.frame}: must be 0 to {len(images) - 1}')
        if options.prompts and item.action != SET:
            raise PromptError(f'prompts {options.prompts}: action {item.action}: images have no past; use set')
        by_image[item.frame].append(item)
    return by_image


def _summary(name: str, masks: Sequence[ImageMask], options: argparse.Namespace) -> str:
    text = f'{name}: {len(masks)} mask{"" if len(masks) == 1 else "s"}'
    if not options.everything:
        return f'{text}, score {", ".join(f"{item.score:.2f}" for item in masks)}'
    return text if masks else f'{text}; lower --min-score or --min-stability to find more'


def _is_low(masks: Iterable[ImageMask]) -> bool:
    """Return whether the best mask of an object has a low score."""
    best: dict[int, float] = {}
    for item in masks:
        best[item.id] = max(item.score, best.get(item.id, 0.0))
    return any(score < LOW_SCORE for score in best.values())


if __name__ == '__main__':
    sys.exit(main())
