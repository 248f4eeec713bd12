"""Metrics of segmentation, depth and regression."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Confusion matrix.

    Args:
        predicted: (n,) int64 class indices.
        truth: (n,) int64 class indices.
        classes: number K of classes.

    Returns:
        (K, K) int64 counts, truth by prediction. Counts of parts of a set add up to those of the set.
    """
    return torch.bincount(truth * classes + predicted, minlength=classes**2).view(classes, classes)


def iou_by_class(counts: Tensor) -> dict[int, float]:
    """Intersection over union of each class that occurs in the truth.

    Args:
        counts: (K, K) from `confusion`.
    """
    hits, truth, predicted = (x.tolist() for x in (counts.diagonal(), counts.sum(1), counts.sum(0)))
    return {k: hits[k] / (truth[k] + predicted[k] - hits[k]) for k in range(len(counts)) if truth[k]}


def mean_iou(counts: Tensor) -> float:
    """Mean of `iou_by_class`; a class that never occurs is ignored, though predicting it costs those that do."""
    values = iou_by_class(counts)
    return sum(values.values()) / len(values)


def accuracy(counts: Tensor) -> float:
    """Fraction of correct predictions.

    Args:
        counts: (K, K) from `confusion`.
    """
    return int(counts.diagonal().sum()) / int(counts.sum())


@dataclass(frozen=True)
class DepthErrors:
    """Errors of a depth map over the pixels whose depth is known.

    Attributes:
        rmse: root of the mean squared error, meters.
        abs_rel: mean of |error| / truth.
        delta1, delta2, delta3: shares of pixels whose ratio to the truth, or the truth's to them, is below 1.25 to the
            power of 1, 2, 3.
        log10: mean of |log10 prediction - log10 truth|.
        silog: 100 times the standard deviation of the error of the natural logarithm.
    """

    rmse: float
    abs_rel: float
    delta1: float
    delta2: float
    delta3: float
    log10: float
    silog: float


def depth_errors(predicted: Tensor, truth: Tensor) -> DepthErrors:
    """The errors of Eigen et al. (2014) and of KITTI's depth benchmark.

    Args:
        predicted: (n,) meters, above 0.
        truth: (n,) meters, above 0; n at least 1.
    """
    y, t = predicted.double(), truth.double()
    ratio, log = torch.maximum(y / t, t / y), y.log() - t.log()
    delta1, delta2, delta3 = (float((ratio < 1.25**power).double().mean()) for power in (1, 2, 3))
    return DepthErrors(
        rmse=rmse(y, t),
        abs_rel=float(((y - t).abs() / t).mean()),
        delta1=delta1,
        delta2=delta2,
        delta3=delta3,
        log10=float(log.abs().mean()) / math.log(10),
        silog=100 * float(log.var(correction=0).sqrt()),
    )


def rmse(predicted: Tensor, truth: Tensor) -> float:
    """Root of the mean squared error of two (n,) tensors, in their unit."""
    return float((predicted.double() - truth.double()).square().mean().sqrt())


def explained_variance(predicted: Tensor, truth: Tensor) -> float:
    """R²: 1 is perfect, 0 is as good as the truth's own mean, and below is worse than that. Both (n,)."""
    error = (predicted.double() - truth.double()).square().sum()
    variation = (truth.double() - truth.double().mean()).square().sum()
    return float(1 - error / variation)
