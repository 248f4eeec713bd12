"""J and F of video object segmentation, as the toolkit of the DAVIS 2017 challenge computes them.

Perazzi et al. 2016, "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation"; Pont-Tuset et al.
2017, arXiv 1704.00675. T frames of H x W pixels, K objects.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.bool_]
BOUNDARY_SHARE = 0.008  # of the frame's diagonal: how far apart two boundaries may be and still match
RECALL_AT = 0.5
_QUARTERS = 4


@dataclass(frozen=True)
class Statistics:
    """A measure over the frames of one object.

    Attributes:
        mean: of all frames.
        recall: share of the frames above one half.
        decay: mean of the first quarter of the frames less that of the last.
    """

    mean: float
    recall: float
    decay: float


def region_similarity(predicted: Masks, truth: Masks) -> NDArray[np.float64]:
    """J of each frame: intersection over union of masks (T, H, W); 1 where both are empty."""
    common = (predicted & truth).sum((1, 2))
    union = (predicted | truth).sum((1, 2))
    return np.where(union > 0, common / np.maximum(union, 1), 1.0)


def boundary_accuracy(predicted: Masks, truth: Masks) -> NDArray[np.float64]:
    """F of each frame: the harmonic mean of the precision and recall of boundary pixels.

    A pixel of one boundary is matched if a pixel of the other lies within a disk around it, whose radius is
    ceil(0.008 · diagonal). Two masks without boundary agree (1); one without and one with do not (0).

    Args:
        predicted: (T, H, W).
        truth: (T, H, W).
    """
    radius = int(np.ceil(BOUNDARY_SHARE * np.hypot(*truth.shape[1:])))
    predicted_edges, true_edges = boundaries(predicted), boundaries(truth)
    predicted_count, true_count = predicted_edges.sum((1, 2)), true_edges.sum((1, 2))
    precision = (predicted_edges & dilate(true_edges, radius)).sum((1, 2)) / np.maximum(predicted_count, 1)
    recall = (true_edges & dilate(predicted_edges, radius)).sum((1, 2)) / np.maximum(true_count, 1)
    both = precision + recall
    scores = np.where(both > 0, 2 * precision * recall / np.where(both > 0, both, 1), 0.0)
    return np.where((predicted_count == 0) & (true_count == 0), 1.0, scores)


def boundaries(masks: Masks) -> Masks:
    """The pixels (T, H, W) that differ from the one to the right, below, or both; one pixel wide.

    The last row is compared to the right only, the last column down only, the corner not at all: a mask has no
    boundary at the border of the frame.
    """
    result = np.zeros_like(masks)
    result[:, :, :-1] |= masks[:, :, :-1] != masks[:, :, 1:]
    result[:, :-1] |= masks[:, :-1] != masks[:, 1:]
    result[:, :-1, :-1] |= masks[:, :-1, :-1] != masks[:, 1:, 1:]
    return result


def dilate(masks: Masks, radius: int) -> Masks:
    """What lies within `radius` pixels (a disk) of a pixel that is set: (T, H, W).

    A disk is a stack of rows: the mask is widened along columns, a pixel at a time, and each width is shifted to the
    rows of the disk that have it.
    """
    H, W = masks.shape[1:]
    widths = [int(np.sqrt(radius**2 - dy**2)) for dy in range(radius + 1)]
    result = np.zeros_like(masks)
    wide, reached = masks.copy(), 0
    for dy in range(radius, -1, -1):  # from the narrowest row
        for step in range(reached + 1, widths[dy] + 1):
            wide[:, :, step:] |= masks[:, :, : W - step] if step < W else False
            wide[:, :, : max(0, W - step)] |= masks[:, :, step:]
        reached = widths[dy]
        if dy < H:
            result[:, dy:] |= wide[:, : H - dy]
            result[:, : H - dy] |= wide[:, dy:]
    return result


def statistics(values: NDArray[np.float64]) -> Statistics:
    """Mean, recall and decay of one object's values by frame (T,), T at least 1.

    The quarters overlap by a frame, as the toolkit's do.
    """
    ends = (np.round(np.linspace(1, len(values), _QUARTERS + 1) + 1e-10) - 1).astype(int)
    first, last = values[ends[0] : ends[1] + 1], values[ends[-2] : ends[-1] + 1]
    return Statistics(
        mean=float(values.mean()),
        recall=float((values > RECALL_AT).mean()),
        decay=float(first.mean() - last.mean()),
    )


def measure_objects(
    predicted: NDArray[np.uint8], truth: NDArray[np.uint8], objects: int
) -> list[tuple[Statistics, Statistics]]:
    """J and F of each object of a sequence.

    Args:
        predicted: (T, H, W) numbers of objects, of the frames that count: all but the first and the last.
        truth: (T, H, W); what is no object of the first frame, void (255) included, is background.
        objects: K, numbered from 1.

    Returns:
        for each object J and F.
    """
    result = []
    for number in range(1, objects + 1):
        a, b = predicted == number, truth == number
        result.append(
            (
                statistics(region_similarity(a, b)),
                statistics(boundary_accuracy(a, b)),
            )
        )
    return result
