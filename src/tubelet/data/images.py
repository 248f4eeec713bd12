"""Still images -> uint8 pixels; a file that cannot be read is a `DecodeError` that says why."""

import warnings
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tubelet.data.containers import Media, media_name, open_media, raise_remote_failure
from tubelet.data.size_limits import IMAGE_PIXELS
from tubelet.data.storage import StorageError
from tubelet.errors import DecodeError, first_line

# Pillow's decoders that are used, whatever the suffix of a file: some others run external programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def read_image(media: Media) -> Tensor:
    """Decode a still image, rotated by its EXIF tag.

    Returns:
        (H, W, 3) uint8 RGB. Transparency is dropped; of an animation, the first frame.

    Raises:
        DecodeError: the file is missing, not an image, corrupt, truncated, or has more than 89 million pixels.
        StorageError: its URL cannot be reached.
    """
    name = media_name(media)
    with open_media(media) as file:
        try:
            return torch.from_numpy(_pixels(file, name))
        except (DecodeError, StorageError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(name) from error
        except Image.UnidentifiedImageError as error:
            raise_remote_failure(file)
            raise DecodeError(name, "not an image that Pillow can read, or its header is corrupt") from error
        except Exception as error:  # Pillow's decoders raise nearly anything on corrupt files
            raise_remote_failure(file)
            raise DecodeError(name, f"corrupt or truncated ({first_line(error)})") from error


def _pixels(file: BinaryIO, name: str) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > IMAGE_PIXELS:  # Pillow's own limit can be disabled
                raise _too_large(name)
            pages = getattr(image, "n_frames", 1)
            if image.format == "TIFF" and pages > 1:
                raise DecodeError(name, f"has {pages} pages; save each as a file of its own")
            return rgb_of(image, name)


def _too_large(name: str) -> DecodeError:
    return DecodeError(name, f"has more than {IMAGE_PIXELS / 1e6:.0f} million pixels; make it smaller")


def rgb_of(image: Image.Image, name: str) -> np.ndarray:
    """A Pillow image as (H, W, 3) uint8 RGB, rotated by its EXIF tag; of 16 bits, the upper eight.

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
