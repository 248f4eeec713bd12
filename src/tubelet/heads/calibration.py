"""Calibration of scores: a temperature, thresholds, and the calibration error.

All are fitted to samples that the head was not trained on. n samples, K classes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
BINS = 10
_LEAST, _MOST = 0.05, 20.0  # temperatures
_ITERATIONS = 100
_TOLERANCE = 1e-9


class ScoreBin(NamedTuple):
    """Samples of about the same score.

    Attributes:
        score: mean score.
        accuracy: fraction that is right.
        samples: number of samples.
    """

    score: float
    accuracy: float
    samples: int


def fit_temperature(logits: ArrayLike, targets: ArrayLike, exclusive: bool) -> float:
    """The number to divide logits by, so that scores are as likely as possible (Guo et al. 2017, arXiv 1706.04599).

    The negative log-likelihood is convex in the inverse b of the temperature. Its derivative, the mean over samples of
    sum_k (p_k - t_k) z_k with p the softmax or sigmoid of b z, rises with b; the root is found by bisection.

    Args:
        logits: (n, K) z.
        targets: (n, K) t, one-hot or several classes, or probabilities.
        exclusive: softmax over the classes; otherwise a sigmoid for each.

    Returns:
        A temperature from 0.05 to 20; an end of that range where the likelihood rises up to it, as for samples that are
        all right.
    """
    z, t = np.asarray(logits, float), np.asarray(targets, float)

    def slope(inverse: float) -> float:
        scaled = inverse * z
        if exclusive:
            p = np.exp(scaled - scaled.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
        else:
            p = 1 / (1 + np.exp(-scaled.clip(-500, 500)))
        return float(((p - t) * z).sum(1).mean())

    low, high = 1 / _MOST, 1 / _LEAST
    if slope(low) >= 0:
        return 1 / low
    if slope(high) <= 0:
        return 1 / high
    for _ in range(_ITERATIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
        if high - low < _TOLERANCE:
            break
    return 2 / (low + high)


def fit_thresholds(scores: ArrayLike, truth: ArrayLike) -> Floats:
    """The score of each class from which calling it present has the highest F1.

    Args:
        scores: (n, K) from 0 to 1.
        truth: (n, K) bool, whether the class is present.

    Returns:
        (K,) thresholds, half way between two neighboring scores; of equally good ones the one nearest to 0.5. 0.5 for a
        class that is present in none or in all of the samples.
    """
    s, t = np.asarray(scores, float), np.asarray(truth) > 0
    return np.array([_best_threshold(s[:, k], t[:, k]) for k in range(s.shape[1])])


def _best_threshold(scores: Floats, truth: NDArray[np.bool_]) -> float:
    if truth.all() or not truth.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of samples with equal scores
    hits = np.cumsum(truth[order])[last]
    f1 = 2 * hits / (last + 1 + truth.sum())
    values = (ranked[last] + np.append(ranked[last[1:]], min(0.0, ranked[-1]))) / 2
    best = np.flatnonzero(f1 >= f1.max() - _TOLERANCE)
    return float(values[best[np.abs(values[best] - 0.5).argmin()]])


def reliability_bins(scores: ArrayLike, right: ArrayLike, bins: int = BINS) -> list[ScoreBin]:
    """Scores against frequencies, in bins of equal width.

    Args:
        scores: (n,) from 0 to 1.
        right: (n,) whether the sample is what the score says.
        bins: number of bins.

    Returns:
        The bins that have samples, by ascending score.
    """
    s, r = np.asarray(scores, float), np.asarray(right, float)
    bin_index = np.minimum((s * bins).astype(int), bins - 1)
    counts = np.bincount(bin_index, minlength=bins)
    sums, hits = (np.bincount(bin_index, weights=values, minlength=bins) for values in (s, r))
    return [
        ScoreBin(float(sums[i] / counts[i]), float(hits[i] / counts[i]), int(counts[i])) for i in np.flatnonzero(counts)
    ]


def expected_calibration_error(bins: list[ScoreBin]) -> float:
    """Mean distance of scores from frequencies, by bin (Guo et al. 2017, equation 3); 0 is perfect."""
    total = sum(score_bin.samples for score_bin in bins)
    return sum(score_bin.samples * abs(score_bin.accuracy - score_bin.score) for score_bin in bins) / total
