"""Base class of all configs: validation of fields, and conversion to and from JSON."""

import copy
import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from tubelet.errors import ConfigError
from tubelet.value_checks import (
    LARGEST_INT,
    Bounds,
    ExpandUser,
    InvalidValueError,
    check_value,
    describe_type,
    type_hints,
)

# Maximum over all frames of a clip together: 64 frames of 4K.
CLIP_PIXELS = 64 * 3840 * 2160
# Settings that are not written without a value, so that configs from before they were introduced keep their hashes.
_LEFT_OUT_IF_NONE = {"pixels"}

Count = Annotated[int, Bounds(1, 10**9 - 1)]  # the name of a checkpoint has nine digits for the step
Seed = Annotated[int, Bounds(0, LARGEST_INT)]
Side = Annotated[int, Bounds(1, 8192, unit="pixels")]
Frames = Annotated[int, Bounds(1, 65_536, unit="frames")]
Rate = Annotated[float, Bounds(0, 1000, exclusive=True, unit="frames per second")]
Samples = Annotated[int, Bounds(1, 2**20)]
Processes = Annotated[int, Bounds(0, 1024, unit="processes")]
Workers = Processes | Literal["auto"]
Fraction = Annotated[float, Bounds(0, 1)]
# Operating systems wait for at most 2^31 milliseconds.
Seconds = Annotated[float, Bounds(0, 1e6, exclusive=True, unit="seconds")]
StoredValue = Annotated[float, Bounds(-1e30, 1e30)]
LearningRate = Annotated[float, Bounds(0, 1e6, exclusive=True)]
# A path, or what may stand for one: a URL, a released name, a Hub id.
PathText = Annotated[str, ExpandUser()]


S = TypeVar("S", bound="Settings")


class SettingError(ConfigError):
    """An invalid setting.

    Attributes:
        name: name of the setting.
        problem: predicate of the message, after the name.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} {problem}")
        self.name = name
        self.problem = problem

    def __reduce__(self) -> tuple[type["SettingError"], tuple[str, str]]:
        return (SettingError, (self.name, self.problem))


def check(kind: Any, value: Any, name: str) -> Any:
    """Convert a setting to the type of its annotation; see `tubelet.value_checks.check_value`.

    Raises:
        SettingError: for another type, a number that is not finite or out of range, or an invalid name.
    """
    try:
        return check_value(kind, value, name, strict=False)
    except InvalidValueError as error:
        raise SettingError(error.name, error.problem) from error


class Settings:
    """Base class of configs: fields are checked by their annotations on construction.

    Every config can therefore be written and read again: it has no NaN, no infinity, and nothing out of range.

    A config that is a file of its own sets `FORMAT_VERSION`, which is written into the file, and `RENAMED_IN_2`, the
    dotted keys of version 1 with their names since.
    """

    FORMAT_VERSION = 0
    RENAMED_IN_2 = MappingProxyType[str, str]({})

    def __post_init__(self) -> None:
        for name, kind in type_hints(type(self)).items():
            object.__setattr__(self, name, check(kind, getattr(self, name), name))


def require(condition: bool, name: str, problem: str) -> None:
    """Validate a setting that depends on others.

    Raises:
        SettingError: if the condition is false.
    """
    if not condition:
        raise SettingError(name, problem)


def require_clip(frames: int, size: int) -> None:
    """Validate the size of a clip in memory.

    Raises:
        SettingError: if a clip has more than `CLIP_PIXELS`.
    """
    require(
        frames * size**2 <= CLIP_PIXELS,
        "image_size",
        f"is {size} and frames is {frames}, {frames * size**2:.2g} pixels a clip, expected at most {CLIP_PIXELS:.2g}",
    )


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint with the name that is closest to a misspelled one; empty if none is close."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" (nearest: {close[0]!r})" if close else ""


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain dictionaries, lists and scalars, ready for JSON; `version` first where its file has one."""
    version = type(config).FORMAT_VERSION
    return ({"version": version} if version else {}) | dataclasses.asdict(config, dict_factory=_without_absent)


def _without_absent(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: value for name, value in items if value is not None or name not in _LEFT_OUT_IF_NONE}


