"""Strict readers of tensors, arrays and tables: safetensors, .pt, .npz and Parquet.

Libraries that are slow to import are imported by the functions that need them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tubelet.errors import CheckpointError, TubeletError, first_line
from tubelet.io.text import COPY_AGAIN, file_error, require_regular

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

# Limits of an unpacked Parquet file: sixteen times what this package writes into one.
TABLE_BYTES = 2**32
TABLE_ROWS = 2**26


class TensorFile:
    """An open safetensors file whose errors are all a `CheckpointError`; created by `open_safetensors`."""

    def __init__(self, file: Any, guard: Callable[..., Any]) -> None:
        self._file = file
        self._guard = guard
        self.header: dict[str, str] = dict(guard(file.metadata) or {})
        self.names: list[str] = list(guard(file.keys))

    def tensor(self, name: str) -> Any:
        """A tensor, memory-mapped where possible."""
        return self._guard(self._file.get_tensor, name)

    def entry(self, name: str, index: int) -> Any:
        """One entry along the first dimension, without reading the rest."""
        return self._guard(lambda: self._file.get_slice(name)[index])


@contextmanager
def open_safetensors(path: Path, remedy: str = COPY_AGAIN) -> Iterator[TensorFile]:
    """Open a safetensors file for reading.

    Raises:
        CheckpointError: if it is damaged, or a tensor that is read in the block does not exist.
        MissingFileError: if it does not exist.
    """
    from safetensors import SafetensorError, safe_open

    def guard(read: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except (
            OSError, SafetensorError, ValueError, RuntimeError, KeyError, IndexError, TypeError, AttributeError,
            OverflowError, MemoryError,
        ) as error:  # fmt: skip
            raise file_error(path, f"cannot be read ({first_line(error)})", remedy, CheckpointError) from error

    require_regular(path, remedy)
    with guard(lambda: safe_open(path, framework="pt")) as file:
        yield TensorFile(file, guard)


def read_safetensors(path: Path, remedy: str = COPY_AGAIN) -> tuple[dict[str, Any], dict[str, str]]:
    """All tensors of a safetensors file, and the metadata in its header.

    Raises:
        CheckpointError: if it is damaged.
        MissingFileError: if it does not exist.
    """
    with open_safetensors(path, remedy) as file:
        return {name: file.tensor(name) for name in file.names}, file.header


def read_pt(path: str | Path, remedy: str = COPY_AGAIN, device: Any = "cpu", mapped: bool = False) -> dict[Any, Any]:
    """The dictionary in a .pt file, without running code from the file.

    Args:
        path: the file.
        remedy: what to do about a file that cannot be read.
        device: device of the tensors.
        mapped: memory-map the tensors.

    Raises:
        CheckpointError: if it is damaged, contains code, or is not a dictionary.
        MissingFileError: if it does not exist.
    """
    import pickle

    import torch

    require_regular(Path(path), remedy)
    try:
        content = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise file_error(
            path, "corrupt, or contains pickled code, which is not allowed", remedy, CheckpointError
        ) from error
    except Exception as error:  # a damaged pickle raises any kind of error
        raise file_error(
            path, f"is not a .pt file that can be read safely ({first_line(error)})", remedy, CheckpointError
        ) from error
    if not isinstance(content, dict):
        raise file_error(path, f"holds {type(content).__name__}, expected a dictionary", remedy, CheckpointError)
    return content


class ArraySpec(NamedTuple):
    """Expected type and shape of an array in an .npz file.

    Attributes:
        kinds: allowed values of NumPy's `dtype.kind`.
        shape: a number per dimension, or a letter for one that is equal in all arrays; None for any shape.
    """

    kinds: str
    shape: tuple[int | str, ...] | None


def read_npz(path: Path, expected: Mapping[str, ArraySpec], limit: int, remedy: str) -> dict[str, NDArray[Any]]:
    """Arrays of an .npz file.

    Args:
        path: the file.
        expected: specification by name.
        limit: maximum size of the unpacked file in bytes.
        remedy: what to do about a file that cannot be read.

    Raises:
        DataError: if it is damaged, or an array is missing, of another type, or inconsistent with the others.
        MissingFileError: if it does not exist.
    """
    import numpy as np

    require_regular(path, remedy)
    try:
        _check_unpacked_size(path, limit, remedy)
        with np.load(path, allow_pickle=False) as file:
            if missing := [name for name in expected if name not in file.files]:
                raise file_error(path, f"has no {', '.join(missing)}", remedy)
            arrays = {name: file[name] for name in expected}
    except TubeletError:
        raise
    except Exception as error:  # a damaged array header raises many kinds of errors
        raise file_error(path, f"cannot be read as arrays ({first_line(error)})", remedy) from error
    sizes: dict[str, int] = {}
    for name, (kinds, shape) in expected.items():
        array = arrays[name]
        if array.dtype.kind not in kinds:
            raise file_error(path, f"{name} holds {array.dtype}, expected one of the kinds {kinds!r}", remedy)
        if shape is None:
            continue
        expected_shape = [
            sizes.get(dimension, dimension) if isinstance(dimension, str) else dimension for dimension in shape
        ]
        fits = len(expected_shape) == array.ndim and all(
            isinstance(dimension, str) or dimension == length
            for dimension, length in zip(expected_shape, array.shape, strict=True)
        )
        if not fits:
            words = ", ".join(map(str, expected_shape))
            raise file_error(path, f"{name} has shape {array.shape}, expected ({words})", remedy)
        sizes |= {
            dimension: length
            for dimension, length in zip(shape, array.shape, strict=True)
            if isinstance(dimension, str)
        }
    return arrays


def map_npy(path: Path, remedy: str = COPY_AGAIN) -> NDArray[Any]:
    """The array of an .npy file, memory-mapped.

    Raises:
        DataError: if it is damaged, or shorter than its header says.
        MissingFileError: if it does not exist.
    """
    import math

    import numpy as np

    require_regular(path, remedy)
    try:
        with path.open("rb") as file:
            shape, fortran, dtype = _npy_header(file)
            offset, size = file.tell(), path.stat().st_size
        if dtype.hasobject:
            raise file_error(path, "contains pickled objects, which are not read", "save numbers")
        needed = offset + math.prod(shape) * dtype.itemsize
        if size < needed:
            raise file_error(path, f"truncated: has {size} bytes, its header says {needed}", remedy)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")
    except TubeletError:
        raise
    except Exception as error:  # a damaged array header raises many kinds of errors
        raise file_error(path, f"cannot be read as an array ({first_line(error)})", remedy) from error


def npz_names(path: Path, remedy: str = COPY_AGAIN) -> list[str]:
    """The names of the arrays in an .npz file.

    Raises:
        DataError: if it is damaged.
        MissingFileError: if it does not exist.
    """
    import zipfile

    require_regular(path, remedy)
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except Exception as error:  # a damaged archive raises many kinds of errors
        raise file_error(path, f"cannot be read as arrays ({first_line(error)})", remedy) from error


def read_single_npz(path: Path, limit: int, remedy: str = COPY_AGAIN) -> NDArray[Any]:
    """The array of an .npz file that has one.

    Raises:
        DataError: if it is damaged, unpacks to more than `limit` bytes, or has several arrays.
        MissingFileError: if it does not exist.
    """
    names = npz_names(path, remedy)
    if len(names) != 1:
        listed = ", ".join(names[:10])
        raise file_error(path, f"has {len(names)} arrays ({listed}), expected one", "save each as a file of its own")
    return read_npz(path, {names[0]: ArraySpec("buif", None)}, limit, remedy)[names[0]]


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, Any]:
    """Shape, whether the first axis is contiguous, and type by the header of an array."""
    import numpy as np

    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _check_unpacked_size(path: Path, limit: int, remedy: str) -> None:
    """Reject arrays that would take more memory than the limit, or than their data in the file."""
    import math
    import zipfile

    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > limit:
            raise file_error(path, f"unpacks to more than the limit of {limit} bytes", remedy)
        for entry in entries:
            with archive.open(entry) as file:
                shape, _, kind = _npy_header(file)
            if math.prod(shape) * kind.itemsize > entry.file_size:
                raise ValueError(f"{entry.filename} claims the shape {shape}, more than is stored")


def read_parquet(
    path: Path, columns: Mapping[str, str] | None, remedy: str, optional: Mapping[str, str] | None = None
) -> pa.Table:
    """Columns of a Parquet file, without nulls.

    Args:
        path: the file.
        columns: Arrow type by name ("string", "int64", "double"); "vector" is a fixed-size list of floating-point
            values, "sizes" one of whole numbers, "numbers" a list of floating-point values of any length. None reads
            all columns without a check.
        remedy: what to do about a file that cannot be read.
        optional: more columns, read where the file has them.

    Raises:
        DataError: if it is damaged or too large when unpacked, or a column is missing or of another type.
        MissingFileError: if it does not exist.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    require_regular(path, remedy)
    try:
        with pq.ParquetFile(path) as file:
            _check_table(path, file.metadata, remedy)
            if columns is not None:
                optional_columns = {
                    name: kind for name, kind in (optional or {}).items() if name in file.schema_arrow.names
                }
                columns = {**columns, **optional_columns}
                _check_columns(path, file.schema_arrow, columns, remedy)
        texts = [name for name, kind in (columns or {}).items() if kind == "string"]
        # Strings stay dictionary-encoded until their lengths are known: few bytes can stand for many long strings.
        with pq.ParquetFile(path, read_dictionary=texts) as file:
            table = file.read(columns=None if columns is None else list(columns), use_threads=False)
            table.validate(full=True)
        for name in texts:
            index = table.schema.get_field_index(name)
            table = table.set_column(index, name, _plain_text(path, name, table.column(index), remedy))
    except TubeletError:
        raise
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        raise file_error(path, f"cannot be read as Parquet ({first_line(error)})", remedy) from error
    for name in columns or ():
        if table[name].null_count:
            raise file_error(path, f"column {name} has {table[name].null_count} values that are null", remedy)
    return table


