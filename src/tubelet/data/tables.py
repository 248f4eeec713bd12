"""Text files with one item per line or row: encodings, line ends, separators, numbers and times."""

import codecs
import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from tubelet.errors import DataError
from tubelet.io.text import read_bytes, read_start

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "::": "'::'", " ": "spaces"}
_CLOCK = re.compile(r"(?:(\d{1,6}):)?(\d{1,6}):([0-5]?\d(?:[.,]\d*)?)", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+(?:\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def decode_list(data: bytes, name: str | Path, whole: bool = True) -> str:
    """Decode the text of a list, with line feeds as line ends.

    Args:
        data: content of the file.
        name: the file, for errors.
        whole: whether `data` is the whole content; otherwise its last character may be incomplete, and is left out.

    Raises:
        DataError: it is neither UTF-8 nor UTF-16 or UTF-32 with a byte order mark.
    """
    encoding = "utf-32" if data.startswith(_UTF32) else "utf-16" if data.startswith(_UTF16) else "utf-8-sig"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(data, final=whole)
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            problem = f"is not the {encoding.upper()} text of its byte order mark (byte {error.start})"
            raise DataError(f"{name}: {problem}; save the list as UTF-8") from error
        line = len((error.object[: error.start] + b".").splitlines())
        problem = f"is not UTF-8 text (byte {error.object[error.start]:#04x})"
        raise DataError(
            f"{name}, line {line}: {problem}; save the list as UTF-8, in Excel with File > Save As > CSV UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{name}, line {line}: contains NUL characters (UTF-16 without a byte order mark?); save it as UTF-8"
        )
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, without surrounding white space and quotes.

    Raises:
        DataError: it cannot be read, or is in an unknown encoding.
    """
    lines = (line.strip("\ufeff \t") for line in decode_list(read_bytes(path), path).split("\n"))
    return [line[1:-1] if len(line) > 1 and line[0] == line[-1] == '"' else line for line in lines if line]


def read_first_lines(path: Path) -> list[str]:
    """The first lines of a list, at most 4096 bytes, to detect its format; the last one may be incomplete.

    Raises:
        DataError: it cannot be read, or is in an unknown encoding.
    """
    return decode_list(read_start(path), path, whole=False).lstrip("\ufeff\n").split("\n")


def read_table(path: Path, columns: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """The rows of a table with a header, each with its last line number.

    Args:
        path: the file; its cells are separated by commas, tabs or semicolons.
        columns: required columns; others are allowed.

    Raises:
        DataError: it cannot be read, a column is missing, or a row has too few or too many cells.
    """
    table = parse_table(read_bytes(path), path, columns)
    missing = [column for column in columns if column not in table.header]
    if missing:
        raise DataError(f"{path}: has no column {', '.join(missing)}; found {', '.join(table.header)[:300]}")
    if table.faults:
        line, fault = table.faults[0]
        raise DataError(f"{path}: line {line} {fault}")
    return table.rows


@dataclass(frozen=True)
class TextTable:
    """The content of a table of text.

    Attributes:
        header: names of the columns.
        rows: last line number and cells by column of each row; a row with a fault is left out.
        faults: line number and fault of each row that cannot be used.
        separator: character between cells.
    """

    header: list[str]
    rows: list[tuple[int, dict[str, str]]]
    faults: list[tuple[int, str]]
    separator: str


def parse_table(data: bytes, name: str | Path, columns: Sequence[str] | None) -> TextTable:
    """Parse a table with a header whose cells are separated by commas, tabs or semicolons.

    Args:
        data: content of the file.
        name: name of the file, for messages.
        columns: columns by which the separator is found, and which no row may lack; None for all.

    Raises:
        DataError: the encoding is unknown.
    """
    text = decode_list(data, name).lstrip("\ufeff")
    blank = len(text) - len(text.lstrip("\n"))
    text = text[blank:]
    first = text.split("\n", 1)[0]
    headers = {
        separator: [cell.strip() for cell in next(csv.reader([first], delimiter=separator), [])] for separator in ",\t;"
    }
    sought = columns or ()
    separator = max(
        headers, key=lambda separator: (sum(column in headers[separator] for column in sought), len(headers[separator]))
    )
    table = TextTable(headers[separator], [], [], separator)
    header = table.header
    required = set(header if columns is None else columns)
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True)
    try:
        for row in reader:
            if reader.line_num == 1 or not any(map(str.strip, row)):
                continue
            line = reader.line_num + blank
            if len(row) < len(header) and required.intersection(header[len(row) :]):
                table.faults.append((line, "has fewer values than the header has columns"))
            elif len(row) > len(header) and any(map(str.strip, row[len(header) :])):
                table.faults.append(
                    (
                        line,
                        f"has {len(row)} values, the header {len(header)} columns; put a value that contains "
                        f"{SEPARATORS[separator]} in quotes",
                    )
                )
            else:
                table.rows.append((line, dict(zip(header, map(str.strip, row), strict=False))))
    except csv.Error as error:
        table.faults.append((reader.line_num + blank, f"cannot be read as CSV ({error})"))
    return table


def parse_number(text: str, decimal_comma: bool = False) -> float | None:
    """The finite number in a cell; None for anything else.

    Args:
        text: the cell.
        decimal_comma: whether 1,5 is a number too, as spreadsheets of many countries write it.
    """
    text = text.strip()
    if decimal_comma and _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    if not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if isfinite(value) else None


def parse_time(text: str, decimal_comma: bool = False) -> float | None:
    """Seconds of a time that is written as seconds, m:ss.mmm or h:mm:ss.mmm; None for anything else."""
    if match := _CLOCK.fullmatch(text.strip()):
        hours, minutes, seconds = match.groups()
        if hours is not None and int(minutes) > 59:
            return None
        return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds.replace(",", "."))
    return parse_number(text, decimal_comma)
