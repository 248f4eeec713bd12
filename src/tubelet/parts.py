"""Checkpoints in parts: a folder into which each process of a sharded run writes what it holds.

A header beside the parts, written last, holds the step, the config, and the size of each part; only then does the
folder get its name. What is in the parts is for `resharding`.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from tubelet.types import TubeletError

HEADER = "header.json"
FILES = "files"


def is_in_parts(path: Path) -> bool:
    """Whether a path is a checkpoint in parts."""
    return (path / HEADER).is_file()


def read_header(path: Path) -> dict[str, str]:
    """What is known about a checkpoint, in parts or in one file.

    Raises:
        TubeletError: if it is damaged or not complete.
    """
    if not path.is_dir():
        try:
            with safe_open(path, framework="pt") as file:
                return dict(file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise TubeletError(f"{path}: the checkpoint cannot be read ({error})") from error
    try:
        header: dict[str, Any] = json.loads((path / HEADER).read_text())
        files: dict[str, int] = header.pop(FILES)
        for name, size in files.items():
            found = (path / name).stat().st_size
            if found != size:
                raise ValueError(f"{name} has {found} bytes, expected {size}")
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise TubeletError(f"{path}: the checkpoint cannot be read ({error}); copy the whole folder again") from error
    return header


def remove(path: Path) -> None:
    """Remove a checkpoint of either kind; a folder loses its name first, so that half of it is never seen."""
    if path.is_dir():
        doomed = path if path.suffix == ".partial" else path.with_name(path.name + ".removed.partial")
        path.replace(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
