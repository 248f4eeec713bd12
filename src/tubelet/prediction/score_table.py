"""The table of scores that predictions are made from, which an interrupted command continues.

Rows are of consecutive scores of one file and one head. A file whose windows have all been read has a row more, by
which it counts as done.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tubelet.data.part_table import SETTINGS, SPAN, PartTable, check_same_settings, parts, row_keys, span_columns
from tubelet.errors import DataError
from tubelet.grid import Modality
from tubelet.io.arrays import read_parquet
from tubelet.io.text import file_error, read_json
from tubelet.prediction.outputs.base import FileScores, ScoreRows, SourceFile
from tubelet.prediction.windows import DoneFile

FORMAT = 1
_REMEDY = "delete the folder and run `tubelet predict` again"
_ROWS = 512  # rows of scores of a file that are stored as one row of the table
_END = -1  # in the column `head`: the file was read to its end
_OPEN_PARTS = 4
_COLUMNS = {
    "path": "string",
    "modality": "string",
    "size_bytes": "int64",
    "changed_s": "double",
    "duration_s": "double",
    "windows": "int64",
    "head": "int64",
    "first": "int64",
}


class ScoreTable(PartTable):
    """A folder of scores."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        """Create a table, or continue the one in a folder.

        Raises:
            TubeletError: if the folder has scores with other settings.
        """
        settings = {"format": FORMAT, **settings}
        if (path / SETTINGS).exists():
            before = read_json(path / SETTINGS, dict[str, Any], _REMEDY)
            check_same_settings(path, "scores", before, settings)
        super().__init__(path, settings, _REMEDY)
        self.waiting: dict[tuple[str, int], _BufferedRows] = {}

    def done(self) -> tuple[dict[str, DoneFile], set[str]]:
        """The files and spans whose scores are complete, and keys of those that have some."""
        done: dict[str, DoneFile] = {}
        keys: set[str] = set()
        columns = {name: _COLUMNS[name] for name in ("path", "size_bytes", "changed_s", "windows", "head")}
        for part in parts(self.path):
            table = read_parquet(part, columns, self.remedy, SPAN)
            for key, row in zip(row_keys(table).to_pylist(), table.to_pylist(), strict=True):
                keys.add(key)
                if row["head"] == _END:
                    version = (row["size_bytes"], row["changed_s"])
                    done[key] = DoneFile(version=version, windows=row["windows"])
        return done, keys - done.keys()

    def add_scores(self, file: SourceFile, head: int, rows: ScoreRows) -> None:
        """Add rows of a file, which follow those that were added before."""
        key, count = (file.key, head), len(rows.start_s)
        if key in self.waiting and self.waiting[key].count + count > _ROWS:
            self._store(file, head)
        if key not in self.waiting:
            self.waiting[key] = _BufferedRows(rows.first, max(_ROWS, count), rows.scores.shape[1])
        self.waiting[key].add(rows)

    def end_file(self, file: SourceFile, heads: int) -> None:
        """Record that a file was read to its end."""
        for head in range(heads):
            if (file.key, head) in self.waiting:
                self._store(file, head)
        nothing = {name: np.zeros(0, kind) for name, kind in _ARRAYS.items()}
        self.add([_file_columns(file) | {"head": _END, "first": 0} | nothing])

    def discard(self, key: str) -> None:
        """Forget the rows of a file or span that have not been stored yet."""
        for waiting in [waiting for waiting in self.waiting if waiting[0] == key]:
            del self.waiting[waiting]

    def _store(self, file: SourceFile, head: int) -> None:
        rows = self.waiting.pop((file.key, head))
        self.add([_file_columns(file) | {"head": head, "first": rows.first} | rows.columns()])

    def read(self, keys: Sequence[str], head: int, width: int) -> Iterator[FileScores]:
        """Scores of files and spans in the order of `keys`, of those that are done.

        Args:
            keys: the files and spans.
            head: number of the head.
            width: K.
        """
        cache = _PartCache(parts(self.path), self.remedy)
        locations: dict[str, list[tuple[int, int, int]]] = {}
        ends: dict[str, tuple[int, int]] = {}
        for number, part in enumerate(cache.parts):
            names = {name: _COLUMNS[name] for name in ("path", "head", "first")}
            table = read_parquet(part, names, self.remedy, SPAN)
            columns = (row_keys(table).to_pylist(), table["head"].to_pylist(), table["first"].to_pylist())
            for row, (key, of, first) in enumerate(zip(*columns, strict=True)):
                if of == head:
                    locations.setdefault(key, []).append((first, number, row))
                elif of == _END:
                    ends[key] = (number, row)
        for key in keys:
            if key in ends:
                file = cache.file(*ends[key])
                yield FileScores(file=file, rows=_FileRows(cache, key, sorted(locations.get(key, [])), width))


_ARRAYS = {"start_s": np.float64, "end_s": np.float64, "scores": np.float32, "distance": np.float32}


class _BufferedRows:
    """Rows that are not stored yet, copied into arrays that are made once.

    To keep the many small arrays of `ScoreRows` between the large ones of each batch would fragment the memory.
    """

    def __init__(self, first: int, size: int, width: int) -> None:
        shapes = {"scores": (size, width)}
        self.first, self.count = first, 0
        self.arrays = {name: np.empty(shapes.get(name, (size,)), kind) for name, kind in _ARRAYS.items()}

    def add(self, rows: ScoreRows) -> None:
        """Copy rows."""
        end = self.count + len(rows.start_s)
        for name, array in self.arrays.items():
            array[self.count : end] = getattr(rows, name)
        self.count = end

    def columns(self) -> dict[str, Any]:
        """The rows as cells of a row of the table."""
        return {name: array[: self.count].ravel().copy() for name, array in self.arrays.items()}


def _file_columns(file: SourceFile) -> dict[str, Any]:
    return {
        "path": file.path,
        "modality": str(file.modality),
        "size_bytes": file.size_bytes,
        "changed_s": file.changed_s,
        "duration_s": file.duration_s,
        "windows": file.windows,
        "video_s": file.video_s,
        "pages": file.pages,
        **span_columns(file.span),
    }


class _PartCache:
    """Parts of the table, of which the last few that were read are in memory."""

    def __init__(self, paths: Sequence[Path], remedy: str) -> None:
        self.parts, self.remedy = paths, remedy
        self.tables: OrderedDict[int, pa.Table] = OrderedDict()

    def table(self, number: int) -> pa.Table:
        """A part.

        Raises:
            TubeletError: it is damaged.
        """
        if number not in self.tables:
            table = read_parquet(self.parts[number], None, self.remedy)
            if missing := {*_COLUMNS, *_ARRAYS} - {*table.column_names}:
                raise file_error(self.parts[number], f"has no column {', '.join(sorted(missing))}", self.remedy)
            self.tables[number] = table
            if len(self.tables) > _OPEN_PARTS:
                self.tables.popitem(last=False)
        self.tables.move_to_end(number)
        return self.tables[number]

    def file(self, number: int, row: int) -> SourceFile:
        """The file of a row."""
        table = self.table(number)
        values = {name: table[name][row].as_py() for name in _COLUMNS if name not in ("head", "first")}
        more = {name: table[name][row].as_py() for name in ("video_s", "pages", *SPAN) if name in table.column_names}
        start_s, end_s = (None if isnan(more.get(name, nan)) else more[name] for name in SPAN)
        return SourceFile(
            **values | {"modality": Modality(values["modality"])},
            span=None if start_s is None else (start_s, end_s),
            video_s=more.get("video_s", values["duration_s"]),  # of a table that was written before it existed
            pages=more.get("pages", 0),  # likewise
        )

    def rows(self, key: str, number: int, row: int, width: int) -> ScoreRows:
        """The scores of a row."""
        table = self.table(number)
        arrays = {name: table[name][row].values.to_numpy(zero_copy_only=False) for name in _ARRAYS}
        if len(arrays["scores"]) != width * len(arrays["start_s"]):
            raise DataError(f"{self.parts[number]}: row {row} has scores of another head; {self.remedy}")
        return ScoreRows(
            key=key,
            first=table["first"][row].as_py(),
            start_s=arrays["start_s"],
            end_s=arrays["end_s"],
            scores=arrays["scores"].reshape(-1, width),
            distance=arrays["distance"],
        )


class _FileRows:
    """The rows of a file, read when they are iterated."""

    def __init__(self, cache: _PartCache, key: str, locations: Sequence[tuple[int, int, int]], width: int) -> None:
        self.cache, self.key, self.locations, self.width = cache, key, locations, width

    def __iter__(self) -> Iterator[ScoreRows]:
        for _, number, row in self.locations:
            yield self.cache.rows(self.key, number, row, self.width)
