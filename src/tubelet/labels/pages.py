"""Masks and depth maps in files of several pages: one for each frame of a stack or video."""

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tubelet.data.decode import Video
from tubelet.data.stacks import is_image_file, is_stack, read_stack_frames, read_stack_info
from tubelet.errors import DataError, TubeletError
from tubelet.labels.records import LabelRow, LabelTable

_ROUNDING_S = 1e-6  # a time that was computed from the number of a frame


def read_page(path: Path, page: int | None) -> NDArray[Any]:
    """A page of a file that has one for each frame.

    Args:
        path: the file.
        page: its number, from 0.

    Returns:
        (H, W) values, or (H, W, C) of several channels.

    Raises:
        DataError: if no page is chosen, or it cannot be read.
    """
    if page is None:
        pages = read_stack_info(path).frames
        raise DataError(f"{path}: has {pages} pages, expected 1 for an image; save the page of the image by itself")
    values = read_stack_frames(path, [page])[0]
    return values[..., 0] if values.shape[-1] == 1 else values


def with_pages(table: LabelTable, task: str | None, faults: list[tuple[int, str]]) -> LabelTable:
    """Choose the pages of masks and depth maps whose files have several.

    Such a file has as many pages as its stack or video has frames. A row with a start is about the page of that frame;
    with a start and an end frame, about each page between them; without a time, about every page.

    Args:
        table: the table as it was read.
        task: masks and depth maps are examined for tasks that need them; None examines both.
        faults: where the faults of rows are collected; their rows are left out.

    Returns:
        The table with a row for each page.
    """
    frames_of = lru_cache(maxsize=None)(_frame_times)
    pages_of = lru_cache(maxsize=None)(_pages)
    rows: list[LabelRow] = []
    for row in table.rows:
        target = _paged_target(row, task)
        try:
            rows += [row] if target is None else _rows_of_pages(row, target, pages_of(target), frames_of)
        except TubeletError as error:
            faults.append((row.line, f"{table.place_of(row)}: {error}"))
    return replace(table, rows=tuple(rows))


def _paged_target(row: LabelRow, task: str | None) -> Path | None:
    """The mask or depth map of a row, if its file has several pages."""
    of_task = {"mask": task in (None, "segmentation"), "depth": task in (None, "depth")}
    for target in (row.mask if of_task["mask"] else None, row.depth if of_task["depth"] else None):
        if isinstance(target, Path) and target.exists() and is_stack(target) and row.path.exists():
            return target
    return None


def _pages(target: Path) -> int:
    return read_stack_info(target).frames


def _frame_times(path: Path) -> NDArray[np.float64]:
    """(T,) seconds at which the frames of a stack or video begin; one of an image."""
    if is_image_file(path):
        return np.zeros(1)
    with Video(str(path), full_depth=True) as video:
        return video.frame_times()


def _rows_of_pages(row: LabelRow, target: Path, pages: int, frames_of: Any) -> Iterator[LabelRow]:
    """The rows of the pages that a row is about.

    Raises:
        DataError: if there are not as many pages as frames.
    """
    times = frames_of(row.path)
    if pages != len(times):
        frames = f"{len(times)} frame{'s' * (len(times) != 1)}"
        raise DataError(f"{target.name} has {pages} pages, {row.path.name} {frames}; expected a page for each frame")
    if row.start_s is not None:
        page = max(0, int(np.searchsorted(times, row.start_s + _ROUNDING_S, "right")) - 1)
        yield replace(row, page=page)
    elif row.start_frame is not None and (row.end_frame is None or row.end_frame > pages):
        yield replace(row, page=min(row.start_frame, pages - 1))  # a frame beyond the last one is a fault of its own
    elif row.end_s is not None or (row.start_frame is None and row.end_frame is not None):
        yield row  # an end without a start, which is a fault of its own
    else:
        start = row.start_frame or 0
        for page in range(start, row.end_frame or pages):
            yield replace(row, page=page, start_frame=page, end_frame=None)
