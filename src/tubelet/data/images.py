"""Decoding of still images; a file that cannot be read is a `DecodeError` with the reason."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, BinaryIO

import av
import numpy as np
from PIL import Image, ImageOps

from tubelet.data.batch import MediaBytes
from tubelet.data.containers import Media, as_decode_error, media_name, open_media, raise_remote_failure
from tubelet.data.file_types import STACK_SUFFIXES
from tubelet.data.size_limits import IMAGE_PIXELS
from tubelet.data.stacks import open_stack, read_frames_of
from tubelet.data.stacks.reader import StackConverter, display_window, displayed, to_rgb
from tubelet.data.stacks.tiff import is_deep, read_page
from tubelet.data.storage import StorageError, is_url, suffix_of
from tubelet.data.video.reader import DecodedFrame
from tubelet.errors import DecodeError, TubeletError, first_line

if TYPE_CHECKING:  # processes that only render or read files need not spend seconds on importing torch
    from torch import Tensor

# Pillow's decoders that are used, whatever the suffix of a file: some others run external programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_TIFF_HEADS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")


# The orientation tag of EXIF, and for each of its values whether rows become columns, and then whether rows and
# columns are reversed.
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


def read_image(
    media: Media,
    *,
    full_depth: bool = False,
    window: tuple[float, float] | None = None,
    display: bool = False,
) -> Tensor:
    """`read_image_array` as a tensor."""
    import torch

    return torch.from_numpy(read_image_array(media, full_depth=full_depth, window=window, display=display))


def read_image_array(
    media: Media,
    *,
    full_depth: bool = False,
    window: tuple[float, float] | None = None,
    display: bool = False,
) -> np.ndarray:
    """Decode a still image, rotated by its EXIF tag, without importing torch.

    Args:
        media: path or URL of an image, or its bytes; or the path of a stack with a single frame, such as a DICOM file.
        full_depth: whether pixels have the file's own channels and depth, instead of 8-bit RGB.
        window: values of a stack that 8-bit RGB shows as black and white; None for those that the file states.
        display: whether 8-bit RGB is only looked at: values of more than 8 bits are shown as in `tubelet.Video`.

    Returns:
        (H, W, 3) uint8 RGB; at full depth (H, W, C) of the stored type. Transparency is dropped; of an animation, the
        first frame.

    Raises:
        DecodeError: the file is missing, not an image, corrupt, truncated, or has more than 89 million pixels.
        MissingPackageError: the package that reads the file is not installed.
        StorageError: its URL cannot be reached.
    """
    name = media_name(media)
    if not isinstance(media, MediaBytes) and suffix_of(name) in STACK_SUFFIXES:
        return _only_frame(name, full_depth, window, display)
    with open_media(media) as file:
        try:
            pixels = _pixels(file, name, full_depth or display)
            return _to_display(pixels) if display else pixels
        except (TubeletError, StorageError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(name) from error
        except Image.UnidentifiedImageError as error:
            raise_remote_failure(file)
            raise DecodeError(name, "not an image that Pillow can read, or its header is corrupt") from error
        except Exception as error:  # Pillow's decoders raise nearly anything on corrupt files
            raise_remote_failure(file)
            raise DecodeError(name, f"corrupt or truncated ({first_line(error)})") from error


def _only_frame(name: str, full_depth: bool, window: tuple[float, float] | None, display: bool) -> np.ndarray:
    """The frame of a single-frame stack."""
    stack = open_stack(name)
    try:
        info = stack.info
        if info.frames != 1:
            raise DecodeError(name, f"has {info.frames} frames, expected 1; read it as a video")
        if display:
            stack = displayed(stack, name)
        converter = StackConverter(name, stack.info, full_depth, window)
        frame = DecodedFrame(read_frames_of(stack, name, np.array([0]))[0], 1, 0.0)
        return converter.image(frame, info.height, info.width)
    finally:
        stack.close()


def _to_display(pixels: np.ndarray) -> np.ndarray:
    """(H, W, C) values of an image as (H, W, 3) uint8."""
    pixels = pixels if pixels.shape[-1] >= 3 else pixels[..., :1]
    return to_rgb(pixels, None if pixels.dtype == np.uint8 else display_window(pixels))


def _pixels(file: BinaryIO, name: str, full_depth: bool) -> np.ndarray:
    head = file.read(32)
    if full_depth and head[:4] in _TIFF_HEADS and is_deep(file):
        return _upright(*read_page(file, name))
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > IMAGE_PIXELS:  # Pillow's own limit can be disabled
                raise _too_large(name)
            pages = getattr(image, "n_frames", 1)
            if image.format == "TIFF" and pages > 1:
                remedy = "copy it to a local disk" if is_url(name) else "read it where a video is expected"
                raise DecodeError(name, f"has {pages} pages, expected 1; it is a stack: {remedy}")
            if not full_depth:
                return rgb_of(image, name)
            if head[24:25] == b"\x10" and image.mode not in _DEEP_MODES and image.format == "PNG":
                return _upright(_deep_png(file, name, image.mode), _orientation(image))
            return stored_of(image)


def stored_of(image: Image.Image) -> np.ndarray:
    """Convert a Pillow image to (H, W, C), rotated by its EXIF tag.

    Gray and deep images keep their values; others become uint8 RGB.
    """
    return _upright(_stored(image), _orientation(image))


def _orientation(image: Image.Image) -> int:
    orientation: int = image.getexif().get(_ORIENTATION_TAG, 1)
    return orientation


def _stored(image: Image.Image) -> np.ndarray:
    if image.mode in ("L", *_DEEP_MODES):
        values = np.array(image)[..., None]
        if image.mode == "I" and image.format == "PNG":  # Pillow 10 reads 16 bits as 32
            values = values.astype(np.uint16)
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    mode = {"1": "L", "LA": "L"}.get(image.mode, "RGB")
    values = np.array(image.convert(mode))
    return values if values.ndim == 3 else values[..., None]


def _deep_png(file: BinaryIO, name: str, mode: str) -> np.ndarray:
    """(H, W, C) uint16 of a PNG file with 16 bits and several channels, of which Pillow reads the upper eight."""
    file.seek(0)
    with (
        as_decode_error(name, "corrupt or truncated", file),
        av.open(file, "r", format="png_pipe") as container,
    ):
        frame = next(container.decode(video=0))
        kind = "gray16le" if mode == "LA" else "rgb48le"
        values = frame.to_ndarray(format=kind)
    return values.reshape(values.shape[0], values.shape[1], -1)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W, C) pixels rotated and mirrored by a value of the orientation tag."""
    transposed, down, across = _ORIENTATIONS.get(orientation, (False, False, False))
    pixels = pixels.swapaxes(0, 1) if transposed else pixels
    return np.ascontiguousarray(pixels[:: -1 if down else 1, :: -1 if across else 1])


def _too_large(name: str) -> DecodeError:
    return DecodeError(name, f"has more than {IMAGE_PIXELS / 1e6:.0f} million pixels; make it smaller")


def rgb_of(image: Image.Image, name: str) -> np.ndarray:
    """Convert a Pillow image to (H, W, 3) uint8 RGB, rotated by its EXIF tag; 16-bit values keep their upper 8 bits.

    Raises:
        DecodeError: its values are not colors of 8 or 16 bits; `name` is its name in the message.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise DecodeError(name, "float pixels of unknown range (Pillow mode F); scale them to 0-255 and save as uint8")
    if upright.mode.startswith("I"):  # convert() would clip instead of scale
        values = np.asarray(upright)
        if values.size and not (values.min() >= 0 and values.max() < 2**16):
            raise DecodeError(
                name, f"has values from {values.min()} to {values.max()}, expected 16 bits; scale them to 0-65535"
            )
        if 0 < (values.max() if values.size else 0) < 2**12:
            raise DecodeError(
                name, f"16-bit image with maximum {values.max()} would decode as black; scale it to 0-65535"
            )
        upright = Image.fromarray((values >> 8).astype(np.uint8))
    return np.array(upright.convert("RGB"))
