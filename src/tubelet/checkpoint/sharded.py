"""Checkpoints in parts: a folder into which each process of a sharded run writes what it holds.

A header beside the parts, written last, holds the step, the config, and the size of each part; only then does the
folder get its name. What is in the parts is for `dcp`.
"""

import shutil
from pathlib import Path

from tubelet.io.arrays import open_safetensors
from tubelet.io.text import file_error, read_json

HEADER = "header.json"
FILES = "files"
_COPY = "copy the whole checkpoint folder again"


def is_sharded(path: Path) -> bool:
    """Whether a path is a checkpoint in parts."""
    return (path / HEADER).is_file()


def read_header(path: Path) -> dict[str, str]:
    """What is known about a checkpoint, in parts or in one file.

    Raises:
        TubeletError: if it is damaged or not complete.
    """
    if not path.is_dir():
        with open_safetensors(path) as file:
            return file.header
    header = read_json(path / HEADER, dict[str, str | dict[str, int]], _COPY)
    files = header.pop(FILES, None)
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in header.values()):
        raise file_error(path / HEADER, f"expected texts, and sizes by name as {FILES!r}", _COPY)
    for name, size in files.items():
        if Path(name).name != name:
            raise file_error(path / HEADER, f"lists {name!r}, expected the name of a file beside it", _COPY)
        part = path / name
        found = part.stat().st_size if part.is_file() else None
        if found != size:
            there = "is missing" if found is None else f"has {found} bytes"
            raise file_error(part, f"{there}, expected {size} bytes", _COPY)
    return {name: str(value) for name, value in header.items()}


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint of either kind; a folder loses its name first, so that half of it is never seen."""
    if path.is_dir():
        doomed = path if path.suffix == ".partial" else path.with_name(path.name + ".removed.partial")
        path.replace(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
