"""Tracked points and objects, drawn on frames."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

TRUE, RIGHT, WRONG = (255, 255, 255), (98, 226, 148), (255, 122, 69)
LARGEST = 320  # pixels of an enlarged frame's wider side: about what a page shows


def enlarge(frame: NDArray[np.uint8]) -> tuple[Image.Image, float]:
    """Enlarge a small frame (H, W, 3) to draw on it; returns the frame and the factor, 1 for a large frame."""
    times = max(1, LARGEST // max(frame.shape[:2]))
    size = (frame.shape[1] * times, frame.shape[0] * times)
    return Image.fromarray(np.ascontiguousarray(frame)).resize(size, Image.Resampling.BILINEAR), float(times)


def draw_tracks(frame: NDArray[np.uint8], tracks: Sequence[NDArray[np.floating]]) -> NDArray[np.uint8]:
    """Draw the positions of points (a ring) and their future paths (a line).

    Args:
        frame: (H, W, 3).
        tracks: for each point (K, 2) x, y in pixels, the first of them now.
    """
    image, times = enlarge(frame)
    pen = ImageDraw.Draw(image)
    for track in tracks:
        line = [tuple(point) for point in (np.asarray(track) * times).tolist()]
        if len(line) > 1:
            pen.line(line, fill=(0, 0, 0), width=4, joint="curve")
            pen.line(line, fill=TRUE, width=2, joint="curve")
        _ring(pen, line[0], TRUE)
    return np.asarray(image)


def draw_matches(
    frame: NDArray[np.uint8], truth: NDArray[np.floating], predicted: NDArray[np.floating], right: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """True positions of points (a white ring) and predicted ones (a dot, green where near enough).

    Args:
        frame: (H, W, 3).
        truth: (K, 2) x, y in pixels.
        predicted: (K, 2) x, y in pixels.
        right: (K,).
    """
    image, times = enlarge(frame)
    pen = ImageDraw.Draw(image)
    for true, point, good in zip((truth * times).tolist(), (predicted * times).tolist(), right.tolist(), strict=True):
        color = RIGHT if good else WRONG
        pen.line([tuple(true), tuple(point)], fill=(0, 0, 0), width=4)
        pen.line([tuple(true), tuple(point)], fill=color, width=2)
        _ring(pen, tuple(true), TRUE)
        x, y = point
        pen.ellipse([x - 5, y - 5, x + 5, y + 5], fill=color, outline=(0, 0, 0))
    return np.asarray(image)


def _ring(pen: ImageDraw.ImageDraw, at: tuple[float, ...], color: tuple[int, int, int]) -> None:
    x, y = at
    pen.ellipse([x - 7, y - 7, x + 7, y + 7], outline=(0, 0, 0), width=4)
    pen.ellipse([x - 6, y - 6, x + 6, y + 6], outline=color, width=2)


def draw_objects(frame: NDArray[np.uint8], labels: NDArray[np.uint8], palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Objects as colors laid over a frame, with their outlines.

    Args:
        frame: (H, W, 3).
        labels: (H, W) numbers of objects, 0 for none.
        palette: (256, 3) their colors.
    """
    inside = labels > 0
    bright = np.minimum(255, palette * 1.9)  # the palette is dark, and so are many frames
    mixed = np.where(inside[..., None], frame * 0.4 + bright[labels] * 0.6, frame * 0.85)
    edge = np.zeros_like(inside)
    edge[:-1] |= labels[1:] != labels[:-1]
    edge[:, :-1] |= labels[:, 1:] != labels[:, :-1]
    mixed[edge] = 255
    return mixed.astype(np.uint8)
