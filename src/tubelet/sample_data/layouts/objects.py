"""The objects of sample clips by number, as benchmarks of video object segmentation give them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tubelet.data.decode import read_frame_array
from tubelet.sample_data.truth import CLASSES, FIRST_OBJECT, read_index, read_truth

SMALLEST = 1 / 256  # of the frame; smaller objects are too few pixels to follow


@dataclass(frozen=True)
class ObjectClip:
    """A clip and its objects.

    Attributes:
        name: of the clip.
        frames: (T, H, W, 3) uint8.
        labels: (T, H, W) uint8, 0 and the numbers of the objects from 1 on.
        first: number of each object -> the frame in which it is first large enough.
        classes: number of each object -> the name of its class.
    """

    name: str
    frames: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    first: dict[int, int]
    classes: dict[int, str]


def object_clips(root: Path, only_first: bool) -> Iterator[ObjectClip]:
    """The validation clips that have objects.

    Args:
        root: folder of a rendered sample set.
        only_first: keep the objects that are large enough in the first frame; the others are background.
    """
    for entry in read_index(root, "val"):
        truth = read_truth(entry.truth)
        numbers = np.unique(truth.instances)
        areas = np.stack([(truth.instances == n).mean((1, 2)) for n in numbers[numbers > 0]] or [[]])
        large = areas >= SMALLEST
        begin = {int(n): int(row.argmax()) for n, row in zip(numbers[numbers > 0], large, strict=False) if row.any()}
        selected = sorted((first, n) for n, first in begin.items() if first == 0 or not only_first)
        if not selected:
            continue
        labels = np.zeros(truth.instances.shape, np.uint8)
        first, classes = {}, {}
        for number, (frame, n) in enumerate(selected, start=1):
            mask = truth.instances == n
            labels[mask] = number
            object_classes = truth.classes[frame][mask[frame]]
            first[number] = frame
            classes[number] = CLASSES[int(np.bincount(object_classes, minlength=FIRST_OBJECT + 1).argmax())]
        yield ObjectClip(entry.media.stem, read_frame_array(entry.media), labels, first, classes)
