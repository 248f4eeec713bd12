"""Fitting of heads for whole clips: classification, multi-label classification, regression.

Candidates are trained on a part of the training rows and compared on the rest. The best one is then trained on all
training rows and evaluated on the held-out rows, which no choice depends on.

n rows, M clips, T time steps, S cells, D channels, K classes or targets.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tubelet.errors import DataError
from tubelet.fitting.features import ClipFeatures, extract_rows, mean_by_row
from tubelet.fitting.label_task import ROUNDS, FitContext
from tubelet.fitting.rounds import Round
from tubelet.fitting.training import (
    Candidate,
    Loss,
    candidates,
    clip_batches,
    device_of,
    plan_rounds,
    tensor_digest,
    train_candidates,
)
from tubelet.heads.head_file import MetricInterval, make_network
from tubelet.heads.networks.knn import Link
from tubelet.labels.records import LabelError, LabelRow, LabelTable
from tubelet.labels.splits import row_units, split_rows

CURVE_FRACTIONS = (1 / 8, 1 / 4, 1 / 2)
"""Parts of the training labels that the learning curve is measured at, besides all of them."""
Targets = Callable[[Sequence[LabelRow], LabelTable], Tensor]
Measure = Callable[[Tensor, Tensor, NDArray[np.int64], Sequence[float]], tuple[MetricInterval, ...]]


@dataclass(frozen=True, kw_only=True)
class ClipObjective:
    """The differences between the tasks on whole clips.

    Attributes:
        link: how the votes of neighbors become logits.
        targets: rows to (n, K) float32: one-hot classes, several classes, or values.
        standardized: whether heads learn targets of mean 0 and standard deviation 1.
        loss: of logits, targets and weights.
        choose: of logits (n, K) and targets (n, K), a number that is higher for a better candidate.
        answers: logits (n, K) to probabilities; values as they are.
        measure: of answers (n, K), targets (n, K), units (n,), whose rows belong together, and thresholds (K,) if any:
            the metrics.
    """

    link: Link
    targets: Targets
    standardized: bool
    loss: Loss
    choose: Callable[[Tensor, Tensor], float]
    answers: Callable[[Tensor], Tensor]
    measure: Measure


@dataclass(frozen=True, kw_only=True)
class ClipFit:
    """Heads of clips, trained and measured.

    Attributes:
        network: the network of the head file.
        candidate: its settings.
        options: keyword arguments of the network.
        scale: (2, K) mean and standard deviation of the targets.
        features: features of all readable rows.
        targets: (n, K) of all readable rows.
        units: (n,) rows of one unit belong together.
        splits: for each split, indices of the training rows and of the held-out rows.
        logits: (h, K) logits or values of held-out rows, by heads that did not see them.
        chosen_logits: (c, K) those of the rows that the choice was made on, by heads that did not see them.
        chosen_targets: (c, K) their targets.
        sweep: settings and score of each candidate.
    """

    network: nn.Module
    candidate: Candidate
    options: dict[str, Any]
    scale: Tensor
    features: ClipFeatures
    targets: Tensor
    units: NDArray[np.int64]
    splits: list[tuple[NDArray[np.int64], NDArray[np.int64]]]
    logits: Tensor
    chosen_logits: Tensor
    chosen_targets: Tensor
    sweep: list[dict[str, object]]

    @property
    def held_out(self) -> NDArray[np.int64]:
        """(h,) indices of the held-out rows, split after split."""
        return np.concatenate([held_out for _, held_out in self.splits])


@dataclass(frozen=True, kw_only=True)
class ClipData:
    """Features and targets of all readable rows; see `ClipFit`."""

    features: ClipFeatures
    targets: Tensor
    weights: Tensor
    units: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class WeightedClips:
    """The training clips of some rows, with targets and weights.

    Attributes:
        clips: (m,) indices of the clips of the rows, ascending.
        owner: (m,) the row of each.
        targets: (m, K) targets of the clips, of mean 0 and standard deviation 1 where the objective wants that.
        weights: (m,) weights of the clips, with a mean of 1.
        scale: (2, K) mean and standard deviation of the targets, 0 and 1 for classes.
    """

    clips: Tensor
    owner: Tensor
    targets: Tensor
    weights: Tensor
    scale: Tensor


def load_clip_data(
    context: FitContext, objective: ClipObjective, features: ClipFeatures | None = None
) -> tuple[ClipData, list[tuple[NDArray[np.int64], NDArray[np.int64]]]]:
    """Features and targets of the readable rows, and the splits of those.

    Raises:
        DataError: if a split has no readable rows left.
    """
    table = context.table
    features = features or extract_rows(
        context.extract, table.rows, table, context.head_input, context.model.config.pixels
    )
    row_index = {id(row): i for i, row in enumerate(features.rows)}
    selected = [row_index.get(id(row), -1) for row in table.rows]
    splits = [
        tuple(np.array([selected[row] for row in rows if selected[row] >= 0], np.int64) for rows in split)
        for split in context.splits
    ]
    if any(not len(rows) for split in splits for rows in split):
        raise DataError(f"{table.path}: after unreadable files, no rows are left to train on or to measure on")
    units = row_units(table)[[i for i, row in enumerate(selected) if row >= 0]]
    data = ClipData(
        features=features,
        targets=objective.targets(features.rows, table),
        weights=torch.tensor([row.weight for row in features.rows]),
        units=units,
    )
    return data, [(train, held_out) for train, held_out in splits]


def fit_clips(context: FitContext, objective: ClipObjective, networks: Sequence[str]) -> ClipFit:
    """Train candidates, choose one, and measure it.

    Raises:
        TubeletError: if rows cannot be read, or there are too few of them.
    """
    data, splits = load_clip_data(context, objective)
    trial = partial(train_clips, objective=objective, data=data)
    choice, measurement = context.in_round(ROUNDS[0]), context.in_round(ROUNDS[1])
    grid = candidates(context.task, context.config.networks or networks, context.config, len(splits[0][0]))
    inner = [inner_split(context, data, train) for train, _ in splits]
    _plan(context, plan_rounds(grid) * len(splits) + _later_rounds(context, grid, splits, len(data.targets)))
    scores = np.zeros((len(inner), len(grid)))
    logits_of: list[list[Tensor]] = []
    for i, (fitting, choosing) in enumerate(inner):
        logits_of.append([logits for _, logits, _ in trial(choice.in_fold(i), grid=grid, train=fitting, test=choosing)])
        targets = data.targets[choosing]
        scores[i] = [objective.choose(logits, targets) for logits in logits_of[-1]]
    mean = scores.mean(0)
    if not np.isfinite(mean).any():
        raise DataError("all heads diverged; lower --learning-rates, or leave them out")
    best = int(np.where(np.isfinite(mean), mean, -np.inf).argmax())
    _plan(context, _later_rounds(context, [grid[best]], splits, len(data.targets)))
    outer = [
        trial(measurement.in_fold(i), grid=[grid[best]], train=train, test=held_out)[0]
        for i, (train, held_out) in enumerate(splits)
    ]
    network, scale = outer[0][0], outer[0][2]
    if len(splits) > 1:  # measured by folds: the head itself learns from all rows
        all_rows = np.arange(len(data.targets))
        final = measurement.in_round("all rows")
        network, _, scale = trial(final, grid=[grid[best]], train=all_rows, test=splits[0][1][:1])[0]
    return ClipFit(
        network=network,
        candidate=grid[best],
        options=_options(grid[best], objective, len(splits[0][0]) if len(splits) == 1 else len(data.targets)),
        scale=scale,
        features=data.features,
        targets=data.targets,
        units=data.units,
        splits=splits,
        logits=torch.cat([logits for _, logits, _ in outer]),
        chosen_logits=torch.cat([logits[best] for logits in logits_of]),
        chosen_targets=torch.cat([data.targets[choosing] for _, choosing in inner]),
        sweep=[{**candidate.describe(), "score": value} for candidate, value in zip(grid, mean.tolist(), strict=True)],
    )


def _plan(context: FitContext, rounds: list[Round]) -> None:
    """Plan the trainings on frozen features; those of a fine-tuning are not counted, and nothing is then."""
    if context.config.finetune == "none":
        context.rounds.plan(rounds, encodings=1)  # by the encoder of random weights


def _later_rounds(context: FitContext, chosen: Sequence[Candidate], splits: Sequence[object], rows: int) -> list[Round]:
    """The trainings after the choice: held-out scores, baselines, and the learning curve.

    Args:
        context: the fit.
        chosen: the candidate, or those that it is chosen from.
        splits: one split, or the folds.
        rows: number of readable rows.
    """
    folds = len(splits)
    measured = plan_rounds(chosen, either=True) * (folds + (folds > 1))
    linear = candidates(context.task, ("linear",), context.config, rows)[:1] if context.head_input.frames > 1 else []
    random_and_curve = plan_rounds(chosen, either=True) * ((1 + len(CURVE_FRACTIONS)) * folds)
    return [*measured, *plan_rounds(linear, small=True) * folds, *random_and_curve]


def held_out_logits(
    context: FitContext,
    objective: ClipObjective,
    candidate: Candidate,
    features: ClipFeatures | None = None,
    train_fraction: float = 1.0,
) -> tuple[Tensor, int]:
    """Logits of held-out rows by one candidate, for a baseline or with fewer labels.

    Args:
        context: the fit, possibly with another encoder.
        objective: the task.
        candidate: the candidate.
        features: features of the rows; None extracts those of the encoder.
        train_fraction: fraction of the training rows that are used: whole units, with all classes among them.

    Returns:
        (h, K) logits in the order of `ClipFit.held_out`, and the mean number of training rows.
    """
    data, splits = load_clip_data(context, objective, features)
    used = [_subset(context, data, train, train_fraction) for train, _ in splits]
    logits = [
        train_clips(context.in_fold(i), objective, data, [candidate], rows, held_out)[0][1]
        for i, (rows, (_, held_out)) in enumerate(zip(used, splits, strict=True))
    ]
    return torch.cat(logits), round(sum(map(len, used)) / len(splits))


def _subset(context: FitContext, data: ClipData, train: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    if fraction >= 1:
        return train
    table = replace(context.table, rows=[replace(data.features.rows[i], split="") for i in train])
    _, used = split_rows(table, fraction, context.config.seed)
    return train[used]


def inner_split(
    context: FitContext, data: ClipData, train: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Training rows that candidates learn from, and training rows that choose among them.

    Raises:
        LabelError: if the training rows are of a single unit.
    """
    table = replace(context.table, rows=[replace(data.features.rows[i], split="") for i in train])
    try:
        fitting, choosing = split_rows(table, context.config.held_out_fraction, context.config.seed)
    except LabelError as error:
        raise LabelError(
            context.table.path,
            [
                "the training rows are of a single file or group, so that no head can be chosen; label files of at "
                "least three (one to train on, one to choose by, one to measure on)"
            ],
        ) from error
    return train[fitting], train[choosing]


