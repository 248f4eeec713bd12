"""Tables of predictions as CSV and Parquet, written row by row.

The CSV is that of RFC 4180: commas, CRLF, quotes where they are needed; in the dialect "semicolon", semicolons, and
numbers with decimal commas. It begins with a byte order mark if it is not plain ASCII, without which spreadsheets would
misread it. Cells are as they are: paths are absolute, so that none is taken for a formula.
"""

import csv
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from tubelet.config.predict import CsvDialect
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
_SEPARATORS = {"comma": ",", "semicolon": ";"}
_GROUP = 65_536  # rows in memory, and of a row group of the Parquet file
_BOM = "\ufeff"


class TableWriter:
    """A table that appears when the block ends: `NAME.csv`, and `NAME.parquet` with all digits.

    Attributes:
        rows: number of rows.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        columns: Sequence[tuple[str, Kind]],
        ascii_only: bool,
        dialect: CsvDialect,
        parquet: bool = True,
    ) -> None:
        """Write nothing yet.

        Args:
            folder: where the files are written.
            name: name of the files without suffix.
            columns: name and kind of each column.
            ascii_only: whether all texts are ASCII.
            dialect: dialect of the CSV.
            parquet: whether to write a Parquet file too.
        """
        self.folder, self.name, self.columns = folder, name, columns
        self.ascii_only, self.dialect, self.parquet = ascii_only, dialect, parquet
        self.schema = pa.schema([(column, _ARROW[kind]) for column, kind in columns])
        self.buffer: list[Sequence[Any]] = []
        self.rows = 0

    def __enter__(self) -> Self:
        with ExitStack() as opened:
            partial = opened.enter_context(atomic_write(self.folder / f"{self.name}.csv"))
            self.csv = opened.enter_context(_CsvWriter(partial, self.columns, self.ascii_only, self.dialect))
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
        self.csv.write(self.buffer)
        if self.parquet and self.buffer:
            columns = [
                pa.array(values, field.type)
                for values, field in zip(zip(*self.buffer, strict=True), self.schema, strict=True)
            ]
            self.parquet_file.write_table(pa.Table.from_arrays(columns, schema=self.schema))
        self.buffer = []


def write_csv(
    path: Path, columns: Sequence[tuple[str, Kind]], rows: Iterable[Sequence[Any]], dialect: CsvDialect
) -> None:
    """Write rows as a CSV, see above.

    Raises:
        FileError: if it cannot be written.
    """
    buffered = list(rows)
    ascii_only = all(cell.isascii() for row in buffered for cell in row if isinstance(cell, str))
    with atomic_write(path) as partial, _CsvWriter(partial, columns, ascii_only, dialect) as file:
        file.write(buffered)


class _CsvWriter:
    """A CSV with a header."""

    def __init__(self, path: Path, columns: Sequence[tuple[str, Kind]], ascii_only: bool, dialect: CsvDialect) -> None:
        self.kinds = [kind for _, kind in columns]
        self.decimal_comma = dialect == "semicolon"
        self.file = path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        self.file.write("" if ascii_only and all(name.isascii() for name, _ in columns) else _BOM)
        self.writer = csv.writer(self.file, delimiter=_SEPARATORS[dialect])
        self.writer.writerow([name for name, _ in columns])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, rows: Iterable[Sequence[Any]]) -> None:
        """Write rows; None is an empty cell."""
        self.writer.writerows(
            [self._text(value, kind) for value, kind in zip(row, self.kinds, strict=True)] for row in rows
        )

    def _text(self, value: Any, kind: Kind) -> str:
        if value is None or kind == "text":
            return "" if value is None else str(value)
        text = _CSV[kind].format(value)
        return text.replace(".", ",") if self.decimal_comma else text
