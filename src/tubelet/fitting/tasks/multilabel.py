"""Any number of classes for each labeled clip or image."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.fitting.clip_fit import ClipObjective
from tubelet.fitting.clip_task import ClipCalibration, ClipReport, evaluate_clips, fit_clip_task
from tubelet.fitting.label_task import FitContext, LabelTask
from tubelet.fitting.result import FitResult, HeadEvaluation, ReliabilityBin
from tubelet.heads.calibration import fit_temperature, fit_thresholds, reliability_bins
from tubelet.heads.head_file import Head
from tubelet.labels.records import LabelRow, LabelTable
from tubelet.tasks.metrics.multilabel import multilabel_metrics

NETWORKS = ("linear", "knn", "attentive")
_EVEN = 0.5


def make_objective(table: LabelTable) -> ClipObjective:
    """The objective for the rows, classes and targets of a table."""
    return ClipObjective(
        link="logit",
        targets=presence_targets,
        standardized=False,
        loss=binary_cross_entropy,
        choose=lambda logits, targets: -float(binary_cross_entropy(logits, targets, torch.ones(len(logits)))),
        answers=torch.sigmoid,
        measure=lambda answers, targets, units, thresholds: multilabel_metrics(
            answers, targets > _EVEN, units, thresholds or _EVEN
        ),
    )


def fit(context: FitContext) -> tuple[Head, FitResult]:
    """Fit a head that says of each class whether a clip has it."""
    names = context.table.classes
    report = ClipReport(
        names=names,
        calibrate=_calibrate,
        confusion=None,
        reliability=_reliability,
        describe=lambda answer, target: (_names(target, names), _names(answer, names)),
        severity=lambda answers, targets: (answers - targets).abs().max(-1).values.sub(_EVEN).clamp(min=0).mul(2),
        exclusive=False,
    )
    return fit_clip_task(context, make_objective(context.table), report, NETWORKS)


def evaluate(context: FitContext, head: Head) -> HeadEvaluation:
    """Measure a head on all rows of a table."""
    return evaluate_clips(context, head, make_objective(context.table))


def presence_targets(rows: Sequence[LabelRow], table: LabelTable) -> Tensor:
    """(n, K) float32, 1 for the classes that a row has."""
    return torch.tensor([[float(name in row.labels) for name in table.classes] for row in rows])


def binary_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over rows and classes of the weighted cross-entropy of each class's presence."""
    each = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)
    return (each * weights).mean()


def _calibrate(logits: Tensor, targets: Tensor) -> ClipCalibration:
    temperature = fit_temperature(logits, targets, exclusive=False)
    thresholds = fit_thresholds((logits / temperature).sigmoid().numpy(), targets.numpy() > _EVEN)
    return ClipCalibration(temperature=temperature, thresholds=tuple(float(threshold) for threshold in thresholds))


def _reliability(answers: Tensor, targets: Tensor) -> list[ReliabilityBin]:
    """The score of each class against how often it is present."""
    bins = reliability_bins(answers.flatten().numpy(), (targets > _EVEN).flatten().numpy())
    return [ReliabilityBin(score=score, accuracy=accuracy, count=count) for score, accuracy, count in bins]


def _names(scores: Tensor, names: Sequence[str]) -> str:
    return ", ".join(name for name, score in zip(names, scores.tolist(), strict=True) if score > _EVEN) or "none"


LABEL_TASK = LabelTask(name="multilabel", fit=fit, networks=NETWORKS, cells=8, evaluate=evaluate)
