"""Strict readers of text, JSON and JSON lines; arrays.py has those of tensors, arrays and tables.

A file may be damaged, truncated, of another program, or malicious. A reader returns values of the requested types, or
raises a `TubeletError` with one line that names the file, the field, the value found, the value expected, and the
remedy. No other module parses these formats, which a test checks.
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
from tubelet.value_checks import LARGEST_INT, LONE_SURROGATE, InvalidValueError, check_value

COPY_AGAIN = "copy it again or recreate it"
# Limits on sizes, far above those of any file of this package or a benchmark.
TEXT_BYTES = 2**30
LINE_BYTES = 2**24
# Nesting of objects and lists; the deepest file of this package has 8 levels.
JSON_DEPTH = 64


def file_error(
    where: str | Path, problem: str, remedy: str = COPY_AGAIN, kind: type[TubeletError] = DataError
) -> TubeletError:
    """An error about a file: "FILE: PROBLEM; REMEDY"."""
    return kind(f"{where}: {problem}; {remedy}")


def require_regular(path: Path, remedy: str = COPY_AGAIN) -> None:
    """Check that a path is a regular file: reading a pipe or device might never end.

    Raises:
        MissingFileError: if it does not exist.
        FileError: if it is a directory, a device or a pipe.
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
        FileError: if it cannot be read.
        DataError: if it is larger than the limit.
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


def read_start(path: Path, size: int = 4096, remedy: str = COPY_AGAIN) -> bytes:
    """The first bytes of a file, to detect its format.

    Raises:
        FileError: if it cannot be read.
    """
    require_regular(path, remedy)
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise _unreadable(path, error, remedy) from error


def read_text(path: Path, remedy: str = COPY_AGAIN, limit: int = TEXT_BYTES) -> str:
    """The content of a text file in UTF-8, without a byte order mark.

    Raises:
        FileError: if it cannot be read.
        DataError: if it is not UTF-8 text, or is larger than the limit.
    """
    return decode_text(read_bytes(path, remedy, limit), path, remedy)


def decode_text(data: bytes, where: str | Path, remedy: str = COPY_AGAIN) -> str:
    """Bytes of a file as UTF-8 text, without a byte order mark.

    Raises:
        DataError: if they are not.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise file_error(
            where, f"is not UTF-8 text (byte {data[error.start]:#04x} at {error.start})", remedy
        ) from error
    if "\0" in text:
        raise file_error(where, "contains a NUL character", remedy)
    return text


def parse_json(text: str | bytes, where: str | Path, kind: Any = Any, remedy: str = COPY_AGAIN) -> Any:
    """A value of strict JSON.

    Args:
        text: the JSON; bytes must be UTF-8.
        where: the file, or the file and line, for the error.
        kind: the type of the value, see `tubelet.value_checks.check_value`.
        remedy: what to do if the file cannot be read, for the error.

    Raises:
        DataError: if it is not JSON by RFC 8259, without NaN and Infinity; an object has a key twice; a number fits
            neither 64 bits nor a float; or the value is not of type `kind`.
    """
    if isinstance(text, bytes):
        text = decode_text(text, where, remedy)
    try:
        value = _DECODER.decode(text)
        # Only text that can contain either is searched: there are many rows of metrics.
        if "\\u" in text or text.count("[") + text.count("{") > JSON_DEPTH:
            _check_values(value)
    except InvalidValueError as error:
        raise file_error(where, str(error), remedy) from error
    except json.JSONDecodeError as error:
        location = f" at line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f" at {error.pos}"
        raise file_error(where, f"is not JSON ({error.msg}{location})", remedy) from error
    except RecursionError as error:
        raise file_error(where, f"is not JSON of at most {JSON_DEPTH} levels", remedy) from error
    except ValueError as error:  # such as a whole number of more digits than Python converts
        raise file_error(where, f"is not JSON ({first_line(error)})", remedy) from error
    return value if kind is Any else validate_content(kind, value, where, remedy)


def validate_content(kind: Any, value: Any, where: str | Path, remedy: str = COPY_AGAIN) -> Any:
    """Contents of a file, checked against a type, see `tubelet.value_checks.check_value`.

    Raises:
        DataError: names the file, the field, the value found and the value expected.
    """
    try:
        return check_value(kind, value, "", strict=True)
    except InvalidValueError as error:
        problem = f"{error.name} {error.problem}" if error.name else f"its content {error.problem}"
        raise file_error(where, problem, remedy) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise InvalidValueError(
            repr(next(key for key in keys if keys.count(key) > 1))[:100], "appears twice in one object"
        )
    return result


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
    """Reject strings that are not valid in paths and terminals, and documents that are too deep.

    Raises:
        InvalidValueError: naming it.
    """
    level, values = 0, [value]
    while values:
        level += 1
        if level > JSON_DEPTH:
            raise InvalidValueError("it", f"has nested objects and lists of more than {JSON_DEPTH} levels")
        below: list[Any] = []
        for item in values:
            if isinstance(item, dict):
                below += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str) and ("\0" in item or LONE_SURROGATE.search(item)):
                raise InvalidValueError(ascii(item)[:100], "contains an invalid character")
        values = below


def read_json(path: Path, kind: Any = Any, remedy: str = COPY_AGAIN) -> Any:
    """The value of a JSON file.

    Args:
        path: the file.
        kind: the type of the value, see `tubelet.value_checks.check_value`.
        remedy: what to do if the file cannot be read, for the error.

    Raises:
        TubeletError: see `parse_json`; or it cannot be read.
    """
    return parse_json(read_bytes(path, remedy), path, kind, remedy)


def read_jsonl(path: Path, kind: Any, remedy: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Rows of a JSON lines file, each with the byte offset of its end.

    A process that was killed leaves an incomplete last line, which is ignored. A missing file has no rows.

    Raises:
        DataError: if a line is damaged or not of type `kind`.
        FileError: if the file cannot be read.
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
