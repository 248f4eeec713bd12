"""A depth benchmark: pairs, and how far away their pixels are."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tubelet.datasets.pairs import DenseDataset, DenseSample, read_png
from tubelet.errors import TubeletError
from tubelet.sample_data.truth import UNITS_PER_METRE, read_truth


class Region(NamedTuple):
    """Part of a picture in pixels: rows `top` to `bottom`, columns `left` to `right`, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True, kw_only=True)
class DepthDataset(DenseDataset):
    """A benchmark of pictures and maps of depth.

    Attributes:
        scale: what the numbers of a PNG are divided by, to be metres; 0 stands for unknown.
        max_depth: metres; what is farther is ignored.
        seen: (rows, columns) of the part of a picture that models see, at its bottom and in its middle; None is all,
            as it is for pictures that are smaller.
        scored: (top, left, bottom, right) as shares of the picture: what the figures are of.
        height: pixels that the part that models see gets; None leaves it as it is.
        crop: (rows, columns) of a training view, as shares of the part that models see.
    """

    scale: float
    max_depth: float
    seen: tuple[int, int] | None
    scored: tuple[float, float, float, float]
    height: int | None
    crop: tuple[float, float]


def input_region(depths: DepthDataset, shape: tuple[int, int]) -> Region:
    """The part of a picture of (H, W) pixels that models see."""
    H, W = shape
    if depths.seen is None or depths.seen[0] > H or depths.seen[1] > W:
        return Region(0, 0, H, W)
    rows, columns = depths.seen
    left = (W - columns) // 2
    return Region(H - rows, left, H, left + columns)


def eval_region(depths: DepthDataset, shape: tuple[int, int]) -> Region:
    """The part of a picture of (H, W) pixels that is scored."""
    (H, W), (top, left, bottom, right) = shape, depths.scored
    return Region(int(top * H), int(left * W), int(bottom * H), int(right * W))


def read_depth(pair: DenseSample, depths: DepthDataset) -> NDArray[Any]:
    """The map of a pair, (H, W) float32 metres, 0 where nothing is known or it is farther than the benchmark goes.

    Raises:
        TubeletError: if it cannot be read, or is no map of depth.
    """
    if pair.target.suffix == ".npz":
        metres = read_truth(pair.target).depth[pair.frame or 0] / UNITS_PER_METRE
    else:
        values = read_png(pair.target)
        if values.dtype == np.uint8:
            raise TubeletError(f"{pair.target}: a PNG of 8 bits, expected depth in 16 bits")
        metres = values.astype(np.float32) / depths.scale
    known = np.isfinite(metres) & (metres > 0) & (metres < depths.max_depth)
    return np.where(known, metres, 0).astype(np.float32)
