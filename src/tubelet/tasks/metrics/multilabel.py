"""Metrics of samples with several classes at once.

n samples, K classes, B resamples, U units.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tubelet.heads.head_file import MetricInterval
from tubelet.tasks.metrics.intervals import (
    RESAMPLES,
    Floats,
    bootstrap_interval,
    index_units,
    mean_defined,
    ratio,
    sum_by_unit,
)

_MAX_VALUES = 4_000_000  # of all resamples at a time
_MAX_WORK = 2_000_000_000  # samples times classes times resamples, about ten seconds
_MIN_RESAMPLES = 200


def average_precision(scores: ArrayLike, truth: ArrayLike) -> Floats:
    """Average precision of each class: the sum over thresholds of the increase in recall times the precision.

    Args:
        scores: (n, K).
        truth: (n, K), not 0 where the class is present.

    Returns:
        (K,) from 0 to 1; NaN for a class without a positive sample. Equal scores are one threshold.
    """
    s, t = np.asarray(scores, float), np.asarray(truth) > 0
    weights = np.ones((1, len(s)))
    return np.array([weighted_average_precision(s[:, k], t[:, k])(weights)[0] for k in range(s.shape[1])])


def weighted_average_precision(scores: Floats, truth: NDArray[np.bool_]) -> Callable[[Floats], Floats]:
    """The average precision (B,) of one class as a function of the weights (B, n) of the samples.

    Args:
        scores: (n,).
        truth: (n,).
    """
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], truth[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)  # of samples with equal scores

    def apply(weights: Floats) -> Floats:
        sorted_weights = weights[:, order]
        found, answered = np.cumsum(sorted_weights * positive, 1)[:, last], np.cumsum(sorted_weights, 1)[:, last]
        precision = np.divide(found, answered, out=np.zeros_like(found), where=answered > 0)
        return ratio((np.diff(found, axis=1, prepend=0.0) * precision).sum(1), found[:, -1])

    return apply


def f1_by_class(scores: ArrayLike, truth: ArrayLike, thresholds: ArrayLike = 0.5) -> Floats:
    """F1 of each class, whose samples are those with a score of at least its threshold.

    Args:
        scores: (n, K).
        truth: (n, K), not 0 where the class is present.
        thresholds: (K,), or one for all classes.

    Returns:
        (K,) from 0 to 1; NaN for a class that is neither present nor predicted.
    """
    counts = _counts(scores, truth, thresholds).sum(0)
    return ratio(2 * counts[0], counts[1] + counts[2])


def multilabel_metrics(
    scores: ArrayLike, truth: ArrayLike, units: ArrayLike, thresholds: ArrayLike = 0.5, seed: int = 0
) -> tuple[MetricInterval, ...]:
    """Mean average precision and F1 with intervals, means over the classes that occur.

    Args:
        scores: (n, K).
        truth: (n, K), not 0 where the class is present.
        units: (n,) file or group of each sample.
        thresholds: (K,), or one for all classes, fitted on other samples.
        seed: seed of the resamples.
    """
    s, t = np.asarray(scores, float), np.asarray(truth) > 0
    index, count = index_units(units)
    curves = [weighted_average_precision(s[:, k], t[:, k]) for k in np.flatnonzero(t.any(0))]
    block = max(1, _MAX_VALUES // len(s))

    def mean_precision(weights: Floats) -> Floats:
        blocks = [weights[start : start + block, index] for start in range(0, len(weights), block)]
        return 100 * mean_defined(np.concatenate([np.stack([curve(w) for curve in curves], 1) for w in blocks]))

    counts = sum_by_unit(_counts(s, t, thresholds), index, count)[:, :, t.any(0)]

    def f1(weights: Floats) -> Floats:
        hits, predicted, present = (weights @ counts[:, i] for i in range(3))
        return 100 * mean_defined(ratio(2 * hits, predicted + present))

    def micro_f1(weights: Floats) -> Floats:
        hits, predicted, present = (weights @ counts[:, i].sum(1) for i in range(3))
        return 100 * ratio(2 * hits, predicted + present)

    resamples = int(np.clip(_MAX_WORK // max(1, len(s) * len(curves)), _MIN_RESAMPLES, RESAMPLES))
    return tuple(
        bootstrap_interval(name, statistic, count, bounds=(0, 100), unit="%", seed=seed, resamples=resamples)
        for name, statistic in (("mAP", mean_precision), ("macro F1", f1), ("micro F1", micro_f1))
    )


def _counts(scores: ArrayLike, truth: ArrayLike, thresholds: ArrayLike) -> NDArray[np.int64]:
    """(n, 3, K): whether a class is present and predicted, predicted, present."""
    t = np.asarray(truth) > 0
    answers = np.asarray(scores, float) >= np.asarray(thresholds)
    return np.stack([answers & t, answers, t], 1).astype(np.int64)
