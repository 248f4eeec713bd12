"""What all configs share: refusing what cannot be meant, and the way to JSON and back."""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tubelet.types import TubeletError


def require(condition: bool, message: str) -> None:
    """Refuse settings that cannot be meant.

    Raises:
        TubeletError: with the message, unless the condition holds.
    """
    if not condition:
        raise TubeletError(message)


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is closest to a misspelt one; empty if none is."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (nearest: {close[0]!r})" if close else ""


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain dictionaries, lists and scalars, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(kind: type, values: Mapping[str, Any], where: str = "config") -> Any:
    """Rebuild a config from what `to_dict` gave.

    Raises:
        TubeletError: for an unknown key, naming the nearest valid one, for a value of another type than the field's,
            and for a key without a value or default.
    """
    require(isinstance(values, Mapping), f"{where} is {values!r:.100}, expected an object of names and values")
    kinds = get_type_hints(kind)
    for key in values:
        if key not in kinds:
            raise TubeletError(f"{where} has an unknown key {key!r}{nearest(key, kinds)}")
    given = {name: _rebuild(kinds[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return kind(**given)
    except (TypeError, TubeletError) as error:
        raise TubeletError(f"{where}: {error}") from error


def _rebuild(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, where)  # type: ignore[arg-type]
    if get_origin(kind) is tuple and isinstance(value, list):
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis:
            return tuple(_rebuild(kinds[0], item, f"{where}[{i}]") for i, item in enumerate(value))
        value = tuple(value)
    require(_fits(kind, value), f"{where} is {value!r:.100}, expected {_in_words(kind)}")
    return value


def _fits(kind: Any, value: Any) -> bool:
    """Whether JSON's value is one of a field's type; a whole number will do for a float, no boolean for a number."""
    origin, kinds = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(one, value) for one in kinds)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in kinds)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        each = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
        return len(each) == len(value) and all(map(_fits, each, value))
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def _in_words(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType, Literal):
        return " or ".join(_in_words(one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return "a list of " + (
            f"any number of {_in_words(kinds[0])}" if kinds[-1] is Ellipsis else f"{len(kinds)} numbers"
        )
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false", NoneType: "null"}
    return names.get(kind) or repr(kind)
