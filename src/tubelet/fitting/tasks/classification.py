"""One class for each labeled clip or image."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tubelet.fitting.clip_fit import ClipObjective
from tubelet.fitting.clip_task import ClipCalibration, ClipReport, evaluate_clips, fit_clip_task
from tubelet.fitting.label_task import FitContext, LabelTask
from tubelet.fitting.result import FitResult, HeadEvaluation, ReliabilityBin
from tubelet.heads.calibration import fit_temperature, reliability_bins
from tubelet.heads.head_file import Head
from tubelet.labels.records import LabelRow, LabelTable
from tubelet.tasks.metrics.ranking import classification_metrics

NETWORKS = ("linear", "knn", "attentive")


def make_objective(table: LabelTable) -> ClipObjective:
    """The objective for the rows, classes and targets of a table."""
    return ClipObjective(
        link="log",
        targets=class_targets,
        standardized=False,
        loss=cross_entropy,
        choose=lambda logits, targets: -float(cross_entropy(logits, targets, torch.ones(len(logits)))),
        answers=lambda logits: logits.softmax(-1),
        measure=lambda answers, targets, units, _: classification_metrics(answers, targets.argmax(-1), units),
    )


def fit(context: FitContext) -> tuple[Head, FitResult]:
    """Fit a head that gives each clip one class."""
    names = context.table.classes
    report = ClipReport(
        names=names,
        calibrate=lambda logits, targets: ClipCalibration(temperature=fit_temperature(logits, targets, exclusive=True)),
        confusion=confusion_matrix,
        reliability=reliability,
        describe=lambda answer, target: (names[int(target.argmax())], names[int(answer.argmax())]),
        severity=lambda answers, targets: answers.max(-1).values * (answers.argmax(-1) != targets.argmax(-1)),
        exclusive=True,
    )
    return fit_clip_task(context, make_objective(context.table), report, NETWORKS)


def evaluate(context: FitContext, head: Head) -> HeadEvaluation:
    """Measure a head on all rows of a table."""
    return evaluate_clips(context, head, make_objective(context.table))


def class_targets(rows: Sequence[LabelRow], table: LabelTable) -> Tensor:
    """(n, K) float32, one-hot."""
    index = {name: k for k, name in enumerate(table.classes)}
    classes = torch.tensor([index[row.labels[0]] for row in rows])
    return F.one_hot(classes, len(table.classes)).float()


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over rows of the weighted cross-entropy."""
    return -((targets * logits.log_softmax(-1)).sum(-1) * weights).mean()


def confusion_matrix(answers: Tensor, targets: Tensor) -> NDArray[np.int64]:
    """(K, K) rows, truth by answer."""
    K = answers.shape[1]
    matrix = np.zeros((K, K), np.int64)
    np.add.at(matrix, (targets.argmax(-1).numpy(), answers.argmax(-1).numpy()), 1)
    return matrix


def reliability(answers: Tensor, targets: Tensor) -> list[ReliabilityBin]:
    """The score of the best class against how often it is right."""
    scores, predicted = answers.max(-1)
    bins = reliability_bins(scores.numpy(), (predicted == targets.argmax(-1)).numpy())
    return [ReliabilityBin(score=score, accuracy=accuracy, count=count) for score, accuracy, count in bins]


LABEL_TASK = LabelTask(name="classification", fit=fit, networks=NETWORKS, cells=8, evaluate=evaluate)
