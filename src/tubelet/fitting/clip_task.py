"""The common part of classification, multi-label classification and regression: labeled clips to a head and its report.

h held-out rows, K classes or targets.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.fitting.clip_finetune import finetune_clips
from tubelet.fitting.clip_fit import (
    CURVE_FRACTIONS,
    ClipFit,
    ClipObjective,
    fit_clips,
    held_out_logits,
    load_clip_data,
    predict_rows,
)
from tubelet.fitting.features import ClipFeatures, span_of
from tubelet.fitting.finetune import finetune_recipe
from tubelet.fitting.label_task import ROUNDS, FitContext
from tubelet.fitting.result import FitResult, HeadEvaluation, HeldOutError, LearningCurvePoint, ReliabilityBin
from tubelet.fitting.training import Candidate, candidates
from tubelet.heads.head_file import Head, HeadSpec, ModelMetrics
from tubelet.heads.novelty import fit_novelty
from tubelet.pretrained.load import random_init_like
from tubelet.tasks.common.result import RANDOM_WEIGHTS

OWN = "this head"
FROZEN = "frozen head"
WORST = 24
"""Held-out errors that a report shows."""


@dataclass(frozen=True, kw_only=True)
class ClipCalibration:
    """Parameters that are fitted to the rows on which candidates were compared.

    Attributes:
        temperature: divisor of the logits.
        thresholds: score from which each class counts as present; empty where classes exclude each other.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ClipReport:
    """What the report of a task on clips shows besides its metrics.

    Attributes:
        names: K names of classes or targets.
        calibrate: logits (c, K) and targets (c, K) of the rows that the head was chosen on, to a calibration.
        confusion: answers (h, K) and targets (h, K) to the matrix; None for tasks without one.
        reliability: answers and targets to bins.
        describe: answers and targets, (K,) each, to the truth and the answer as text.
        severity: answers (h, K) and targets (h, K) to (h,), 0 for a right answer and higher for a worse one.
        exclusive: whether one class excludes the others.
    """

    names: tuple[str, ...]
    calibrate: Callable[[Tensor, Tensor], ClipCalibration]
    confusion: Callable[[Tensor, Tensor], NDArray[np.int64]] | None
    reliability: Callable[[Tensor, Tensor], Sequence[ReliabilityBin]]
    describe: Callable[[Tensor, Tensor], tuple[str, str]]
    severity: Callable[[Tensor, Tensor], Tensor]
    exclusive: bool


def fit_clip_task(
    context: FitContext, objective: ClipObjective, report: ClipReport, networks: Sequence[str]
) -> tuple[Head, FitResult]:
    """Fit a head, evaluate it and its baselines on the same held-out rows, and collect the content of the report."""
    frozen = fit_clips(context, objective, networks)
    recipe = finetune_recipe(context.config)
    fit, encoder_weights = finetune_clips(context, objective, frozen, recipe) if recipe else (frozen, {})
    calibration = report.calibrate(fit.chosen_logits, fit.chosen_targets)
    targets = fit.targets[torch.from_numpy(fit.held_out)]
    units = fit.units[fit.held_out]

    def measure(logits: Tensor, calibrated: ClipCalibration) -> ModelMetrics:
        answers = objective.answers(logits / calibrated.temperature)
        return ModelMetrics(model=OWN, metrics=objective.measure(answers, targets, units, calibrated.thresholds))

    answers = objective.answers(fit.logits / calibration.temperature)
    metrics = measure(fit.logits, calibration)
    frozen_calibration = report.calibrate(frozen.chosen_logits, frozen.chosen_targets)
    frozen_metrics = measure(frozen.logits, frozen_calibration)
    baselines = [
        replace(measure(logits, ClipCalibration()), model=name)
        for name, logits in _baseline_logits(context, objective, frozen, report)
    ]
    if recipe:
        baselines.insert(0, replace(frozen_metrics, model=FROZEN))
    spec = _spec(context, fit, report, calibration, (metrics, *baselines))
    head = _head(spec, fit, encoder_weights)
    result = FitResult(
        spec=head.spec,
        protocol=" ".join([_protocol(context, fit), *([recipe.describe()] if recipe else [])]),
        counts=_counts(context, fit),
        confusion=report.confusion(answers, targets) if report.confusion else None,
        reliability=report.reliability(answers, targets),
        curve=_curve(context, objective, frozen, lambda logits: measure(logits, frozen_calibration), frozen_metrics),
        errors=_errors(context, fit, report, answers, targets),
        sweep=fit.sweep,
        examples=_examples(context, fit, report),
        skipped=fit.features.bad_files,
    )
    return head, result


