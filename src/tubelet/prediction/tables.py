"""Tables of predictions as CSV and Parquet, written row by row."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
from pyarrow.parquet import ParquetWriter

from tubelet.io.csv_tables import CsvDialect, CsvWriter, Kind
from tubelet.io.files import atomic_write

_ARROW = {
    "text": pa.string(),
    "seconds": pa.float64(),
    "score": pa.float32(),
    "number": pa.float32(),
    "count": pa.int64(),
}
_GROUP = 65_536  # rows in memory, and of a row group of the Parquet file


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
            self.csv = opened.enter_context(CsvWriter(partial, self.columns, self.ascii_only, self.dialect))
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
