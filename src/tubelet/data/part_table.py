"""Tables of Parquet files that grow part by part and can be continued after any crash.

A part is written to a temporary file and renamed: every visible part is complete. What is done is read from the parts
themselves, so that no row occurs twice.
"""

import json
import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tubelet.data.listed_rows import span_name
from tubelet.errors import DataError
from tubelet.io.arrays import read_parquet
from tubelet.io.files import atomic_write

logger = logging.getLogger(__name__)

# Readers of Parquet folders skip names that begin with "_" or ".".
SETTINGS = "_settings.json"
SPAN = {"span_start_s": "double", "span_end_s": "double"}
"""Columns of the span of a row, and their types."""
# Maximum work that a crash may lose, and maximum of rows buffered in memory.
PART_SECONDS = 60.0
_MAKERS = {"heads": "another head", "weights": "another model"}  # settings that are hashes -> what differs with them
PART_BYTES = 256 * 2**20


class PartTable:
    """A folder of parts `part-000000.parquet`, ..., with rows of files, whose column `path` names the file.

    A row of a listed span of a video has the span in `span_start_s` and `span_end_s`, which are NaN otherwise; parts of
    earlier versions lack these columns.

    Attributes:
        path: the folder.
        settings: settings that all rows have in common, as JSON.
        remedy: what to do about a part that cannot be read.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], remedy: str) -> None:
        """Create a table, or continue the one in the folder, whose settings the caller has compared."""
        self.path, self.settings, self.remedy = path, settings, remedy
        if (path / SETTINGS).exists():
            for leftover in path.glob("*.partial"):  # of a process that died while writing
                leftover.unlink()
        else:
            with atomic_write(path / SETTINGS) as partial:
                partial.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        self.next_part = max((int(part.stem.split("-")[1]) for part in parts(path)), default=-1) + 1
        self.rows: list[dict[str, Any]] = []
        self.size = 0
        self.began = time.monotonic()

    def drop(self, keys: Collection[str]) -> None:
        """Remove all rows of some files and spans.

        Args:
            keys: their keys, see `row_keys`.

        Raises:
            TubeletError: if a part cannot be read or written.
        """
        if not keys:
            return
        self.rows = [row for row in self.rows if _key(row["path"], row["span_start_s"], row["span_end_s"]) not in keys]
        gone = pa.array(sorted(keys))
        for part in parts(self.path):
            stale = pc.is_in(row_keys(read_parquet(part, {"path": "string"}, self.remedy, SPAN)), value_set=gone)
            count = pc.sum(stale).as_py() or 0
            if count == len(stale):
                part.unlink()
            elif count:
                write_part(part, read_parquet(part, None, self.remedy).filter(pc.invert(stale)))

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
            write_part(self.path / f"part-{number:06d}.parquet", rows_to_table(self.rows, self.settings))
            number += 1
        now = time.monotonic()
        # All at once: an interrupt in between would have the same rows written again, as another part.
        self.rows, self.size, self.began, self.next_part = [], 0, now, number


def write_part(path: Path, table: pa.Table) -> None:
    """Write a part atomically."""
    with atomic_write(path, durable=True, remedy="earlier parts are kept; run the same command to continue") as partial:
        pq.write_table(table, partial, compression="zstd")


def parts(path: Path) -> list[Path]:
    """Parts of a table, in order."""
    return sorted(path.glob("part-*.parquet"))


def span_columns(span: tuple[float, float | None] | None) -> dict[str, float]:
    """The cells of a row for its span; None for a whole file."""
    start_s, end_s = span or (None, None)
    return {"span_start_s": np.nan if start_s is None else start_s, "span_end_s": np.nan if end_s is None else end_s}


def row_keys(table: pa.Table) -> pa.ChunkedArray:
    """Unique key of the file or span of each row: its path, with the times of a span."""
    paths = table["path"]
    if SPAN.keys() - {*table.column_names} or pc.all(pc.is_nan(table["span_start_s"])).as_py() is not False:
        return paths
    spans = zip(*(table[name].to_pylist() for name in ("path", *SPAN)), strict=True)
    return pa.chunked_array([pa.array([_key(*span) for span in spans], pa.string())])


def _key(path: str, start_s: float, end_s: float) -> str:
    return path if np.isnan(start_s) else span_name(path, start_s, None if np.isnan(end_s) else end_s)


def check_same_settings(path: Path, subject: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to continue a table that has rows with other settings.

    Rows of another data type (`dtype`), as of another machine, differ by rounding only: that is logged. Tables of
    earlier versions state neither it nor `int8`, which they had not.

    Args:
        path: the folder.
        subject: what the rows are, such as "features".
        before: settings of the table.
        now: settings to compare.

    Raises:
        DataError: names the settings that differ.
    """
    before = {"int8": False, "dtype": now.get("dtype")} | dict(before)
    differs = {key: f"{key}: {before.get(key)} -> {value}" for key, value in now.items() if before.get(key) != value}
    dtype = differs.pop("dtype", None)
    maker = next((maker for name, maker in _MAKERS.items() if name in differs), None)
    if maker is not None:
        raise DataError(f"{path}: has {subject} of {maker}; choose another --out, or delete the folder to replace them")
    changed = list(differs.values())
    if changed:
        raise DataError(f"{path}: has {subject} with other settings ({'; '.join(changed)}); choose another --out")
    if dtype is not None:
        logger.warning(f"{path}: continued with another data type ({dtype}); {subject} differ by its rounding")


def rows_to_table(rows: list[dict[str, Any]], settings: Mapping[str, Any]) -> pa.Table:
    """Rows as a part, with the settings in its metadata."""
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
