"""The base of all commands: options as fields of a validated dataclass, and their parsing.

Parsing has two phases. The first reads the few options that name files with defaults (`--config`, `--out --resume`);
the second parses the whole command line with those defaults. So options on the command line take precedence over files.
"""

import argparse
import contextlib
import dataclasses
import io
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import tyro

from tubelet.config.fields import PathText, SettingError, Settings, check, current_keys, nearest, overlay
from tubelet.errors import ConfigError, MissingFileError, escape_unprintable
from tubelet.io.config_file import read_config_file
from tubelet.value_checks import InvalidValueError, check_text, type_hints

C = TypeVar("C", bound="Command")
Sources = Annotated[tuple[PathText, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE ...")]
Model = Annotated[PathText, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
_URL = re.compile(r"\w{2,}:/")  # as a URL and as the path that it becomes; a drive of Windows has one letter
_ANSI_STYLE = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Known(Settings):
    """The options that the first phase of parsing reads.

    Attributes:
        config: path of `--config`.
        out: path of `--out`.
        resume: whether `--resume` is set.
    """

    config: Path | None
    out: Path | None
    resume: bool


@dataclass(frozen=True, kw_only=True)
class Command(Settings):
    """Options of a command, checked by their annotations when the command line is parsed."""

    DISTRIBUTED = False  # whether several processes run the command together
    CONTINUES = False  # whether the same command continues what was interrupted

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe messages that are printed."""

    def run(self) -> None:
        """Run the command."""
        raise NotImplementedError

    def inputs(self) -> Iterable[str | Path]:
        """Files, folders, patterns and URLs that the command reads, which are looked up before anything is loaded."""
        return ()

    @classmethod
    def defaults(cls, options: Known) -> dict[str, Any]:
        """Defaults of fields that depend on other options, such as the settings of a run that is resumed.

        Raises:
            ConfigError: a file that they come from cannot be read.
        """
        return {}


@dataclass(frozen=True, kw_only=True)
class ConfigurableCommand(Command):
    """A command whose options can also be set in a config file."""

    config: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """YAML or JSON file of options, such as a run's config.json; options of the command line win over it."""

    def file_has_model(self) -> bool:
        """Whether the file of options has the sizes of a model."""
        return self.config is not None and isinstance(read_config_file(self.config).get("model"), dict)


@dataclass(frozen=True, kw_only=True)
class LoadOptions(Settings):
    """Options of commands that read many files with one model: how `tubelet.load` makes it fast."""

    int8: bool = False
    """Use 8-bit weights and activations in the linear layers of the blocks, on a CPU with VNNI units; features differ a
    little, see docs/performance.md."""
    compile: bool = False
    """Compile the blocks, which takes up to a minute the first time."""

    def load_options(self) -> dict[str, Any]:
        """The options, as `tubelet.load` takes them."""
        return {"int8": self.int8, "compile": self.compile} | ({"device": "cpu"} if self.int8 else {})


def parse(kind: type[C], name: str, argv: Sequence[str]) -> C:
    """A command from its command line.

    Args:
        kind: class of the command.
        name: of the command.
        argv: the command line after the name.

    Raises:
        ConfigError: an option has a value that it does not allow, or a file of options cannot be read.
        SystemExit: after help, or for a command line that cannot be parsed.
    """
    _check_arguments(argv)
    _check_options(kind, name, argv)
    options = _known_options(argv)
    default, errors, setting = _default(kind, options), io.StringIO(), None
    try:
        with contextlib.redirect_stderr(errors):
            # Help shows `FLOAT` rather than `{None}|FLOAT`: None is the option left out.
            return tyro.cli(kind, prog=f"tubelet {name}", args=argv, default=default, config=(tyro.conf.DisallowNone,))
    except SettingError as error:
        setting = error
    except SystemExit as error:
        setting = _setting_error(error)
        if setting is None:
            text = errors.getvalue()
            if not all(map(str.isprintable, argv)):  # the parser repeats words as they are
                text = escape_unprintable(_ANSI_STYLE.sub("", text), keep="\n")
            sys.stderr.write(text)
            raise
    origin = f" (from the command line and {options.config})" if options.config else ""
    raise ConfigError(f"{option_name(setting.name)} {setting.problem}{origin}") from setting


def require_inputs(inputs: Iterable[str | Path]) -> None:
    """Reject paths that do not exist; patterns and URLs are checked when they are read.

    Raises:
        MissingFileError: names the first.
    """
    for each in inputs:
        path = Path(each).expanduser()
        if not (_URL.search(str(each)) or has_magic(str(each)) or path.exists() or path.is_symlink()):
            from tubelet.data.stacks.image_sequence import names_of_pattern  # imports NumPy

            if names_of_pattern(str(each)):
                continue
            raise MissingFileError(
                f"{each}: no such file or folder; check the path (a relative one starts at {Path.cwd()})"
            )


def option_name(setting: str) -> str:
    """The option of a setting: `image_size` is `--image-size`; list entries keep their index."""
    name, bracket, rest = setting.partition("[")
    return f"--{name.replace('_', '-')}{bracket}{rest}" if name.isidentifier() else setting


def _setting_error(exit_error: SystemExit) -> SettingError | None:
    """The setting error that made the parser exit, if there was one: the parser itself reports every ValueError."""
    error: BaseException | None = exit_error
    while error is not None and not isinstance(error, SettingError):
        error = error.__context__
    return error


def _check_arguments(argv: Sequence[str]) -> None:
    """Reject empty arguments, as unset shell variables produce, and text that cannot be a file name.

    As a path, an empty word would be the current directory.
    """
    for before, argument in zip(["", *argv], argv, strict=False):
        option, equals, value = argument.partition("=")
        try:
            if not option.startswith("--"):
                check_text(argument, before if before.startswith("--") and "=" not in before else "an argument")
            elif equals:
                check_text(value, option)
        except InvalidValueError as error:
            raise ConfigError(str(error)) from error


def _check_options(kind: type[Command], name: str, argv: Sequence[str]) -> None:
    """Reject unknown options and choices, with the nearest known one.

    Raises:
        ConfigError: names the first.
    """
    known = _options(kind)
    for argument, after in zip(argv, [*argv[1:], ""], strict=False):
        option, equals, value = argument.partition("=")
        if option == "--":  # what follows is no option
            return
        if not option.startswith("--") or option == "--help":
            continue
        option = option.replace("_", "-")
        if option not in known:
            raise ConfigError(f"{option}: unknown option{nearest(option, known)}; see tubelet {name} --help")
        choices, value = known[option], value if equals else after
        if choices and value and value not in choices:
            raise ConfigError(f"{option} is {value!r}, expected one of {', '.join(choices)}{nearest(value, choices)}")


def _options(kind: Any) -> dict[str, list[str]]:
    """The options of a command or of a group of its settings, with the choices of those that have some."""
    options: dict[str, list[str]] = {}
    for name, hint in type_hints(kind).items():
        marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        hint = get_args(hint)[0] if marks else hint
        members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        members = tuple(each for each in members if each is not NoneType)  # None is an option that is left out
        hidden = tyro.conf.Positional in marks or tyro.conf.Suppress in marks
        if name not in kind.__dataclass_fields__ or hidden:
            continue
        if isinstance(hint, type) and issubclass(hint, Settings):
            options |= _options(hint)
            continue
        closed = all(get_origin(each) is Literal for each in members)
        options[option_name(name)] = [choice for each in members for choice in get_args(each)] if closed else []
        if bool in members:
            options[option_name(f"no_{name}")] = []
    return options


def _known_options(argv: Sequence[str]) -> Known:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for option in ("--config", "--out"):
        parser.add_argument(option)
    parser.add_argument("--resume", action="store_true")
    try:
        found, _ = parser.parse_known_args(list(argv))
    except argparse.ArgumentError:  # the second phase reports it
        found = parser.parse_args([])
    return Known(found.config, found.out, found.resume)


def _default(kind: type[C], options: Known) -> C:
    """A command with only default values; fields without one are left to the command line."""
    values = {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in dataclasses.fields(kind)
    }
    values = {name: tyro.MISSING if value is dataclasses.MISSING else value for name, value in values.items()}
    content = read_config_file(options.config) if options.config and "config" in values else {}
    _from_file(kind, values, content, str(options.config))  # checks what the next line uses
    values |= kind.defaults(_with_file(options, content))
    values |= _from_file(kind, values, content, str(options.config))
    command = object.__new__(kind)  # unchecked: combinations are checked when flags have been added
    for name, value in values.items():
        object.__setattr__(command, name, value)
    return command


def _with_file(options: Known, content: Mapping[str, Any]) -> Known:
    """The options of the first phase that the command line does not set, from a config file."""
    out = content.get("out")
    return dataclasses.replace(
        options,
        out=options.out or (Path(out) if isinstance(out, str) and out else None),
        resume=options.resume or content.get("resume") is True,
    )


def _from_file(
    kind: type[Command], defaults: Mapping[str, Any], content: Mapping[str, Any], path: str
) -> dict[str, Any]:
    """The fields of a command that the content of a config file sets.

    Raises:
        ConfigError: the file has an unknown key, or a value that the option does not allow.
    """
    kinds = type_hints(kind)
    groups = {name: value for name, value in defaults.items() if isinstance(value, Settings)}
    for group in groups.values():
        content = current_keys(type(group), content, path)
    owners = {field.name: name for name, group in groups.items() for field in dataclasses.fields(group)}  # type: ignore[arg-type]
    scalar_fields = kinds.keys() - groups.keys() - {"config"}
    values: dict[str, Any] = {}
    grouped: dict[str, dict[str, Any]] = {name: {} for name in groups}
    for key, value in content.items():
        if key in scalar_fields and not (key in owners and isinstance(value, Mapping)):
            try:
                values[key] = check(kinds[key], value, key)
            except SettingError as error:
                raise ConfigError(f"{path}: {error}") from error
        elif key in owners:
            grouped[owners[key]][key] = value
        else:
            raise ConfigError(f"{path}: unknown key {key!r:.100}{nearest(str(key), scalar_fields | owners.keys())}")
    return values | {name: overlay(groups[name], found, path) for name, found in grouped.items()}
