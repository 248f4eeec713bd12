"""Labels over time in long videos: which class, from when to when."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor, nn

from tubelet.errors import DataError
from tubelet.fitting.clip_task import OWN
from tubelet.fitting.label_task import ROUNDS, FitContext, LabelTask
from tubelet.fitting.result import FitResult, HeadEvaluation, HeldOutError, LearningCurvePoint, ReliabilityBin
from tubelet.fitting.rounds import Round
from tubelet.fitting.timeline_fit import (
    LabeledVideo,
    TimelineData,
    inner_split,
    load_timelines,
    sequence_count,
    timeline_logits,
    train_timelines,
)
from tubelet.fitting.training import Candidate, candidates, plan_rounds
from tubelet.heads.calibration import fit_temperature, reliability_bins
from tubelet.heads.head_file import NO_LABEL, Head, HeadSpec, ModelMetrics, SpanRule
from tubelet.heads.networks.knn import Link, NearestNeighbors
from tubelet.heads.novelty import NoveltyModel, fit_novelty
from tubelet.heads.span_rules import fit_span_rules
from tubelet.heads.spans import Span, decode_spans
from tubelet.pretrained.load import random_init_like
from tubelet.tasks.common.result import RANDOM_WEIGHTS
from tubelet.tasks.metrics.timeline import VideoSpans, span_hits, timeline_metrics

_NEIGHBOR_ROWS = _NOVELTY_ROWS = 20_000
_WORST = 24


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """One kind of head or baseline, trained and measured.

    Attributes:
        scores: for each held-out video its scores (T, K).
        temperature: divisor of the logits, fitted to videos that chose among candidates.
        rules: rules of the spans, fitted to the same videos.
        metrics: the metrics.
        networks: the network of each split.
    """

    scores: list[Tensor]
    temperature: float = 1.0
    rules: tuple[SpanRule, ...]
    metrics: ModelMetrics
    networks: list[nn.Module]


def fit(context: FitContext) -> tuple[Head, FitResult]:
    """Fit a head to labels over time.

    Raises:
        TubeletError: if videos cannot be read, or there are too few of them.
    """
    data = load_timelines(context)
    best, sweep, chosen = _choose(context, data)
    _plan(context, data, [best])
    measurement = context.in_round(ROUNDS[1])
    measured = _measure(measurement, data, best, OWN, chosen=chosen)
    network = measured.networks[0]
    if len(data.splits) > 1:  # measured by folds: the head itself learns from all videos
        (network,) = train_timelines(measurement.in_round("all videos"), data, [best], range(len(data.videos)))
    baselines = _baselines(context, data, best)
    novelty, quantiles = _novelty(data)
    spec = HeadSpec(
        task=context.task,
        network=best.network,
        options=best.options,
        width=data.videos[0].steps.tokens.shape[-1],
        classes=data.classes,
        input=context.head_input,
        encoder=context.encoder,
        exclusive=data.exclusive,
        spans=measured.rules,
        temperature=measured.temperature,
        novelty_quantiles=quantiles,
        labels_file=context.table.path.name,
        labels_digest=context.table.digest,
        labels_rows=len(context.table.rows),
        scores=(measured.metrics, *(baseline.metrics for baseline in baselines)),
        version=version("tubelet"),
    )
    result = FitResult(
        spec=spec,
        protocol=_protocol(context, data, best, len(sweep)),
        counts=_counts(context, data, len(sweep)),
        confusion=_confusion(data, measured) if data.exclusive else None,
        reliability=_reliability(data, measured),
        curve=_curve(context, data, best, measured),
        errors=_errors(data, measured),
        sweep=sweep,
        examples=dict(Counter(data.classes[span.class_index] for video in data.videos for span in video.spans)),
        skipped=data.skipped,
    )
    return Head(spec, network.cpu(), novelty).requires_grad_(False).eval(), result


def evaluate(context: FitContext, head: Head) -> HeadEvaluation:
    """Measure a head on all videos of a table, whose classes are those of the head.

    Raises:
        TubeletError: if videos cannot be read.
    """
    data = load_timelines(context)
    everything = range(len(data.videos))
    majority = _majority(replace(data, splits=[(list(everything), list(everything))])).metrics
    data = replace(data, classes=head.spec.classes, exclusive=head.spec.exclusive)
    logits = [timeline_logits(head.network, video.steps) / head.spec.temperature for video in data.videos]
    predicted = [(i, _decode(data, i, _scores(data, logits[i]), head.spec.spans)) for i in everything]
    return HeadEvaluation(
        scores=(_metrics(data, predicted, OWN), majority),
        counts={"spans": sum(len(video.spans) for video in data.videos), "files": len(data.videos)},
        skipped=data.skipped,
    )


def _plan(context: FitContext, data: TimelineData, chosen: Sequence[Candidate], choice: Sequence[Round] = ()) -> None:
    """Plan the trainings: of the choice, if it is not made yet, of held-out scores, baselines and the learning curve.

    Args:
        context: the fit.
        data: the videos.
        chosen: the candidate, or those that it is chosen from.
        choice: the trainings of the choice.
    """
    folds, one = len(data.splits), plan_rounds(chosen, either=True)
    motion = plan_rounds([_motion_candidate(context, chosen[0])], small=True)
    rounds = [*choice, *one * (folds + (folds > 1)), *motion * (2 * folds)]  # baselines have a calibration each
    context.rounds.plan([*rounds, *one * ((2 + len(_curve_fractions(data))) * folds)], encodings=1)


def _choose(
    context: FitContext, data: TimelineData
) -> tuple[Candidate, list[dict[str, object]], list[tuple[int, Tensor]]]:
    """Choose the candidate with the highest likelihood of training videos that it did not see.

    Returns:
        The candidate; the score of each; and the candidate's logits (T, K) of those videos, with their indices.
    """
    config = context.config
    grid = candidates(context.task, config.networks or LABEL_TASK.networks, config, sequence_count(data.videos))
    _plan(context, data, grid, plan_rounds(grid) * len(data.splits))
    scores = np.zeros((len(data.splits), len(grid)))
    scored: list[list[tuple[int, Tensor]]] = [[] for _ in grid]
    for i, (train, _) in enumerate(data.splits):
        fitting, choosing = inner_split(context, data, train)
        networks = train_timelines(context.in_round(ROUNDS[0]).in_fold(i), data, grid, fitting)
        for j, network in enumerate(networks):
            logits = [timeline_logits(network, data.videos[k].steps) for k in choosing]
            scores[i, j] = np.mean(
                [_likelihood(data, x, data.videos[k]) for x, k in zip(logits, choosing, strict=True)]
            )
            scored[j] += list(zip(choosing, logits, strict=True))
    mean = scores.mean(0)
    if not np.isfinite(mean).any():
        raise DataError("all heads diverged; lower --learning-rates, or leave them out")
    best = int(np.where(np.isfinite(mean), mean, -np.inf).argmax())
    sweep = [{**candidate.describe(), "score": value} for candidate, value in zip(grid, mean.tolist(), strict=True)]
    return grid[best], sweep, scored[best]


def _likelihood(data: TimelineData, logits: Tensor, video: LabeledVideo) -> float:
    if data.exclusive:
        return float((video.targets * logits.log_softmax(-1)).sum(-1).mean())
    return -float(nn.functional.binary_cross_entropy_with_logits(logits, video.targets))


def _scores(data: TimelineData, logits: Tensor) -> Tensor:
    return logits.softmax(-1) if data.exclusive else logits.sigmoid()


def _measure(
    context: FitContext,
    data: TimelineData,
    candidate: Candidate,
    name: str,
    train_fraction: float = 1.0,
    chosen: Sequence[tuple[int, Tensor]] = (),
    calibrated: _Measured | None = None,
) -> _Measured:
    """Train one candidate in each split, fit temperature and rules of spans, and measure it on the held-out videos.

    Args:
        context: the fit.
        data: the videos.
        candidate: the candidate.
        name: name of the head or baseline in the metrics.
        train_fraction: fraction of the training videos that are used.
        chosen: indices and logits of videos that temperature and rules are fitted to, where they are known already.
        calibrated: the head whose temperature and rules are used; None fits them.
    """
    unseen, held_out, networks = list(chosen), [], []
    for number, (train, test) in enumerate(data.splits):
        fold = context.in_fold(number)
        used = _subset(data, train, train_fraction)
        if not chosen and calibrated is None:
            fitting, choosing = inner_split(context, data, used)
            (network,) = _train(fold.in_round("calibration"), data, candidate, fitting)
            unseen += [(i, timeline_logits(network, data.videos[i].steps)) for i in choosing]
        (network,) = _train(fold, data, candidate, used)
        held_out += [(i, timeline_logits(network, data.videos[i].steps)) for i in test]
        networks.append(network)
    temperature, rules = _calibrate(data, unseen) if calibrated is None else (calibrated.temperature, calibrated.rules)
    scores = [_scores(data, logits / temperature) for _, logits in held_out]
    predicted = [
        (i, _decode(data, i, video_scores, rules)) for (i, _), video_scores in zip(held_out, scores, strict=True)
    ]
    return _Measured(
        scores=scores, temperature=temperature, rules=rules, metrics=_metrics(data, predicted, name), networks=networks
    )


def _train(context: FitContext, data: TimelineData, candidate: Candidate, videos: Sequence[int]) -> list[nn.Module]:
    if candidate.hparams is not None:
        return train_timelines(context, data, [candidate], videos)
    return [_StepNeighbors([data.videos[i] for i in videos], "log" if data.exclusive else "logit")]


class _StepNeighbors(nn.Module):
    """Nearest neighbors of each time step among those of the training videos."""

    def __init__(self, videos: Sequence[LabeledVideo], link: Link) -> None:
        super().__init__()
        tokens = torch.cat([video.steps.tokens for video in videos])  # (T, S, D)
        targets = torch.cat([video.targets for video in videos])
        stride = -(-len(tokens) // _NEIGHBOR_ROWS)
        tokens, targets = tokens[::stride], targets[::stride]
        self.neighbors = NearestNeighbors(tokens.shape[-1], targets.shape[1], rows=len(tokens), link=link)
        self.neighbors.prepare(tokens.float().mean(1), targets)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T, S, D) -> (B, T, K)."""
        return self.neighbors(tokens.flatten(0, 1).unsqueeze(1)).unflatten(0, tokens.shape[:2])


