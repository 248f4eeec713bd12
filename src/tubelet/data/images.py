"""Still images to uint8 pixels; whatever goes wrong with a file is a `DecodeError` that says what it is."""

import warnings

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from tubelet.data.containers import Media, check_present, name_of, open_media
from tubelet.types import DecodeError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})


def read_image(media: Media) -> Tensor:
    """A still image, upright as its EXIF tag asks.

    Returns:
        (H, W, 3) uint8 RGB. Transparency is dropped; of an animation, the first picture.

    Raises:
        DecodeError: the file is missing, no image, damaged, cut off, or has more pixels than Pillow allows.
    """
    name = name_of(media)
    check_present(media)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_media(media) as file, Image.open(file) as image:
                pixels = rgb_of(image, name)
    except DecodeError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise DecodeError(name, f"has more than {limit / 1e6:.0f} million pixels: make it smaller") from error
    except Image.UnidentifiedImageError as error:
        raise DecodeError(name, "is not an image that Pillow can read, or its beginning is damaged") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError) as error:
        # Pillow's decoders raise all of these on damaged files.
        raise DecodeError(name, f"is damaged or cut off ({error})") from error
    return torch.from_numpy(pixels)


def rgb_of(image: Image.Image, name: str) -> np.ndarray:
    """A picture of Pillow's as (H, W, 3) uint8 RGB, upright as its EXIF tag asks; of 16 bits, the upper eight.

    Raises:
        DecodeError: its numbers are no colours of 8 or 16 bits; `name` is what it is called.
    """
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F":
        raise DecodeError(name, "has floats of no known range (Pillow's mode F): scale them to 0-255 and make it uint8")
    if upright.mode.startswith("I"):  # convert() would clip instead of scale
        values = np.asarray(upright)
        if values.size and not (values.min() >= 0 and values.max() < 2**16):
            raise DecodeError(
                name, f"has values from {values.min()} to {values.max()}, expected 16 bits: scale them to 0-65535"
            )
        upright = Image.fromarray((values >> 8).astype(np.uint8))
    return np.array(upright.convert("RGB"))
