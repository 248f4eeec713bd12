"""Validation of settings, options and fields of files: types by annotation, ranges by `Bounds`.

All of them use the same checks, so that a setting that is accepted is also accepted when it is read from a file.
"""

import os
import re
import types
from dataclasses import dataclass, is_dataclass
from functools import cache
from math import inf, isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

# The range of integers in every format and library that a value passes through.
LARGEST_INT = 2**63 - 1
# Linux's limits on a path and on each name in it, in bytes.
PATH_BYTES, NAME_BYTES = 4095, 255
# Code points that are no character and that no path decodes to either (those, U+DC80 to U+DCFF, stand for raw bytes).
LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


class InvalidValueError(Exception):
    """A value of the wrong type or out of range.

    Attributes:
        name: name of the setting or field, such as `files.train[3].level`.
        problem: the message after the name: the value found and the value expected.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem


@dataclass(frozen=True)
class Bounds:
    """The range of a number, in its annotation: `Annotated[int, Bounds(1, 8)]`.

    Attributes:
        low: smallest value.
        high: largest value.
        exclusive: whether `low` itself is excluded.
        also: allowed value outside of the range, such as 0 for "off".
        unit: unit of the number, for the error.
    """

    low: float
    high: float
    exclusive: bool = False
    also: float | None = None
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.exclusive else value >= self.low
        return value == self.also or (above and value <= self.high)

    def __str__(self) -> str:
        low, high = (str(end) if isinstance(end, int) else f"{end:g}" for end in (self.low, self.high))
        first = f"above {low} and at most" if self.exclusive else f"{low} to"
        other = "" if self.also is None else f", or {self.also:g}"
        return f"{first} {high}{' ' * bool(self.unit)}{self.unit}{other}"


@dataclass(frozen=True)
class ExpandUser:
    """In an annotation of text that may be a path: a home directory (~) is written out, as in values of type `Path`."""


def type_hints(kind: Any) -> dict[str, Any]:
    """Annotations of a class or function by name, including `Annotated`."""
    return _type_hints(kind)


@cache
def _type_hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def check_value(kind: Any, value: Any, name: str, *, strict: bool) -> Any:
    """Check a value against an annotation, and convert it if allowed.

    Args:
        kind: the annotation: numbers, strings, booleans, paths, None, unions, literals, tuples, lists, dictionaries
            with string keys, typed dictionaries (other keys are ignored), each possibly with `Bounds`.
        value: the value to check.
        name: name of the value, for the error.
        strict: accept only values of the exact type, as from a file (floats may be written without a fraction).
            Otherwise the value is a setting from a person or program: NumPy numbers, integers for floats, lists for
            tuples and strings for paths are converted, and text must be usable as a name or path. Home directories
            (~) are written out in paths, and in text with `ExpandUser`.

    Returns:
        The value, with the type of the annotation.

    Raises:
        InvalidValueError: if it is of another type, not finite, or out of range.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        value = check_value(parts[0], value, name, strict=strict)
        for mark in parts[1:]:
            if isinstance(mark, Bounds):
                _check_bounds(value, mark, name)
            elif isinstance(mark, ExpandUser) and isinstance(value, str):
                value = _expand_user(value, name)
        return value
    if origin in (Required, NotRequired):
        return check_value(parts[0], value, name, strict=strict)
    if kind is Any or kind is object:
        return value
    if origin in (Union, types.UnionType):
        return _check_union(kind, parts, value, name, strict)
    if origin is Literal:
        if not any(type(value) is type(one) and value == one for one in parts):
            raise _type_error(kind, value, name)
        return value
    if origin in (tuple, list):
        return _check_sequence(kind, origin, parts, value, name, strict)
    if is_typeddict(kind):
        return _check_typed_dict(kind, value, name, strict)
    if origin is dict:
        if not isinstance(value, dict) or not all(type(key) is str for key in value):
            raise _type_error(kind, value, name)
        return {key: check_value(parts[1], item, _join_names(name, key), strict=strict) for key, item in value.items()}
    return _check_plain(kind, value, name, strict)


def _check_plain(kind: Any, value: Any, name: str, strict: bool) -> Any:
    if kind is bool or kind is types.NoneType or kind is None:
        if type(value) is not (bool if kind is bool else types.NoneType):
            raise _type_error(kind, value, name)
        return value
    if kind in (int, float) and isinstance(value, bool):
        raise _type_error(kind, value, name)
    if kind is int and (type(value) is int or (not strict and isinstance(value, Integral))):
        if not -LARGEST_INT <= int(value) <= LARGEST_INT:
            raise InvalidValueError(name, f"is {_format_value(value)}, expected a whole number of at most 63 bits")
        return int(value)
    if kind is float and (type(value) in (int, float) or (not strict and isinstance(value, Real))):
        return _finite(value, name)
    if kind is str and (type(value) is str or (not strict and isinstance(value, Path))):
        text = str(value)
        if not strict:
            check_text(text, name)
        elif LONE_SURROGATE.search(text):
            raise InvalidValueError(name, f"is {_format_value(text)}, which is not valid text")
        return text
    if kind is Path and not strict and isinstance(value, (str, Path)):
        return Path(_expand_user(str(value), name))
    if isinstance(kind, type) and kind not in (int, float, str, Path) and isinstance(value, kind):
        return value
    raise _type_error(kind, value, name)


