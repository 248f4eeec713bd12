"""Test cards: frames that say which frame they are, and whether orientation, pixel aspect, color and fields are right.

The top half of a card holds its number as eight black or white bars, from the lowest bit. Of the bottom half, the left
holds a circle and the right four patches of known color. A card can be measured at any size and after any codec.
"""

from functools import lru_cache
from typing import Any

import numpy as np

BITS = 8
# RGB of the patches: top left, top right, bottom left, bottom right.
PATCHES = np.array([[64, 64, 64], [180, 180, 180], [200, 40, 40], [40, 160, 60]], dtype=np.uint8)
# The eight display matrices, as a, b, c, d of ISO 14496-12: a pixel at (x, y) is shown at (ax + cy, bx + dy).
MATRICES = {
    "none": (1, 0, 0, 1),
    "rotated 90": (0, 1, -1, 0),
    "rotated 180": (-1, 0, 0, -1),
    "rotated 270": (0, -1, 1, 0),
    "mirrored left-right": (-1, 0, 0, 1),
    "mirrored top-bottom": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "anti-transposed": (0, -1, -1, 0),
}
# Luma weights of red and blue.
WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}


@lru_cache(maxsize=4096)
def card(number: int, width: int = 64, height: int = 64) -> np.ndarray:
    """(height, width, 3) uint8: the card of `number` (0 to 255), with square pixels."""
    pixels = np.full((height, width, 3), 16, dtype=np.uint8)
    half = height // 2
    bars = (number >> np.minimum(np.arange(width) * BITS // width, BITS - 1) & 1).astype(np.uint8) * 255
    pixels[:half] = bars[None, :, None]
    y, x = np.mgrid[0:half, 0 : width // 2]
    radius = 0.4 * min(half, width // 2)
    circle = (x - width / 4 + 0.5) ** 2 + (y - half / 2 + 0.5) ** 2 < radius**2
    pixels[half : 2 * half, : width // 2][circle] = 255
    for patch, color in enumerate(PATCHES):
        rows, columns = _patch(patch, width, height)
        pixels[rows, columns] = color
    pixels.flags.writeable = False
    return pixels


def _patch(patch: int, width: int, height: int) -> tuple[slice, slice]:
    y, x = height // 2, width // 2
    h, w = (height - y + 1) // 2, (width - x + 1) // 2
    row, column = divmod(patch, 2)
    return slice(y + row * h, y + (row + 1) * h), slice(x + column * w, x + (column + 1) * w)


def read_number(pixels: Any) -> int:
    """The number of a card."""
    array = np.asarray(pixels)
    rows = array[array.shape[0] // 8 : 3 * array.shape[0] // 8].mean((0, 2))
    begins, ends = _bars(array.shape[1])
    sums = np.concatenate([[0], rows.cumsum()])
    light = sums[ends] - sums[begins] > 127 * (ends - begins)
    return int(light @ (1 << np.arange(BITS)))


@lru_cache
def _bars(width: int) -> tuple[np.ndarray, np.ndarray]:
    """First columns of the middles of the bars, and the columns behind them."""
    edges, inner = np.arange(BITS) * width / BITS, width / BITS / 4
    begins = (edges + inner).astype(np.int64)
    return begins, np.maximum((edges + 3 * inner).astype(np.int64), begins + 1)


def circle_ratio(pixels: Any) -> float:
    """Width of the circle over its height; 1 where pixels are square."""
    array = np.asarray(pixels)
    height, width = array.shape[:2]
    # By area in each direction, which is finer than counting pixels above a threshold.
    light = array[height // 2 : height // 2 * 2, : width // 2].astype(np.float64).mean(2)
    across, down = light.max(0) > 110, light.max(1) > 110
    return across.sum() / max(down.sum(), 1)


def read_patches(pixels: Any) -> np.ndarray:
    """(4, 3) float: mean color of the middle of each patch."""
    array = np.asarray(pixels)
    means = []
    for patch in range(4):
        rows, columns = _patch(patch, array.shape[1], array.shape[0])
        inner = array[rows, columns]
        h, w = inner.shape[:2]
        means.append(inner[h // 3 : max(2 * h // 3, h // 3 + 1), w // 3 : max(2 * w // 3, w // 3 + 1)].mean((0, 1)))
    return np.array(means)


def fields_card(number: int, field: int, width: int = 64, height: int = 64) -> np.ndarray:
    """A card whose bottom half holds a bright column that moves from one field (0, 1) to the next."""
    pixels = card(number, width, height).copy()
    pixels[height // 2 :] = 16
    left = (2 * number + field) * 6 % (width - 12)
    pixels[height // 2 :, left : left + 10] = 235
    return pixels


def interlaced_card(number: int, top_first: bool, width: int = 64, height: int = 64) -> np.ndarray:
    """A frame of two fields that were taken one after the other."""
    first, second = (fields_card(number, field, width, height) for field in (0, 1))
    pixels = second.copy()
    pixels[0 if top_first else 1 :: 2] = first[0 if top_first else 1 :: 2]
    return pixels


def combing(pixels: Any) -> float:
    """How far lines of the bottom half differ from both of their neighbors: 0 (none) to 1 (all fields)."""
    array = np.asarray(pixels).astype(np.float64).mean(2)
    rows = array[array.shape[0] * 5 // 8 : -4]
    above, below = rows[1:-1] - rows[:-2], rows[1:-1] - rows[2:]
    between = np.where(above * below > 0, np.minimum(abs(above), abs(below)), 0)
    return float((between > 40).mean() / (20 / array.shape[1]))


def stored(shown: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """The pixels that `matrix` turns into `shown`."""
    a, b, c, d = matrix
    height, width = shown.shape[:2] if a else shown.shape[1::-1]
    y, x = np.mgrid[0:height, 0:width]
    x, y = 2 * x - width + 1, 2 * y - height + 1
    return shown[(b * x + d * y + shown.shape[0] - 1) // 2, (a * x + c * y + shown.shape[1] - 1) // 2]


def squeezed(shown: np.ndarray, width: int) -> np.ndarray:
    """`shown` resampled to `width` columns: what a camera with pixels that are not square stores."""
    edges = np.linspace(0, shown.shape[1], width + 1)
    sums = np.concatenate([np.zeros((shown.shape[0], 1, 3)), np.cumsum(shown, 1, dtype=np.float64)], 1)
    at = np.stack([[np.interp(edges, np.arange(sums.shape[1]), row[:, k]) for k in range(3)] for row in sums])
    return np.round(np.diff(at, axis=2) * width / shown.shape[1]).transpose(0, 2, 1).astype(np.uint8)


def to_yuv(pixels: np.ndarray, matrix: str = "bt601", full: bool = False, bits: int = 8) -> np.ndarray:
    """(3, H, W) integers: gamma-encoded RGB, uint8 or 0 to 1 as float, in code values of luma and color difference."""
    rgb = pixels / 255.0 if pixels.dtype == np.uint8 else pixels
    red, blue = WEIGHTS[matrix]
    y = red * rgb[..., 0] + (1 - red - blue) * rgb[..., 1] + blue * rgb[..., 2]
    cb, cr = (rgb[..., 2] - y) / (2 * (1 - blue)), (rgb[..., 0] - y) / (2 * (1 - red))
    scale = 1 << bits - 8
    if full:
        top = 256 * scale - 1
        codes = np.stack([y * top, cb * top + 128 * scale, cr * top + 128 * scale])
    else:
        codes = np.stack([16 + 219 * y, 128 + 224 * cb, 128 + 224 * cr]) * scale
    return np.round(codes).clip(0, 256 * scale - 1).astype(np.uint16 if bits > 8 else np.uint8)
