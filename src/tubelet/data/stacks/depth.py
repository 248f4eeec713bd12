"""Checks that 8-bit RGB can represent the values of files; this module is imported before torch."""

from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from tubelet.data.file_types import STACK_FORMATS
from tubelet.data.stacks import is_stack, read_stack_info
from tubelet.data.storage import suffix_of
from tubelet.errors import ConfigError, DecodeError, MissingPackageError

_MEASURE = "measure the collection with `tubelet stats SOURCE --out stats.json`, and train with --stats stats.json"
_SUFFIXES = frozenset(suffix for suffixes in STACK_FORMATS.values() for suffix in suffixes)
# Entries of a folder that are looked at, and stacks that are opened, before anything is loaded.
_LISTED, _OPENED = 1000, 16


def require_8_bits(media: Any) -> None:
    """Reject a stack if training a model of 8-bit RGB on it would lose depth or channels.

    Args:
        media: path or URL, or the bytes of a video.

    Raises:
        ConfigError: its values have more than 8 bits, or its channels are neither gray nor colors.
        DecodeError: it cannot be read.
        MissingPackageError: the package that reads it is not installed.
    """
    try:
        depth = depth_beyond_rgb(media)
    except MissingPackageError as error:
        raise MissingPackageError(f"{error}; if its values have more than 8 bits, then {_MEASURE}") from error
    if depth:
        raise ConfigError(f"{media}: has {depth}, the model takes 8-bit RGB: {_MEASURE}")


def depth_beyond_rgb(media: Any) -> str:
    """A description of the channels and dtype of a stack, if 8-bit RGB cannot represent them; otherwise empty.

    Raises:
        DecodeError: it cannot be read.
        MissingPackageError: the package that reads it is not installed.
    """
    if isinstance(media, (str, Path)) and is_stack(media):
        info = read_stack_info(media)
        if info.dtype != "uint8" or info.channels not in (1, 3, 4):
            return f"{info.channels} channel{'s' * (info.channels > 1)} of {info.dtype}"
    return ""


def require_8_bits_in_folders(sources: tuple[str, ...]) -> None:
    """Check some stacks that lie directly in folders, and stacks that are sources, before anything is loaded.

    All files of a run are checked later, when they are listed or read.

    Raises:
        TubeletError: see `require_8_bits`; a stack that cannot be read is left to that later check.
    """
    for source in map(Path, sources):
        files = islice(source.iterdir(), _LISTED) if source.is_dir() else [source]
        stacks = (file for file in sorted(files) if suffix_of(str(file)) in _SUFFIXES and file.exists())
        for file in islice(stacks, _OPENED):
            with suppress(DecodeError):
                require_8_bits(str(file))
