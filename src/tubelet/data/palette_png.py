"""Object masks as palette PNGs with the colors of DAVIS; the value of a pixel is the number of its object."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tubelet.errors import DecodeError

VOID = 255


def davis_palette() -> NDArray[np.uint8]:
    """(256, 3) the palette of DAVIS: colors made of the bits of their number up to 21, then gray."""
    colors = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    for number in range(22):
        for channel in range(3):
            high, low = number >> channel & 1, number >> channel + 3 & 1
            colors[number, channel] = (0, 64, 128, 191)[2 * high + low]
    return colors


def write_indexed(path: Path, labels: NDArray[np.uint8]) -> None:
    """Write a mask of (H, W) object numbers."""
    image = Image.fromarray(np.ascontiguousarray(labels, dtype=np.uint8))
    image.putpalette(davis_palette().ravel().tolist())
    image.save(path)


def read_indexed(path: Path) -> NDArray[np.uint8]:
    """Read a mask of (H, W) object numbers.

    Raises:
        DecodeError: the file cannot be read, or its pixels are colors rather than numbers.
    """
    try:
        with Image.open(path) as image:
            if (pages := getattr(image, "n_frames", 1)) > 1:
                raise DecodeError(str(path), f"has {pages} pages, expected 1; save each as a file of its own")
            mode, labels = image.mode, np.array(image)
    except DecodeError:
        raise
    except FileNotFoundError:
        raise DecodeError(str(path), "no such mask") from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise DecodeError(str(path), f"cannot be read as a mask ({error})") from error
    if mode not in ("P", "L", "1"):
        raise DecodeError(str(path), f"image of mode {mode}, expected a palette PNG (P) or L")
    return labels.astype(np.uint8)
