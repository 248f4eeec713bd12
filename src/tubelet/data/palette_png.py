"""Masks as indexed PNGs in the palette of DAVIS: each pixel is the number of its object, and looks like its colour."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tubelet.errors import DecodeError

VOID = 255


def davis_palette() -> NDArray[np.uint8]:
    """(256, 3) the palette of DAVIS: colours whose bits are those of their number up to 21, then grey."""
    colours = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    for number in range(22):
        for channel in range(3):
            high, low = number >> channel & 1, number >> channel + 3 & 1
            colours[number, channel] = (0, 64, 128, 191)[2 * high + low]
    return colours


def write_indexed(path: Path, labels: NDArray[np.uint8]) -> None:
    """Write (H, W) numbers of objects."""
    picture = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    picture.putpalette(davis_palette().ravel().tolist())
    picture.save(path)


def read_indexed(path: Path) -> NDArray[np.uint8]:
    """(H, W) numbers of objects.

    Raises:
        DecodeError: if the file cannot be read, or its pixels are colours rather than numbers.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("P", "L", "1"):
                raise DecodeError(str(path), f"is an image of mode {picture.mode}, expected an indexed PNG (P) or L")
            return np.array(picture, dtype=np.uint8)
    except DecodeError:
        raise
    except FileNotFoundError:
        raise DecodeError(str(path), "no such mask") from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DecodeError(str(path), f"cannot be read as a mask ({error})") from error
