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

# FFmpeg's pixel formats by channels and bytes of a value, and planar RGB by bytes of a value.
_FORMATS = {(3, 1): "rgb24", (3, 2): "rgb48le", (1, 1): "gray", (1, 2): "gray16le"}
_PLANAR_RGB = {1: "gbrp", 2: "gbrp16le"}
_DEFAULT = Interpolation.BILINEAR
_EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND
# For these swscale has a conversion that takes a fifth of the time of an exact one, for whole frames of even height.
_FAST_FORMATS = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p")
_FULL_RANGE = 2
# Rows at once, so that what is computed on the way stays in the caches.
_ROWS = 32


def make_brighter(pixels: np.ndarray) -> None:
    """Add 1 to values below 255 of (H, W, 3) uint8, in place.

    The fast conversion of limited range rounds three products down, so that its errors are -2.9 to 0 of 255; after this
    they are -1.9 to 1 (docs/decoding.md).
    """
    for top in range(0, len(pixels), _ROWS):
        rows = pixels[top : top + _ROWS]
        rows += (rows < 255).view(np.uint8)


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
        # Reused: their setup for a format is cached.
        self.to_planar, self.to_interleaved = VideoReformatter(), VideoReformatter()

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
        fast = plain and not self.full_depth and self._has_fast_conversion(frame, width, height)
        with as_decode_error(self.path, f"pixel format {frame.format.name} cannot be converted to RGB"):
            rgb = self._to_rgb(frame, width, height, dtype.itemsize, fast)
            plane: Any = rgb.planes[0]
            rows = np.frombuffer(plane, dtype)
        rows = rows.reshape(-1, plane.line_size // dtype.itemsize)  # they may end in padding
        pixels = rows[:height, : self.channels * width].reshape(height, width, self.channels)
        if fast and frame.color_range != _FULL_RANGE:
            make_brighter(pixels)
        if not plain:
            pixels = to_bt709(pixels, frame.color_trc, frame.color_primaries)
        return self.display.apply(pixels)

    def _has_fast_conversion(self, frame: Any, width: int, height: int) -> bool:
        return frame.format.name in _FAST_FORMATS and (frame.width, frame.height) == (width, height) and height % 2 == 0

    def _to_rgb(self, frame: Any, width: int, height: int, itemsize: int, fast: bool) -> Any:
        """A frame of interleaved RGB, or of gray, whose values have a number of bytes."""
        # By default PyAV converts the colors of each frame on all cores.
        options: dict[str, Any] = {"width": width, "height": height, "threads": 1}
        if not fast and self.channels == 3 and not frame.format.is_rgb:
            # swscale is exact and quick to planar RGB, but not both to interleaved RGB.
            frame = self.to_planar.reformat(frame, format=_PLANAR_RGB[itemsize], interpolation=_EXACT, **options)
        kind = _FORMATS[self.channels, itemsize]
        return self.to_interleaved.reformat(frame, format=kind, interpolation=_DEFAULT if fast else _EXACT, **options)