def _calibrate(data: TimelineData, unseen: Sequence[tuple[int, Tensor]]) -> tuple[float, tuple[SpanRule, ...]]:
    """Temperature and rules from indices and logits (T, K) of videos that the networks were not trained on."""
    videos = [data.videos[i] for i, _ in unseen]
    logits, targets = torch.cat([x for _, x in unseen]), torch.cat([video.targets for video in videos])
    temperature = fit_temperature(logits.numpy(), targets.numpy(), data.exclusive)
    rules = fit_span_rules(
        [_scores(data, x / temperature).numpy() for _, x in unseen],
        [video.spans for video in videos],
        data.step_s,
        data.exclusive,
        [video.steps.duration_s for video in videos],
    )
    return temperature, tuple(rules)


def _decode(data: TimelineData, video: int, scores: Tensor, rules: Sequence[SpanRule]) -> list[Span]:
    spans = decode_spans(scores.numpy(), data.step_s, rules, data.exclusive, data.videos[video].steps.duration_s)
    return [span for span in spans if data.classes[span.class_index] != NO_LABEL]


def _metrics(data: TimelineData, predicted: Sequence[tuple[int, list[Span]]], name: str) -> ModelMetrics:
    names = [label for label in data.classes if label != NO_LABEL]
    videos = [
        VideoSpans(truth=data.videos[i].spans, predicted=spans, duration_s=data.videos[i].steps.duration_s)
        for i, spans in predicted
    ]
    units = np.array([data.videos[i].unit for i, _ in predicted])
    return ModelMetrics(model=name, metrics=timeline_metrics(videos, len(names), units, data.step_s))