def from_dict(kind: type[Settings], values: Mapping[str, Any], where: str = "config") -> Any:
    """Rebuild a config from the output of `to_dict`, of this version or an earlier one.

    Args:
        kind: class of the config.
        values: of JSON.
        where: the file, for errors.

    Raises:
        ConfigError: for a file of a later version, for an unknown key, naming the nearest valid one, for a value that
            the field does not allow, and for a key without a value or default.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: found {values!r:.100}, expected a mapping of names to values")
    return _rebuild(kind, current_keys(kind, values, where), where, "")


def overlay(default: S, values: Mapping[str, Any], where: str, path: str = "") -> S:
    """A config with the fields that a file sets.

    Each field is checked, but combinations of fields are not: the command line may set others of them.

    Args:
        default: the config that has all other fields.
        values: of the file, by the field's name.
        where: the file, for errors.
        path: dotted path of the config in the file, for errors.

    Raises:
        ConfigError: for an unknown key, naming the nearest valid one, and for a value that the field does not allow.
    """
    kinds, changed = type_hints(type(default)), object.__new__(type(default))
    merged = {}
    for key, value in values.items():
        name = f"{path}.{key}" if path else str(key)
        if key not in kinds:
            raise _unknown_key(where, name, path, kinds)
        now = getattr(default, key)
        if isinstance(now, Settings) and isinstance(value, Mapping):
            merged[key] = overlay(now, value, where, name)
        else:
            merged[key] = _rebuild(kinds[key], value, where, name)
    for key in kinds:
        object.__setattr__(changed, key, merged.get(key, getattr(default, key)))
    return changed


def current_keys(kind: type[Settings], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The values of a file under the names that this version has for them; a file without a version is of version 1.

    Raises:
        ConfigError: for a file of a later version.
    """
    if not kind.FORMAT_VERSION:
        return dict(values)
    version = values.get("version", 1)
    if version not in range(1, kind.FORMAT_VERSION + 1):
        raise ConfigError(
            f"{where}: version is {version!r:.100}, expected 1 to {kind.FORMAT_VERSION}; upgrade tubelet to read it"
        )
    current = copy.deepcopy({key: value for key, value in values.items() if key != "version"})
    for old, new in kind.RENAMED_IN_2.items() if version == 1 else ():
        section, _, key = old.rpartition(".")
        group = current.get(section) if section else current
        if isinstance(group, dict) and key in group:
            group[new] = group.pop(key)
    return current


def _unknown_key(where: str, name: str, path: str, names: Iterable[str]) -> ConfigError:
    prefix = f"{path}." if path else ""
    return ConfigError(f"{where}: unknown key {name!r:.100}{nearest(name, [prefix + key for key in names])}")


def _rebuild(kind: Any, value: Any, where: str, path: str) -> Any:
    """Convert a JSON value to the type of a config field: mappings become configs, lists become tuples."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated and (dataclasses.is_dataclass(parts[0]) or isinstance(value, list)):
        mapping = _rebuild(parts[0], value, where, path)
        return mapping if dataclasses.is_dataclass(parts[0]) else _fit(kind, mapping, where, path)
    if isinstance(value, Mapping):  # an optional config
        kind = next((part for part in parts if dataclasses.is_dataclass(part)), kind)
    if dataclasses.is_dataclass(kind):
        return _rebuild_config(kind, value, where, path)  # type: ignore[arg-type]
    if origin is tuple and isinstance(value, list):
        kinds = parts[:1] * len(value) if parts[-1] is Ellipsis else (*parts, *parts[-1:] * len(value))
        items = zip(kinds, value, strict=False)
        return _fit(
            kind,
            tuple(_rebuild(item_kind, item, where, f"{path}[{i}]") for i, (item_kind, item) in enumerate(items)),
            where,
            path,
        )
    return _fit(kind, value, where, path)


def _rebuild_config(kind: type[Settings], values: Any, where: str, path: str) -> Any:
    prefix = f"{path}." if path else ""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: {path} is {values!r:.100}, expected a mapping of names to values")
    kinds = type_hints(kind)
    for key in values:
        if key not in kinds:
            raise _unknown_key(where, f"{prefix}{key}", path, kinds)
    fields = {name: _rebuild(kinds[name], value, where, f"{prefix}{name}") for name, value in values.items()}
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and field.name not in fields:
            raise ConfigError(f"{where}: {prefix}{field.name} is missing, expected {describe_type(kinds[field.name])}")
    try:
        return kind(**fields)
    except SettingError as error:
        raise ConfigError(f"{where}: {prefix}{error}") from error


def _fit(kind: Any, value: Any, where: str, path: str) -> Any:
    try:
        return check_value(kind, value, path, strict=True)
    except InvalidValueError as error:
        raise ConfigError(f"{where}: {error}") from error
