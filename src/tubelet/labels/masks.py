"""Masks of label rows: PNGs of class indices, and shapes of annotation files that are drawn when they are read.

H x W pixels of an image.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tubelet.data.stacks import is_stack
from tubelet.datasets.annotations import IGNORED, read_gray_png
from tubelet.errors import DataError
from tubelet.labels.pages import read_page
from tubelet.labels.records import LabelRow, MaskShape, MaskShapes

BACKGROUND = 0
"""Index of the pixels of an image that no shape covers."""


def read_mask(row: LabelRow) -> NDArray[np.uint8]:
    """The mask of a row.

    Args:
        row: a row with a mask.

    Returns:
        (H, W) uint8 class indices; `tubelet.datasets.annotations.IGNORED` (255) where the pixel does not count.

    Raises:
        DataError: if the file is missing, unreadable, or has no class indices; or the row has no mask or page.
    """
    if row.mask is None:
        raise DataError(f"{row.path}: has no mask, expected a PNG of class indices")
    if isinstance(row.mask, MaskShapes):
        return draw_shapes(row.mask)
    values = _read_page(row.mask, row.page) if is_stack(row.mask) else read_gray_png(row.mask)
    if values.size and not 0 <= values.min() <= values.max() <= IGNORED:
        raise DataError(
            f"{row.mask}: has values from {values.min()} to {values.max()}, expected class indices from 0 to {IGNORED}"
        )
    return values.astype(np.uint8)


def _read_page(path: Path, page: int | None) -> NDArray[Any]:
    values = read_page(path, page)
    if values.ndim != 2 or values.dtype.kind == "f":
        has = f"pages of {values.dtype}" if values.ndim == 2 else f"{values.shape[2]} channels"
        raise DataError(f"{path}: has {has}, expected pages of one whole number per pixel")
    return values


def draw_shapes(mask: MaskShapes) -> NDArray[np.uint8]:
    """(H, W) uint8 class indices of a mask of shapes, 0 where there is none."""
    height, width = mask.size
    drawn = np.full((height, width), BACKGROUND, np.uint8)
    for shape in mask.shapes:
        for polygon in shape.polygons:
            drawn[_polygon(polygon, height, width)] = shape.index
        if shape.runs:
            _draw_runs(drawn, shape)
    return drawn


def _polygon(polygon: tuple[float, ...], height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) pixels whose centers are inside a polygon, by the even-odd rule."""
    points = np.asarray(polygon, np.float64).reshape(-1, 2)
    x, y = points.T
    next_x, next_y = np.roll(x, -1), np.roll(y, -1)
    inside = np.zeros((height, width), bool)
    first, last = max(0, int(np.ceil(y.min() - 0.5))), min(height, int(np.floor(y.max() + 0.5)))
    for row in range(first, last):
        middle = row + 0.5
        crossed = (y <= middle) != (next_y <= middle)
        at = np.sort(
            x[crossed] + (middle - y[crossed]) / (next_y[crossed] - y[crossed]) * (next_x[crossed] - x[crossed])
        )
        columns = np.clip(np.ceil(at - 0.5), 0, width).astype(np.int64)
        for begin, end in columns.reshape(-1, 2).tolist():
            inside[row, begin:end] = True
    return inside


def _draw_runs(drawn: NDArray[np.uint8], shape: MaskShape) -> None:
    left, top, width, height = shape.box
    inside = np.zeros(width * height, bool)  # some programs leave out the last run outside
    inside[: sum(shape.runs)] = np.repeat(np.arange(len(shape.runs)) % 2 == 1, shape.runs)
    box = inside.reshape((width, height)).T if shape.by_column else inside.reshape((height, width))
    drawn[top : top + height, left : left + width][box] = shape.index


def decode_coco_runs(text: str) -> tuple[int, ...]:
    """The run lengths of a mask in COCO's compressed form.

    Each number is stored in groups of five bits, the lowest first, as characters from "0" on; the sixth bit says that
    another group follows, and the fifth bit of the last group is the sign. From the third number on, it is the
    difference from the number two before (`rleToString` in maskApi.c of the COCO API).

    Raises:
        ValueError: if the text ends within a number, or has other characters.
    """
    runs: list[int] = []
    position = 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            if position == len(text) or not 0 <= (group := ord(text[position]) - 48) < 64:
                raise ValueError(f"is not a compressed mask at character {position}")
            value |= (group & 31) << shift
            shift += 5
            position += 1
            more = bool(group & 32)
            if not more and group & 16:
                value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return tuple(runs)
