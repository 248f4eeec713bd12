"""What the layouts of classification benchmarks have in common: media files, each of one class."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tubelet.types import BadFile, TubeletError


@dataclass(frozen=True, kw_only=True)
class LabelledFile:
    """A media file and its class.

    Attributes:
        path: the file.
        label: index of its class.
    """

    path: Path
    label: int


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A classification benchmark.

    Attributes:
        name: what it is called, with the split that stands for its test where that is not obvious.
        classes: their names, by index.
        train: what heads are trained on.
        val: what they are scored on.
    """

    name: str
    classes: tuple[str, ...]
    train: list[LabelledFile]
    val: list[LabelledFile]


def read_json(path: Path, kind: type) -> Any:
    """The content of a JSON file whose outermost value is a `kind`.

    Raises:
        TubeletError: if it cannot be read or is something else.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise TubeletError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(content, kind):
        raise TubeletError(f"{path}: holds a {type(content).__name__}, expected a {kind.__name__}")
    return content


def read_table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a header.

    Args:
        path: the file.
        columns: those that it must have; others are welcome.

    Raises:
        TubeletError: if it cannot be read, or a column is missing, or a row has too few.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            found = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TubeletError(f"{path}: cannot be read as CSV ({error})") from error
    missing = [column for column in columns if column not in found]
    if missing:
        raise TubeletError(f"{path}: has no column {', '.join(missing)}; found {', '.join(found)}")
    for number, row in enumerate(rows, start=2):
        if any(row[column] is None for column in columns):
            raise TubeletError(f"{path}: line {number} has fewer values than the header has columns")
    return rows


def whole_number(text: object, where: str) -> int:
    """A label that must be a whole number from 0 on.

    Raises:
        TubeletError: naming `where`, if it is none.
    """
    try:
        number = int(str(text))
    except ValueError:
        raise TubeletError(f"{where} is {text!r}, expected a whole number") from None
    if number < 0:
        raise TubeletError(f"{where} is {number}, expected 0 or more")
    return number


def present(
    files: Sequence[LabelledFile], split: str, max_bad_share: float
) -> tuple[list[LabelledFile], list[BadFile]]:
    """The files of a split that are on the disk, and those that are not.

    Raises:
        TubeletError: if the split is empty, or a larger share of it than `max_bad_share` is missing.
    """
    if not files:
        raise TubeletError(f"the {split} split lists no files")
    there = [file for file in files if file.path.is_file()]
    gone = [BadFile(str(file.path), "is listed but not there") for file in files if not file.path.is_file()]
    if len(gone) > max_bad_share * len(files) or not there:
        raise TubeletError(
            f"{gone[0].path}: is listed in the {split} split but not there, and so are {len(gone) - 1} of its "
            f"{len(files)} files; --max-bad-share {len(gone) / len(files):.3g} would leave them out"
        )
    return there, gone
