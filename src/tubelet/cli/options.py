"""One check of all options of all commands, before a command does anything; errors name options as they are typed."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from tubelet.config.fields import SettingError, check
from tubelet.types import TubeletError
from tubelet.values import hints

C = TypeVar("C", bound=Callable[..., None])


def checked(command: C) -> C:
    """A command whose options are checked by their annotations before it runs; configs have checked themselves."""
    kinds, signature = hints(command), inspect.signature(command)

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        bound = signature.bind(*arguments, **options)
        for name, value in bound.arguments.items():
            bound.arguments[name] = check(kinds[name], value, name)
        command(*bound.args, **bound.kwargs)

    return run  # type: ignore[return-value]


@contextmanager
def options_named(words: Sequence[str]) -> Iterator[None]:
    """Name a setting that is refused in the block as its option is typed; refuse options that are empty.

    Args:
        words: the command line.

    Raises:
        TubeletError: instead of a `SettingError`; and for an empty word, which comes of a shell variable that is not
            set: as a path it would be the current directory.
    """
    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if not word or (option.startswith("--") and equals and not value):
            name = option or (before if before.startswith("--") else "an argument")
            raise TubeletError(f"{name} is empty: give a value, or leave it out")
    try:
        yield
    except SettingError as error:
        raise TubeletError(f"{option_name(error.name)} {error.problem}") from error


def option_name(setting: str) -> str:
    """`image_size` as `--image-size`; entries of lists keep their number."""
    name, bracket, rest = setting.partition("[")
    return f"--{name.replace('_', '-')}{bracket}{rest}" if name.isidentifier() else setting
