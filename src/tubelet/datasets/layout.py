"""Layouts of data sets on disk: which of them lies in a directory.

A layout is one class in a module of this package. Importing the module registers the class, and every module of the
package is imported before the first search, so a new file here is all that a new data set needs.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from tubelet.datasets.locate import entry_names
from tubelet.datasets.records import DatasetRecord
from tubelet.errors import DataError

D = TypeVar("D", bound=DatasetRecord)


class Layout(ABC, Generic[D]):
    """The files and directories of one data set; subclasses with a `record` are registered when defined.

    Attributes:
        record: Type that `load` returns. It decides which tasks can use the data set.
        expected: Name of the data set, and the files or directories that `detect` looks for, for error messages.
        priority: Order of detection, lowest first. Layouts that fit the files of many data sets have higher numbers; of
            those of one number, at most one may fit a directory.
    """

    record: ClassVar[type[DatasetRecord]]
    expected: ClassVar[str]
    priority: ClassVar[int] = 0

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if hasattr(cls, "record"):  # others are bases of several layouts
            _LAYOUTS.append(cls)

    @staticmethod
    @abstractmethod
    def detect(root: Path) -> bool:
        """Return whether the directory looks like this layout; a damaged or incomplete copy counts, `load` names it."""

    @staticmethod
    @abstractmethod
    def load(root: Path) -> D:
        """Read the lists of the data set, not its media.

        Raises:
            MissingFileError: A file or directory is missing.
            DataError: A list or an annotation is malformed.
        """


_LAYOUTS: list[type[Layout[Any]]] = []


def layouts_of(record: type[D]) -> list[type[Layout[D]]]:
    """Layouts that load a type of record, in the order of detection."""
    _import_modules()
    layouts = [layout for layout in _LAYOUTS if layout.record is record]
    return sorted(layouts, key=lambda layout: (layout.priority, layout.__module__))


def find(root: Path, record: type[D]) -> D:
    """Load the data set that lies in a directory.

    Args:
        root: Directory of the data set, or one above it as archives unpack.
        record: Type of data set, for instance `SegmentationDataset`.

    Raises:
        DataError: The directory has no layout of this type, or several, or a file in it is malformed.
        MissingFileError: A file of the data set is missing.
    """
    layouts = layouts_of(record)
    for _, equals in groupby(layouts, key=lambda layout: layout.priority):
        matching = [layout for layout in equals if layout.detect(root)]
        if len(matching) > 1:
            expected = "; ".join(layout.expected for layout in matching)
            raise layout_error(
                root, f"has the layouts of {len(matching)} data sets", f"the directory of one: {expected}"
            )
        if matching:
            return matching[0].load(root)
    expected = "; ".join(layout.expected for layout in layouts)
    raise layout_error(root, f"no {record.kind} data set found", f"one of: {expected}")


def layout_error(root: Path, problem: str, expected: str) -> DataError:
    """Error for a directory that does not have an expected layout; the message lists what the directory holds."""
    names = entry_names(root)
    more = f", and {len(names) - 8} more" if len(names) > 8 else ""
    content = ", ".join(name + "/" * (root / name).is_dir() for name in names[:8]) + more if names else "nothing"
    return DataError(f"{root}: {problem}; expected {expected}; the directory holds {content}")


@cache
def _import_modules() -> None:
    package = importlib.import_module("tubelet.datasets")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"tubelet.datasets.{module.name}")