def _baselines(context: FitContext, data: TimelineData, best: Candidate) -> list[_Measured]:
    """Majority class, neighbors on pixels, motion energy, and the same head on an encoder of random weights.

    What moves how much is one number of a time step, over which no network but the temporal one can be trained.
    """
    random_model = random_init_like(context.model, context.config.seed)
    random = context.in_round(f"{ROUNDS[2]} {RANDOM_WEIGHTS}").with_model(random_model)
    neighbors = Candidate(network="knn", options={}, hparams=None)
    pixels = _with_tokens(data, [video.steps.pixels[:, None] for video in data.videos])
    motion = _with_tokens(data, [video.steps.motion[:, None] for video in data.videos])
    moved = context.in_round(f"{ROUNDS[2]} motion energy")
    return [
        _majority(data),
        _measure(context, pixels, neighbors, "k-NN on pixels"),
        _measure(moved, motion, _motion_candidate(context, best), "motion energy"),
        _measure(random, load_timelines(random), best, RANDOM_WEIGHTS),
    ]


def _motion_candidate(context: FitContext, best: Candidate) -> Candidate:
    return replace(best, network="temporal", options={"causal": True} if context.config.causal else {})


def _with_tokens(data: TimelineData, tokens: Sequence[Tensor]) -> TimelineData:
    """The same videos with other features (T, S, D) of their time steps."""
    videos = [
        replace(video, steps=replace(video.steps, tokens=video_tokens))
        for video, video_tokens in zip(data.videos, tokens, strict=True)
    ]
    return replace(data, videos=videos)