def _finite(value: Any, name: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = inf
    if not isfinite(number):
        raise InvalidValueError(name, f"is {_format_value(value)}, expected a finite number")
    return number


def _expand_user(text: str, name: str) -> str:
    check_text(text, name)
    return os.path.expanduser(text)  # noqa: PTH111 - pathlib's changes the rest of the text


def check_text(text: str, name: str) -> None:
    """Reject text that is not a valid name: empty, with a NUL, longer than a path, or in an unknown home directory.

    Raises:
        InvalidValueError: names the problem.
    """
    if not text:
        raise InvalidValueError(name, "is empty; pass a value or omit it")
    if "\0" in text or LONE_SURROGATE.search(text):
        raise InvalidValueError(
            name, f"is {_format_value(text)}, which contains a character that is not valid in names"
        )
    if "://" in text:
        return
    raw = os.fsencode(text)
    longest = max(map(len, raw.split(b"/")))
    if len(raw) > PATH_BYTES or longest > NAME_BYTES:
        raise InvalidValueError(
            name,
            f"is {_format_value(text)}, {len(raw)} bytes long with a name of {longest}, expected a path of at most "
            f"{PATH_BYTES} bytes and names of at most {NAME_BYTES}",
        )
    if text.startswith("~") and os.path.expanduser(text) == text:  # noqa: PTH111 - pathlib's raises RuntimeError
        home = text.partition("/")[0]
        raise InvalidValueError(
            name, f"is {_format_value(text)}, but the home directory of {home!r} is unknown; pass the absolute path"
        )


def _check_union(kind: Any, parts: tuple[Any, ...], value: Any, name: str, strict: bool) -> Any:
    problems = []
    for part in parts:
        try:
            return check_value(part, value, name, strict=strict)
        except InvalidValueError as error:
            problems.append(error)
    # Prefer the error about the value over those about the type.
    expected = describe_type(kind)
    of_value = [error for error, part in zip(problems, parts, strict=True) if describe_type(part) not in error.problem]
    raise of_value[0] if of_value else InvalidValueError(name, f"is {_format_value(value)}, expected {expected}")


def _check_sequence(kind: Any, origin: Any, parts: tuple[Any, ...], value: Any, name: str, strict: bool) -> Any:
    if not isinstance(value, (tuple, list) if not strict or origin is list else origin):
        if not strict and isinstance(value, (str, Path)):
            raise InvalidValueError(name, f"is {str(value)!r}, expected a tuple: ({str(value)!r},)")
        raise _type_error(kind, value, name)
    each = parts[:1] * len(value) if origin is list or parts[-1] is Ellipsis else parts
    if len(each) != len(value):
        raise _type_error(kind, value, name)
    return origin(
        check_value(part, item, f"{name}[{i}]", strict=strict)
        for i, (part, item) in enumerate(zip(each, value, strict=True))
    )


def _check_typed_dict(kind: Any, value: Any, name: str, strict: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _type_error(kind, value, name)
    record = dict(value)
    for key, part in type_hints(kind).items():
        if key in value:
            record[key] = check_value(part, value[key], _join_names(name, key), strict=strict)
        elif key in kind.__required_keys__:
            raise InvalidValueError(_join_names(name, key), f"is missing, expected {describe_type(part)}")
    return record


def _join_names(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _check_bounds(value: Any, bounds: Bounds, name: str) -> None:
    if isinstance(value, (tuple, list)):
        for item in value:
            _check_bounds(item, bounds, name)
    elif isinstance(value, (int, float)) and value not in bounds:
        raise InvalidValueError(name, f"is {_format_value(value)}, expected {bounds}")


def _type_error(kind: Any, value: Any, name: str) -> InvalidValueError:
    return InvalidValueError(name, f"is {_format_value(value)}, expected {describe_type(kind)}")


def _format_value(value: Any) -> str:
    """A value as text in a message, truncated if long."""
    if isinstance(value, (str, bytes, list, tuple, dict)) and len(value) > 1000:
        value = f"{value[:100]}..." if isinstance(value, str) else f"{type(value).__name__} of {len(value)} entries"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return f"a number of {value.bit_length()} bits"
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except Exception:  # repr of a foreign object may raise
        text = type(value).__name__
    if not isinstance(value, (str, bytes, list, tuple, dict)) and isinstance(value, Real):
        text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def describe_type(kind: Any) -> str:
    """An annotation as text in a message."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Annotated, Required, NotRequired):
        return describe_type(parts[0])
    if origin in (Union, types.UnionType):
        return " or ".join(describe_type(part) for part in parts)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is list or (origin is tuple and parts[-1] is Ellipsis):
        return f"a list of any number of {describe_type(parts[0])}"
    if origin is tuple:
        return f"a list of {len(parts)} numbers"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", Path: "a path"}
    if kind in (None, types.NoneType):
        return "null"
    if is_typeddict(kind) or is_dataclass(kind) or origin is dict or kind is dict:
        return "an object of names and values"
    if kind is list:
        return "a list"
    return names.get(kind) or str(getattr(kind, "__name__", kind))
