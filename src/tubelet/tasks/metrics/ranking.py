"""Metrics of ranked classes: top-k accuracy, balanced accuracy, class-mean recall at k, macro F1.

n samples, K classes. Scores may be of any scale that rises with confidence; where two are equal, the class that was
asked for counts as the lower one, so that a constant answer is never right by chance.
"""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tubelet.heads.head_file import MetricInterval
from tubelet.tasks.metrics.intervals import Floats, bootstrap_interval, index_units, mean_defined, ratio, sum_by_unit

UNKNOWN = 2**31
"""Rank of a class without a score: it is never among the first k."""


def ranks(scores: Tensor, truth: Tensor) -> Tensor:
    """How many other classes score at least as high as the true one.

    Args:
        scores: (n, K).
        truth: (n,) int64 class indices.

    Returns:
        (n,) int64, 0 where the true class has the highest score.
    """
    true_scores = scores.gather(1, truth.unsqueeze(1))
    return (scores >= true_scores).sum(1) - 1


def top_k(ranks: Tensor, k: int) -> float:
    """Share of samples whose true class is among the k highest, in percent.

    Args:
        ranks: (n,) from `ranks`.
        k: number of answers that are allowed.
    """
    return 100 * float((ranks < k).double().mean())


def class_mean_recall(ranks: Tensor, truth: Tensor, k: int) -> float:
    """Top-k recall of each class that occurs in the truth, and their mean, in percent.

    With k = 5 the metric of EPIC-KITCHENS-100's action anticipation (its public evaluator's `mean_topk_recall`); with
    k = 1 the accuracy that is called mean per class, or balanced.

    Args:
        ranks: (n,) from `ranks`.
        truth: (n,) int64 class indices.
        k: number of answers that are allowed.
    """
    return 100 * sum(recall_by_class(ranks, truth, k).values()) / len(truth.unique())


def recall_by_class(ranks: Tensor, truth: Tensor, k: int) -> dict[int, float]:
    """Share of each class's samples whose true class is among the k highest; classes without a sample have none."""
    hits = torch.bincount(truth[ranks < k], minlength=int(truth.max()) + 1)
    counts = torch.bincount(truth)
    return {c: int(hits[c]) / int(counts[c]) for c in counts.nonzero().flatten().tolist()}


def best_answers(scores: Tensor, k: int) -> Tensor:
    """(n, min(k, K)) int64 classes, the highest first."""
    return scores.topk(min(k, scores.shape[1]), dim=1).indices


def classification_metrics(
    scores: ArrayLike, truth: ArrayLike, units: ArrayLike, seed: int = 0
) -> tuple[MetricInterval, ...]:
    """Accuracy of the class with the highest score, balanced accuracy and macro F1, with intervals.

    The means over classes are over those that occur in the truth.

    Args:
        scores: (n, K).
        truth: (n,) class indices, or (n, K) one-hot.
        units: (n,) file or group of each sample.
        seed: seed of the resamples.
    """
    s, t = np.asarray(scores, float), np.asarray(truth)
    t = t.argmax(1) if t.ndim == 2 else t
    present, answers = (rows[:, None] == np.arange(s.shape[1]) for rows in (t, s.argmax(1)))
    index, count = index_units(units)
    counts = sum_by_unit(np.stack([present & answers, answers, present], 1), index, count)[:, :, present.any(0)]

    def sums(weights: Floats) -> list[Floats]:
        return [weights @ counts[:, i] for i in range(3)]

    def top_1(weights: Floats) -> Floats:
        hits, _, samples = sums(weights)
        return 100 * ratio(hits.sum(1), samples.sum(1))

    def balanced(weights: Floats) -> Floats:
        hits, _, samples = sums(weights)
        return 100 * mean_defined(ratio(hits, samples))

    def macro_f1(weights: Floats) -> Floats:
        hits, predicted, samples = sums(weights)
        return 100 * mean_defined(ratio(2 * hits, np.where(samples > 0, predicted + samples, 0)))

    return tuple(
        bootstrap_interval(name, statistic, count, bounds=(0, 100), unit="%", seed=seed)
        for name, statistic in (("top-1", top_1), ("balanced accuracy", balanced), ("macro F1", macro_f1))
    )
