"""What the layouts of classification benchmarks have in common: media files, each of one class."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tubelet.data.lists import read_listed
from tubelet.data.tables import decode_list
from tubelet.datasets.locate import other_suffix
from tubelet.errors import BadFile, TubeletError
from tubelet.io.text import read_bytes

_DIGITS = re.compile(r"\d{1,9}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class LabeledFile:
    """A media file and its class.

    Attributes:
        path: the file.
        label: index of its class.
    """

    path: Path
    label: int


@dataclass(frozen=True, kw_only=True)
class ClassificationDataset:
    """A classification benchmark.

    Attributes:
        name: what it is called, with the split that stands for its test where that is not obvious.
        classes: their names, by index.
        train: what heads are trained on.
        val: what they are scored on.
        left_out: reason -> how many files of the folder are in neither.
        read_as: how lists without a header of the benchmark's own were read, in words; empty if there is none.
    """

    name: str
    classes: tuple[str, ...]
    train: list[LabeledFile]
    val: list[LabeledFile]
    left_out: Mapping[str, int] = field(default_factory=dict)
    read_as: str = ""


def read_numbered(path: Path, data: Path) -> tuple[list[tuple[int, Path, int]], str]:
    """The rows of a list of paths and the numbers of their classes, and how the list was read, in words.

    Args:
        path: the list.
        data: where relative paths start.

    Returns:
        line, file and class of each row, and a phrase.

    Raises:
        TubeletError: a line cannot be understood.
    """
    listed = read_listed(str(path), read_bytes(path), lambda paths: sum((data / name).is_file() for name in paths))
    if not len(listed):
        raise TubeletError(f"{path}: lists no videos")
    if listed.labels is None:
        line = decode_list(read_bytes(path), path).split("\n")[listed.lines[0] - 1]
        raise TubeletError(
            f"{path}: line {listed.lines[0]} is {line.strip()[:200]!r}, expected a path and the number of its class"
        )
    rows = []
    columns = (listed.lines.tolist(), listed.paths.to_pylist(), listed.labels.to_pylist())
    for line, name, label in zip(*columns, strict=True):
        number = whole_number("" if label is None else label, f"{path}: line {line}, the class")
        rows.append((line, data / name, number))
    return rows, listed.form


def whole_number(text: object, where: str) -> int:
    """A label that must be a whole number from 0 on.

    Raises:
        TubeletError: naming `where`, if it is none.
    """
    digits = str(text).strip()
    if not _DIGITS.fullmatch(digits):
        raise TubeletError(f"{where} is {text!r:.100}, expected a whole number of 0 or more")
    return int(digits)


def present(
    files: Sequence[LabeledFile], split: str, max_failed_fraction: float
) -> tuple[list[LabeledFile], list[BadFile]]:
    """The files of a split that are on the disk, and those that are not.

    Raises:
        TubeletError: if the split is empty, or a larger share of it than `max_failed_fraction` is missing.
    """
    if not files:
        raise TubeletError(f"the {split} split lists no files")
    there = [file for file in files if file.path.is_file()]
    gone = [BadFile(str(file.path), "is listed but not there") for file in files if not file.path.is_file()]
    if len(gone) > max_failed_fraction * len(files) or not there:
        instead = other_suffix(Path(gone[0].path))
        there_is = f" ({instead.name} is)" if instead else ""
        raise TubeletError(
            f"{gone[0].path}: is listed in the {split} split but not there{there_is}, and so are {len(gone) - 1} of "
            f"its {len(files)} files; --max-failed-fraction {len(gone) / len(files):.3g} would leave them out"
        )
    return there, gone
