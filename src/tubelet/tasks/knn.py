"""Classification by the nearest training files, without training."""

import torch

from tubelet.datasets import ClassificationDataset
from tubelet.heads.knn import NEIGHBORS, TEMPERATURE, neighbor_votes
from tubelet.tasks.common.classification_report import (
    confusion_details,
    majority_baseline,
    metrics,
    metrics_with_intervals,
    worst_examples,
)
from tubelet.tasks.common.classification_scores import Scores, join_scores, scores_of
from tubelet.tasks.common.pooled_features import PooledDataset
from tubelet.tasks.common.result import Result
from tubelet.tasks.common.task import EvaluationContext, Task


def evaluate(context: EvaluationContext) -> Result:
    """Classify test files by their nearest training files.

    Raises:
        TubeletError: if the folder holds no classification data set, or something in it is wrong.
    """
    data = PooledDataset(context)
    neighbors = [k for k in NEIGHBORS if k <= len(data.table)] or [len(data.table)]
    scores = neighbor_scores(data, neighbors, context.model.device)
    values = {k: metrics(values_of_k, data.truth) for k, values_of_k in scores.items()}
    best = max(neighbors, key=lambda k: values[k]["top-1"].value)
    return context.result(
        benchmark=data.plan.name,
        protocol=(
            f"Weighted nearest neighbors as in DINO (arXiv 2104.14294): cosine of the mean token of the last level, "
            f"weights exp(cosine / {TEMPERATURE}), the better of k = {' and '.join(map(str, neighbors))} "
            f"(here {best}); {data.plan.describe_views()}."
        ),
        metrics=metrics_with_intervals(scores[best], data.truth),
        baselines=majority_baseline(data.labels[:, 0], data.truth, len(data.plan.classes)),
        counts=data.counts,
        skipped=data.skipped,
        details={
            "by k": {str(k): {name: m.value for name, m in values_of_k.items()} for k, values_of_k in values.items()}
        }
        | confusion_details(scores[best], data.truth, data.plan.classes),
        examples=worst_examples(scores[best], data.truth, data.val, data.plan),
    )


def neighbor_scores(data: PooledDataset, neighbors: list[int], device: torch.device) -> dict[int, Scores]:
    """Number of neighbors -> scores of the test files; their shares are shares of the vote."""
    parts: dict[int, list[Scores]] = {k: [] for k in neighbors}
    start = 0
    labels, classes = data.labels[:, 0], len(data.plan.classes)
    for votes in neighbor_votes(data.table, labels, data.queries, classes, neighbors, device):
        truth = data.truth[start : start + len(votes[neighbors[0]])]
        start += len(truth)
        for k, shares in votes.items():
            parts[k].append(scores_of(shares, truth))
    return {k: join_scores(chunks) for k, chunks in parts.items()}


TASK = Task(name="knn", evaluate=evaluate, dataset=ClassificationDataset, metric="top-1")
