"""Options and output that the commands of this package share."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sam2_core.arguments import device, whole
from sam2_core.checkpoint import DTYPES
from sam2_core.config import VARIANTS
from sam2_core.offline.prompt_options import InOrder, read_box, read_points, read_range

TYPES = {str(dtype).removeprefix('torch.'): dtype for dtype in DTYPES}


def add_prompts(options: argparse.ArgumentParser, title: str, frame: str, more: str) -> argparse._ArgumentGroup:
    """Add --box, --points and --prompts; return their group.

    Args:
        options: Parser of the command.
        title: Title of the group.
        frame: What a prompt is drawn on, in capitals: FRAME.
        more: Sentence about further prompts for an object, or about ``frame``.
    """
    group = options.add_argument_group(title)
    group.add_argument('--box', dest='given', action=InOrder, type=read_box, metavar=f'X0,Y0,X1,Y1[@{frame}]',
                       help='box around a new object in pixels; ID:X0,... for object ID; may be repeated')
    group.add_argument('--points', dest='given', action=InOrder, type=read_points, metavar=f'X,Y[,-][;...][@{frame}]',
                       help=f'points on a new object; X,Y,- is not on it; ID:X,... for object ID; may be repeated. '
                            f'{more}')
    group.add_argument('--prompts', type=Path, metavar='FILE', help='JSON or YAML file of prompts instead')
    return group


def add_model(options: argparse.ArgumentParser) -> None:
    """Add --model, --checkpoint, --device, --dtype and --image-size."""
    group = options.add_argument_group('model')
    group.add_argument('--model', choices=VARIANTS, metavar='NAME',
                       help=f'one of {", ".join(VARIANTS)} (default: a published model that is cached, else nano)')
    group.add_argument('--checkpoint', type=Path, metavar='FILE', help='local weights')
    group.add_argument('--device', type=device, metavar='DEVICE',
                       help='cpu, cuda or cuda:N (default: cuda if there is a GPU)')
    group.add_argument('--dtype', choices=TYPES, default='float32', help='number type (default: %(default)s)')
    group.add_argument('--image-size', type=whole(32), metavar='PIXELS',
                       help='side of the square image that the model sees, a multiple of 32, for edgetam of 256 '
                            '(default: as the weights)')


def add_range(group: argparse._ArgumentGroup) -> None:
    """Add --range."""
    group.add_argument('--range', type=read_range, metavar='LOW,HIGH',
                       help='values of pictures of more than 8 bits that become black and white (default: percentiles '
                            'of the pictures, one range for a folder or stack)')


def say(text: str) -> None:
    """Write a line for a person."""
    print(text, file=sys.stderr, flush=True)
