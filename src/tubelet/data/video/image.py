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

# By default swscale rounds down: flat colors of 4:2:0 and 4:2:2 are up to 3 of 255 too dark (docs/decoding.md). Frames
# of 8 bits keep it: it is what every reader on top of FFmpeg gives, to the bit, and takes a seventh of the time.
_DEFAULT = Interpolation.BILINEAR
# FFmpeg's pixel formats by channels and bytes of a value.
_FORMATS = {(3, 1): "rgb24", (3, 2): "rgb48le", (1, 1): "gray", (1, 2): "gray16le"}
_ACCURATE = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class Converter:
    """From frames of one video to RGB, or at full depth.

    Full depth is what the first frame has: one channel if it is gray, else three; uint16 if its values have more than 8
    bits, which swscale scales to 16, else uint8. The colors of high dynamic range and wide gamut are kept as coded.

    Attributes:
        display: orientation and pixel aspect ratio of the frames.
        size: height and width of the images in pixels.
        channels: channels of the images.
        dtype: type of the images' values.
    """

    def __init__(self, path: str, first: Any, aspect: Fraction | None, full_depth: bool = False) -> None:
        self.path = path
        self.coded = (first.height, first.width)
        self.display = display_of(path, first, aspect)
        self.size = self.display.size(first.height, first.width)
        self.full_depth = full_depth
        self.channels = 1 if full_depth and first.format.name.startswith("gray") else 3
        deep = full_depth and max(component.bits for component in first.format.components) > 8
        self.dtype = np.dtype("<u2" if deep else np.uint8)
        self.reformatter = VideoReformatter()  # reused: its setup for a format is cached

    def image(self, decoded: Any, height: int, width: int) -> np.ndarray:
        """A frame as (height, width, C) values of `dtype` as displayed; perhaps a view of the converted frame's memory.

        Args:
            decoded: frame, and its neighbors if it is interlaced.
            height: height of the image in pixels.
            width: width of the image in pixels.

        Raises:
            DecodeError: its colors cannot be converted, or the video's size changes with it.
        """
        frame = decoded.frame
        if (frame.height, frame.width) != self.coded:
            sizes = f"from {self.coded[1]}x{self.coded[0]} to {frame.width}x{frame.height}"
            raise DecodeError(self.path, f"its frame size changes {sizes}; split it there")
        if (matrix := unknown_matrix(frame)) is not None:
            raise DecodeError(self.path, f"color matrix {matrix} is not supported; re-encode it as BT.709")
        if frame.interlaced_frame:
            with as_decode_error(
                self.path, f"interlaced frames of pixel format {frame.format.name} cannot be filtered"
            ):
                frame = deinterlace(decoded.before, frame, decoded.after)
        if self.display.transposed:
            height, width = width, height
        plain = self.full_depth or is_plain(frame)
        dtype = self.dtype if plain else np.dtype("<u2")
        kind = _FORMATS[self.channels, dtype.itemsize]
        exact = self.full_depth or (plain and frame.format.components[0].bits > 8)
        flags = _ACCURATE if exact else _DEFAULT
        with as_decode_error(self.path, f"pixel format {frame.format.name} cannot be converted to RGB"):
            # By default PyAV converts the colors of each frame on all cores.
            rgb = self.reformatter.reformat(frame, width, height, format=kind, interpolation=flags, threads=1)
            plane: Any = rgb.planes[0]
            rows = np.frombuffer(plane, dtype)
        rows = rows.reshape(-1, plane.line_size // dtype.itemsize)  # they may end in padding
        pixels = rows[:height, : self.channels * width].reshape(height, width, self.channels)
        if not plain:
            pixels = to_bt709(pixels, frame.color_trc, frame.color_primaries)
        return self.display.apply(pixels)