def train_clips(
    context: FitContext,
    objective: ClipObjective,
    data: ClipData,
    grid: Sequence[Candidate],
    train: NDArray[np.int64],
    test: NDArray[np.int64],
) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """Train candidates on some rows.

    Returns:
        For each its network, its logits of test rows or values in the unit of the targets (t, K), and the mean and
        standard deviation of the targets (2, K), 0 and 1 for classes.
    """
    features, K = data.features, data.targets.shape[1]
    learned = weighted_clips(objective, data, train)
    pooled = mean_by_row(features.tokens[learned.clips].float().mean((1, 2)), _renumbered(learned.owner))
    rows = torch.from_numpy(train)

    def make(candidate: Candidate) -> nn.Module:
        width = features.tokens.shape[-1]
        network = make_network(candidate.network, width, K, _options(candidate, objective, len(rows)))
        network.prepare(pooled, (data.targets[rows] - learned.scale[0]) / learned.scale[1])
        return network

    samples = (features.tokens[learned.clips], learned.targets, learned.weights)
    networks = train_candidates(
        context,
        grid,
        make,
        lambda candidate, start: clip_batches(*samples, context.config.seed, candidate, start),
        objective.loss,
        tensor_digest(*samples),
    )
    mean, std = learned.scale
    return [(network, predict_rows(network, features, test) * std + mean, learned.scale) for network in networks]