def _baseline_logits(
    context: FitContext, objective: ClipObjective, fit: ClipFit, report: ClipReport
) -> list[tuple[str, Tensor]]:
    """Name and held-out logits (h, K) of each baseline, trained on the same rows as the head."""
    features = fit.features
    name, logits = _constant(objective, fit.targets[np.concatenate([train for train, _ in fit.splits])])
    baselines = [(name, logits.expand(len(fit.held_out), -1))]
    linear = candidates(context.task, ("linear",), context.config, len(fit.targets))[0]
    neighbors = Candidate(network="knn", options={}, hparams=None)
    for name, candidate, values in (
        ("k-NN on pixels", neighbors, features.pixels),
        ("motion energy", linear, features.motion),
    ):
        if name == "motion energy" and context.head_input.frames == 1:
            continue  # an image has no motion
        flat = values.flatten(1)[:, None, None]  # (M, 1, 1, T·P)
        baseline = context.in_round(f"{ROUNDS[2]} {name}")
        baselines.append((name, held_out_logits(baseline, objective, candidate, _with_tokens(features, flat))[0]))
    random_model = random_init_like(context.model, context.config.seed)
    random = context.in_round(f"{ROUNDS[2]} {RANDOM_WEIGHTS}").with_model(random_model)
    baselines.append((RANDOM_WEIGHTS, held_out_logits(random, objective, fit.candidate)[0]))
    return baselines


def _constant(objective: ClipObjective, targets: Tensor) -> tuple[str, Tensor]:
    """Name of the baseline that ignores its input, and its logits (K,): the mean of the targets (n, K)."""
    mean = targets.mean(0)
    logits = {"log": mean.clamp(min=1e-6).log(), "logit": mean.logit(1e-6), "identity": mean}[objective.link]
    return "majority class" if objective.link != "identity" else "mean value", logits


def evaluate_clips(context: FitContext, head: Head, objective: ClipObjective) -> HeadEvaluation:
    """Measure a head on all rows of a table, whose classes or targets are those of the head.

    Raises:
        TubeletError: if rows cannot be read.
    """
    data, _ = load_clip_data(context, objective)
    rows = np.arange(len(data.targets))
    logits = predict_rows(head.network, data.features, rows) * head.target_scale.cpu() + head.target_mean.cpu()

    def measure(model: str, logits: Tensor, thresholds: Sequence[float] = ()) -> ModelMetrics:
        answers = objective.answers(logits)
        return ModelMetrics(model=model, metrics=objective.measure(answers, data.targets, data.units, thresholds))

    name, constant = _constant(objective, data.targets)
    return HeadEvaluation(
        scores=(
            measure(OWN, logits / head.spec.temperature, head.spec.thresholds),
            measure(name, constant.expand(len(rows), -1)),
        ),
        counts={"rows": len(rows), "files": len({row.path for row in data.features.rows})},
        skipped=data.features.bad_files,
    )


def _with_tokens(features: ClipFeatures, tokens: Tensor) -> ClipFeatures:
    return replace(features, tokens=tokens)


