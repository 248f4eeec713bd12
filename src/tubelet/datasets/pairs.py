"""What segmentation and depth benchmarks have in common: pictures, each with a map of the same size.

H x W pixels of a picture.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tubelet.data.decode import Video, read_frames
from tubelet.data.images import read_image
from tubelet.data.tables import read_lines
from tubelet.datasets.locate import entries_of, other_suffix
from tubelet.errors import DecodeError, TubeletError

_ORIENTATION = 0x0112  # of EXIF
IGNORED = 255  # in maps of class indices: a pixel that is ignored


@dataclass(frozen=True, kw_only=True)
class DenseSample:
    """A picture and its map.

    Attributes:
        name: how results call it.
        image: an image file, or a video.
        target: the file of the map.
        frame: which frame of the video; None where `image` is an image.
    """

    name: str
    image: Path
    target: Path
    frame: int | None = None


@dataclass(frozen=True, kw_only=True)
class DenseDataset:
    """A benchmark of pairs.

    Attributes:
        benchmark: its name.
        train: the pairs that heads are trained on.
        test: the pairs that the figures are of.
        left_out: reason -> how many pairs the benchmark's lists name that are not in `train` or `test`.
    """

    benchmark: str
    train: list[DenseSample]
    test: list[DenseSample]
    left_out: Mapping[str, int]


def read_picture(pair: DenseSample) -> NDArray[np.uint8]:
    """The picture of a pair, (H, W, 3).

    Raises:
        DecodeError: if it cannot be read, or a video has no such frame.
    """
    if pair.frame is None:
        return read_image(pair.image).numpy()
    frames = read_frames(pair.image).pixels
    if pair.frame >= len(frames):
        raise DecodeError(str(pair.image), f"has {len(frames)} frames, but number {pair.frame} is wanted")
    return frames[pair.frame].numpy()


def picture_shape(pair: DenseSample) -> tuple[int, int]:
    """(H, W) of the picture of a pair, without decoding all of it.

    Raises:
        DecodeError: if it cannot be read.
    """
    if pair.frame is not None:
        with Video(pair.image) as video:
            return video.info.height, video.info.width
    return image_shape(pair.image)


def image_shape(path: Path) -> tuple[int, int]:
    """(H, W) of an image as `read_image` turns it upright, from its header.

    Raises:
        DecodeError: if it cannot be read.
    """
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(_ORIENTATION, 1) >= 5
            return (image.width, image.height) if turned else (image.height, image.width)
    except (OSError, SyntaxError, ValueError) as error:
        raise DecodeError(str(path), f"cannot be read ({error})") from error


def read_png(path: Path) -> NDArray[np.integer]:
    """The numbers (H, W) of a PNG of one channel: grey values of 8 or 16 bits, or indices of a palette.

    Raises:
        TubeletError: if it is missing, damaged, or of several channels.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                values = np.asarray(image)
                mode = image.mode
    except FileNotFoundError:
        raise TubeletError(f"{path}: there is no such file, but the picture that it belongs to is there") from None
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise TubeletError(f"{path}: cannot be read as a PNG ({error})") from error
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
        raise TubeletError(f"{path}: a PNG of mode {mode}, expected one number a pixel (grey, or a palette)")
    return values


def class_indices(
    path: Path, labels: NDArray[np.integer], table: NDArray[np.uint8], legal: NDArray[np.bool_]
) -> NDArray:
    """Class indices (H, W) uint8 of the labels of a file, `IGNORED` where the benchmark ignores a pixel.

    Args:
        path: the file, for errors.
        labels: (H, W) as they are in it.
        table: (256,) class index of each label.
        legal: (256,) which labels the benchmark has.

    Raises:
        TubeletError: for a label that the benchmark does not have.
    """
    if labels.size and (labels.min() < 0 or labels.max() > 255):
        wrong = int(labels.min()) if labels.min() < 0 else int(labels.max())
    else:
        labels = labels.astype(np.uint8)
        wrong = next((int(v) for v in np.unique(labels[~legal[labels]])), -1)
        if wrong < 0:
            return table[labels]
    known = ", ".join(_ranges(np.flatnonzero(legal).tolist()))
    raise TubeletError(
        f"{path}: holds label {wrong}, but the benchmark has only {known}; is the file another layout's?"
    )


def _ranges(numbers: list[int]) -> Iterable[str]:
    """Ascending numbers in words: 0-20, 255."""
    start = numbers[0]
    for number, after in zip(numbers, [*numbers[1:], None], strict=True):
        if after != number + 1:
            yield str(number) if start == number else f"{start}-{number}"
            start = after if after is not None else start


def images_in(folder: Path) -> list[Path]:
    """The image files of a folder, in the order of their names.

    Raises:
        TubeletError: if there is none.
    """
    suffixes = (".jpg", ".jpeg", ".png")
    entries = entries_of(folder) if folder.is_dir() else []
    found = [path for path in entries if path.suffix.lower() in suffixes]
    if not found:
        raise TubeletError(f"{folder}: no images here, expected {' or '.join(suffixes)} files")
    return found


def read_list(path: Path) -> list[str]:
    """The lines of a split's list that are not empty.

    Raises:
        TubeletError: if it cannot be read, or is empty.
    """
    lines = read_lines(path)
    if not lines:
        raise TubeletError(f"{path}: the list of a split is empty")
    return lines


def read_triples(path: Path) -> list[tuple[str, str]]:
    """The picture and the depth on each line of a list, which may have a focal length after them.

    Raises:
        TubeletError: if it cannot be read, or has a line of another form.
    """
    rows = []
    for line in read_list(path):
        cells = [cell.strip('" ') for cell in (line.split(",") if "," in line else line.split())]
        if not 2 <= len(cells) <= 3:
            raise TubeletError(f"{path}: expected an image, its depth and a focal length on each line: {line[:200]!r}")
        rows.append((cells[0], cells[1]))
    return rows


def check_pairs(pairs: list[DenseSample], split: str, folder: Path) -> list[DenseSample]:
    """The pairs as they are, if there are any and all of their files are there.

    Raises:
        TubeletError: for an empty split, and for the first file that is missing.
    """
    if not pairs:
        raise TubeletError(f"{folder}: the {split} split has no pictures")
    for pair in pairs:
        for path, what in ((pair.image, "picture"), (pair.target, "annotation")):
            if not path.is_file():
                instead = other_suffix(path)
                there = f", but {instead.name} is there" if instead else ""
                raise TubeletError(f"{path}: the {what} of {pair.name} in the {split} split is missing{there}")
    return pairs
