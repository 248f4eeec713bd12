"""Depth maps of label rows: gray PNGs of 16 bits, and TIFFs of whole or floating-point numbers.

H x W pixels of an image.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tubelet.data.stacks import is_stack
from tubelet.errors import DataError, MissingFileError, first_line
from tubelet.labels.pages import read_page
from tubelet.labels.records import LabelRow

_FORMATS = ("PNG", "TIFF")
_REMEDY = "save it as a gray PNG of 16 bits, or a TIFF of one floating-point number a pixel"


def read_depth(row: LabelRow) -> NDArray[np.float32]:
    """The depth map of a row.

    Args:
        row: a row with a depth map.

    Returns:
        (H, W) float32 in the unit of the file; 0 where the depth is unknown: where the file has 0, less, or no number.

    Raises:
        DataError: if the file is unreadable, or not a depth map; or the row has none.
        MissingFileError: if there is no such file.
    """
    if row.depth is None:
        raise DataError(f"{row.path}: has no depth map; {_REMEDY}")
    values = read_page(row.depth, row.page) if is_stack(row.depth) else _read(row.depth)
    if values.ndim != 2 or values.dtype == np.uint8 or values.dtype == np.bool_:
        problem = f"{values.shape[2]} channels" if values.ndim == 3 else f"{8 * values.dtype.itemsize} bits"
        raise DataError(f"{row.depth}: has {problem}, expected one channel of more than 8 bits; {_REMEDY}")
    depth = values.astype(np.float32)
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.float32(0))


def _read(path: Path) -> NDArray[np.generic]:
    try:
        with Image.open(path, formats=_FORMATS) as image:
            return np.array(image)
    except FileNotFoundError:
        raise MissingFileError(f"{path}: missing depth map") from None
    except UnidentifiedImageError:
        raise DataError(f"{path}: is no PNG and no TIFF; {_REMEDY}") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: unreadable depth map ({first_line(error)}); {_REMEDY}") from error
