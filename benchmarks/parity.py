"""Compare sam2_core with SAM 2 of transformers on the same weights: one table, variants by stages.

    python benchmarks/parity.py                       # tiny and base_plus of both releases, and the packaged nano
    python benchmarks/parity.py sam2.1_hiera_large    # this variant only

Weights are random, except those of nano, which are the packaged ones.
"""
from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers

from testing import comparisons, reference

DEFAULT = ('sam2.1_hiera_tiny', 'sam2.1_hiera_base_plus', 'sam2_hiera_tiny', 'sam2_hiera_base_plus', 'nano')


def measure(name: str, frames: int) -> dict[str, float]:
    """Return the largest absolute difference of each stage, and of the mask logits over a stream."""
    pair = comparisons.trained_nano_pair() if name == 'nano' else comparisons.make_pair(name)
    stages = {
        **{f'encoder, {level}': error for level, error in comparisons.encoder_errors(pair).items()},
        **{f'image: {kind}': error for kind, error in comparisons.prompt_errors(pair).items()},
        **comparisons.stage_errors(pair),
    }
    stream = comparisons.run_stream(pair, comparisons.STREAM, reference.moving_scene(frames))
    for object_id, what in ((1, 'tracked'), (2, 'box and click, corrected at 5'), (3, 'added at 3'), (4, 'mask at 1')):
        stages[f'stream: {what}'] = stream.worst(object_id)
    return stages


def table(results: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table with a row for each stage and a column for each variant."""
    names = list(results)
    rows = [['largest difference', *names], ['---', *('---:' for _ in names)]]
    rows += [[stage, *(f'{results[name][stage]:.1e}' for name in names)] for stage in results[names[0]]]
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def main() -> None:
    """Compare the variants and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('variants', nargs='*', default=DEFAULT, metavar='VARIANT',
                        help=f'model variants (default: {" ".join(DEFAULT)})')
    parser.add_argument('--frames', type=int, default=10, help='frames of the stream, at least 6 (default: 10)')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write the results to this file, too')
    arguments = parser.parse_args()
    if arguments.frames < 6:
        parser.error(f'--frames {arguments.frames}: must be at least 6, since frame 5 has a correction')
    results = {}
    for name in arguments.variants:
        print(f'{name} ...', file=sys.stderr)
        with comparisons.one_thread():
            results[name] = measure(name, arguments.frames)
    print(f'float32 on the CPU, images of {reference.IMAGE_SIZE}, torch {torch.__version__}, '
          f'transformers {transformers.__version__}\n\n{table(results)}')
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2))


if __name__ == '__main__':
    main()
