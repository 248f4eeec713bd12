"""Features of a collection as Parquet files, which grow part by part and can be continued after any crash.

A part is written beside its place and renamed: every part that can be seen is whole. Which clips are done is read from
the parts themselves, so no row is ever there twice.
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

from tubelet.errors import MissingFileError, TubeletError
from tubelet.io.arrays import read_parquet, vectors
from tubelet.io.files import atomic_write
from tubelet.io.text import file_error, read_json, validate_content
from tubelet.validation import Bounds

FORMAT = 3  # 1 did not say which version of a file its rows are of; the weights' id in 2 saw a part of the values
# Readers of Parquet folders pass over names that begin with "_" or ".".
SETTINGS = "_settings.json"
# What a crash may cost, and what is held in memory before it is written.
PART_SECONDS = 60.0
PART_BYTES = 256 * 2**20


_EMBED_AGAIN = "embed the collection again into another folder"
_DELETE_PART = "delete this part and run `tubelet embed` again"
# The columns that are read again, and their types.
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


class PartGoneError(MissingFileError):
    """A part that was there when the table was listed, and is not any more: another process changes the table."""


class _Settings(TypedDict):
    """The content of _settings.json."""

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
class Done:
    """What a table has of one file.

    Attributes:
        clips: how many the file has.
        found: numbers of those that have a row.
        versions: sizes in bytes and times of change in seconds that the file had when they were made.
    """

    clips: int
    found: set[int] = field(default_factory=set)
    versions: set[tuple[int, float]] = field(default_factory=set)

    @property
    def whole(self) -> bool:
        """Whether every clip has its row."""
        return len(self.found) == self.clips


class FeatureTable:
    """A folder of parts `part-000000.parquet`, ..., one row a clip, and the settings that made them.

    Attributes:
        path: the folder.
        settings: what all rows have in common, as JSON.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Start a table in a folder, or take up the one that is there; `check_output` has seen what else it holds.

        Raises:
            TubeletError: if the folder holds rows of other settings.
        """
        self.path = path
        self.settings = settings = {"format": FORMAT, **settings}
        if (path / SETTINGS).exists():
            before = read_settings(path)
            # Name and place of the model may change, as long as its weights are the same.
            compared = [key for key in settings if key not in ("model", "model_id", "config_hash")]
            changed = [
                f"{key}: {before.get(key)} -> {settings[key]}" for key in compared if before.get(key) != settings[key]
            ]
            if changed:
                raise TubeletError(
                    f"{path}: holds features that were made otherwise ({'; '.join(changed)}): choose another --out"
                )
            for leftover in path.glob("*.partial"):  # of a process that died while it wrote
                leftover.unlink()
        else:
            with atomic_write(path / SETTINGS) as partial:
                partial.write_text(json.dumps(self.settings, indent=2) + "\n")
        self.next_part = max((int(part.stem.split("-")[1]) for part in parts(path)), default=-1) + 1
        self.rows: list[dict[str, Any]] = []
        self.size = 0
        self.began = time.monotonic()

    def done(self) -> dict[str, Done]:
        """What there is of each file, by its path."""
        found: dict[str, Done] = {}
        for part in parts(self.path):
            columns = read_part(part, ["path", "clip", "clips", "size_bytes", "changed_s"]).to_pydict()
            for path, clip, clips, size, changed in zip(*columns.values(), strict=True):
                file = found.setdefault(path, Done(clips))
                file.found.add(clip)
                file.versions.add((size, changed))
        return found

    def drop(self, paths: Collection[str]) -> None:
        """Take all rows of some files out.

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
        """Take rows, and write a part when there are enough of them or the last one is a while ago."""
        self.rows += rows
        self.size += sum(value.nbytes for row in rows for value in row.values() if isinstance(value, np.ndarray))
        if self.size >= PART_BYTES or time.monotonic() - self.began >= PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was taken.

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
    """Write a part beside its place and rename it, or leave what is there as it is."""
    with atomic_write(path, durable=True, remedy="earlier parts are kept; run the same command to continue") as partial:
        pq.write_table(table, partial, compression="zstd")


def parts(path: Path) -> list[Path]:
    """The parts of a table, in order."""
    return sorted(path.glob("part-*.parquet"))


def read_settings(path: Path) -> dict[str, Any]:
    """The settings of a table.

    Raises:
        TubeletError: if the folder is no table.
    """
    if not (path / SETTINGS).is_file():
        raise TubeletError(
            f"{path}: is not a folder of features (there is no {SETTINGS} in it); expected what `tubelet embed` wrote"
        )
    settings: dict[str, Any] = read_json(path / SETTINGS, dict[str, Any], _EMBED_AGAIN)
    if settings.get("format") != FORMAT:
        found = settings.get("format")
        raise file_error(path / SETTINGS, f"its format is {found!r:.100}, this version reads {FORMAT}", _EMBED_AGAIN)
    validate_content(_Settings, settings, path / SETTINGS, _EMBED_AGAIN)
    return settings


def read_part(part: Path, columns: Sequence[str] | None) -> pa.Table:
    """Some columns of a part, or all of them.

    Raises:
        PartGoneError: if it is not there any more.
        TubeletError: if the file is damaged, or a column is missing or of another type.
    """
    expected = None if columns is None else {name: _COLUMNS[name] for name in columns}
    try:
        return read_parquet(part, expected, _DELETE_PART)
    except TubeletError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            message = f"{part}: was removed while the table was read; try again when `embed` is done"
            raise PartGoneError(message) from error
        raise


def pooled_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[pa.Table, np.ndarray]]:
    """Part by part: some columns, and the pooled features (rows, D) in float32 beside them."""
    for part in parts(path):
        table = read_part(part, [*columns, "pooled"])
        yield table.select(columns), vectors(table["pooled"]).astype(np.float32)


def _table(rows: list[dict[str, Any]], settings: Mapping[str, Any]) -> pa.Table:
    columns = {name: _column(name, [row[name] for row in rows]) for name in rows[0]}
    return pa.table(columns).replace_schema_metadata({"tubelet": json.dumps(settings)})


def _column(name: str, values: list[Any]) -> pa.Array:
    """Scalars; or vectors, whose length is part of the type where it is the same for every clip of every table."""
    if not isinstance(values[0], np.ndarray):
        return pa.array(values)
    flat = pa.array(np.concatenate(values))
    if name == "grid" or name.startswith("pooled"):
        return pa.FixedSizeListArray.from_arrays(flat, len(values[0]))
    return pa.ListArray.from_arrays(pa.array(np.cumsum([0, *map(len, values)]), pa.int32()), flat)
