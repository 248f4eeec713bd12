"""The tensors of checkpoints in parts, cut and joined: what few processes wrote, many can read.

PyTorch's distributed checkpoint (DCP) does it. Parts are safetensors files, not DCP's own format, whose index is a
pickle. This takes long to import: only what writes or reads parts does.
"""

import json
import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from tubelet.checkpoint.sharded import FILES, HEADER, read_header, remove_checkpoint
from tubelet.errors import TubeletError, first_line
from tubelet.io.files import fsync
from tubelet.io.hidden import without_hidden


def async_save(
    state: Mapping[str, Tensor],
    folder: Path,
    header: Mapping[str, str],
    group: dist.ProcessGroup,
    finished: Callable[[], None],
) -> Future[Any]:
    """Copy the state, and write the copy in the background; all processes call this together.

    Args:
        state: tensors by name, each whole or the part that this process holds.
        folder: appears when all parts are on the disk.
        header: what is to be known about them.
        group: for this alone, since writing goes on while others are used.
        finished: called by one process when the folder has appeared.

    Returns:
        done when the folder has appeared; its error is one for `root_cause`.
    """
    writer = _Writer(folder, header, finished)
    saving = dcp.async_save(dict(state), storage_writer=writer, process_group=group)
    return saving if isinstance(saving, Future) else saving.upload_completion


def root_cause(error: BaseException) -> BaseException:
    """The error of one process, out of what DCP makes of the errors of all."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


def read_metadata(path: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, in parts or in one file, without its content.

    Raises:
        TubeletError: if the checkpoint is damaged or not complete.
    """
    read_header(path)
    try:
        metadata = _Reader(path).read_metadata()
    except Exception as error:  # a damaged header of a part fails in many ways inside PyTorch
        raise TubeletError(f"{path}: the checkpoint cannot be read ({first_line(error)}); copy it again") from error
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def load_into(path: Path, state: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole or this process's parts of them, with those of a checkpoint, in parts or in one file.

    Raises:
        TubeletError: if it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # each reads for itself
            dcp.load(dict(state), storage_reader=_Reader(path), no_dist=True)
    except Exception as error:  # as above
        cause = root_cause(error)
        said = first_line(cause) if isinstance(cause, Exception) else type(cause).__name__
        raise TubeletError(f"{path}: the checkpoint cannot be read ({said}); copy it again") from error


def load_full(path: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The tensors whose name is wanted, each in one piece.

    Raises:
        TubeletError: if the checkpoint cannot be read.
    """
    state = {name: torch.empty_like(shape, device="cpu") for name, shape in read_metadata(path).items() if wanted(name)}
    load_into(path, state)
    return state


class _Reader(HuggingFaceStorageReader):
    """Reads the parts in a folder, or one file as the only part."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.fs = _ListedFiles([path] if path.is_file() else without_hidden(path.glob("*.safetensors")))


class _ListedFiles(FileSystem):
    """The local file system, where a listing names the parts alone."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        return [str(file) for file in self.files]


class _Writer(HuggingFaceStorageWriter):
    """Writes parts beside their place; one process moves them there when all are written."""

    def __init__(self, folder: Path, header: Mapping[str, str], finished: Callable[[], None]) -> None:
        self.folder = folder
        self.partial = folder.with_name(folder.name + ".partial")
        self.header = header
        self.finished = finished
        super().__init__(str(self.partial), save_distributed=True)

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """Called by one process when all have written."""
        files = {path.name: path.stat().st_size for path in sorted(self.partial.glob("*.safetensors"))}
        header = self.partial / HEADER
        header.write_text(json.dumps({**self.header, FILES: files}))
        fsync(header)
        fsync(self.partial)
        if self.folder.exists():
            remove_checkpoint(self.folder)
        self.partial.replace(self.folder)
        fsync(self.folder.parent)
        self.finished()
