"""The figures of merit, each as its field defines it."""

import torch
from torch import Tensor


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """How often each class was taken for each.

    Args:
        predicted: (n,) int64 class indices.
        truth: (n,) int64 class indices.
        classes: K, how many there are.

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
    """Mean of `iou_by_class`; a class that never occurs has no say, though predicting it costs those that do."""
    values = iou_by_class(counts)
    return sum(values.values()) / len(values)


def accuracy(counts: Tensor) -> float:
    """Share of right answers.

    Args:
        counts: (K, K) from `confusion`.
    """
    return int(counts.diagonal().sum()) / int(counts.sum())


def rmse(predicted: Tensor, truth: Tensor) -> float:
    """Root of the mean squared error of two (n,) tensors, in their unit."""
    return float((predicted.double() - truth.double()).square().mean().sqrt())


def explained_variance(predicted: Tensor, truth: Tensor) -> float:
    """R²: 1 is perfect, 0 is as good as the truth's own mean, and below is worse than that. Both (n,)."""
    error = (predicted.double() - truth.double()).square().sum()
    spread = (truth.double() - truth.double().mean()).square().sum()
    return float(1 - error / spread)
