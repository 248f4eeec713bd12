"""Metrics of ranked classes: top-k accuracy, mean per-class accuracy, class-mean recall at k.

n samples, K classes. Scores may be of any scale that rises with confidence; where two are equal, the class that was
asked for counts as the lower one, so that a constant answer is never right by chance.
"""

import torch
from torch import Tensor

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
    own = scores.gather(1, truth.unsqueeze(1))
    return (scores >= own).sum(1) - 1


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
    k = 1 the accuracy that is called mean per class.

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
