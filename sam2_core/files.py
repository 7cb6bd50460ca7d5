"""Files and folders: order by the numbers in names, search through symlinks, replacement of whole files."""
from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from decimal import Decimal
from pathlib import Path

Notice = Callable[[Path, str], None]  # called with a path that is skipped and the reason
_NUMBER = re.compile(r'((?:^|(?<=[_= ]))-\d+|\d+)')  # a minus is a sign at the start of a name or of a part of it
_TIMES = (12, 24, 60)  # months, hours and minutes start again within one series
_DECIMAL = re.compile(r'(.*?)(\d+)\.(\d+)')


class OrderError(ValueError):
    """Error for files whose order is ambiguous."""


def natural_key(name: str) -> tuple[str | int, ...]:
    """Return a key that sorts names by the numbers in them: 2 before 10, 1 like 001, ignoring case."""
    return tuple(int(part) if i % 2 else part for i, part in enumerate(_NUMBER.split(name.casefold())))


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Return paths in natural order, folder by folder; names that differ only in zeros or case have a fixed order."""
    return sorted(paths, key=lambda path: ([natural_key(part) for part in path.parts], path.parts))


def frames_in_order(paths: Iterable[Path]) -> list[Path]:
    """Return the files of one folder in the order of the numbers in their names.

    Raise OrderError if two files have the same number (1.jpg and 001.jpg, 1.jpg and 1.png), or if numbers with a point
    have one order as decimals and another as two numbers (1.9 and 1.10).
    """
    found = sorted(paths, key=lambda path: (natural_key(path.stem), path.name))
    for one, other in zip(found, found[1:], strict=False):
        if natural_key(one.stem) == natural_key(other.stem):
            raise OrderError(f'{one.name} and {other.name} are two files for one frame: remove or rename one')
    decimals = [match for path in found if (match := _DECIMAL.fullmatch(path.stem))]
    if (len(decimals) == len(found) and len({match[1] for match in decimals}) == 1
            and len({len(match[3]) for match in decimals}) > 1):
        values = [Decimal(f'{match[2]}.{match[3]}') for match in decimals]
        for i in range(1, len(found)):
            if values[i] <= values[i - 1]:
                raise OrderError(f'{found[i - 1].name} and {found[i].name}: their order depends on whether names '
                                 f'are decimals; give all names the same number of digits after the point')
    return found


def not_one_sequence(stems: Sequence[str]) -> str | None:
    """Return why names are not those of the frames of one video (one text with a running number), or None."""
    stems = sorted(stems, key=natural_key)
    parts = {stem: natural_key(stem) for stem in stems}
    for one, other in zip(stems, stems[1:], strict=False):
        if parts[one][::2] != parts[other][::2]:
            return f'{one} and {other} are not numbered alike'
        if len(parts[one]) == 1:
            return f'{one} and {other} have no number'
    if len(stems) < 2:
        return None
    series = defaultdict(list)  # for example of several cameras, by all numbers but the last
    for stem in stems:
        series[parts[stem][:-2]].append(stem)
    first, *others = series.values()
    runs = {tuple(parts[stem][-2] for stem in names) for names in series.values()}
    start, count = parts[first[0]][-2], len(first)
    counted = start in (0, 1) and runs == {tuple(range(start, start + count))}
    if others and count > 1 and counted and count not in _TIMES:
        return f'{first[0]} and {others[0][0]} each start a series'
    return None


def folders_below(folder: Path, notice: Notice) -> Iterator[Path]:
    """Yield a folder and all folders below it, through symlinks, in natural order; hidden folders are ignored.

    Each folder is entered once. A second link to a folder is passed to ``notice``; a link to a folder above is ignored.
    """
    met: dict[tuple[int, int], Path] = {}
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        try:
            status = place.stat()
            if (first := met.setdefault((status.st_dev, status.st_ino), place)) != place:
                if not any(above.samefile(place) for above in place.parents):
                    notice(place, f'the same folder as {first}')
                continue
            with os.scandir(place) as entries:
                found = [entry for entry in entries if not entry.name.startswith('.')]
        except OSError as error:
            notice(place, error.strerror or type(error).__name__)
            continue
        yield place
        for entry in found:
            if entry.is_symlink() and not os.path.exists(entry.path):
                notice(Path(entry.path), f'a link to {os.readlink(entry.path)}, which does not exist')
        waiting += reversed(in_order(Path(entry.path) for entry in found if entry.is_dir()))


def files_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Return the files of a folder with one of these lower-case suffixes, unordered; hidden files are ignored.

    Raise OSError if the folder cannot be read.
    """
    return [path for path in folder.iterdir()
            if path.suffix.lower() in suffixes and not path.name.startswith('.') and not path.is_dir()]


def files_below(folder: Path, endings: tuple[str, ...], notice: Notice) -> list[Path]:
    """Return the files below a folder with one of these lower-case endings, in natural order."""
    return [path for place in folders_below(folder, notice) for path in in_order(
        path for path in place.iterdir()
        if path.name.lower().endswith(endings) and not path.name.startswith('.') and not path.is_dir())]


def by_spelling(names: Iterable[str]) -> dict[tuple[str | int, ...], str]:
    """Index names by their natural key, for ``other_spelling``."""
    return {natural_key(name): name for name in names}


def other_spelling(name: str, names: Mapping[tuple[str | int, ...], str]) -> str:
    """Return a hint, to append to an error, at a name that differs only in case or zeros; '' if there is none."""
    near = names.get(natural_key(name), name)
    return '' if near == name else f'; there is {near}: names must be equal'


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a file name to write to, beside ``path``, and rename that file to ``path`` when the block ends.

    Other processes see the old file or the new one, never a part of it. If the block raises, ``path`` is left alone
    and the part is removed. With ``durable``, the same holds after a power cut, and the new file is on the disk when
    the block ends.
    """
    part = path.with_name(f'{path.name}.part')
    try:
        yield part
        if durable:
            _flush(part)
        part.replace(path)
        if durable:
            with suppress(OSError):  # some file systems cannot flush a folder; the file is in its place already
                _flush(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _flush(path: Path) -> None:
    """Wait until a file, or the list of names of a folder, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
