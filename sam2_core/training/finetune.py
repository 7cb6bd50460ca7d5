"""Fine-tune a model on your own data.

    sam2_train --model sam2.1_hiera_small --data clips --output runs/mine --epochs 20

Run the same command again to continue a run that was stopped or killed. To use N GPUs:

    torchrun --nproc-per-node N -m sam2_ros.train --model sam2.1_hiera_small --data clips ...

Exit codes:
    0    complete
    2    could not start
    3    stopped early; run the same command again to continue
    4    a loss, gradient or weight was not finite; the state before it is kept, and the last line names the cure
    130  second Ctrl-C, or one before the first step; nothing was saved

Data, options and examples are described in docs/how-to/fine-tune.md.
"""
from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from sam2_core import __version__
from sam2_core.arguments import device, number, rate, whole
from sam2_core.checkpoint import load_model
from sam2_core.config import VARIANTS
from sam2_core.datasets import FORMATS, Format, LabelledRecording, SkippedFiles, open_recordings
from sam2_core.files import replacing
from sam2_core.model import Sam2Model
from sam2_core.stopping import NO_START
from sam2_core.training.adapters import DEFAULT_RANK, add_adapters, base_weights
from sam2_core.training.clips import MAX_OBJECTS, Clip
from sam2_core.training.command import Write, ending, run_command, train
from sam2_core.training.distributed import join_processes, wait_for_all
from sam2_core.training.log import LogLine
from sam2_core.training.recorded_clips import RecordedClips, split_recordings
from sam2_core.training.settings import Schedule, TrainConfig, part_of
from sam2_core.training.trainer import Trainer

