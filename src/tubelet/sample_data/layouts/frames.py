"""Images and middle frames of clips with their ground truth, from which layouts of images are written."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tubelet.data.decode import read_frame_array
from tubelet.data.images import read_image_array
from tubelet.sample_data.truth import UNITS_PER_METER, read_index, read_truth


@dataclass(frozen=True)
class LabeledFrame:
    """An image of the sample set.

    Attributes:
        number: number in its split, from 0.
        level: name of the level.
        pixels: (H, W, 3) uint8.
        classes: (H, W) uint8 indices of `CLASSES`.
        meters: (H, W) float32 along the camera's axis; 0 where it is not known, and in the sky.
    """

    number: int
    level: str
    pixels: NDArray[np.uint8]
    classes: NDArray[np.uint8]
    meters: NDArray[Any]


def frames_of(root: Path, split: str) -> Iterator[LabeledFrame]:
    """The images of a split: "train" or "val".

    Raises:
        TubeletError: there is no sample set, or a file of it cannot be read.
    """
    number = 0
    for kind in ("images", "videos"):
        for entry in read_index(root, split, kind):
            truth = read_truth(entry.truth)
            middle = len(truth.classes) // 2
            pixels = read_image_array(entry.media) if kind == "images" else read_frame_array(entry.media)[middle]
            meters = known_meters(truth.depth[middle])
            yield LabeledFrame(number, entry.level, pixels, truth.classes[middle], meters)
            number += 1


def known_meters(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Depth in map units as meters; 0 where it is not known, and in the sky."""
    meters = depth / UNITS_PER_METER
    return np.where(np.isfinite(meters) & (meters > 0), meters, 0)


def to_millimeters(meters: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Meters as the 16-bit values of a depth PNG; 0 stays 0."""
    return np.clip(np.rint(1000 * meters), 0, 65535).astype(np.uint16)


def write_image(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) in the format of the suffix; a JPEG in high quality."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, quality=95)  # which a PNG ignores


def write_map(path: Path, values: NDArray[np.integer], palette: list[int] | None = None) -> None:
    """Write (H, W) uint8 or uint16 as a PNG of one channel, with a palette if one is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def translate(
    classes: NDArray[np.uint8], labels: Mapping[str, int], names: tuple[str, ...], other: int
) -> NDArray[np.uint8]:
    """Classes (H, W) in the labels of a benchmark.

    Args:
        classes: indices of `names`.
        labels: name -> label.
        names: of the classes.
        other: label of the classes that `labels` leaves out.
    """
    table = np.array([labels.get(name, other) for name in names], np.uint8)
    return table[classes]
