"""Features of a collection as Parquet files, which grow part by part and can be continued after any crash.

A part is written to a temporary file and renamed: every visible part is complete. The set of finished clips is read
from the parts themselves, so that no row occurs twice.
"""

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tubelet.errors import DataError, MissingFileError, TubeletError
from tubelet.io.arrays import read_parquet, vectors
from tubelet.io.files import atomic_write
from tubelet.io.text import file_error, read_json, validate_content
from tubelet.value_checks import Bounds

FORMAT = 3  # 1 lacks the version of a row's file; the weights' id of 2 depends on a part of the values only
# Readers of Parquet folders skip names that begin with "_" or ".".
SETTINGS = "_settings.json"
# Maximum work that a crash may lose, and maximum of rows buffered in memory.
PART_SECONDS = 60.0
PART_BYTES = 256 * 2**20


_EMBED_AGAIN = "embed the collection again into another folder"
_DELETE_PART = "delete this part and run `tubelet embed` again"
# Columns that this package reads, and their types.
_COLUMNS = {
    "path": "string",
    "clip": "int64",
    "clips": "int64",
    "size_bytes": "int64",
    "changed_s": "double",
    "start_s": "double",
    "end_s": "double",
    "pooled": "vector",
}
_Count = Annotated[int, Bounds(1, 2**31)]


class PartRemovedError(MissingFileError):
    """A part was removed after the table was listed: another process changes the table."""


class _Settings(TypedDict):
    """Content of _settings.json."""

    format: int
    model: str
    model_id: str
    weights: str
    image_size: _Count
    frames: _Count
    fps: Annotated[float, Bounds(0, 1e6, exclusive=True)]
    stride_s: float | None
    dense: bool
    levels: bool


@dataclass
class FileProgress:
    """Rows of one file in a table.

    Attributes:
        clips: number of clips of the file.
        found: indices of the clips that have a row.
        versions: sizes in bytes and modification times in seconds of the file when they were computed.
    """

    clips: int
    found: set[int] = field(default_factory=set)
    versions: set[tuple[int, float]] = field(default_factory=set)

    @property
    def complete(self) -> bool:
        """Whether every clip has a row."""
        return len(self.found) == self.clips


class FeatureTable:
    """A folder of parts `part-000000.parquet`, ..., with one row per clip, and their common settings.

    Attributes:
        path: the folder.
        settings: settings that all rows have in common, as JSON.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Create a table in a folder that `check_output` accepted, or continue the table in it.

        Raises:
            TubeletError: if the folder has rows with other settings.
        """
        self.path = path
        self.settings = settings = {"format": FORMAT, **settings}
        if (path / SETTINGS).exists():
            before = read_settings(path)
            # Name and path of the model may change if its weights are the same.
            compared = [key for key in settings if key not in ("model", "model_id", "config_hash")]
            changed = [
                f"{key}: {before.get(key)} -> {settings[key]}" for key in compared if before.get(key) != settings[key]
            ]
            if changed:
                raise DataError(
                    f"{path}: has features with other settings ({'; '.join(changed)}); choose another --out"
                )
            for leftover in path.glob("*.partial"):  # of a process that died while writing
                leftover.unlink()
        else:
            with atomic_write(path / SETTINGS) as partial:
                partial.write_text(json.dumps(self.settings, indent=2) + "\n")
        self.next_part = max((int(part.stem.split("-")[1]) for part in parts(path)), default=-1) + 1
        self.rows: list[dict[str, Any]] = []
        self.size = 0
        self.began = time.monotonic()

    def done(self) -> dict[str, FileProgress]:
        """Progress of each file, by path."""
        found: dict[str, FileProgress] = {}
        for part in parts(self.path):
            columns = read_part(part, ["path", "clip", "clips", "size_bytes", "changed_s"]).to_pydict()
            for path, clip, clips, size, changed in zip(*columns.values(), strict=True):
                file = found.setdefault(path, FileProgress(clips))
                file.found.add(clip)
                file.versions.add((size, changed))
        return found

    def drop(self, paths: Collection[str]) -> None:
        """Remove all rows of some files.

        Raises:
            TubeletError: if a part cannot be read or written.
        """
        self.rows = [row for row in self.rows if row["path"] not in paths]
        if not paths:
            return
        gone = pa.array(sorted(paths))
        for part in parts(self.path):
            stale = pc.is_in(read_part(part, ["path"])["path"], value_set=gone)
            count = pc.sum(stale).as_py() or 0
            if count == len(stale):
                part.unlink()
            elif count:
                _write(part, read_part(part, None).filter(pc.invert(stale)))

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Buffer rows, and write a part when there are enough of them or the last part is old."""
        self.rows += rows
        self.size += sum(value.nbytes for row in rows for value in row.values() if isinstance(value, np.ndarray))
        if self.size >= PART_BYTES or time.monotonic() - self.began >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the buffered rows as a part.

        Raises:
            TubeletError: if it cannot be written; earlier parts are untouched.
        """
        number = self.next_part
        if self.rows:
            _write(self.path / f"part-{number:06d}.parquet", _table(self.rows, self.settings))
            number += 1
        now = time.monotonic()
        # All at once: an interrupt in between would have the same rows written again, as another part.
        self.rows, self.size, self.began, self.next_part = [], 0, now, number