VALIDATION_CLIPS = 16
BagFormat = Callable[[str | None, str | None], Format]
# Options that may change when a run is continued.
_NOT_SETTINGS = {'output', 'device', 'workers', 'save_every', 'log_every', 'validate_every'}


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``sam2_train``."""
    options = argparse.ArgumentParser('sam2_train', description=__doc__,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument('--version', action='version', version=f'%(prog)s {__version__}')
    data = options.add_argument_group('data')
    data.add_argument('--data', type=Path, required=True,
                      help='folder of clips, images or bags, or one COCO JSON file')
    data.add_argument('--format', default='auto', choices=['auto', *FORMATS, 'bag'],
                      help='layout of the data (default: recognised)')
    data.add_argument('--validation', type=float, default=0.1, metavar='SHARE',
                      help='share of the recordings to hold out for validation (default: %(default)s)')
    data.add_argument('--validation-data', type=Path, metavar='DATA',
                      help='folder or file to validate on instead, in the same layout')
    data.add_argument('--image-topic', metavar='TOPIC',
                      help="image topic of bags (default: the one with most of the labels' stamps)")
    data.add_argument('--label-topic', metavar='TOPIC',
                      help='label topic of bags (default: instances if there are any, else label images)')
    data.add_argument('--frames', type=whole(1), default=8, metavar='N',
                      help='frames per clip; 1 trains on images (default: %(default)s)')
    data.add_argument('--workers', type=whole(0), default=min(8, max(0, (os.cpu_count() or 1) - 1)), metavar='N',
                      help='processes that read data (default: number of cores - 1, at most 8)')

    model = options.add_argument_group('model')
    model.add_argument('--model', default='nano', choices=VARIANTS, metavar='NAME',
                       help=f'one of {", ".join(VARIANTS)} (default: %(default)s)')
    model.add_argument('--checkpoint', type=Path, metavar='FILE',
                       help='weights to start from (default: the published ones)')
    model.add_argument('--image-size', type=whole(32), metavar='PIXELS',
                       help='side of the square image that the model sees, a multiple of 32, for edgetam of 256 '
                            '(default: as the weights)')
    model.add_argument('--freeze', nargs='*', default=['image_encoder'], metavar='PART',
                       help='parts that are not trained, by the start of their name (default: image_encoder); '
                            '--freeze without a part trains all parts')
    model.add_argument('--lora', nargs='?', type=whole(1), const=DEFAULT_RANK, metavar='RANK',
                       help=f'train LoRA adapters of this rank ({DEFAULT_RANK} if none is given) instead of the '
                            f'weights; they are merged into the written weights; needs peft')
    model.add_argument('--lora-modules', metavar='REGEX',
                       help='names of the layers to adapt (default: all linear layers outside the frozen parts)')
    model.add_argument('--recompute', action='store_true',
                       help="gradient checkpointing of the image encoder's trunk: less memory, more time")

    training = options.add_argument_group('training')
    training.add_argument('--output', type=Path, required=True, metavar='DIR',
                          help='folder for weights, log, curves and checkpoint')
    length = training.add_mutually_exclusive_group(required=True)
    length.add_argument('--epochs', type=number(above=0), metavar='N', help='length of the run in passes over the data')
    length.add_argument('--steps', type=whole(1), metavar='N', help='length of the run in steps')
    length.add_argument('--minutes', type=number(above=0), metavar='M',
                        help='length of the run in minutes; the learning rate reaches 0 when they are over')
    training.add_argument('--lr', action='append', default=[], metavar='RATE or PART=RATE', type=rate,
                          help='peak learning rate of all parts or of one part; may be repeated (default: 1e-5, nano '
                               '2e-4; ten times as high with --lora)')
    training.add_argument('--batch', type=whole(1), default=2, metavar='N',
                          help='clips per batch in each process (default: %(default)s)')
    training.add_argument('--accumulate', type=whole(1), default=1, metavar='N',
                          help='batches per step (default: %(default)s)')
    training.add_argument('--objects', type=whole(1, MAX_OBJECTS), default=3, metavar='N',
                          help=f'objects per clip, at most {MAX_OBJECTS} (default: %(default)s)')
    training.add_argument('--weight-decay', type=number(least=0), default=0.05, metavar='DECAY',
                          help='weight decay of AdamW (default: %(default)s)')
    training.add_argument('--ema', type=number(least=0, below=1), default=0.0, metavar='DECAY',
                          help='keep a moving average of the weights, e.g. 0.99; validate and write the average '
                               '(default: %(default)s, off)')
    training.add_argument('--bf16', action='store_true', help='compute in bfloat16 (autocast)')
    training.add_argument('--seed', type=whole(0), default=0, metavar='N',
                          help='seed of data, prompts and random choices (default: %(default)s)')
    training.add_argument('--device', type=device, default='cuda' if torch.cuda.is_available() else 'cpu',
                          help='cpu, cuda or cuda:N (default: cuda if there is a GPU)')
    training.add_argument('--save-every', type=number(least=0), default=120.0, metavar='SECONDS',
                          help='interval of checkpoints (default: %(default)s)')
    training.add_argument('--validate-every', type=whole(0), default=200, metavar='STEPS',
                          help='interval of validations; 0 validates at the start and the end only '
                               '(default: %(default)s)')
    training.add_argument('--log-every', type=whole(1), default=20, metavar='STEPS',
                          help='interval of log lines (default: %(default)s)')
    return options


def check_parts(model: Sam2Model, frozen: Sequence[str], rates: Sequence[str]) -> None:
    """Raise ValueError for an unknown part, for the learning rate of a frozen part, or if nothing is left to train."""
    names = [name for name, _ in model.named_parameters()]
    for part in (*frozen, *rates):
        if not any(part_of(name, [part]) for name in names):
            known = sorted({name.split('.')[0] for name in names} | {'image_encoder.trunk', 'image_encoder.neck'})
            raise ValueError(f'{part}: no part of {model.name}; parts are {", ".join(known)}, and the modules in them')
    for part in rates:
        if all(part_of(name, frozen) for name in names if part_of(name, [part])):
            raise ValueError(f'learning rate of {part}: the part is frozen; freeze other parts only (--freeze ...)')
    if all(part_of(name, frozen) for name in names):
        raise ValueError(f'freezing {" ".join(frozen)} leaves nothing to train')


def _recordings(options: argparse.Namespace, skipped: SkippedFiles,
                bags: BagFormat | None) -> tuple[list[LabelledRecording], list[LabelledRecording]]:
    """Return the recordings for training and for validation."""
    formats = dict(FORMATS)
    if bags is not None:
        formats['bag'] = bags(options.image_topic, options.label_topic)
    elif options.format == 'bag':
        raise ValueError('format bag: sam2_ros reads bags with rosbags: pip install rosbags rosbags-image, and start '
                         'sam2_train or python -m sam2_ros.train')
    found = open_recordings(options.data, skipped, options.format, formats)
    if options.validation_data is None:
        return split_recordings(found, options.validation)
    return found, open_recordings(options.validation_data, skipped, options.format, formats)


def _settings(options: argparse.Namespace, world: int) -> dict[str, str]:
    """Return the settings that must not change when a run is continued."""
    settings = {name: str(value) for name, value in vars(options).items() if name not in _NOT_SETTINGS}
    settings['processes x accumulate'] = str(world * options.accumulate)
    del settings['accumulate']
    return settings


def _check_settings(path: Path, settings: dict[str, str]) -> None:
    """Raise ValueError if the output folder holds a run with other settings."""
    if not path.exists():
        return
    before = json.loads(path.read_text())
    changed = [f'{name} was {before.get(name)}, is {value}' for name, value in settings.items()
               if before.get(name, 'None') != value]  # a run may be older than an option
    if changed:
        raise ValueError(f'{path.parent} holds a run with other settings: {"; ".join(changed)}. '
                         f'Choose another --output, or the same settings to continue it')


def _write_settings(path: Path, settings: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:  # other processes look for the file meanwhile
        part.write_text(json.dumps(settings, indent=1))


def _validation_clips(options: argparse.Namespace, held_out: list[LabelledRecording], size: int,
                      skipped: SkippedFiles) -> list[Clip]:
    """Return the clips to validate on.

    Raises ValueError if nothing of a folder that was named for it can be read. If all of a few recordings that were
    held out by chance are broken, report it and continue without validation.
    """
    if not held_out:
        return []
    clips = RecordedClips(held_out, options.frames, size, skipped, augment=False)
    try:
        return [clips.clip(i) for i in range(min(VALIDATION_CLIPS, 4 * len(held_out)))]
    except ValueError as error:
        if options.validation_data is not None:
            raise ValueError(f'validation data {options.validation_data}: {error}') from error
        print(f'no validation: of the recordings held out, {error}; hold out more (--validation) or name a folder '
              f'(--validation-data)', file=sys.stderr)
        return []


def _adapt(model: Sam2Model, options: argparse.Namespace, rates: Sequence[str]) -> list[str]:
    """Add the adapters that were asked for and return the names of their layers."""
    if options.lora is None:
        if options.lora_modules is not None:
            raise ValueError(f'lora-modules {options.lora_modules!r}: without adapters; add --lora')
        return []
    adapted = add_adapters(model, options.lora, options.lora_modules, options.freeze, options.seed)
    for part in rates:
        if not any(part_of(name, [part]) for name in adapted):
            raise ValueError(f'learning rate of {part}: no layer in it has an adapter')
    return adapted


def prepare(options: argparse.Namespace, bags: BagFormat | None, skipped: SkippedFiles) -> Trainer:
    """Build the run up to its first step. Raises ValueError or OSError for errors that a user can correct."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    model = load_model(options.model, options.checkpoint, device='cpu', image_size=options.image_size)
    rates = dict(options.lr)
    peak = rates.pop(None, (2e-4 if options.model == 'nano' else 1e-5) * (1 if options.lora is None else 10))
    check_parts(model, options.freeze, list(rates))
    adapted = _adapt(model, options, list(rates))
    frozen = base_weights(model) if adapted else tuple(options.freeze)
    model.image_encoder.trunk.recompute = options.recompute
    training, held_out = _recordings(options, skipped, bags)
    settings, path = _settings(options, world), options.output / 'settings.json'
    _check_settings(path, settings)
    size, clips = model.image_size, options.batch * options.accumulate
    steps = options.steps
    if options.epochs is not None:
        steps = max(1, math.ceil(options.epochs * len(training) / (clips * world)))
    validation = _validation_clips(options, held_out, size, skipped)
    config = TrainConfig(
        output=options.output, model=model.config, steps=steps, minutes=options.minutes,
        schedule=Schedule(stages=((1.0, options.frames),), learning_rate=peak, warm_up=0.05, balance=(0.0, 0.0),
                          true_masks=(0.0, 0.0), true_presence=(0.0, 0.0)),
        chunks=clips, accumulate=options.accumulate, clip_frames=options.frames, objects=options.objects,
        augment=False, foreground=False, frozen=frozen, rates=tuple(rates.items()),
        weight_decay=options.weight_decay, ema=options.ema, seed=options.seed, workers=options.workers,
        device=options.device, half=options.bf16, save_every=options.save_every, log_every=options.log_every,
        validate_every=options.validate_every if validation else 0, weights_dtype=torch.float32)
    source = RecordedClips(training, options.frames, size, skipped, options.seed)
    source.clip(0)  # raises NoUsableData before anything is written, not in the first step
    trainer = Trainer(config, source, model, validation)
    if trainer.rank == 0:
        _write_settings(path, settings)
        trained = sum(p.numel() for name, p in model.named_parameters() if part_of(name, frozen) is None)
        print(f'{len(training)} recordings for training, {len(held_out)} for validation; {model.name} at {size} '
              f'pixels, {trained / 1e6:.3g} M of {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M weights '
              f'train{f", adapters of rank {options.lora} on {len(adapted)} layers" if adapted else ""}',
              file=sys.stderr)
    return trainer


