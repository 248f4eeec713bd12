"""Files that are not media: one strict reader for each format, which all of the package reads them with.

A file may be damaged, truncated, made by something else, or made to harm. Whatever it holds, a reader returns values of
the types that were asked for, or raises a `TubeletError` of one sentence that names the file, the field, what was
expected, what was found, and what to do. No other module parses these formats, which a test checks; arrays.py has
those of tensors, arrays and tables.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from itertools import count
from math import inf
from pathlib import Path
from typing import Any

from tubelet.errors import DataError, FileError, MissingFileError, TubeletError, first_line
from tubelet.validation import LARGEST_INT, LONE_SURROGATE, InvalidValueError, check_value

COPY_AGAIN = "copy it again, or make it anew"
# Sizes above which a file is refused: far more than any that this package or a benchmark has.
TEXT_BYTES = 2**30
LINE_BYTES = 2**24
# Objects and lists within each other; the deepest file of this package has 8.
JSON_DEPTH = 64


def file_error(
    where: str | Path, problem: str, remedy: str = COPY_AGAIN, kind: type[TubeletError] = DataError
) -> TubeletError:
    """The error of a file that cannot be used: `FILE: PROBLEM; REMEDY`."""
    return kind(f"{where}: {problem}; {remedy}")


def require_regular(path: Path, remedy: str = COPY_AGAIN) -> None:
    """Refuse what is not there, and folders, pipes and devices: reading of some of them would never end.

    Raises:
        TubeletError: says which.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise file_error(path, "does not exist", remedy, MissingFileError) from error
    except (OSError, ValueError) as error:
        raise _unreadable(path, error, remedy) from error
    if not stat.S_ISREG(mode):
        raise file_error(
            path, f"is a {'folder' if stat.S_ISDIR(mode) else 'device or pipe'}, expected a file", remedy, FileError
        )


def _unreadable(path: Path, error: Exception, remedy: str) -> TubeletError:
    return file_error(
        path, f"cannot be read ({getattr(error, 'strerror', None) or first_line(error)})", remedy, FileError
    )


def read_bytes(path: Path, remedy: str = COPY_AGAIN, limit: int = TEXT_BYTES) -> bytes:
    """The content of a file.

    Raises:
        TubeletError: it cannot be read, or is larger than the limit.
    """
    require_regular(path, remedy)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise _unreadable(path, error, remedy) from error
    if len(data) > limit:
        raise file_error(path, f"is larger than the limit of {limit} bytes", remedy)
    return data


def read_text(path: Path, remedy: str = COPY_AGAIN, limit: int = TEXT_BYTES) -> str:
    """The content of a text file in UTF-8, without a byte order mark.

    Raises:
        TubeletError: it cannot be read, is no UTF-8 text, or is larger than the limit.
    """
    return decode_text(read_bytes(path, remedy, limit), path, remedy)


