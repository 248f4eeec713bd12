"""Sharded checkpoints: a directory to which each rank of a sharded run writes its shards.

A header, written last, has the step, the config, and the size of each file; only then does the directory get its name.
The tensors are read and written by `dcp`.
"""

import shutil
from pathlib import Path

from tubelet.io.arrays import open_safetensors
from tubelet.io.text import file_error, read_json

HEADER = "header.json"
FILES = "files"
_COPY = "copy the whole checkpoint directory again"


def is_sharded(path: Path) -> bool:
    """Whether a path is a sharded checkpoint."""
    return (path / HEADER).is_file()


def read_header(path: Path) -> dict[str, str]:
    """The header of a checkpoint, sharded or a single file.

    Raises:
        CheckpointError: if the checkpoint is damaged or incomplete.
    """
    if not path.is_dir():
        with open_safetensors(path) as file:
            return file.header
    header = read_json(path / HEADER, dict[str, str | dict[str, int]], _COPY)
    files = header.pop(FILES, None)
    if not isinstance(files, dict) or not all(isinstance(value, str) for value in header.values()):
        raise file_error(path / HEADER, f"expected strings, and file sizes by name as {FILES!r}", _COPY)
    for name, size in files.items():
        if Path(name).name != name:
            raise file_error(path / HEADER, f"lists {name!r}, expected a file name without a directory", _COPY)
        shard = path / name
        actual_size = shard.stat().st_size if shard.is_file() else None
        if actual_size != size:
            problem = "is missing" if actual_size is None else f"has {actual_size} bytes"
            raise file_error(shard, f"{problem}, expected {size} bytes", _COPY)
    return {name: str(value) for name, value in header.items()}


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint; a directory is renamed first, so that a partial one is never visible."""
    if path.is_dir():
        doomed = path if path.suffix == ".partial" else path.with_name(path.name + ".removed.partial")
        path.replace(doomed)
        shutil.rmtree(doomed)
    else:
        path.unlink(missing_ok=True)