def _majority(data: TimelineData) -> _Measured:
    """The class of most time, everywhere."""
    predicted = []
    for train, test in data.splits:
        totals = torch.cat([data.videos[i].targets for i in train]).sum(0)
        if data.classes[-1] == NO_LABEL:
            totals = totals[:-1]
        best = int(totals.argmax())
        predicted += [(i, [Span(best, 0.0, data.videos[i].steps.duration_s)]) for i in test]
    return _Measured(scores=[], rules=(), metrics=_metrics(data, predicted, "majority class"), networks=[])


def _curve(context: FitContext, data: TimelineData, best: Candidate, full: _Measured) -> list[LearningCurvePoint]:
    """The first metric with fewer labeled videos."""
    points = []
    for fraction in _curve_fractions(data):
        curve = context.in_round(f"{ROUNDS[3]} {fraction:.0%}")
        metrics = _measure(curve, data, best, OWN, fraction, calibrated=full).metrics.metrics
        points.append(LearningCurvePoint(labels=_labels(data, fraction), metric=metrics[0]))
    return [*points, LearningCurvePoint(labels=_labels(data, 1.0), metric=full.metrics.metrics[0])]


def _curve_fractions(data: TimelineData) -> list[float]:
    """Parts of the training videos that the learning curve is measured at: those of at least a video."""
    return [fraction for fraction in (0.25, 0.5) if fraction * min(len(train) for train, _ in data.splits) >= 1]


def _labels(data: TimelineData, fraction: float) -> int:
    """Mean number of labeled spans in a fraction of the training videos."""
    subsets = [_subset(data, train, fraction) for train, _ in data.splits]
    return round(float(np.mean([sum(len(data.videos[i].spans) for i in videos) for videos in subsets])))


def _subset(data: TimelineData, train: Sequence[int], fraction: float) -> list[int]:
    """The first whole groups of the training videos, a fraction of all."""
    units = list(dict.fromkeys(data.videos[i].unit for i in train))
    selected = set(units[: max(1, round(fraction * len(units)))])
    return [i for i in train if data.videos[i].unit in selected]


