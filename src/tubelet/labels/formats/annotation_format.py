"""The interface of annotation formats, and the search for the one that a file has."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from tubelet.errors import TubeletError
from tubelet.io.text import require_regular
from tubelet.labels.records import LabelTable

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


@cache
def _import_modules() -> None:
    package = importlib.import_module("tubelet.labels.formats")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"tubelet.labels.formats.{module.name}")
