"""Report of speed.py: tables and a plot."""
from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.lib import plots


def label(row: dict) -> str:
    """Return the label of a row in the plot."""
    return f'{row["model"].removeprefix("sam2.1_hiera_")} {row["image_size"]} px, {row["objects"]} obj.'


def of_peak(flop: float | None, milliseconds: float, peak: float) -> float | None:
    """Return the achieved FLOP/s as a fraction of the peak of the machine."""
    return None if flop is None else flop / (milliseconds / 1e3) / peak


def complete(result: dict) -> dict:
    """Add derived figures to a result and return it: ratios, frames per second, fractions of the measured peak."""
    for row in result['rows']:
        ours, peak = row['sides']['sam2_core'], result['peak_flop_per_s'][row['device']]
        for side in row['sides'].values():
            side |= {'frames_per_s': 1e3 / side['ms'], 'ratio': side['ms'] / ours['ms'],
                     'of_peak': of_peak(side['flop'], side['ms'], peak)}
        for stage in row['stages'].values():
            stage['of_peak'] = of_peak(stage['flop'], stage['ms'], peak)
    return result


def tables(result: dict, console: Console) -> None:
    """Print three tables: whole frames, stages of sam2_core, memory."""
    rows = result['rows']
    names = list(dict.fromkeys(name for row in rows for name in row['sides']))
    peaks = ', '.join(f'{peak / 1e9:.0f} GFLOP/s on {device}' for device, peak in result['peak_flop_per_s'].items())
    console.print(f'{result["hardware"]}, {result["threads"]} CPU threads, {result["dtype"]}'
                  f'{", compiled" if result["compile"] else ""}, torch {result["torch"]}, {result["date"]}; '
                  f'peak of a large matrix product: {peaks}', highlight=False)

    def table(what: str, *columns: str) -> Table:
        made = Table(title=what, title_justify='left')
        for column in ('model', 'image', 'objects', 'device', *columns):
            made.add_column(column, justify='left' if column == 'model' else 'right')
        return made

    def add(made: Table, row: dict, *values: str) -> None:
        made.add_row(row['model'], str(row['image_size']), str(row['objects']), row['device'], *values)

    def of_side(row: dict, name: str, field: str, form: str, factor: float = 1.0) -> str:
        value = row['sides'].get(name, {}).get(field)
        return '' if value is None else format(value * factor, form)

    frames = table(f'{result["clock"]} per frame (frames/s), ratio to sam2_core, mask IoU with sam2_core', *names,
                   'sam2_core, GFLOP', 'of the peak')
    for row in rows:
        add(frames, row, *(f'{of_side(row, name, "ms", ".1f")} ({of_side(row, name, "frames_per_s", ".2f")})'
                           + ('' if name == 'sam2_core' else f'\nx {of_side(row, name, "ratio", ".2f")}, IoU '
                                                             f'{of_side(row, name, "mask_iou", ".4f")}')
                           if name in row['sides'] else '' for name in names),
            of_side(row, 'sam2_core', 'flop', '.1f', 1e-9), of_side(row, 'sam2_core', 'of_peak', '.0%'))
    console.print(frames)
    stages = list(rows[0]['stages'])
    made = table(f'stages of sam2_core, {result["clock"]} (of the peak)', *stages)
    for row in rows:
        add(made, row, *(f'{row["stages"][name]["ms"]:.2f} ({row["stages"][name]["of_peak"]:.0%})' for name in stages))
    console.print(made)
    memory = table('peak memory, MiB', *names, 'tracker only')
    for row in rows:
        add(memory, row, *(of_side(row, name, 'peak_mib', '.0f') for name in names), f'{row["tracker_mib"]:.2f}')
    console.print(memory)


def picture(result: dict, path: Path) -> None:
    """Write a plot of the frames per second of all sides, and of the stages of sam2_core."""
    panels = [plots.bars('frames per second', {label(row): {name: side['frames_per_s']
                                                            for name, side in row['sides'].items()}
                                               for row in result['rows']}),
              plots.bars('sam2_core: milliseconds of each stage',
                         {label(row): {name: stage['ms'] for name, stage in row['stages'].items()}
                          for row in result['rows']}, stacked=True)]
    plots.write(path, f'{result["hardware"]}, {result["dtype"]}{", compiled" if result["compile"] else ""}, '
                      f'{result["date"]}', panels)
