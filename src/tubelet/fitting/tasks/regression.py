"""One or several numbers for each labeled clip or image."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.fitting.clip_fit import ClipObjective
from tubelet.fitting.clip_task import ClipCalibration, ClipReport, fit_clip_task
from tubelet.fitting.label_task import FitContext, LabelTask
from tubelet.fitting.result import FitResult
from tubelet.heads.head_file import Head, MetricInterval
from tubelet.labels.records import LabelRow, LabelTable
from tubelet.tasks.metrics.intervals import bootstrap_interval
from tubelet.tasks.metrics.values import r_squared, root_mean_square_error

NETWORKS = ("linear", "knn", "attentive")


def fit(context: FitContext) -> tuple[Head, FitResult]:
    """Fit a head that gives each clip the value of every target."""
    names = context.table.targets
    spread = torch.tensor([row.values for row in context.table.rows]).std(0, correction=0).clamp(min=1e-12)

    def measure(answers: Tensor, targets: Tensor, units: NDArray[np.int64]) -> tuple[MetricInterval, ...]:
        found, truth = answers.numpy(), targets.numpy()
        overall = bootstrap_interval("R²", lambda rows: float(np.mean(r_squared(found[rows], truth[rows]))), units)
        return (overall, *(_error(name, found[:, k], truth[:, k], units) for k, name in enumerate(names)))

    objective = ClipObjective(
        link="identity",
        targets=value_targets,
        standardized=True,
        loss=squared_error,
        choose=lambda values, targets: -float(((values - targets) / spread).square().mean()),
        answers=lambda values: values,
        measure=measure,
    )
    report = ClipReport(
        names=names,
        calibrate=lambda logits, targets: ClipCalibration(),
        confusion=None,
        reliability=lambda answers, targets: (),
        describe=lambda answer, target: (_values(target, names), _values(answer, names)),
        badness=lambda answers, targets: ((answers - targets) / spread).abs().max(-1).values,
        exclusive=False,
    )
    return fit_clip_task(context, objective, report, NETWORKS)


def value_targets(rows: Sequence[LabelRow], table: LabelTable) -> Tensor:
    """(n, K) float32 values of the targets."""
    return torch.tensor([row.values for row in rows])


def squared_error(values: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Mean over rows and targets of the weighted squared error."""
    return ((values - targets).square().mean(-1) * weights).mean()


def _error(name: str, found: NDArray, truth: NDArray, units: NDArray[np.int64]) -> MetricInterval:
    return bootstrap_interval(
        f"RMSE of {name}",
        lambda rows: root_mean_square_error(found[rows], truth[rows]),
        units,
        higher_is_better=False,
    )


def _values(values: Tensor, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in zip(names, values.tolist(), strict=True))


LABEL_TASK = LabelTask(name="regression", fit=fit, networks=NETWORKS, cells=8)
