"""CSV tables for spreadsheets.

The dialect "comma" is that of RFC 4180: commas, CRLF, quotes where they are needed. The dialect "semicolon" has
semicolons, and numbers with decimal commas. A table begins with a byte order mark if it is not plain ASCII, without
which spreadsheets would misread it. Cells are as they are: paths are absolute, so that none is taken for a formula.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from tubelet.io.files import atomic_write

CsvDialect = Literal["comma", "semicolon"]
Kind = Literal["text", "seconds", "score", "number", "count"]
CLIP_COLUMNS: tuple[tuple[str, Kind], ...] = (("path", "text"), ("start_s", "seconds"), ("end_s", "seconds"))
"""Names and kinds of the columns that name a file or a span of it."""
_FORMATS = {"seconds": "{:.3f}", "score": "{:.4f}", "number": "{:.6g}", "count": "{:d}"}
_SEPARATORS = {"comma": ",", "semicolon": ";"}
_BOM = "\ufeff"


def write_csv(
    path: Path, columns: Sequence[tuple[str, Kind]], rows: Iterable[Sequence[Any]], dialect: CsvDialect
) -> None:
    """Write rows as a CSV, see above.

    Raises:
        FileError: if it cannot be written.
    """
    buffered = list(rows)
    ascii_only = all(cell.isascii() for row in buffered for cell in row if isinstance(cell, str))
    with atomic_write(path) as partial, CsvWriter(partial, columns, ascii_only, dialect) as file:
        file.write(buffered)


class CsvWriter:
    """A CSV that is written row by row."""

    def __init__(self, path: Path, columns: Sequence[tuple[str, Kind]], ascii_only: bool, dialect: CsvDialect) -> None:
        """Create the file with its header.

        Args:
            path: the file.
            columns: name and kind of each column.
            ascii_only: whether all texts of the rows are ASCII.
            dialect: the dialect.
        """
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
        if value is None:
            return ""
        if kind == "text":
            return str(value)
        text = _FORMATS[kind].format(value)
        return text.replace(".", ",") if self.decimal_comma else text