class _Lines:
    """Lines for a person: figures of the log, and the files that were skipped since the line before."""

    def __init__(self, skipped: SkippedFiles, write: Write) -> None:
        self._skipped, self._write = skipped, write
        self._reported = 0

    def show(self, line: LogLine) -> None:
        """Show a line of the log."""
        found = list(self._skipped.all().items())
        for file, reason in found[self._reported:]:
            self._write(f'skipped: {file}: {reason}')
        self._reported = len(found)
        names = {'loss': 'loss', 'image_box_j': 'J box', 'image_click_j': 'J click', 'video_tracked_j': 'J tracked'}
        kind = 'validation_' if any(name.startswith('validation') for name in line) else ''
        figures = [f'{label} {line[kind + name]:.3f}' for name, label in names.items() if kind + name in line]
        self._write(f'step {line["step"]}{", validation" if kind else ""}: {", ".join(figures)}')


def main(arguments: Sequence[str] | None = None, bags: BagFormat | None = None) -> int:
    """Fine-tune and return the exit code, as ``--help`` lists them.

    bags: reader of bags, passed by sam2_ros, which knows this project's messages; None: bags are refused.
    """
    options = parser().parse_args(arguments)
    options.device = join_processes(options.device)
    return run_command('sam2_train', lambda: _train(options, bags))


