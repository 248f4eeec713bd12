"""Tensors of sharded checkpoints, resharded on load: any number of ranks can read what any number of ranks wrote.

Built on PyTorch's distributed checkpoint (DCP). Shards are safetensors files instead of DCP's own format, whose index
is a pickle. Importing this module takes long, so only code that reads or writes shards imports it.
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
from tubelet.errors import CheckpointError, first_line
from tubelet.io.files import fsync
from tubelet.io.hidden_files import without_hidden


def async_save(
    state: Mapping[str, Tensor],
    folder: Path,
    header: Mapping[str, str],
    group: dist.ProcessGroup,
    on_complete: Callable[[], None],
) -> Future[Any]:
    """Copy the state, and write the copy in the background; a collective call.

    Args:
        state: tensors by name, each whole or sharded.
        folder: the checkpoint directory; it appears when all shards are on the disk.
        header: metadata of the checkpoint.
        group: a process group for this only, since others are used while the write goes on.
        on_complete: called by one rank when the directory has appeared.

    Returns:
        a future that is done when the directory has appeared; pass its error to `root_cause`.
    """
    writer = _Writer(folder, header, on_complete)
    saving = dcp.async_save(dict(state), storage_writer=writer, process_group=group)
    return saving if isinstance(saving, Future) else saving.upload_completion


def root_cause(error: BaseException) -> BaseException:
    """The error of one rank, from the exception in which DCP collects those of all."""
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error


def read_metadata(path: Path) -> dict[str, Tensor]:
    """Shapes and data types of a checkpoint, sharded or a single file, as tensors on the meta device.

    Raises:
        CheckpointError: if the checkpoint is damaged or incomplete.
    """
    read_header(path)
    try:
        metadata = _Reader(path).read_metadata()
    except Exception as error:  # PyTorch raises many kinds of errors for a damaged header
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({first_line(error)}); copy it again") from error
    return {
        name: torch.empty(entry.size, dtype=entry.properties.dtype, device="meta")
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def load_into(path: Path, state: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole or sharded, from a checkpoint, sharded or a single file.

    Raises:
        CheckpointError: if it cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # each rank reads its own shards
            dcp.load(dict(state), storage_reader=_Reader(path), no_dist=True)
    except Exception as error:  # as above
        cause = root_cause(error)
        reason = first_line(cause) if isinstance(cause, Exception) else type(cause).__name__
        raise CheckpointError(f"{path}: the checkpoint cannot be read ({reason}); copy it again") from error


def load_full(path: Path, select: Callable[[str], bool]) -> dict[str, Tensor]:
    """Selected tensors of a checkpoint, each whole.

    Raises:
        CheckpointError: if the checkpoint cannot be read.
    """
    state = {name: torch.empty_like(shape, device="cpu") for name, shape in read_metadata(path).items() if select(name)}
    load_into(path, state)
    return state


class _Reader(HuggingFaceStorageReader):
    """Reads the shards in a directory, or a single file as the only shard."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.fs = _ListedFiles([path] if path.is_file() else without_hidden(path.glob("*.safetensors")))


class _ListedFiles(FileSystem):
    """The local file system with a fixed listing: only the shards."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        return [str(file) for file in self.files]


class _Writer(HuggingFaceStorageWriter):
    """Writes shards to a temporary directory, which one rank renames when all are written."""

    def __init__(self, folder: Path, header: Mapping[str, str], on_complete: Callable[[], None]) -> None:
        self.folder = folder
        self.partial = folder.with_name(folder.name + ".partial")
        self.header = header
        self.on_complete = on_complete
        super().__init__(str(self.partial), save_distributed=True)

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """One copy on the host; PyTorch's own copies twice, and shards on a CPU with their whole description."""
        self.per_thread_copy_ahead = 0  # as PyTorch's own, for tensors that are on the host
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state_dict.items()}

    def finish(self, metadata: Metadata, results: list[list[Any]]) -> None:
        """Called by one rank when all have written."""
        files = {path.name: path.stat().st_size for path in sorted(self.partial.glob("*.safetensors"))}
        header = self.partial / HEADER
        header.write_text(json.dumps({**self.header, FILES: files}), encoding="utf-8")
        fsync(header)
        fsync(self.partial)
        if self.folder.exists():
            remove_checkpoint(self.folder)
        self.partial.replace(self.folder)
        fsync(self.folder.parent)
        self.on_complete()
