"""Readers of annotation files that several layouts share: lists, class labels, label maps, masks.

Shapes: H x W pixels of an image.
"""

import re
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tubelet.data.lists import parse_list
from tubelet.data.palette_png import read_indexed
from tubelet.data.tables import decode_list, read_lines
from tubelet.errors import DataError, DecodeError, MissingFileError
from tubelet.io.text import read_bytes

IGNORED = 255
"""Class index, in maps of classes, of pixels that do not count."""
SPARSE_CLASSES = 1000
"""Number of classes up to which class numbers may have gaps of any size."""
_EXIF_ORIENTATION = 0x0112
_DIGITS = re.compile(r"\d{1,9}", re.ASCII)


def parse_index(text: object, where: str) -> int:
    """A class number or another non-negative integer.

    Args:
        text: The value as it is in a file.
        where: Subject of the error message.

    Raises:
        DataError: The text is not a non-negative integer.
    """
    digits = str(text).strip()
    if not _DIGITS.fullmatch(digits):
        raise DataError(f"{where} is {text!r:.100}, expected a non-negative integer")
    return int(digits)


def class_count(numbers: Collection[int], where: str) -> int:
    """The number of classes that class numbers need: one more than the largest.

    Args:
        numbers: Class numbers that occur, without repetitions; at least one.
        where: Subject of the error message.

    Raises:
        DataError: The largest is beyond `SPARSE_CLASSES`, and most of the numbers below it do not occur: a head would
            have that many outputs.
    """
    count = max(numbers) + 1
    if count > max(SPARSE_CLASSES, 2 * len(numbers)):
        raise DataError(
            f"{where}: class number {count - 1}, but only {len(numbers)} class numbers occur; expected consecutive "
            f"numbers from 0, or numbers below {SPARSE_CLASSES}: renumber the classes, or write their names"
        )
    return count


def read_nonempty_lines(path: Path) -> list[str]:
    """The lines of a list that are not blank.

    Raises:
        DataError: The file is unreadable or has none.
    """
    lines = read_lines(path)
    if not lines:
        raise DataError(f"{path}: empty list")
    return lines


def read_labeled_paths(path: Path, root: Path) -> tuple[list[tuple[int, Path, str]], str]:
    """A list of paths and classes, with or without a header.

    Args:
        path: The list.
        root: Base of relative paths.

    Returns:
        (line number, file, class) of each row, and how the list was interpreted.

    Raises:
        DataError: The list is empty, or a line does not have a path and a class.
    """
    listed = parse_list(str(path), read_bytes(path), lambda paths: sum((root / name).is_file() for name in paths))
    if not len(listed):
        raise DataError(f"{path}: empty list")
    if listed.labels is None:
        line = decode_list(read_bytes(path), path).split("\n")[listed.lines[0] - 1]
        raise DataError(f"{path}: line {listed.lines[0]} is {line.strip()[:200]!r}, expected a path and a class")
    columns = (listed.lines.tolist(), listed.paths.to_pylist(), listed.labels.to_pylist())
    rows = [(line, root / name, (label or "").strip()) for line, name, label in zip(*columns, strict=True)]
    return rows, listed.form


def read_image_depth_pairs(path: Path) -> list[tuple[str, str]]:
    """Image and depth file on each line of a list, optionally followed by a focal length.

    Raises:
        DataError: The list is unreadable or empty, or a line has another number of columns.
    """
    rows = []
    for line in read_nonempty_lines(path):
        cells = [cell.strip('" ') for cell in (line.split(",") if "," in line else line.split())]
        if not 2 <= len(cells) <= 3:
            raise DataError(f"{path}: line is {line[:200]!r}, expected image, depth and optionally focal length")
        rows.append((cells[0], cells[1]))
    return rows


def image_shape(path: Path) -> tuple[int, int]:
    """(H, W) of an image after its EXIF rotation, from the header of its file.

    Raises:
        DecodeError: The file is unreadable.
    """
    try:
        with Image.open(path) as image:
            rotated = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
            return (image.width, image.height) if rotated else (image.height, image.width)
    except (OSError, SyntaxError, ValueError) as error:
        raise DecodeError(str(path), f"unreadable image ({error})") from error


def read_gray_png(path: Path) -> NDArray[np.integer]:
    """(H, W) values of a PNG of one channel: gray of 8 or 16 bits, or palette indices.

    Raises:
        MissingFileError: There is no such file.
        DataError: The file is unreadable, or has several channels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if (pages := getattr(image, "n_frames", 1)) > 1:
                    raise DataError(f"{path}: has {pages} pages, expected 1; save each as a file of its own")
                values = np.asarray(image)
                mode = image.mode
    except FileNotFoundError:
        raise MissingFileError(f"{path}: missing annotation of an existing image") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: unreadable PNG ({error})") from error
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
        raise DataError(f"{path}: PNG of mode {mode}, expected one integer per pixel (gray or palette)")
    return values


def to_class_indices(
    path: Path, labels: NDArray[np.integer], class_of_label: NDArray[np.uint8], known_labels: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Map labels of a file to class indices.

    Args:
        path: The file, for errors.
        labels: (H, W) labels.
        class_of_label: (256,) class index of each label, or `IGNORED`.
        known_labels: (256,) bool, labels of the data set.

    Returns:
        (H, W) uint8 class indices.

    Raises:
        DataError: A label is not in the data set.
    """
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        unknown = int(labels.min()) if labels.min() < 0 else int(labels.max())
    else:
        labels = labels.astype(np.uint8)
        unknown = next((int(v) for v in np.unique(labels[~known_labels[labels]])), -1)
        if unknown < 0:
            return class_of_label[labels]
    expected = ", ".join(_ranges(np.flatnonzero(known_labels).tolist()))
    raise DataError(f"{path}: label {unknown}, expected labels {expected}; is the file from another data set?")


def _ranges(numbers: list[int]) -> Iterable[str]:
    """Ascending numbers as ranges: 0-20, 255."""
    start = numbers[0]
    for number, after in zip(numbers, [*numbers[1:], None], strict=True):
        if after != number + 1:
            yield str(number) if start == number else f"{start}-{number}"
            start = after if after is not None else start


def read_object_mask(path: Path, frame: Path) -> NDArray[np.uint8]:
    """(H, W) object numbers, of the size of a frame.

    Raises:
        DecodeError: A file is unreadable, or the sizes differ.
    """
    labels = read_indexed(path)
    shape = image_shape(frame)
    if labels.shape != shape:
        raise DecodeError(
            str(path), f"has {labels.shape[0]} x {labels.shape[1]} pixels, its frame {shape[0]} x {shape[1]}"
        )
    return labels