def _write(path: Path, table: pa.Table) -> None:
    """Write a part atomically."""
    with atomic_write(path, durable=True, remedy="earlier parts are kept; run the same command to continue") as partial:
        pq.write_table(table, partial, compression="zstd")


def parts(path: Path) -> list[Path]:
    """Parts of a table, in order."""
    return sorted(path.glob("part-*.parquet"))


def read_settings(path: Path) -> dict[str, Any]:
    """Settings of a table.

    Raises:
        TubeletError: if the folder is not a table.
    """
    if not (path / SETTINGS).is_file():
        raise DataError(
            f"{path}: not a table of features ({SETTINGS} is missing); expected a folder that `tubelet embed` wrote"
        )
    settings: dict[str, Any] = read_json(path / SETTINGS, dict[str, Any], _EMBED_AGAIN)
    if settings.get("format") != FORMAT:
        found = settings.get("format")
        raise file_error(path / SETTINGS, f"its format is {found!r:.100}, this version reads {FORMAT}", _EMBED_AGAIN)
    validate_content(_Settings, settings, path / SETTINGS, _EMBED_AGAIN)
    return settings


def read_part(part: Path, columns: Sequence[str] | None) -> pa.Table:
    """Columns of a part; None reads all.

    Raises:
        PartRemovedError: if it was removed.
        TubeletError: if the file is damaged, or a column is missing or of another type.
    """
    expected = None if columns is None else {name: _COLUMNS[name] for name in columns}
    try:
        return read_parquet(part, expected, _DELETE_PART)
    except TubeletError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            message = f"{part}: was removed while the table was read; try again when `tubelet embed` has finished"
            raise PartRemovedError(message) from error
        raise


def pooled_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """For each part: some columns, and the pooled features (rows, D) in float32."""
    for part in parts(path):
        table = read_part(part, [*columns, "pooled"])
        yield table.select(columns), vectors(table["pooled"]).astype(np.float32)


def _table(rows: list[dict[str, Any]], settings: Mapping[str, Any]) -> pa.Table:
    columns = {name: _column(name, [row[name] for row in rows]) for name in rows[0]}
    return pa.table(columns).replace_schema_metadata({"tubelet": json.dumps(settings)})


def _column(name: str, values: list[Any]) -> pa.Array:
    """Scalars, or vectors; the type has their length if it is the same for all clips."""
    if not isinstance(values[0], np.ndarray):
        return pa.array(values)
    flat = pa.array(np.concatenate(values))
    if name == "grid" or name.startswith("pooled"):
        return pa.FixedSizeListArray.from_arrays(flat, len(values[0]))
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *map(len, values)]), pa.int32()), flat)
