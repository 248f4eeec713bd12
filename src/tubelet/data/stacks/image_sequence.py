"""Folders of numbered images as stacks: the frames of a video, as FFmpeg, OpenCV and many robot logs write them.

Names of the frames differ in one number only, whole or decimal (a timestamp in seconds), which is their order.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np

from tubelet.data.file_types import IMAGE_SUFFIXES
from tubelet.data.stacks.stack import Stack, existing_path, info_of, layout_of
from tubelet.errors import ConfigError, DecodeError, MissingFileError
from tubelet.io.hidden_files import is_hidden
from tubelet.io.text import read_start

_SUFFIXES = tuple(sorted(IMAGE_SUFFIXES))
_DIGITS = re.compile(r"(\d+)", re.ASCII)
_CONVERSION = re.compile(r"%%|(%(?:0(\d{1,2}))?d|%f)")
# Fewest images that look like frames; and names of a folder that are looked at: some that are spread evenly, and the
# first ones, which are mostly neighbors, also if the numbers have no padding.
_FEWEST, _SPREAD, _FIRST = 8, 8, 64
# Fraction of the images that have numbers at regular distances, within a factor of two: unrelated images that were
# numbered as a whole and then selected, such as those of COCO and ImageNet, reach less than half.
_REGULAR = 0.9
# Files with a time for each frame, and the bytes of one that are read.
_TIMES, _TIMES_BYTES = ("times.txt", "timestamps.txt"), 2**18
# Seconds of the last digit of a time since 1970, by the number of digits; and the times between 2001 and 2096.
_EPOCH_UNITS, _EPOCH_S = {13: 1e-3, 16: 1e-6, 19: 1e-9}, (1e9, 4e9)


@dataclass(frozen=True)
class NumberedNames:
    """Names that differ in one number.

    Attributes:
        before: text before the number.
        after: text after the number.
        digits: fewest digits of a number, padded with zeros; 0 for numbers without padding, -1 for decimal numbers.
    """

    before: str
    after: str
    digits: int

    def __str__(self) -> str:
        """The pattern of the names, as FFmpeg and OpenCV have it."""
        conversion = {-1: "%f", 0: "%d"}.get(self.digits, f"%0{self.digits}d")
        return self.before.replace("%", "%%") + conversion + self.after.replace("%", "%%")

    def number(self, name: str) -> float | None:
        """The number of a name; None if the name is another one."""
        match = self._match(name)
        return None if match is None else float(match[1]) if self.digits < 0 else int(match[1])

    @cached_property
    def _match(self) -> Callable[[str], re.Match[str] | None]:
        number = r"\d{1,99}\.\d{1,99}" if self.digits < 0 else rf"\d{{{max(1, self.digits)},99}}"
        return re.compile(f"{re.escape(self.before)}({number}){re.escape(self.after)}", re.ASCII).fullmatch


def names_of_pattern(pattern: str) -> NumberedNames | None:
    """The names that the last part of a source means with %d, %06d or %f; None if it has none of them.

    Raises:
        ConfigError: it has several.
    """
    text = pattern.rpartition("/")[2]
    conversions = [match for match in _CONVERSION.finditer(text) if match.group(1)]
    # A web address has bytes such as %d0.
    other = not text.lower().endswith(_SUFFIXES) or glob.has_magic(text) or pattern.startswith(("http://", "https://"))
    if other or not conversions or Path(pattern).expanduser().exists():
        return None
    if len(conversions) > 1:
        raise ConfigError(f"{pattern}: has {len(conversions)} numbers in the name of a frame, expected one")
    (match,) = conversions
    digits = -1 if match.group(1) == "%f" else int(match.group(2) or 0)
    before, after = (part.replace("%%", "%") for part in (text[: match.start()], text[match.end() :]))
    return NumberedNames(before, after, digits)


def find_sequences(pattern: str, names: NumberedNames) -> Iterator[tuple[str, int]]:
    """The folders that have frames of a pattern, sorted, and how many numbers are missing between those of each.

    Raises:
        MissingFileError: there is none.
    """
    parent = str(Path(pattern).expanduser().parent)
    written, found = set(Path(parent).parts), False
    folders = [parent] if Path(parent).is_dir() else []
    if glob.has_magic(parent):  # with a slash at its end, it matches folders only, and no frame is looked up
        folders = sorted(match.rstrip("/") for match in glob.glob(f"{parent}/", recursive=True))  # noqa: PTH207
    for folder in folders:
        if any(part not in written and is_hidden(part) for part in Path(folder).parts):
            continue
        numbers = [number for name in os.listdir(folder) if (number := names.number(name)) is not None]  # noqa: PTH208
        if numbers:
            found = True
            yield folder, _missing(numbers)
    if not found:
        raise MissingFileError(f"{pattern}: no folder has images with such names; check it (quote it in a shell)")


def looks_like_frames(names: Sequence[str]) -> NumberedNames | None:
    """The pattern of a folder's images if they may be frames of a video, by their sorted names alone.

    A few names decide, so that listing takes no longer.
    """
    if len(names) < _FEWEST:
        return None
    spread = [name for name in names[:: max(1, len(names) // _SPREAD) | 1] if name.lower().endswith(_SUFFIXES)]
    first = [name for name in names[:_FIRST] if name.lower().endswith(_SUFFIXES)]
    if not spread or not first:
        return None
    likely, count = Counter(map(_skeleton, spread)).most_common(1)[0]
    if count < _REGULAR * len(spread):
        return None
    alike = [name for name in first if _skeleton(name) == likely]
    pattern = _pattern_of([*alike, *(name for name in spread if _skeleton(name) == likely)])
    if pattern is None or len(alike) < max(_FEWEST, _REGULAR * len(first)):
        return None
    numbers = sorted(pattern.number(name) or 0 for name in alike)
    distances = sorted(after - before for before, after in pairwise(numbers))  # NumPy takes longer for so few
    median = distances[len(distances) // 2]
    regular = sum(median <= 2 * distance <= 4 * median for distance in distances)
    return pattern if median > 0 and regular >= _REGULAR * len(distances) else None


def open_stack(path: str | Path) -> Stack:
    """Open a folder, see `tubelet.data.stacks.open_stack`."""
    name, local = str(path), existing_path(path)
    files, fps = _frames(name, local, local.stat().st_mtime_ns)
    if fps is None and (times := times_file(local)) is not None:
        fps = _rate_of(times, times.stat().st_mtime_ns)
    first = local / files[0]
    shape, kind = _first(name, first, first.stat().st_mtime_ns)
    info = info_of(name, layout_of(name, "TYXC", (len(files), *shape)), np.dtype(kind), fps=fps)

    def read(indices: np.ndarray) -> np.ndarray:
        return np.stack([_frame(name, local / files[int(index)], first, shape, kind) for index in indices])

    return Stack(info, read, lambda: None)


def times_file(folder: Path) -> Path | None:
    """The file with the times of a folder's frames, in it or above it, as KITTI has it; None if there is none."""
    places = (place / name for place in (folder, folder.parent) for name in _TIMES)
    return next((place for place in places if place.is_file()), None)


