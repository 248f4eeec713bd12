"""How a decoded frame is displayed: rotated, mirrored, with square pixels."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from av.sidedata.sidedata import Type

from tubelet.errors import DecodeError

# Ratios this close to one are rounded sizes of square pixels (such as 1918 columns shown as 1920).
_SQUARE = 0.005
# Largest width over height of a pixel, or its inverse: cameras and discs have at most 2.
WIDEST = 10


@dataclass(frozen=True)
class Display:
    """The transform from a coded frame to the displayed image.

    Attributes:
        transposed: whether rows become columns, first of all.
        down: whether the image is then mirrored top to bottom.
        across: whether it is then mirrored left to right.
        aspect: width of a coded pixel over its height.
    """

    transposed: bool = False
    down: bool = False
    across: bool = False
    aspect: Fraction = Fraction(1)

    @property
    def rotation(self) -> int:
        """Degrees (0, 90, 180, 270) by which a frame is turned counter-clockwise."""
        if self.transposed:
            return 90 if self.down else 270
        return 180 if self.down else 0

    @property
    def mirrored(self) -> bool:
        """Whether left and right are swapped after the rotation."""
        return self.transposed ^ self.down ^ self.across

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width at which a frame of coded height and width is shown; rows are kept, columns resampled."""
        if self.aspect != 1:
            width = max(1, round(width * self.aspect))
        return (width, height) if self.transposed else (height, width)

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """A view of (H, W, 3) pixels as they are shown: (H, W, 3), or (W, H, 3) if transposed."""
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        return pixels[:: -1 if self.down else 1, :: -1 if self.across else 1]


def display_of(path: str, frame: Any, aspect: Fraction | None) -> Display:
    """How a frame is to be displayed.

    Args:
        path: name of the video, for messages.
        frame: a decoded frame.
        aspect: width over height of its pixels; None or 0 if unknown, which means square.

    Raises:
        DecodeError: the rotation is not a multiple of 90 degrees, or the pixel aspect ratio is absurd.
    """
    if aspect and aspect > 0 and not 1 / WIDEST <= aspect <= WIDEST:
        raise DecodeError(
            path,
            f"pixel aspect ratio {aspect.numerator}:{aspect.denominator}, expected at most {WIDEST}:1 either "
            "way; re-encode it with square pixels",
        )
    ratio = Fraction(1) if not aspect or aspect <= 0 or abs(aspect - 1) <= _SQUARE else Fraction(aspect)
    try:
        matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    except ValueError:  # side data of a kind that PyAV has no name for: quarter turns it tells all the same
        down, across = frame.rotation in (90, 180), frame.rotation in (-90, 180)
        return Display(frame.rotation % 180 != 0, down, across, ratio)
    if matrix is None:
        return Display(aspect=ratio)
    values = np.frombuffer(bytes(matrix), dtype=np.int32)[:9].astype(np.float64)
    # (x, y) is shown at (a x + c y, b x + d y); a matrix of nothing but zeros is what some writers mean by none.
    a, b, c, d = values[[0, 1, 3, 4]]
    if a == b == c == d == 0:
        return Display(aspect=ratio)
    straight, crossed = min(abs(a), abs(d)), min(abs(b), abs(c))
    if straight >= 100 * max(abs(b), abs(c)) and straight > 0:
        return Display(False, bool(d < 0), bool(a < 0), ratio)
    if crossed >= 100 * max(abs(a), abs(d)) and crossed > 0:
        return Display(True, bool(b < 0), bool(c < 0), ratio)
    degrees = float(np.degrees(np.arctan2(b, a)))
    raise DecodeError(path, f"display matrix rotates by {degrees:.0f} degrees, expected a multiple of 90; re-encode it")
