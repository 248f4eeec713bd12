"""One or several numbers for each labeled clip or image."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tubelet.fitting.clip_fit import ClipObjective
from tubelet.fitting.clip_task import ClipCalibration, ClipReport, evaluate_clips, fit_clip_task
from tubelet.fitting.label_task import FitContext, LabelTask
from tubelet.fitting.result import FitResult, HeadEvaluation
from tubelet.heads.head_file import Head
from tubelet.labels.records import LabelRow, LabelTable
from tubelet.tasks.metrics.values import value_metrics

NETWORKS = ("linear", "knn", "attentive")


def make_objective(table: LabelTable) -> ClipObjective:
    """The objective for the rows, classes and targets of a table."""
    names = table.targets
    spread = torch.tensor([row.values for row in table.rows]).std(0, correction=0).clamp(min=1e-12)
    return ClipObjective(
        link="identity",
        targets=value_targets,
        standardized=True,
        loss=squared_error,
        choose=lambda values, targets: -float(((values - targets) / spread).square().mean()),
        answers=lambda values: values,
        measure=lambda answers, targets, units, _: value_metrics(answers, targets, units, names),
    )


def fit(context: FitContext) -> tuple[Head, FitResult]:
    """Fit a head that gives each clip the value of every target."""
    names = context.table.targets
    spread = torch.tensor([row.values for row in context.table.rows]).std(0, correction=0).clamp(min=1e-12)
    report = ClipReport(
        names=names,
        calibrate=lambda logits, targets: ClipCalibration(),
        confusion=None,
        reliability=lambda answers, targets: (),
        describe=lambda answer, target: (_values(target, names), _values(answer, names)),
        severity=lambda answers, targets: ((answers - targets) / spread).abs().max(-1).values,
        exclusive=False,
    )
    return fit_clip_task(context, make_objective(context.table), report, NETWORKS)


def evaluate(context: FitContext, head: Head) -> HeadEvaluation:
    """Measure a head on all rows of a table."""
    return evaluate_clips(context, head, make_objective(context.table))


def value_targets(rows: Sequence[LabelRow], table: LabelTable) -> Tensor:
    """(n, K) float32 values of the targets."""
    return torch.tensor([row.values for row in rows])


def squared_error(values: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over rows and targets of the weighted squared error."""
    return ((values - targets).square().mean(-1) * weights).mean()


def _values(values: Tensor, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in zip(names, values.tolist(), strict=True))


LABEL_TASK = LabelTask(name="regression", fit=fit, networks=NETWORKS, cells=8, evaluate=evaluate)
