"""Decoded frames -> RGB images as displayed."""

from fractions import Fraction
from typing import Any

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from tubelet.data.containers import as_decode_error
from tubelet.data.video.color import is_plain, to_bt709, unknown_matrix
from tubelet.data.video.deinterlace import deinterlace
from tubelet.data.video.display import display_of
from tubelet.errors import DecodeError

# By default swscale's chroma is up to 5 of 255 off in flat areas of 4:2:0 and 4:2:2. Frames of 8 bits keep it:
# it is what every reader on top of FFmpeg gives, to the bit, and takes a ninth of the time (720p).
_DEFAULT = Interpolation.BILINEAR
_ACCURATE = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class Converter:
    """From frames of one video to RGB.

    Attributes:
        display: orientation and pixel aspect ratio of the frames.
        size: height and width of the images in pixels.
    """

    def __init__(self, path: str, first: Any, aspect: Fraction | None) -> None:
        self.path = path
        self.coded = (first.height, first.width)
        self.display = display_of(path, first, aspect)
        self.size = self.display.size(first.height, first.width)
        self.reformatter = VideoReformatter()  # reused: its setup for a format is cached

    def image(self, shown: Any, height: int, width: int) -> np.ndarray:
        """A frame as (height, width, 3) uint8 RGB as it is displayed; perhaps a view of the converted frame's memory.

        Args:
            shown: frame, and its neighbors if it is interlaced.
            height: height of the image in pixels.
            width: width of the image in pixels.

        Raises:
            DecodeError: its colors cannot be converted, or the video's size changes with it.
        """
        frame = shown.frame
        if (frame.height, frame.width) != self.coded:
            sizes = f"from {self.coded[1]}x{self.coded[0]} to {frame.width}x{frame.height}"
            raise DecodeError(self.path, f"its frame size changes {sizes}; split it there")
        if (matrix := unknown_matrix(frame)) is not None:
            raise DecodeError(self.path, f"color matrix {matrix} is not supported; re-encode it as BT.709")
        if frame.interlaced_frame:
            with as_decode_error(
                self.path, f"interlaced frames of pixel format {frame.format.name} cannot be filtered"
            ):
                frame = deinterlace(shown.before, frame, shown.after)
        if self.display.transposed:
            height, width = width, height
        plain = is_plain(frame)
        kind, size = ("rgb24", 1) if plain else ("rgb48le", 2)
        scaling = _ACCURATE if plain and frame.format.components[0].bits > 8 else _DEFAULT
        with as_decode_error(self.path, f"pixel format {frame.format.name} cannot be converted to RGB"):
            # By default PyAV converts the colors of each frame on all cores.
            rgb = self.reformatter.reformat(frame, width, height, format=kind, interpolation=scaling, threads=1)
            plane: Any = rgb.planes[0]
            rows = np.frombuffer(plane, dtype=np.uint8 if plain else "<u2")
        rows = rows.reshape(-1, plane.line_size // size)  # they may end in padding
        pixels = rows[:height, : 3 * width].reshape(height, width, 3)
        if not plain:
            pixels = to_bt709(pixels, frame.color_trc, frame.color_primaries)
        return self.display.apply(pixels)
