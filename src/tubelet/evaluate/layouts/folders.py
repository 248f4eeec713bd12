"""Which benchmark lies in a folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from tubelet.types import TubeletError

T = TypeVar("T")


def recognise(data: Path, readers: Mapping[str, Callable[[Path], T | None]]) -> T:
    """What the first reader that knows the folder makes of it.

    Args:
        data: the folder.
        readers: a benchmark, with what marks its layout -> its reader, which answers None where that is missing.

    Raises:
        TubeletError: if none of them knows it, and what the reader raises.
    """
    for read in readers.values():
        found = read(data)
        if found is not None:
            return found
    raise refuse(data, "no benchmark is recognised", " or ".join(readers))


def refuse(data: Path, found: str, expected: str) -> TubeletError:
    """The error of a folder that is not in a layout: what was expected and what lies there."""
    entries = sorted(path.name + "/" * path.is_dir() for path in data.iterdir())
    there = ", ".join(entries[:8]) + (f", and {len(entries) - 8} more" if len(entries) > 8 else "")
    return TubeletError(f"{data}: {found}; expected {expected}; the folder holds {there or 'nothing'}")