def _train(options: argparse.Namespace, bags: BagFormat | None) -> int:
    skipped = SkippedFiles(options.output / 'skipped.jsonl')
    first = int(os.environ.get('RANK', 0)) == 0
    if first:
        skipped.clear()
    wait_for_all()
    try:
        trainer = prepare(options, bags, skipped)
    except (ValueError, OSError) as error:
        print(f'sam2_train: {error}', file=sys.stderr)
        if first:
            _report_skipped(skipped)
        return NO_START
    if first and (doubts := skipped.doubts()):
        _list(f'{len(doubts)} {"file has" if len(doubts) == 1 else "files have"} doubtful content, which is used:',
              doubts, skipped)
    outcome = train(trainer, lambda write: _Lines(skipped, write).show)
    if trainer.rank == 0:
        _report_skipped(skipped)
        print(ending('sam2_train', trainer, outcome, _success(trainer), _cures(trainer.config)), file=sys.stderr)
    return outcome.code


def _success(trainer: Trainer) -> str:
    output = trainer.config.output
    return (f'load_model({trainer.model.name!r}, checkpoint={str(output / "weights.safetensors")!r}); curves: '
            f'{output / "curves.png"}')


def _cures(config: TrainConfig) -> str:
    return (f'a lower learning rate (--lr, here {config.schedule.learning_rate:g})'
            f'{", without --bf16" if config.half else ""}, or with more parts frozen')


def _report_skipped(skipped: SkippedFiles) -> None:
    found = skipped.all()
    if found:
        _list(f'{len(found)} {"file was" if len(found) == 1 else "files were"} skipped:', found, skipped)


def _list(title: str, found: dict[str, str], skipped: SkippedFiles) -> None:
    print(title, file=sys.stderr)
    for file, reason in list(found.items())[:20]:
        print(f'  {file}: {reason}', file=sys.stderr)
    if len(found) > 20:
        print(f'  and {len(found) - 20} more, see {skipped.path}', file=sys.stderr)


if __name__ == '__main__':
    sys.exit(main())
