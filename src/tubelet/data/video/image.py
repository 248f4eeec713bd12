"""Decoded frames to the RGB images that are shown."""

from fractions import Fraction
from typing import Any

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from tubelet.data.containers import plain_words
from tubelet.data.video.color import is_plain, to_bt709, unknown_matrix
from tubelet.data.video.deinterlace import deinterlaced
from tubelet.data.video.display import display_of
from tubelet.errors import DecodeError


class Converter:
    """From frames of one video to RGB.

    Attributes:
        display: how they are displayed.
        size: height and width of the images.
    """

    def __init__(self, path: str, first: Any, aspect: Fraction | None) -> None:
        self.path = path
        self.coded = (first.height, first.width)
        self.display = display_of(path, first, aspect)
        self.size = self.display.size(first.height, first.width)
        self.reformatter = VideoReformatter()  # one for all: it sets itself up for a format once

    def image(self, shown: Any, height: int, width: int) -> np.ndarray:
        """A frame as (height, width, 3) uint8 RGB as it is displayed; perhaps a view of the converted frame's memory.

        Args:
            shown: frame, and its neighbors if it is interlaced.
            height: of the image.
            width: of the image.

        Raises:
            DecodeError: its colors cannot be converted, or the video's size changes with it.
        """
        frame = shown.frame
        if (frame.height, frame.width) != self.coded:
            sizes = f"from {self.coded[1]}x{self.coded[0]} to {frame.width}x{frame.height}"
            raise DecodeError(self.path, f"changes its size {sizes} on the way: split it there")
        if (matrix := unknown_matrix(frame)) is not None:
            raise DecodeError(self.path, f"codes its colors as {matrix}, which cannot be read: re-encode it as BT.709")
        if frame.interlaced_frame:
            with plain_words(self.path, f"has interlaced frames of a format ({frame.format.name}) without a filter"):
                frame = deinterlaced(shown.before, frame, shown.after)
        if self.display.transposed:
            height, width = width, height
        plain = is_plain(frame)
        kind, size = ("rgb24", 1) if plain else ("rgb48le", 2)
        with plain_words(self.path, f"has pixels of a format ({frame.format.name}) that cannot become RGB"):
            # Unless told not to, PyAV converts the colors of each frame on all cores.
            rgb = self.reformatter.reformat(
                frame, width, height, format=kind, interpolation=Interpolation.BILINEAR, threads=1
            )
            plane: Any = rgb.planes[0]
            rows = np.frombuffer(plane, dtype=np.uint8 if plain else "<u2")
        rows = rows.reshape(-1, plane.line_size // size)  # they may end in padding
        pixels = rows[:height, : 3 * width].reshape(height, width, 3)
        if not plain:
            pixels = to_bt709(pixels, frame.color_trc, frame.color_primaries)
        return self.display.apply(pixels)
