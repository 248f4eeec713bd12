"""Stacks of frames that are not videos: TIFF, NumPy, Zarr, DICOM and folders of numbered images, read at full depth.

A format is a module of this package with a function `open_stack(path) -> Stack`, and a row of `STACK_FORMATS` in
`tubelet.data.file_types` if its files have a suffix. Its library is imported when a file of it is opened.
"""

import os
from importlib import import_module
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from tubelet.data.file_types import IMAGE_SUFFIXES, STACK_FORMATS
from tubelet.data.size_limits import check_clip
from tubelet.data.stacks.stack import Stack, StackInfo
from tubelet.data.storage import is_url, suffix_of
from tubelet.errors import DecodeError
from tubelet.io.hidden_files import is_hidden

__all__ = [
    "Stack",
    "StackInfo",
    "is_image_file",
    "is_stack",
    "open_stack",
    "read_frames_of",
    "read_stack_frames",
    "read_stack_info",
]

_MODULES = {suffix: module for module, suffixes in STACK_FORMATS.items() for suffix in suffixes}


def is_stack(path: str | Path) -> bool:
    """Whether a path names a stack: by its suffix; a TIFF file of several pages; a folder of slices or images."""
    suffix = suffix_of(str(path))
    if suffix in (".tif", ".tiff"):
        from tubelet.data.stacks.tiff import has_pages

        return not is_url(str(path)) and has_pages(path)
    return suffix in _MODULES or bool(_module_of_folder(path))


def is_image_file(path: str | Path) -> bool:
    """Whether a path names a still image: not a TIFF file of several pages, but also a DICOM file of one frame."""
    suffix = suffix_of(str(path))
    if suffix in STACK_FORMATS["dicom"]:
        return read_stack_info(path).frames == 1
    return suffix in IMAGE_SUFFIXES and not is_stack(path)


def open_stack(path: str | Path) -> Stack:
    """Open a stack.

    Raises:
        DecodeError: the file is damaged, or its axes cannot be decided.
        MissingPackageError: the package that reads its format is not installed.
    """
    if is_url(str(path)):
        raise DecodeError(str(path), "stacks are read from a local disk; copy it")
    module = _MODULES.get(suffix_of(str(path))) or _module_of_folder(path)
    if not module:
        suffixes = " ".join(sorted(_MODULES))
        raise DecodeError(str(path), f"is not a stack: expected one of {suffixes}, or a folder of slices or frames")
    stack: Stack = import_module(f"tubelet.data.stacks.{module}").open_stack(path)
    return stack


def read_stack_info(path: str | Path) -> StackInfo:
    """Properties of a stack, without its pixels.

    Raises:
        DecodeError: see `open_stack`.
        MissingPackageError: see `open_stack`.
    """
    stack = open_stack(path)
    stack.close()
    return stack.info


def read_stack_frames(path: str | Path, indices: ArrayLike) -> np.ndarray:
    """Some frames of a stack.

    Args:
        path: the file, or the folder of slices.
        indices: (n,) numbers of frames, from 0, in any order.

    Returns:
        (n, H, W, C) values as they are stored.

    Raises:
        DecodeError: see `open_stack`; also if the stack has no such frame.
        MissingPackageError: see `open_stack`.
    """
    stack = open_stack(path)
    try:
        return read_frames_of(stack, str(path), np.asarray(indices, dtype=np.int64))
    finally:
        stack.close()


def read_frames_of(stack: Stack, path: str, indices: np.ndarray) -> np.ndarray:
    """Some frames of an open stack, see `read_stack_frames`; `path` is its name in messages."""
    info = stack.info
    if indices.size and not 0 <= indices.min() <= indices.max() < info.frames:
        raise DecodeError(path, f"has {info.frames} frames, expected a frame {int(indices.max())}")
    check_clip(path, len(indices) * -(-info.channels // 3), info.width, info.height)
    distinct, inverse = np.unique(indices, return_inverse=True)
    pixels = stack.read(distinct) if len(distinct) else np.empty((0, info.height, info.width, info.channels))
    pixels = np.ascontiguousarray(pixels, dtype=np.dtype(info.dtype))
    return pixels if len(distinct) == len(indices) and (distinct == indices).all() else pixels[inverse]


def _module_of_folder(path: str | Path) -> str:
    """The module that reads a folder of slices or frames; empty for any other path."""
    if is_url(str(path)) or not Path(path).is_dir():
        return ""
    try:
        names = os.listdir(path)  # noqa: PTH208 - pathlib takes several times as long
    except OSError:
        return ""
    for module, suffixes in (("dicom", STACK_FORMATS["dicom"]), ("image_sequence", tuple(IMAGE_SUFFIXES))):
        if any(name.lower().endswith(suffixes) and not is_hidden(name) for name in names):
            return module
    return ""
