"""Which values a setting, an option or a field of a file may have: types by annotation, ranges by `Bounds`.

One place decides for all of them, so that what is accepted when it is given is also accepted when it is read again.
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

# What fits the integers of every format and library that a value goes through.
LARGEST_INT = 2**63 - 1
# Linux's limits on a path and on each name in it, in bytes.
PATH_BYTES, NAME_BYTES = 4095, 255
# Code points that are no character and that no path decodes to either (those, U+DC80 to U+DCFF, stand for raw bytes).
LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


class MisfitError(Exception):
    """A value that does not fit.

    Attributes:
        name: of the setting or field, such as `files.train[3].level`.
        problem: what follows the name in a sentence: what was found, and what was expected.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem


@dataclass(frozen=True)
class Bounds:
    """The range of a number, as a part of its annotation: `Annotated[int, Bounds(1, 8)]`.

    Attributes:
        low: the smallest value.
        high: the largest value.
        exclusive: whether `low` itself is excluded.
        also: a value that is allowed though it is outside the range, such as 0 for "off".
        unit: what the number counts or measures, for the error.
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


def hints(kind: Any) -> dict[str, Any]:
    """The annotations of a class or function by name, `Annotated` included."""
    return _hints(kind)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def fit(kind: Any, value: Any, name: str, *, given: bool) -> Any:
    """A value as its annotation has it.

    Args:
        kind: the annotation: numbers, strings, booleans, paths, None, unions, literals, tuples, lists, dictionaries
            with strings for keys, typed dictionaries (whose other keys are ignored), each possibly within `Bounds`.
        value: to be checked.
        name: of the value, for the error.
        given: whether a person or a program gave it as a setting: then numbers of NumPy, whole numbers for fractional
            ones, lists for tuples and paths for strings will do, and text must be fit for a name or path. What comes
            from a file must be of the very type; floats may be written without a fraction.

    Returns:
        the value, of the type that the annotation names.

    Raises:
        MisfitError: it is of another type, not finite, or out of range.
    """
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        value = fit(parts[0], value, name, given=given)
        for bounds in parts[1:]:
            if isinstance(bounds, Bounds):
                _check_bounds(value, bounds, name)
        return value
    if origin in (Required, NotRequired):
        return fit(parts[0], value, name, given=given)
    if kind is Any or kind is object:
        return value
    if origin in (Union, types.UnionType):
        return _fit_union(kind, parts, value, name, given)
    if origin is Literal:
        if not any(type(value) is type(one) and value == one for one in parts):
            raise _misfit(kind, value, name)
        return value
    if origin in (tuple, list):
        return _fit_sequence(kind, origin, parts, value, name, given)
    if is_typeddict(kind):
        return _fit_record(kind, value, name, given)
    if origin is dict:
        if not isinstance(value, dict) or not all(type(key) is str for key in value):
            raise _misfit(kind, value, name)
        return {key: fit(parts[1], item, _below(name, key), given=given) for key, item in value.items()}
    return _fit_plain(kind, value, name, given)


def _fit_plain(kind: Any, value: Any, name: str, given: bool) -> Any:
    if kind is bool or kind is types.NoneType or kind is None:
        if type(value) is not (bool if kind is bool else types.NoneType):
            raise _misfit(kind, value, name)
        return value
    if kind in (int, float) and isinstance(value, bool):
        raise _misfit(kind, value, name)
    if kind is int and (type(value) is int or (given and isinstance(value, Integral))):
        if not -LARGEST_INT <= int(value) <= LARGEST_INT:
            raise MisfitError(name, f"is {_shown(value)}, expected a whole number of at most 63 bits")
        return int(value)
    if kind is float and (type(value) in (int, float) or (given and isinstance(value, Real))):
        return _finite(value, name)
    if kind is str and (type(value) is str or (given and isinstance(value, Path))):
        text = str(value)
        if given:
            check_text(text, name)
        elif LONE_SURROGATE.search(text):
            raise MisfitError(name, f"is {_shown(text)}, which is not valid text")
        return text
    if kind is Path and given and isinstance(value, (str, Path)):
        check_text(str(value), name)
        return Path(value)
    if isinstance(kind, type) and kind not in (int, float, str, Path) and isinstance(value, kind):
        return value
    raise _misfit(kind, value, name)


def _finite(value: Any, name: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = inf
    if not isfinite(number):
        raise MisfitError(name, f"is {_shown(value)}, expected a finite number")
    return number


def check_text(text: str, name: str) -> None:
    """Refuse text that is no name of anything: empty, with a NUL, longer than a path, or below an unknown home.

    Raises:
        MisfitError: says which.
    """
    if not text:
        raise MisfitError(name, "is empty: give a value or leave it out")
    if "\0" in text or LONE_SURROGATE.search(text):
        raise MisfitError(name, f"is {_shown(text)}, which holds a character that no name can have")
    if "://" in text:
        return
    raw = os.fsencode(text)
    longest = max(map(len, raw.split(b"/")))
    if len(raw) > PATH_BYTES or longest > NAME_BYTES:
        raise MisfitError(
            name,
            f"is {_shown(text)}, {len(raw)} bytes long with a name of {longest}, expected a path of at most "
            f"{PATH_BYTES} bytes and names of at most {NAME_BYTES}",
        )
    if text.startswith("~") and os.path.expanduser(text) == text:  # noqa: PTH111 - pathlib's raises RuntimeError
        home = text.partition("/")[0]
        raise MisfitError(name, f"is {_shown(text)}, but no home directory of {home!r} is known: give the whole path")


def _fit_union(kind: Any, parts: tuple[Any, ...], value: Any, name: str, given: bool) -> Any:
    problems = []
    for part in parts:
        try:
            return fit(part, value, name, given=given)
        except MisfitError as error:
            problems.append(error)
    # The one that got farther than the type says more.
    words = in_words(kind)
    of_value = [error for error, part in zip(problems, parts, strict=True) if in_words(part) not in error.problem]
    raise of_value[0] if of_value else MisfitError(name, f"is {_shown(value)}, expected {words}")


def _fit_sequence(kind: Any, origin: Any, parts: tuple[Any, ...], value: Any, name: str, given: bool) -> Any:
    if not isinstance(value, (tuple, list) if given or origin is list else origin):
        if given and isinstance(value, (str, Path)):
            raise MisfitError(name, f"is {str(value)!r}, expected a tuple: ({str(value)!r},)")
        raise _misfit(kind, value, name)
    each = parts[:1] * len(value) if origin is list or parts[-1] is Ellipsis else parts
    if len(each) != len(value):
        raise _misfit(kind, value, name)
    return origin(fit(part, item, f"{name}[{i}]", given=given) for i, (part, item) in enumerate(zip(each, value)))  # noqa: B905


def _fit_record(kind: Any, value: Any, name: str, given: bool) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _misfit(kind, value, name)
    record = dict(value)
    for key, part in hints(kind).items():
        if key in value:
            record[key] = fit(part, value[key], _below(name, key), given=given)
        elif key in kind.__required_keys__:
            raise MisfitError(_below(name, key), f"is missing, expected {in_words(part)}")
    return record


def _below(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _check_bounds(value: Any, bounds: Bounds, name: str) -> None:
    if isinstance(value, (tuple, list)):
        for item in value:
            _check_bounds(item, bounds, name)
    elif isinstance(value, (int, float)) and value not in bounds:
        raise MisfitError(name, f"is {_shown(value)}, expected {bounds}")


def _misfit(kind: Any, value: Any, name: str) -> MisfitError:
    return MisfitError(name, f"is {_shown(value)}, expected {in_words(kind)}")


def _shown(value: Any) -> str:
    """A value in a sentence, cut where it is long."""
    if isinstance(value, (str, bytes, list, tuple, dict)) and len(value) > 1000:
        value = f"{value[:100]}..." if isinstance(value, str) else f"{type(value).__name__} of {len(value)} entries"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return f"a number of {value.bit_length()} bits"
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except Exception:  # an object whose representation fails is still no value
        text = type(value).__name__
    if not isinstance(value, (str, bytes, list, tuple, dict)) and isinstance(value, Real):
        text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


def in_words(kind: Any) -> str:
    """An annotation as a part of a sentence."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Annotated, Required, NotRequired):
        return in_words(parts[0])
    if origin in (Union, types.UnionType):
        return " or ".join(in_words(part) for part in parts)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin is list or (origin is tuple and parts[-1] is Ellipsis):
        return f"a list of any number of {in_words(parts[0])}"
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
