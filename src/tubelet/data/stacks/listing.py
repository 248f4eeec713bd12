"""Classification of the files of a source into videos, images and stacks."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tubelet.data.file_types import IMAGE_SUFFIXES, STACK_FORMATS, STACK_SUFFIXES, VIDEO_SUFFIXES, names_with
from tubelet.data.stacks import is_stack
from tubelet.data.stacks.dicom import series_of, slices_of
from tubelet.data.stacks.image_sequence import times_file
from tubelet.data.stacks.numpy_array import may_be_frames
from tubelet.data.stacks.tiff import has_pages

_TIFF, _NUMPY, _DICOM = (frozenset(STACK_FORMATS[name]) for name in ("tiff", "numpy_array", "dicom"))


class FileKinds(NamedTuple):
    """What the files of a source are.

    Attributes:
        files: (N,) names, slices of DICOM replaced by the first file of their series.
        video: (N,) bool, videos and stacks of several frames.
        image: (N,) bool, images and stacks of one frame.
        repeated: (N,) bool, slices of a series that is among the files already.
        stacks: number of stacks of several frames.
        unread_arrays: number of arrays of NumPy that are not read, since a folder has other media.
    """

    files: pa.ChunkedArray
    video: np.ndarray
    image: np.ndarray
    repeated: np.ndarray
    stacks: int
    unread_arrays: int = 0


def is_zarr(name: str) -> bool:
    """Whether the name of a folder is that of a Zarr array, which counts as a file."""
    return name.lower().endswith(STACK_FORMATS["zarr_array"])


def kinds_of(files: pa.ChunkedArray, is_folder: bool, are_listed: bool = False) -> FileKinds:
    """Find the videos, images and stacks: by suffix, and TIFF, NumPy and DICOM files on this machine by their headers.

    Args:
        files: (N,) large_binary, names in the file system's encoding.
        is_folder: whether they are what a folder contains, rather than named by a glob or list: then arrays of NumPy
            are stacks only where there are no other media, since they may as well be labels or features.
        are_listed: whether they are named one by one, as by a list: then folders of frames or slices are stacks.

    Raises:
        MissingPackageError: there are DICOM files, and pydicom is not installed.
    """
    video, image = (_matches(files, suffixes) for suffixes in (VIDEO_SUFFIXES, IMAGE_SUFFIXES))
    stack = np.zeros(len(files), bool) if (video | image).all() else _matches(files, STACK_SUFFIXES)
    if are_listed and not (video | image | stack).all():
        for row in np.flatnonzero(~(video | image | stack)).tolist():
            stack[row] = is_stack(_path(files, row))
    repeated, unread = np.zeros(len(files), bool), 0
    paged = [row for row in _local(files, _TIFF) if has_pages(_path(files, row))] if image.any() else []
    image[paged], stack[paged] = False, True
    if stack.any():
        arrays = _matches(files, _NUMPY)
        others = is_folder and (video | image | (stack & ~arrays)).any()
        unread = int(arrays.sum()) if others else 0
        for row in np.flatnonzero(arrays).tolist():
            stack[row] = not others and may_be_frames(_path(files, row))
        slices = _local(files, _DICOM)
        if slices:
            files, single, repeated = _with_series(files, slices)
            stack &= ~single & ~repeated
            image |= single & ~repeated
    return FileKinds(files, video | stack, image, repeated, int(stack.sum()), unread)


def stored_files(path: Path) -> list[Path]:
    """The files that an item of a source is stored in: the series of a DICOM slice, all files of a folder, or itself.

    Raises:
        OSError: there is no such file.
    """
    if path.is_dir():
        times = None if is_zarr(path.name) else times_file(path)  # perhaps next to the folder
        return sorted({*(each for each in path.rglob("*") if each.is_file()), *filter(None, [times])}) or [path]
    series = slices_of(str(path)) if path.suffix.lower() in _DICOM else ()
    return [Path(each) for each in series] or [path]


def _matches(files: pa.ChunkedArray, suffixes: frozenset[str]) -> np.ndarray:
    matches = pc.match_substring_regex(files, names_with(suffixes)).to_numpy()
    return np.array(matches, bool)


def _path(files: pa.ChunkedArray, row: int) -> str:
    return os.fsdecode(files[row].as_py())


def _local(files: pa.ChunkedArray, suffixes: frozenset[str]) -> list[int]:
    """Rows of existing files on this machine."""
    rows: list[int] = np.flatnonzero(_matches(files, suffixes)).tolist()
    return [row for row in rows if os.path.exists(_path(files, row))]  # noqa: PTH110


def _with_series(files: pa.ChunkedArray, rows: list[int]) -> tuple[pa.ChunkedArray, np.ndarray, np.ndarray]:
    """Files with the slices in `rows` replaced by their series; those of a single frame; and repeated ones."""
    single, repeated = np.zeros(len(files), bool), np.zeros(len(files), bool)
    series = series_of([_path(files, row) for row in rows])
    seen: set[str] = set()
    for row, (first, frames) in zip(rows, series, strict=True):
        single[row], repeated[row] = frames == 1, first in seen
        seen.add(first)
    mask = np.zeros(len(files), bool)
    mask[rows] = True
    names = pa.array([os.fsencode(first) for first, _ in series], pa.large_binary())
    whole = files.combine_chunks()
    whole = pc.replace_with_mask(whole if isinstance(whole, pa.Array) else whole.chunk(0), pa.array(mask), names)
    return pa.chunked_array([whole]), single, repeated
