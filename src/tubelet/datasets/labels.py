"""A segmentation benchmark: pairs, and what the numbers in their maps mean."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tubelet.datasets.pairs import DenseDataset, DenseSample, class_indices, read_png
from tubelet.sample_data.truth import read_truth


@dataclass(frozen=True, kw_only=True)
class SegmentationDataset(DenseDataset):
    """A benchmark of pictures and maps of classes.

    Attributes:
        classes: K names.
        table: (256,) uint8, the class index of each label, or `IGNORED`.
        legal: (256,) bool, the labels that the benchmark has.
        image_size: pixels that the short side of a picture gets; None is the protocol's.
    """

    classes: tuple[str, ...]
    table: NDArray[np.uint8]
    legal: NDArray[np.bool_]
    image_size: int | None = None


def read_labels(pair: DenseSample, labels: SegmentationDataset) -> NDArray[Any]:
    """The map of a pair, (H, W) uint8 class indices or `IGNORED`.

    Raises:
        TubeletError: if it cannot be read, or holds a label that the benchmark does not have.
    """
    values = read_truth(pair.target).classes[pair.frame or 0] if pair.target.suffix == ".npz" else read_png(pair.target)
    return class_indices(pair.target, values, labels.table, labels.legal)
