"""Metrics, details and examples of a classification result."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelet.tasks.common.classification_plan import ClassificationPlan, TrainingSettings
from tubelet.tasks.common.classification_scores import Scores
from tubelet.tasks.common.clip_transforms import shown_frames
from tubelet.tasks.common.extract import FeatureSet
from tubelet.tasks.common.result import Example, Metric
from tubelet.tasks.metrics.intervals import Floats, bootstrap_interval, mean_defined, ratio
from tubelet.tasks.metrics.ranking import UNKNOWN, class_mean_recall, recall_by_class, top_k

EXAMPLES = 12
MAJORITY = "majority class"
_MATRIX_CLASSES = 20  # beyond which a table of all confusions is no longer read


def metrics(scores: Scores, truth: Tensor) -> dict[str, Metric]:
    """Top-1, top-5 where there are five classes or more, and the mean accuracy of the classes."""
    values = {"top-1": top_k(scores.ranks, 1)}
    if scores.answers.shape[1] >= 5:
        values["top-5"] = top_k(scores.ranks, 5)
    values["mean per class"] = class_mean_recall(scores.ranks, truth, 1)
    return {name: Metric(value=value, unit="%") for name, value in values.items()}


def metrics_with_intervals(scores: Scores, truth: Tensor) -> dict[str, Metric]:
    """`metrics` with 95 % intervals, by resampling the samples, each of which is a file."""
    values, order = metrics(scores, truth), truth.argsort(stable=True).numpy()
    starts = np.flatnonzero(np.diff(truth.numpy()[order], prepend=-1))  # of the classes

    def accuracy(weights: Floats, hits: Floats) -> Floats:
        return 100 * ratio(weights @ hits, weights.sum(1))

    def mean_per_class(weights: Floats, hits: Floats) -> Floats:
        weights = weights[:, order]
        sums = (np.add.reduceat(each, starts, axis=1) for each in (weights * hits[order], weights))
        return 100 * mean_defined(ratio(*sums))

    found = {}
    for name, value in values.items():
        hits = (scores.ranks < (5 if name == "top-5" else 1)).numpy().astype(float)
        statistic = partial(mean_per_class if name == "mean per class" else accuracy, hits=hits)
        interval = bootstrap_interval(name, statistic, len(truth), bounds=(0, 100), unit="%")
        found[name] = replace(value, low=interval.low, high=interval.high)
    return found


def majority_baseline(labels: Tensor, truth: Tensor, classes: int) -> dict[str, dict[str, Metric]]:
    """The metrics of a constant answer, the classes by their frequency in training, by the name of the baseline.

    Args:
        labels: (m,) int64 classes of the training files.
        truth: (n,) int64 classes of the test files.
        classes: K.
    """
    order = torch.bincount(labels, minlength=classes).argsort(descending=True, stable=True)
    position = torch.cat([order.argsort(), torch.tensor([UNKNOWN])])
    rank = position[truth.clamp(max=classes)]
    answers = order[:5].expand(len(truth), -1)
    constant = Scores(rank, rank, answers, torch.zeros(answers.shape))
    return {MAJORITY: metrics_with_intervals(constant, truth)}


def sweep_details(settings: TrainingSettings, values: Sequence[dict[str, Metric]], best: int) -> dict[str, Any]:
    """All heads that were trained, ready for JSON."""
    rows = [
        {"learning rate": hparam.lr, "weight decay": hparam.weight_decay}
        | {name: m.value for name, m in metrics.items()}
        for hparam, metrics in zip(settings.hparams, values, strict=True)
    ]
    return {
        "best": rows[best],
        "sweep": rows,
        "training": {"epochs": settings.epochs, "batch size": settings.batch_size, "seed": settings.seed},
    }


def confusion_details(scores: Scores, truth: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """The accuracy of each class, the most frequent confusions, and the confusion matrix where the classes are few."""
    predicted = scores.answers[:, 0]
    details: dict[str, Any] = {
        "accuracy by class": {classes[c]: v for c, v in recall_by_class(scores.ranks, truth, 1).items()}
    }
    pairs = Counter((t, p) for t, p in zip(truth.tolist(), predicted.tolist(), strict=True) if t != p)
    details["most confused"] = [
        {"truth": classes[t], "prediction": classes[p], "files": count} for (t, p), count in pairs.most_common(20)
    ]
    if len(classes) <= _MATRIX_CLASSES:
        counts = torch.bincount(truth * len(classes) + predicted, minlength=len(classes) ** 2)
        details["confusion, truth by prediction"] = {
            "classes": list(classes),
            "files": counts.view(len(classes), -1).tolist(),
        }
    return details


def worst_examples(scores: Scores, truth: Tensor, features: FeatureSet, plan: ClassificationPlan) -> list[Example]:
    """The most confident errors, as examples."""
    examples = []
    for i in most_confident_errors(scores):
        source = features.sources[i]
        examples.append(
            Example(
                name=source.files[0].name,
                score=0.0,
                images=shown_frames(plan.val_view, source),
                note=f"truth: {plan.classes[int(truth[i])]}; {describe_answers(scores, i, lambda k: plan.classes[k])}",
            )
        )
    return examples


def most_confident_errors(scores: Scores, k: int = 1) -> list[int]:
    """Up to twelve samples whose class is not among the first k answers, by the confidence of the first answer."""
    wrong = (scores.ranks >= k).nonzero().flatten()
    order = scores.shares[wrong, 0].argsort(descending=True, stable=True)
    return wrong[order][:EXAMPLES].tolist()


def describe_answers(scores: Scores, i: int, name: Callable[[int], str], count: int = 3) -> str:
    """Describe the first answers to a sample, with their probabilities."""
    pairs = zip(scores.answers[i].tolist()[:count], scores.shares[i].tolist()[:count], strict=True)
    return "prediction: " + ", ".join(f"{name(k)} {100 * share:.0f} %" for k, share in pairs)