def _novelty(data: TimelineData) -> tuple[NoveltyModel, tuple[float, ...]]:
    """How far time steps are from those of the training videos; see `fit_novelty`."""
    pooled = [video.steps.tokens.float().mean(1) for video in data.videos]
    stride = -(-sum(map(len, pooled)) // _NOVELTY_ROWS)
    rows = [steps[::stride] for steps in pooled]
    owner = np.repeat(np.arange(len(rows)), [len(steps) for steps in rows])
    splits = [tuple(np.flatnonzero(np.isin(owner, part)) for part in split) for split in data.splits]
    return fit_novelty(torch.cat(rows), [(train, held_out) for train, held_out in splits])


def _held_out(data: TimelineData) -> list[int]:
    return [i for _, test in data.splits for i in test]


def _confusion(data: TimelineData, measured: _Measured) -> np.ndarray:
    """(K, K) held-out time steps, truth by answer."""
    K = len(data.classes)
    matrix = np.zeros((K, K), np.int64)
    for i, scores in zip(_held_out(data), measured.scores, strict=True):
        np.add.at(matrix, (data.videos[i].targets.argmax(-1).numpy(), scores.argmax(-1).numpy()), 1)
    return matrix


def _reliability(data: TimelineData, measured: _Measured) -> list[ReliabilityBin]:
    """The score of predicted spans against how often they overlap a true span of their class by at least a half."""
    scores, hits = [], []
    for i, steps in zip(_held_out(data), measured.scores, strict=True):
        spans = _decode(data, i, steps, measured.rules)
        video = VideoSpans(truth=data.videos[i].spans, predicted=spans, duration_s=data.videos[i].steps.duration_s)
        scores += [span.score for span in spans]
        hits += span_hits(video, 0.5).tolist()
    bins = reliability_bins(scores, hits) if scores else []
    return [
        ReliabilityBin(score=score_bin.score, accuracy=score_bin.accuracy, count=score_bin.samples)
        for score_bin in bins
    ]


def _errors(data: TimelineData, measured: _Measured) -> list[HeldOutError]:
    """Labeled spans whose class has the lowest scores."""
    errors = []
    for i, scores in zip(_held_out(data), measured.scores, strict=True):
        video = data.videos[i]
        for span in video.spans:
            first, last = int(span.start_s / data.step_s), max(1, round(span.end_s / data.step_s))
            mean = scores[first : max(last, first + 1)].mean(0)
            answer = int(mean.argmax())
            if answer != span.class_index:
                errors.append(
                    HeldOutError(
                        path=video.steps.path,
                        start_s=span.start_s,
                        end_s=span.end_s,
                        truth=data.classes[span.class_index],
                        answer=data.classes[answer],
                        score=float(mean[answer]),
                    )
                )
    return sorted(errors, key=lambda error: -error.score)[:_WORST]


def _counts(context: FitContext, data: TimelineData, candidates_tried: int) -> dict[str, int]:
    return {
        "labeled spans": len(context.table.rows),
        "videos": len(data.videos),
        "held-out videos": len(_held_out(data)),
        "time steps": sum(len(video.targets) for video in data.videos),
        "folds": len(data.splits),
        "candidates": candidates_tried,
    }


def _protocol(context: FitContext, data: TimelineData, best: Candidate, candidates_tried: int) -> str:
    folds, head_input = len(data.splits), context.head_input
    measured = (
        f"Measured by cross-validation in {folds} folds of whole videos and groups; the head in the file is trained on "
        "all of them"
        if folds > 1
        else "Measured on videos and groups that neither the training nor any choice has seen"
    )
    return (
        f"{candidates_tried} heads trained side by side on frozen features of windows of {head_input.frames} frames at "
        f"{head_input.fps:g} per second, {head_input.image_size} px, every {head_input.stride_s:.2f} s"
        f"{', the last time step of each, from the past only' if head_input.causal else ''}; time steps of "
        f"{data.step_s:.2f} s. The best of them ({best}) and the rules that turn scores into spans are "
        f"chosen on a part of the training videos. {measured}."
    )


LABEL_TASK = LabelTask(
    name="timeline",
    fit=fit,
    networks=("temporal", "correlation"),
    cells=8,
    stride_clips=0.5,
    unused=("finetune",),
    evaluate=evaluate,
)