def decode_text(data: bytes, where: str | Path, remedy: str = COPY_AGAIN) -> str:
    """Bytes of a file as UTF-8 text, without a byte order mark.

    Raises:
        TubeletError: they are none.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise file_error(
            where, f"is not UTF-8 text (byte {data[error.start]:#04x} at {error.start})", remedy
        ) from error
    if "\0" in text:
        raise file_error(where, "holds a NUL character, which no text has", remedy)
    return text


def parse_json(text: str | bytes, where: str | Path, kind: Any = Any, remedy: str = COPY_AGAIN) -> Any:
    """A value of strict JSON.

    Args:
        text: the JSON; bytes must be UTF-8.
        where: the file, or the file and line.
        kind: the type of the value, see `tubelet.validation.check_value`.
        remedy: what to do about a file that cannot be read.

    Raises:
        TubeletError: it is not JSON as RFC 8259 has it, without NaN and Infinity; it names a field of an object twice;
            a number fits neither 64 bits nor a float; or the value is of another type than `kind`.
    """
    if isinstance(text, bytes):
        text = decode_text(text, where, remedy)
    try:
        value = _DECODER.decode(text)
        # Only text that can hold either is looked through: rows of metrics are many.
        if "\\u" in text or text.count("[") + text.count("{") > JSON_DEPTH:
            _check_values(value)
    except InvalidValueError as error:
        raise file_error(where, str(error), remedy) from error
    except json.JSONDecodeError as error:
        place = f" at line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f" at {error.pos}"
        raise file_error(where, f"is not JSON ({error.msg}{place})", remedy) from error
    except RecursionError as error:
        raise file_error(where, f"is not JSON of at most {JSON_DEPTH} levels", remedy) from error
    except ValueError as error:  # such as a whole number of more digits than Python converts
        raise file_error(where, f"is not JSON ({first_line(error)})", remedy) from error
    return value if kind is Any else validate_content(kind, value, where, remedy)


def validate_content(kind: Any, value: Any, where: str | Path, remedy: str = COPY_AGAIN) -> Any:
    """What a file holds, of the type that is expected of it, see `tubelet.validation.check_value`.

    Raises:
        TubeletError: names the file, the field, what was expected and what was found.
    """
    try:
        return check_value(kind, value, "", strict=True)
    except InvalidValueError as error:
        problem = f"{error.name} {error.problem}" if error.name else f"its content {error.problem}"
        raise file_error(where, problem, remedy) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise InvalidValueError(
            repr(next(key for key in keys if keys.count(key) > 1))[:100], "is there twice in one object"
        )
    return found


def _constant(name: str) -> None:
    raise InvalidValueError("it holds", f"{name}, which JSON does not have")


def _float(text: str) -> float:
    value = float(text)
    if value in (inf, -inf):
        raise InvalidValueError("it holds", f"the number {text[:40]}, which is too large for a float")
    return value


def _int(text: str) -> int:
    value = int(text)
    if not -LARGEST_INT <= value <= LARGEST_INT:
        raise InvalidValueError("it holds", f"a whole number of {value.bit_length()} bits, above the limit of 63")
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int)


def _check_values(value: Any) -> None:
    """Refuse text that no path and no terminal can have, and a document that is too deep.

    Raises:
        InvalidValueError: naming it.
    """
    level, values = 0, [value]
    while values:
        level += 1
        if level > JSON_DEPTH:
            raise InvalidValueError("it", f"has objects and lists within each other, more than {JSON_DEPTH} levels")
        below: list[Any] = []
        for item in values:
            if isinstance(item, dict):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and ("\0" in item or LONE_SURROGATE.search(item)):
                raise InvalidValueError(ascii(item)[:100], "holds a character that no text has")
        values = below


def read_json(path: Path, kind: Any = Any, remedy: str = COPY_AGAIN) -> Any:
    """The value of a JSON file.

    Args:
        path: the file.
        kind: the type of the value, see `tubelet.validation.check_value`.
        remedy: what to do about a file that cannot be read.

    Raises:
        TubeletError: see `parse_json`; or it cannot be read.
    """
    return parse_json(read_bytes(path, remedy), path, kind, remedy)


def read_jsonl(path: Path, kind: Any, remedy: str) -> Iterator[tuple[dict[str, Any], int]]:
    """The rows of a file of JSON lines, one after the other, each with the place in bytes where it ends.

    A process killed while it wrote leaves the beginning of an object as last line: not a row. A file that is not there
    has none.

    Raises:
        TubeletError: a line is damaged or of another type than `kind`, or the file cannot be read.
    """
    try:
        if not path.exists():
            return
        require_regular(path, remedy)
        with path.open("rb") as file:
            end = 0
            for number in count(1):
                line = file.readline(LINE_BYTES + 1)
                if len(line) > LINE_BYTES:
                    raise file_error(f"{path}, line {number}", f"is longer than {LINE_BYTES} bytes", remedy)
                if not line.endswith(b"\n"):
                    if line and not line.startswith(b"{"):
                        start = ascii(line[:20].decode("utf-8", "replace"))
                        raise file_error(f"{path}, line {number}", f"begins with {start}, expected an object", remedy)
                    return
                end += len(line)
                yield parse_json(line, f"{path}, line {number}", kind, remedy), end
    except TubeletError:
        raise
    except OSError as error:
        raise _unreadable(path, error, remedy) from error
