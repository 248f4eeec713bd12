"""Errors that a person can act on, and text that is safe to show."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass


def escape_filename(name: str) -> str:
    """A file name as text that can be stored: bytes that are not UTF-8 become escapes (\\udcff).

    To print a name, use `escape_unprintable`.
    """
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def escape_unprintable(text: str, keep: str = "") -> str:
    """Text that is safe to print: characters that control a terminal or a page become escapes.

    These are control characters (ESC, line feeds), format characters (right-to-left marks, zero-width spaces), line and
    paragraph separators, and surrogates, which stand for bytes that are not UTF-8.

    Args:
        text: any string.
        keep: characters that are not escaped, such as line feeds in a page.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c in keep or unicodedata.category(c) == "Zs" else repr(c)[1:-1] for c in text
    )


@dataclass(frozen=True)
class BadFile:
    """A file that could not be read, and the reason."""

    path: str
    reason: str

    def __str__(self) -> str:
        return escape_unprintable(f"{self.path}: {self.reason}")


class TubeletError(Exception):
    """Base of all errors that a person can act on.

    The message names the file or field, what is wrong, the value found and expected, and the remedy. Names in it may
    come from a file: line feeds and codes that steer a terminal are shown as escapes.

    Attributes:
        reported: whether the message was printed, by this process or by another rank of the same run.
        prefix: what the command line prints before it.
    """

    reported = False
    prefix = "error: "

    def __init__(self, message: str) -> None:
        super().__init__(escape_unprintable(message))


class TubeletWarning(UserWarning):
    """Category of this package's warnings, for filters."""


class ConfigError(TubeletError, ValueError):
    """A setting, option or argument with a value that is not allowed or does not fit the others."""


class DataError(TubeletError, ValueError):
    """A data set, table or file with contents that cannot be used."""


class CheckpointError(DataError):
    """A file of weights that is damaged, of another layout, or of another model."""


class FileError(TubeletError, OSError):
    """A file or directory that cannot be read, written or locked, or must not be overwritten."""


class MissingFileError(FileError, FileNotFoundError):
    """A file or directory that does not exist."""


class MissingPackageError(TubeletError, ImportError):
    """An optional package that a feature needs and that is not installed."""


class TrainingError(TubeletError, RuntimeError):
    """A run, or one of its processes, that cannot go on."""


def first_line(error: Exception) -> str:
    """First line of a library's error message; the name of its class if it is empty."""
    return str(error).strip().split("\n")[0][:300] or type(error).__name__


class DecodeError(DataError):
    """A media file that cannot be decoded.

    Attributes:
        path: the file, or the name of a `MediaBytes`.
        reason: why, without the path.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        # Exceptions cross process borders by pickle, which would call the class with the message as only argument.
        return (DecodeError, (self.path, self.reason))
