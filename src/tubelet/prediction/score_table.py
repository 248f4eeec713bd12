"""The table of scores that predictions are made from, which an interrupted command continues.

Rows are of consecutive scores of one file and one head. A file whose windows have all been read has a row more, by
which it counts as done.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tubelet.data.part_table import SETTINGS, PartTable, check_same_settings, parts
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
        self.waiting: dict[tuple[str, int], _WaitingRows] = {}

    def done(self) -> tuple[dict[str, DoneFile], set[str]]:
        """The files whose scores are complete, and paths of those that have some."""
        done: dict[str, DoneFile] = {}
        found: set[str] = set()
        columns = {name: _COLUMNS[name] for name in ("path", "size_bytes", "changed_s", "windows", "head")}
        for part in parts(self.path):
            for row in read_parquet(part, columns, self.remedy).to_pylist():
                found.add(row["path"])
                if row["head"] == _END:
                    version = (row["size_bytes"], row["changed_s"])
                    done[row["path"]] = DoneFile(version=version, windows=row["windows"])
        return done, found - done.keys()

    def add_scores(self, file: SourceFile, head: int, rows: ScoreRows) -> None:
        """Add rows of a file, which follow those that were added before."""
        key, count = (file.path, head), len(rows.start_s)
        if key in self.waiting and self.waiting[key].count + count > _ROWS:
            self._store(file, head)
        if key not in self.waiting:
            self.waiting[key] = _WaitingRows(rows.first, max(_ROWS, count), rows.scores.shape[1])
        self.waiting[key].add(rows)

    def end_file(self, file: SourceFile, heads: int) -> None:
        """Record that a file was read to its end."""
        for head in range(heads):
            if (file.path, head) in self.waiting:
                self._store(file, head)
        nothing = {name: np.zeros(0, kind) for name, kind in _ARRAYS.items()}
        self.add([_file_columns(file) | {"head": _END, "first": 0} | nothing])

    def discard(self, path: str) -> None:
        """Forget the rows of a file that have not been stored yet."""
        for key in [key for key in self.waiting if key[0] == path]:
            del self.waiting[key]

    def _store(self, file: SourceFile, head: int) -> None:
        rows = self.waiting.pop((file.path, head))
        self.add([_file_columns(file) | {"head": head, "first": rows.first} | rows.columns()])

    def read(self, paths: Sequence[str], head: int, width: int) -> Iterator[FileScores]:
        """Scores of files in the order of `paths`, of those that are done.

        Args:
            paths: the files.
            head: number of the head.
            width: K.
        """
        cache = _PartCache(parts(self.path), self.remedy)
        places: dict[str, list[tuple[int, int, int]]] = {}
        ends: dict[str, tuple[int, int]] = {}
        for number, part in enumerate(cache.parts):
            columns = read_parquet(part, {name: _COLUMNS[name] for name in ("path", "head", "first")}, self.remedy)
            for row, (path, of, first) in enumerate(zip(*columns.to_pydict().values(), strict=True)):
                if of == head:
                    places.setdefault(path, []).append((first, number, row))
                elif of == _END:
                    ends[path] = (number, row)
        for path in paths:
            if path in ends:
                file = cache.file(*ends[path])
                yield FileScores(file=file, rows=_FileRows(cache, path, sorted(places.get(path, [])), width))


_ARRAYS = {"start_s": np.float64, "end_s": np.float64, "scores": np.float32, "distance": np.float32}


class _WaitingRows:
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
    }


class _PartCache:
    """Parts of the table, of which the last few that were read are in memory."""

    def __init__(self, found: Sequence[Path], remedy: str) -> None:
        self.parts, self.remedy = found, remedy
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
        return SourceFile(**values | {"modality": Modality(values["modality"])})

    def rows(self, path: str, number: int, row: int, width: int) -> ScoreRows:
        """The scores of a row."""
        table = self.table(number)
        arrays = {name: table[name][row].values.to_numpy(zero_copy_only=False) for name in _ARRAYS}
        if len(arrays["scores"]) != width * len(arrays["start_s"]):
            raise DataError(f"{self.parts[number]}: row {row} has scores of another head; {self.remedy}")
        return ScoreRows(
            path=path,
            first=table["first"][row].as_py(),
            start_s=arrays["start_s"],
            end_s=arrays["end_s"],
            scores=arrays["scores"].reshape(-1, width),
            distance=arrays["distance"],
        )


class _FileRows:
    """The rows of a file, read when they are iterated."""

    def __init__(self, cache: _PartCache, path: str, places: Sequence[tuple[int, int, int]], width: int) -> None:
        self.cache, self.path, self.places, self.width = cache, path, places, width

    def __iter__(self) -> Iterator[ScoreRows]:
        for _, number, row in self.places:
            yield self.cache.rows(self.path, number, row, self.width)
