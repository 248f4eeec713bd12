"""One check of all options of all commands, before a command does anything; errors name options as they are typed."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from tubelet.config.fields import SettingError, check
from tubelet.errors import TubeletError
from tubelet.validation import InvalidValueError, check_text, type_hints

C = TypeVar("C", bound=Callable[..., None])


def checked(command: C) -> C:
    """A command whose options are checked by their annotations before it runs; configs have checked themselves."""
    kinds, signature = type_hints(command), inspect.signature(command)

    @functools.wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        bound = signature.bind(*arguments, **options)
        for name, value in bound.arguments.items():
            bound.arguments[name] = check(kinds[name], value, name)
        command(*bound.args, **bound.kwargs)

    return run  # type: ignore[return-value]


@contextmanager
def options_named(words: Sequence[str]) -> Iterator[None]:
    """Name a setting that is refused in the block as its option is typed; refuse words that name nothing.

    Words are checked before anything looks at them. An empty one comes of a shell variable that is not set: as a path
    it would be the current directory.

    Args:
        words: the command line.

    Raises:
        TubeletError: instead of a `SettingError`; and for such a word.
    """
    try:
        for before, word in zip(["", *words], words, strict=False):
            option, equals, value = word.partition("=")
            if not option.startswith("--"):
                _check_word(before if before.startswith("--") and "=" not in before else "an argument", word)
            elif equals:
                _check_word(option, value)
        yield
    except SettingError as error:
        raise TubeletError(f"{option_name(error.name)} {error.problem}") from error


def _check_word(name: str, word: str) -> None:
    try:
        check_text(word, name)
    except InvalidValueError as error:
        raise TubeletError(str(error)) from error


def option_name(setting: str) -> str:
    """`image_size` as `--image-size`; entries of lists keep their number."""
    name, bracket, rest = setting.partition("[")
    return f"--{name.replace('_', '-')}{bracket}{rest}" if name.isidentifier() else setting
