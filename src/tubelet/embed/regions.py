"""Conversion between regions of frames and tokens; a table has the tokens of the central square of each frame."""

import numpy as np
from numpy.typing import NDArray

from tubelet.data.decode import Video
from tubelet.data.images import read_image
from tubelet.data.stacks import is_image_file
from tubelet.errors import ConfigError

Box = tuple[int, int, int, int]
"""x, y, width and height in pixels of a frame, from its upper left corner."""
_EDGE = 0.5  # similarity at the edge of a region, as a fraction of the largest


def frame_size(path: str) -> tuple[int, int]:
    """Height and width of the frames of a video or image, in pixels.

    Raises:
        TubeletError: if it cannot be read.
    """
    if is_image_file(path):
        height, width = read_image(path, display=True).shape[:2]
        return height, width
    with Video(path, display=True) as video:
        return video.info.height, video.info.width


def region_weights(box: Box, height: int, width: int, rows: int, columns: int, file: str) -> NDArray[np.float32]:
    """The part of a region that each token shows.

    Args:
        box: the region.
        height: of the frame, in pixels.
        width: of the frame, in pixels.
        rows: of the tokens, which cover the central square of the frame.
        columns: of the tokens.
        file: the frame's file, for messages.

    Returns:
        (rows, columns), which sum to 1.

    Raises:
        ConfigError: if the region is empty, outside of the frame, or outside of its central square.
    """
    x, y, w, h = box
    side = min(height, width)
    left, top = (width - side) / 2, (height - side) / 2
    if w < 1 or h < 1 or x < 0 or y < 0 or x + w > width or y + h > height:
        raise ConfigError(
            f"box is {x},{y},{w},{h}, but {file} has {width} x {height} pixels; expected x,y,width,height of a region "
            "within them"
        )
    weights = np.outer(
        _overlap((y - top) * rows / side, (y + h - top) * rows / side, rows),
        _overlap((x - left) * columns / side, (x + w - left) * columns / side, columns),
    )
    if not weights.any():
        raise ConfigError(
            f"box is {x},{y},{w},{h}, outside of the central square of {file} ({left:g},{top:g},{side},{side}), which "
            "is all that a table has; choose a region in it"
        )
    return np.asarray(weights / weights.sum(), np.float32)


def _overlap(begin: float, end: float, count: int) -> NDArray[np.float64]:
    """How much of each of the intervals [0, 1], ..., [count - 1, count] is between begin and end."""
    edges = np.arange(count + 1)
    return np.clip(np.minimum(end, edges[1:]) - np.maximum(begin, edges[:-1]), 0, None)


def grow_box(similarities: NDArray[np.float32], height: int, width: int) -> Box:
    """The region around the most similar token: connected tokens of at least half of its similarity.

    Args:
        similarities: (rows, columns) of one time step.
        height: of the frame, in pixels.
        width: of the frame, in pixels.
    """
    peak = np.unravel_index(int(similarities.argmax()), similarities.shape)
    allowed = similarities >= _EDGE * similarities[peak]
    inside = np.zeros_like(allowed)
    inside[peak] = True
    while True:
        grown = inside.copy()
        grown[1:] |= inside[:-1]
        grown[:-1] |= inside[1:]
        grown[:, 1:] |= inside[:, :-1]
        grown[:, :-1] |= inside[:, 1:]
        grown &= allowed
        grown[peak] = True
        if (grown == inside).all():
            break
        inside = grown
    side = min(height, width)
    top, h = _pixels(inside.any(1), side, (height - side) / 2)
    left, w = _pixels(inside.any(0), side, (width - side) / 2)
    return left, top, w, h


def _pixels(inside: NDArray[np.bool_], side: int, offset: float) -> tuple[int, int]:
    """First pixel and length of the span of true tokens along an axis, whose tokens cover `side` pixels."""
    tokens = np.flatnonzero(inside)
    begin = round(tokens[0] * side / len(inside) + offset)
    return begin, round((tokens[-1] + 1) * side / len(inside) + offset) - begin
