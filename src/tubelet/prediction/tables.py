"""Tables of predictions as CSV and Parquet, written row by row.

The CSV is that of RFC 4180: commas, CRLF, quotes where they are needed. It begins with a byte order mark if it is not
plain ASCII, without which spreadsheets would misread it. Cells are as they are: paths are absolute, so that none is
taken for a formula.
"""

import csv
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TextIO

import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from tubelet.io.files import atomic_write

Kind = Literal["text", "seconds", "score", "number", "count"]
_ARROW = {
    "text": pa.string(),
    "seconds": pa.float64(),
    "score": pa.float32(),
    "number": pa.float32(),
    "count": pa.int64(),
}
_CSV = {"seconds": "{:.3f}", "score": "{:.4f}", "number": "{:.6g}", "count": "{:d}"}
_GROUP = 65_536  # rows in memory, and of a row group of the Parquet file
_BOM = "\ufeff"


class TableWriter:
    """A table that appears when the block ends: `NAME.csv`, and `NAME.parquet` with all digits.

    Attributes:
        rows: number of rows.
    """

    def __init__(
        self, folder: Path, name: str, columns: Sequence[tuple[str, Kind]], ascii_only: bool, parquet: bool = True
    ) -> None:
        """Write nothing yet.

        Args:
            folder: where the files are written.
            name: name of the files without suffix.
            columns: name and kind of each column.
            ascii_only: whether all texts are ASCII.
            parquet: whether to write a Parquet file too.
        """
        self.folder, self.name, self.columns = folder, name, columns
        self.ascii_only, self.parquet = ascii_only, parquet
        self.schema = pa.schema([(column, _ARROW[kind]) for column, kind in columns])
        self.buffer: list[Sequence[Any]] = []
        self.rows = 0

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            partial = opened.enter_context(atomic_write(self.folder / f"{self.name}.csv"))
            self.csv = csv.writer(opened.enter_context(_open_csv(partial, self.columns, self.ascii_only)))
            if self.parquet:
                partial = opened.enter_context(
                    atomic_write(self.folder / f"{self.name}.parquet", also=(pa.ArrowException,))
                )
                self.parquet_file = opened.enter_context(ParquetWriter(partial, self.schema, compression="zstd"))
            self.opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            with self.opened:
                self._flush()
        else:
            self.opened.__exit__(kind, error, traceback)

    def add(self, row: Sequence[Any]) -> None:
        """Add a row; None is an empty cell."""
        self.buffer.append(row)
        self.rows += 1
        if len(self.buffer) >= _GROUP:
            self._flush()

    def _flush(self) -> None:
        kinds = [kind for _, kind in self.columns]
        self.csv.writerows(
            [[_text(value, kind) for value, kind in zip(row, kinds, strict=True)] for row in self.buffer]
        )
        if self.parquet and self.buffer:
            columns = [
                pa.array(values, field.type)
                for values, field in zip(zip(*self.buffer, strict=True), self.schema, strict=True)
            ]
            self.parquet_file.write_table(pa.Table.from_arrays(columns, schema=self.schema))
        self.buffer = []


def write_csv(path: Path, columns: Sequence[tuple[str, Kind]], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as a CSV, see above.

    Raises:
        FileError: if it cannot be written.
    """
    buffered = list(rows)
    ascii_only = all(cell.isascii() for row in buffered for cell in row if isinstance(cell, str))
    with atomic_write(path) as partial, _open_csv(partial, columns, ascii_only) as file:
        _write_rows(csv.writer(file), columns, buffered)


def _open_csv(path: Path, columns: Sequence[tuple[str, Kind]], ascii_only: bool) -> TextIO:
    """Open a CSV and write its header."""
    file = path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
    file.write("" if ascii_only and all(name.isascii() for name, _ in columns) else _BOM)
    csv.writer(file).writerow([name for name, _ in columns])
    return file


def _write_rows(writer: Any, columns: Sequence[tuple[str, Kind]], rows: Iterable[Sequence[Any]]) -> None:
    kinds = [kind for _, kind in columns]
    for row in rows:
        writer.writerow([_text(value, kind) for value, kind in zip(row, kinds, strict=True)])


def _text(value: Any, kind: Kind) -> str:
    if value is None:
        return ""
    return str(value) if kind == "text" else _CSV[kind].format(value)
