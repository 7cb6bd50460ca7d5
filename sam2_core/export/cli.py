"""Export a model as ONNX graphs with static shapes, with a script that builds TensorRT engines from them.

    sam2_export --model sam2.1_hiera_tiny --onnx graphs --objects 1 4 --verify

docs/how-to/export.md describes how to run the graphs.
"""
from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sam2_core import __version__
from sam2_core.checkpoint import load_model
from sam2_core.config import VARIANTS
from sam2_core.export.stages import Sizes, Stage
from sam2_core.export.verify import TOLERANCE, verify
from sam2_core.export.write import NEEDED, ExportError, export_onnx, need


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line of ``sam2_export``."""
    options = argparse.ArgumentParser('sam2_export', description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    options.add_argument('--model', metavar='NAME', help=f'model to export: {", ".join(VARIANTS)}')
    options.add_argument('--checkpoint', type=Path, metavar='FILE',
                         help='local weights (default: the published weights)')
    options.add_argument('--image-size', type=int, metavar='PIXELS',
                         help='side of the square model input in pixels, a multiple of 32, for edgetam of 256 '
                              '(default: as trained)')
    options.add_argument('--onnx', type=Path, required=True, metavar='DIR',
                         help='output folder; existing files of the same names are replaced')
    sizes = options.add_argument_group('sizes that are fixed in the graphs')
    sizes.add_argument('--objects', type=int, nargs='+', default=[1], metavar='N',
                       help='number of objects per run; several numbers give graphs for each (default: 1)')
    sizes.add_argument('--memory-frames', type=int, default=Sizes.memory_frames, metavar='N',
                       help=f'memory frames to attend to, prompted and recent (default: {Sizes.memory_frames})')
    sizes.add_argument('--pointers', type=int, default=Sizes.pointers, metavar='N',
                       help=f'object pointers to attend to (default: {Sizes.pointers})')
    sizes.add_argument('--points', type=int, default=Sizes.points, metavar='N',
                       help=f'maximum number of points per prompt; a box counts as two (default: {Sizes.points})')
    options.add_argument('--verify', action='store_true',
                         help='run each graph with onnxruntime and compare its outputs with PyTorch')
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``sam2_export``; return 0, 1 if a graph differs from the model, or 2 if the export cannot start."""
    options = parser().parse_args(arguments)
    try:
        need([*NEEDED, *(['onnxruntime'] if options.verify else [])])
        sizes = Sizes(tuple(options.objects), options.memory_frames, options.pointers, options.points)
        model = load_model(options.model, options.checkpoint, device='cpu', image_size=options.image_size)
        options.onnx.mkdir(parents=True, exist_ok=True)
    except (ExportError, ValueError, OSError) as error:
        print(f'sam2_export: {error}', file=sys.stderr)
        return 2
    started = time.monotonic()

    def progress(done: int, total: int, stage: Stage) -> None:
        print(f'[{done + 1}/{total}, {time.monotonic() - started:.0f} s] {stage.name}', file=sys.stderr, flush=True)

    every = export_onnx(model, options.onnx, sizes, progress)
    print(f'wrote {len(every)} graphs of {model.name} at {model.image_size} pixels, model.json and build_tensorrt.sh '
          f'to {options.onnx}', file=sys.stderr)
    if not options.verify:
        return 0
    print(f'{"graph":<20}{"output":<16}{"difference":>12}{"largest value":>16}')
    differ = []
    for found in verify(model, options.onnx, every):
        print(f'{found.stage:<20}{found.output:<16}{found.largest:>12.2g}{found.scale:>16.3g}', flush=True)
        if not found.small:
            differ.append(f'{found.output} of {found.stage}')
    if differ:
        print(f'sam2_export: {", ".join(differ)}: differs from PyTorch by more than {TOLERANCE:g} of the largest value',
              file=sys.stderr)
    return int(bool(differ))


if __name__ == '__main__':
    sys.exit(main())