def _check_table(path: Path, about: Any, remedy: str) -> None:
    """Reject more rows or values than any table of this package has."""
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    values = [group.column(i).num_values for group in groups for i in range(group.num_columns)]
    size = max(sum(group.total_byte_size for group in groups), 2 * sum(values))
    if not 0 <= about.num_rows <= TABLE_ROWS or size > TABLE_BYTES or min(values, default=0) < 0:
        problem = f"has {about.num_rows} rows of {size} bytes, expected at most {TABLE_ROWS} and {TABLE_BYTES}"
        raise file_error(path, problem, remedy)


def _plain_text(path: Path, name: str, column: pa.ChunkedArray, remedy: str) -> pa.ChunkedArray:
    """Decode a dictionary-encoded string column, unless a string exceeds the limit."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for chunk in column.chunks:
        longest = pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0
        if longest > 2**16 or longest * len(chunk) > TABLE_BYTES:
            raise file_error(path, f"column {name} has a text of {longest} bytes, above the limit", remedy)
    return column.cast(pa.string())


def _check_columns(path: Path, schema: pa.Schema, columns: Mapping[str, str], remedy: str) -> None:
    import pyarrow as pa

    for name, expected in columns.items():
        indices = schema.get_all_field_indices(name)
        if len(indices) != 1:
            names = ", ".join(schema.names[:20])
            raise file_error(path, f"has {len(indices) or 'no'} columns {name!r} (found {names})", remedy)
        kind = schema.field(indices[0]).type
        if expected in ("vector", "sizes"):
            matches = pa.types.is_floating if expected == "vector" else pa.types.is_integer
            fits = pa.types.is_fixed_size_list(kind) and matches(kind.value_type) and kind.list_size > 0
        elif expected == "numbers":
            fits = pa.types.is_list(kind) and pa.types.is_floating(kind.value_type)
        else:
            fits = str(kind) == expected
        if not fits:
            raise file_error(path, f"column {name} is of type {kind}, expected {expected}", remedy)


def vectors(column: pa.ChunkedArray) -> NDArray[Any]:
    """(rows, width) of a column that `read_parquet` read as "vector" or "sizes"."""
    import numpy as np

    width = column.type.list_size
    chunks = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    return np.concatenate(chunks).reshape(-1, width) if chunks else np.empty((0, width), np.float16)


def numbers(column: pa.ChunkedArray) -> list[NDArray[Any]]:
    """The values of each row of a column that `read_parquet` read as "numbers"."""
    import numpy as np

    rows: list[NDArray[Any]] = []
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        ends = np.cumsum(chunk.value_lengths().to_numpy(zero_copy_only=False))
        rows += np.split(values, ends[:-1]) if len(chunk) else []
    return rows