def _is_image(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not is_hidden(name)


@lru_cache(maxsize=2**4)
def _frames(name: str, folder: Path, mtime_ns: int) -> tuple[list[str], float | None]:
    """The names of the frames in order, and their rate if they have times, kept until a file is added or removed."""
    images = sorted(filter(_is_image, os.listdir(folder)))  # noqa: PTH208 - pathlib takes several times as long
    if not images:
        raise DecodeError(name, "is a folder without images, expected numbered frames of a video")
    kinds: dict[str, list[str]] = {}
    for image in images:
        kinds.setdefault(_skeleton(image), []).append(image)
    most, *others = sorted(kinds.values(), key=len, reverse=True)
    pattern, remedy = _pattern_of(most), "move the frames of each video to a folder of their own, or name one image"
    if others:
        alike = f"{len(most)} like {most[0]}"
        count = len(images) - len(most)
        raise DecodeError(name, f"has {alike} and {count} other image{'s' * (count > 1)} ({others[0][0]}); {remedy}")
    if pattern is None:
        raise DecodeError(name, f"names of its images differ in more than one number ({most[0]}, {most[-1]}); {remedy}")
    numbered = sorted((pattern.number(image) or 0, image) for image in images)
    numbers = [number for number, _ in numbered]
    if twice := next((i for i in range(1, len(numbers)) if numbers[i] == numbers[i - 1]), 0):
        raise DecodeError(name, f"{numbered[twice - 1][1]} and {numbered[twice][1]} have the same number; remove one")
    unit_s = _unit_s(pattern, numbers)
    rate = 1 / (float(np.median(np.diff(numbers))) * unit_s) if unit_s and len(numbers) > 1 else None
    return [image for _, image in numbered], rate


@lru_cache(maxsize=2**10)
def _rate_of(times: Path, mtime_ns: int) -> float | None:
    """Frames per second by the first lines of a file of times, seconds or dates; None if they do not ascend."""
    lines = read_start(times, _TIMES_BYTES).decode("utf-8", "replace").splitlines()
    seconds = [_seconds(line.strip()) for line in lines[: -1 if len(lines) > 2 else None] if line.strip()]
    distances = [after - before for before, after in pairwise(seconds)]
    if not distances or not min(distances) > 0:  # NaN for other texts
        return None
    return 1 / float(np.median(distances))


def _seconds(line: str) -> float:
    """A time in seconds, as a number or as a date; NaN for other texts."""
    for parse in (float, lambda text: datetime.fromisoformat(text).timestamp()):
        with suppress(ValueError, OverflowError):
            return parse(line)
    return float("nan")


def _unit_s(pattern: NumberedNames, numbers: Sequence[float]) -> float:
    """Seconds of a unit of ascending numbers that are times: decimal seconds, or ms, us or ns since 1970; else 0."""
    if pattern.digits < 0:
        return 1.0
    unit_s = _EPOCH_UNITS.get(pattern.digits, 0.0)
    return unit_s if _EPOCH_S[0] < numbers[0] * unit_s < numbers[-1] * unit_s < _EPOCH_S[1] else 0.0


@lru_cache(maxsize=2**10)
def _first(name: str, file: Path, mtime_ns: int) -> tuple[tuple[int, ...], str]:
    """The shape and type of the first frame, kept as long as the file is the same."""
    pixels = _pixels(name, file)
    return pixels.shape, pixels.dtype.name


def _frame(name: str, file: Path, first: Path, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """(H, W, C) values of a frame, which are like those of the first one."""
    pixels = _pixels(name, file)
    if (pixels.shape, pixels.dtype.name) != (shape, kind):
        found, expected = (
            f"{width} x {height} pixels of {channels} channel{'s' * (channels > 1)} in {dtype}"
            for (height, width, channels), dtype in ((pixels.shape, pixels.dtype.name), (shape, kind))
        )
        raise DecodeError(name, f"{file.name} has {found}, expected {expected} as in {first.name}")
    return pixels


def _pixels(name: str, file: Path) -> np.ndarray:
    from tubelet.data.images import read_image_array  # which reads stacks of one frame

    try:
        return read_image_array(str(file), full_depth=True)
    except DecodeError as error:
        raise DecodeError(name, f"{file.name}: {error.reason}") from error


def _skeleton(name: str) -> str:
    """A name without its numbers."""
    return _DIGITS.sub("0", name)


def _pattern_of(names: Sequence[str]) -> NumberedNames | None:
    """The pattern of names that are equal but for their numbers; None if they differ in several numbers."""
    parts = [_DIGITS.split(name) for name in names]
    varying = [i for i in range(1, len(parts[0]), 2) if len({each[i] for each in parts}) > 1]
    varying = varying or [len(parts[0]) - 2] * (len(parts[0]) > 1)  # of a single name, the last number
    decimal = len(varying) == 2 and varying[1] == varying[0] + 2 and parts[0][varying[0] + 1] == "."
    if len(varying) != 1 and not decimal:
        return None
    before, after = "".join(parts[0][: varying[0]]), "".join(parts[0][varying[-1] + 1 :])
    lengths = {len(each[varying[0]]) for each in parts}
    padded = len(lengths) == 1 or any(each[varying[0]][0] == "0" != each[varying[0]] for each in parts)
    digits = min(lengths) if padded and min(lengths) > 1 else 0
    return NumberedNames(before, after, -1 if decimal else digits)


def _missing(numbers: Sequence[float]) -> int:
    """How many numbers are missing between some, at their usual distance."""
    distances = np.diff(np.sort(np.array(numbers, np.float64)))
    if not len(distances) or np.median(distances) <= 0:
        return 0
    return int(np.maximum(np.rint(distances / np.median(distances)) - 1, 0).sum())