def _spec(
    context: FitContext,
    fit: ClipFit,
    report: ClipReport,
    calibration: ClipCalibration,
    scores: tuple[ModelMetrics, ...],
) -> HeadSpec:
    return HeadSpec(
        task=context.task,
        network=fit.candidate.network,
        options=fit.options,
        width=fit.features.tokens.shape[-1],
        classes=report.names,
        input=context.head_input,
        encoder=context.encoder,
        exclusive=report.exclusive,
        thresholds=calibration.thresholds,
        temperature=calibration.temperature,
        labels_file=context.table.path.name,
        labels_digest=context.table.digest,
        labels_rows=len(context.table.rows),
        scores=scores,
        finetuned=None if context.config.finetune == "none" else context.config.finetune,
        version=version("tubelet"),
    )


def _head(spec: HeadSpec, fit: ClipFit, encoder_weights: Mapping[str, Tensor]) -> Head:
    """The head, with a novelty model fitted to its training clips."""
    novelty, quantiles = fit_novelty(fit.features.pooled, fit.splits)
    spec = replace(spec, novelty_quantiles=quantiles)
    head = Head(spec, fit.network.cpu(), novelty, encoder_weights)
    head.target_mean.copy_(fit.scale[0])
    head.target_scale.copy_(fit.scale[1])
    return head.requires_grad_(False).eval()


def _curve(
    context: FitContext,
    objective: ClipObjective,
    fit: ClipFit,
    measure: Callable[[Tensor], ModelMetrics],
    full: ModelMetrics,
) -> list[LearningCurvePoint]:
    """The first metric of the chosen candidate with fewer labels, on features of the frozen encoder."""
    points = []
    for fraction in CURVE_FRACTIONS:
        curve = context.in_round(f"{ROUNDS[3]} {fraction:.0%}")
        logits, rows = held_out_logits(curve, objective, fit.candidate, fit.features, fraction)
        points.append(LearningCurvePoint(labels=rows, metric=measure(logits).metrics[0]))
    trained = round(np.mean([len(train) for train, _ in context.splits]))
    return [*points, LearningCurvePoint(labels=trained, metric=full.metrics[0])]


def _errors(
    context: FitContext, fit: ClipFit, report: ClipReport, answers: Tensor, targets: Tensor
) -> list[HeldOutError]:
    severity = report.severity(answers, targets)
    examples = []
    for i in severity.argsort(descending=True)[:WORST].tolist():
        if severity[i] <= 0:
            break
        row = fit.features.rows[int(fit.held_out[i])]
        start_s, end_s = span_of(row, context.table)
        truth, answer = report.describe(answers[i], targets[i])
        examples.append(
            HeldOutError(
                path=row.path, start_s=start_s, end_s=end_s, truth=truth, answer=answer, score=float(severity[i])
            )
        )
    return examples


def _examples(context: FitContext, fit: ClipFit, report: ClipReport) -> dict[str, int]:
    """Class -> number of labeled rows."""
    counts = Counter(label for row in fit.features.rows for label in row.labels)
    return {name: counts[name] for name in report.names} if counts else {}


def _counts(context: FitContext, fit: ClipFit) -> dict[str, int]:
    return {
        "labeled rows": len(fit.targets),
        "files": len({row.path for row in fit.features.rows}),
        "clips": len(fit.features.tokens),
        "held-out rows": len(fit.held_out),
        "folds": len(context.splits),
        "candidates": len(fit.sweep),
    }


def _protocol(context: FitContext, fit: ClipFit) -> str:
    head_input, folds = context.head_input, len(context.splits)
    measured = (
        f"Measured by cross-validation in {folds} folds of whole files and groups; the head in the file is trained on "
        "all rows"
        if folds > 1
        else "Measured on files and groups that neither the training nor any choice has seen"
    )
    frames = f"{head_input.frames} frames at {head_input.fps:g} per second" if head_input.frames > 1 else "images"
    return (
        f"{len(fit.sweep)} heads trained side by side on frozen features of {frames}, {head_input.image_size} px, "
        f"levels {', '.join(map(str, head_input.levels))}; the best of them ({fit.candidate}) by a part of "
        f"the training rows, then trained on all of those. {measured}."
    )
