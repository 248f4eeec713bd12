"""What all configs share: refusing what cannot be meant, and the way to JSON and back."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin, get_type_hints

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
        TubeletError: for an unknown key, naming the nearest valid one, and for a key without a value or default.
    """
    kinds = get_type_hints(kind)
    for key in values:
        if key not in kinds:
            raise TubeletError(f"{where} has an unknown key {key!r}{nearest(key, kinds)}")
    given = {name: _rebuild(kinds[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return kind(**given)
    except TypeError as error:
        raise TubeletError(f"{where}: {error}") from error


def _rebuild(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return from_dict(kind, value, where)  # type: ignore[arg-type]
    if get_origin(kind) is tuple and dataclasses.is_dataclass(item_kind := get_args(kind)[0]):
        return tuple(from_dict(item_kind, item, f"{where}[{i}]") for i, item in enumerate(value))  # type: ignore[arg-type]
    return tuple(value) if isinstance(value, list) else value