def weighted_clips(objective: ClipObjective, data: ClipData, train: NDArray[np.int64]) -> WeightedClips:
    """The training clips of some rows; each row has its own weight, whatever its number of clips."""
    features, K = data.features, data.targets.shape[1]
    scale = torch.stack([torch.zeros(K), torch.ones(K)])
    if objective.standardized:
        values = data.targets[torch.from_numpy(train)]
        std = values.std(0, correction=0)
        scale = torch.stack([values.mean(0), torch.where(std > 0, std, 1.0)])
    clips, owner = _clips_of(features, train)
    clip_count = torch.bincount(features.owner, minlength=len(features.rows))
    weights = data.weights[owner] / clip_count[owner]
    return WeightedClips(
        clips=clips,
        owner=owner,
        targets=((data.targets - scale[0]) / scale[1])[owner],
        weights=weights / weights.mean(),
        scale=scale,
    )


def _options(candidate: Candidate, objective: ClipObjective, rows: int) -> dict[str, Any]:
    """Keyword arguments of a network, which for neighbors depend on the number of training rows."""
    return candidate.options | ({"rows": rows, "link": objective.link} if candidate.network == "knn" else {})


def _clips_of(features: ClipFeatures, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """(m,) indices of the clips of some rows, and (m,) the row of each."""
    clips = torch.from_numpy(np.flatnonzero(np.isin(features.owner.numpy(), rows)))
    return clips, features.owner[clips]


def _renumbered(owner: Tensor) -> Tensor:
    """Ascending row numbers as consecutive ones from 0."""
    return owner.unique_consecutive(return_inverse=True)[1]


@torch.no_grad()
def predict_rows(network: nn.Module, features: ClipFeatures, rows: NDArray[np.int64], batch: int = 256) -> Tensor:
    """(r, K) logits of rows, the mean over the clips of each, in the order of `rows`."""
    clips, owner = _clips_of(features, rows)
    device = device_of(network)
    logits = torch.cat([network(features.tokens[part].to(device).float()).cpu() for part in clips.split(batch)])
    by_row = mean_by_row(logits, _renumbered(owner))
    order = np.searchsorted(np.sort(rows), rows)
    return by_row[torch.from_numpy(order)]
