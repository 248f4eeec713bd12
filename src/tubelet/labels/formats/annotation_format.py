"""The interface of annotation formats, and the search for the one that a file has."""

import importlib
import logging
import pkgutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, cast

from tubelet.data.size_limits import IMAGE_PIXELS
from tubelet.errors import TubeletError
from tubelet.io.text import read_bytes, require_regular
from tubelet.labels.build import build_table, digest_of, find_media
from tubelet.labels.masks import BACKGROUND
from tubelet.labels.records import LabelRow, LabelTable

logger = logging.getLogger(__name__)

BACKGROUND_NAME = "background"
MAX_CLASSES = 254
"""Classes of masks besides the background: indices have 8 bits, and 255 does not count."""
_HEAD = 2**16


class AnnotationFormat(ABC):
    """The files of one annotation program; subclasses with a `name` are registered when defined.

    Attributes:
        name: name of the program and of its kind of file.
        suffixes: suffixes of its files, in lower case.
    """

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        _FORMATS.append(cls)

    @staticmethod
    @abstractmethod
    def detect(path: Path) -> bool:
        """Whether a file of one of the suffixes has this format; a damaged one counts, `read` names the damage."""

    @staticmethod
    @abstractmethod
    def read(path: Path) -> LabelTable:
        """Read the file.

        Raises:
            DataError: if it is malformed as a whole; faults of annotations are collected in the table.
        """


_FORMATS: list[type[AnnotationFormat]] = []


def annotation_formats() -> list[type[AnnotationFormat]]:
    """All formats, by name."""
    _import_modules()
    return sorted(_FORMATS, key=lambda each: each.name)


def find_format(path: Path) -> type[AnnotationFormat] | None:
    """The format of a file; None if it is a table of another origin, or does not exist."""
    suffix = path.suffix.lower()
    for each in annotation_formats():
        if suffix in each.suffixes and each.detect(path):
            return each
    return None


def head_of(path: Path) -> str:
    """The first characters of a text file, for `detect`; empty if it cannot be read."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            data = file.read(_HEAD)
    except (OSError, TubeletError):
        return ""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    return data.decode(encoding, "replace")


class LabelTableBuilder:
    """Builds the label table of an annotation file: collects its rows, its faults, and counts of unused annotations.

    Attributes:
        path: the file.
        rows: the rows so far.
        faults: number of the annotation and sentence of each fault so far.
        unused: kind of annotation that a label table cannot express -> number of such annotations.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[LabelRow] = []
        self.faults: list[tuple[int, str]] = []
        self.unused: Counter[str] = Counter()

    def fault(self, line: int, problem: str) -> None:
        """Add a fault of an annotation; of the whole file if `line` is 0."""
        self.faults.append((line, f"annotation {line}: {problem}" if line else f"{self.path.name}: {problem}"))

    def media(self, line: int, name: object, folders: Sequence[Path] = ()) -> Path | None:
        """The media file that an annotation names; None, and a fault, if it names none."""
        if isinstance(name, str) and name.strip():
            return find_media(name, self.path.parent, folders)
        self.fault(line, "names no media file")
        return None

    def add_span(self, line: int, media: Path | None, start: object, end: object, labels: Sequence[str]) -> None:
        """Add a span in seconds, or a moment if `end` is None; a time that is no number is a fault."""
        if not all(isinstance(time, (int, float)) and time >= 0 for time in (start, end) if time is not None):
            self.fault(line, f"begins at {start!r:.40} and ends at {end!r:.40}, expected seconds from 0 on")
        elif media is not None:
            times = [None if time is None else float(cast(float, time)) for time in (start, end)]
            row = LabelRow(line=line, path=media, start_s=times[0], end_s=times[1], labels=tuple(labels))
            self.rows.append(row)

    def table(self, form: str, legend: Mapping[int, str] | None = None) -> LabelTable:
        """The table of the rows; kinds of annotations that are not used are logged."""
        for kind, count in (+self.unused).items():
            logger.warning("%s: %d %s are not used", self.path, count, kind)
        return build_table(self.path, form, digest_of(read_bytes(self.path)), self.rows, self.faults, legend=legend)


def image_size(height: object, width: object) -> tuple[int, int] | None:
    """(H, W) of an image that an annotation file gives; None unless it is that of an image that can be read."""
    if not isinstance(height, int) or not isinstance(width, int):
        return None
    return (height, width) if min(height, width) > 0 and height * width <= IMAGE_PIXELS else None


def chosen_attribute(names: Collection[str]) -> str | None:
    """Which of several attributes of annotations has the classes: the one called label or class, or the only one."""
    for preferred in ("label", "labels", "class", "category", "name", "type"):
        for name in names:
            if name.strip().lower() == preferred:
                return name
    return next(iter(names)) if len(names) == 1 else None


def legend_of(names: Sequence[str]) -> dict[int, str]:
    """The legend of masks of shapes: 0 is the background, and the classes have the indices from 1 on."""
    others = [name for name in names if name.lower() != BACKGROUND_NAME]
    return {BACKGROUND: BACKGROUND_NAME} | dict(enumerate(others, BACKGROUND + 1))


@cache
def _import_modules() -> None:
    package = importlib.import_module("tubelet.labels.formats")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"tubelet.labels.formats.{module.name}")
