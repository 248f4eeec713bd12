"""What the layouts of classification benchmarks have in common: media files, each of one class."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tubelet.types import BadFile, TubeletError

_DIGITS = re.compile(r"\d{1,9}", re.ASCII)


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
