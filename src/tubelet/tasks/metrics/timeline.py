"""Metrics of spans in videos: how well a timeline agrees with the labels.

Spans of different classes may overlap. Moments without a label count only in the frame-wise accuracy.

P predicted and Q true spans of a video, V videos, K classes, B resamples, U units.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tubelet.heads.head_file import MetricInterval
from tubelet.heads.spans import Span
from tubelet.tasks.metrics.intervals import (
    Floats,
    Statistic,
    bootstrap_interval,
    index_units,
    mean_defined,
    ratio,
    sum_by_unit,
)

OVERLAPS = (0.5, 0.25, 0.1)
"""Intersections over union at which F1 is measured."""
MAP_OVERLAPS = (0.3, 0.4, 0.5, 0.6, 0.7)
"""Intersections over union over which mAP is averaged."""
_EDGE_OVERLAP = 0.5
_END_S = 1e-3  # from the end of a video; an edge there is no answer


@dataclass(frozen=True, kw_only=True)
class VideoSpans:
    """Predicted and true spans of a video.

    Attributes:
        truth: the true spans.
        predicted: the predicted spans.
        duration_s: seconds of the video.
    """

    truth: Sequence[Span]
    predicted: Sequence[Span]
    duration_s: float


def segment_counts(video: VideoSpans, classes: int, overlap: float) -> NDArray[np.int64]:
    """Hits, predictions and labels of each class at an overlap.

    A predicted span is compared to the true span of its class that it overlaps most. It is a hit if their intersection
    is at least `overlap` of their union and no earlier prediction has hit the same true span (Lea et al. 2017, arXiv
    1611.05267, section 4).

    Returns:
        (3, K) counts, which add up over videos.
    """
    predicted, truth = _columns(video.predicted), _columns(video.truth)
    counts = np.zeros((3, classes), np.int64)
    counts[1], counts[2] = (np.bincount(spans[0].astype(int), minlength=classes) for spans in (predicted, truth))
    pairs = _matches(predicted, truth, overlap)
    counts[0] = np.bincount(truth[0][pairs[:, 1]].astype(int), minlength=classes)
    return counts


def span_hits(video: VideoSpans, overlap: float) -> NDArray[np.bool_]:
    """(P,) whether each predicted span is a hit, as `segment_counts` counts them."""
    pairs = _matches(_columns(video.predicted), _columns(video.truth), overlap)
    return np.isin(np.arange(len(video.predicted)), pairs[:, 0])


def segmental_f1(videos: Sequence[VideoSpans], classes: int, overlap: float) -> float:
    """F1 over all spans of all videos and classes, in percent; NaN without any span."""
    hits, predicted, truth = _sum_counts(videos, classes, overlap).sum(1)
    return float(100 * ratio(2 * hits, predicted + truth))


def edit_score(video: VideoSpans) -> float:
    """How well the order of classes agrees, whatever their times: 100 · (1 - edit distance / longer sequence).

    The sequences are the classes of the spans by their start, then by class. Levenshtein's distance counts insertions,
    deletions and replacements (Lea et al. 2016, arXiv 1602.02995). Both empty is 100.
    """
    predicted, truth = (
        np.array([span.class_index for span in sorted(spans, key=lambda span: (span.start_s, span.class_index))])
        for spans in (video.predicted, video.truth)
    )
    longer = max(len(predicted), len(truth))
    return 100.0 if not longer else 100 * (1 - _edit_distance(predicted, truth) / longer)


def frame_seconds(video: VideoSpans, classes: int) -> Floats:
    """Seconds of a video that are right, and all of them: (2,), which add up over videos.

    With K classes that may overlap, each moment counts once for each class, which is there or not; what is neither
    predicted nor true is left out, since it would drown the rest. Where neither the predictions nor the labels overlap,
    each moment counts once, and is right also where both have no class.
    """
    predicted, truth = _columns(video.predicted), _columns(video.truth)
    common = _intersections(predicted, truth)
    same = common[predicted[0][:, None] == truth[0]].sum()
    lengths = [(spans[2] - spans[1]).sum() for spans in (predicted, truth)]
    if _overlapping(predicted) or _overlapping(truth):
        return np.array([same, sum(lengths) - same])
    neither = video.duration_s - (sum(lengths) - common.sum())
    return np.array([same + max(0.0, neither), video.duration_s])


def edge_errors(video: VideoSpans) -> Floats:
    """Seconds between the edges of matched spans and the true ones.

    Spans match as for F1 at an overlap of one half. True edges at the ends of the video are left out: they are no
    answer.
    """
    predicted, truth = _columns(video.predicted), _columns(video.truth)
    pairs = _matches(predicted, truth, _EDGE_OVERLAP)
    errors = np.abs(predicted[1:3, pairs[:, 0]] - truth[1:3, pairs[:, 1]])
    inside = np.stack([truth[1] > _END_S, truth[2] < video.duration_s - _END_S])[:, pairs[:, 1]]
    return errors[inside]


def average_precisions(videos: Sequence[VideoSpans], classes: int, overlaps: Sequence[float] = MAP_OVERLAPS) -> Floats:
    """Average precision of each class at each overlap, in percent, as ActivityNet computes it.

    Predictions of all videos are ranked by score. Each is a hit if it overlaps a true span of its class by at least
    `overlap` of their union that no prediction of a higher score has hit; of several, the one that it overlaps most.
    Precision is the highest one at the same or a higher recall (Caba Heilbron et al. 2015; `eval_detection.py` of the
    benchmark).

    Returns:
        (len(overlaps), K); NaN for a class without a true span.
    """
    curves = _precision_curves(videos, classes, overlaps)
    weights = np.ones((1, len(videos)))
    return 100 * np.array([[curve(weights)[0] if curve else np.nan for curve in row] for row in curves])


def timeline_metrics(
    videos: Sequence[VideoSpans], classes: int, units: ArrayLike, step_s: float | None = None, seed: int = 0
) -> tuple[MetricInterval, ...]:
    """All metrics of timelines with intervals, the most important first.

    Args:
        videos: held-out videos.
        classes: K.
        units: (V,) group of each video.
        step_s: seconds of a time step, in which the error of edges is reported as well; None leaves that out.
        seed: seed of the resamples.

    Returns:
        The metrics; the error of edges is left out where no spans match.
    """
    index, count = index_units(units)
    intervals: list[MetricInterval] = []

    def add(name: str, sums: Floats, scale: float = 100.0) -> None:
        """A quotient of sums (V, 2) over videos, as a percentage."""
        unit_sums = sum_by_unit(sums, index, count)

        def statistic(weights: Floats) -> Floats:
            total = weights @ unit_sums
            return scale * ratio(total[:, 0], total[:, 1])

        if unit_sums[:, 1].any():
            intervals.append(bootstrap_interval(name, statistic, count, bounds=(0, 100), unit="%", seed=seed))

    for overlap in OVERLAPS:
        counts = np.array([segment_counts(video, classes, overlap).sum(1) for video in videos])
        add(f"F1@{round(100 * overlap)}", np.stack([2 * counts[:, 0], counts[:, 1] + counts[:, 2]], 1))
    add("edit score", np.array([[edit_score(video), 1.0] for video in videos]), scale=1.0)
    intervals += _mean_average_precision(videos, classes, index, count, seed)
    add("frame accuracy", np.array([frame_seconds(video, classes) for video in videos]))
    intervals += _median_edge_error(videos, index, count, seed, step_s)
    return tuple(intervals)


def _mean_average_precision(
    videos: Sequence[VideoSpans], classes: int, index: NDArray[np.int64], count: int, seed: int
) -> list[MetricInterval]:
    curves = [curve for row in _precision_curves(videos, classes, MAP_OVERLAPS) for curve in row if curve]
    if not curves:
        return []

    def statistic(weights: Floats) -> Floats:
        return 100 * mean_defined(np.stack([curve(weights[:, index]) for curve in curves], 1))

    name = f"mAP@{MAP_OVERLAPS[0]:g}:{MAP_OVERLAPS[-1]:g}"
    return [bootstrap_interval(name, statistic, count, bounds=(0, 100), unit="%", seed=seed)]


def _median_edge_error(
    videos: Sequence[VideoSpans], index: NDArray[np.int64], count: int, seed: int, step_s: float | None
) -> list[MetricInterval]:
    by_video = [edge_errors(video) for video in videos]
    errors = np.concatenate(by_video)
    if not len(errors):
        return []
    owner = np.repeat(index, [len(video_errors) for video_errors in by_video])
    order = np.argsort(errors, kind="stable")
    errors, owner = errors[order], owner[order]

    def statistic(weights: Floats) -> Floats:
        rank = np.cumsum(weights[:, owner], 1)
        half = rank[:, -1:] / 2
        lower, upper = (np.minimum(side.sum(1), len(errors) - 1) for side in (rank < half, rank <= half))
        return np.where(half[:, 0] > 0, (errors[lower] + errors[upper]) / 2, np.nan)

    def in_steps(weights: Floats) -> Floats:
        return statistic(weights) / (step_s or 1.0)

    def interval(name: str, video_errors: Statistic, unit: str | None) -> MetricInterval:
        return bootstrap_interval(
            name, video_errors, count, bounds=(0, np.inf), unit=unit, higher_is_better=False, seed=seed
        )

    metrics = [interval("median edge error", statistic, "s")]
    return metrics if step_s is None else [*metrics, interval("median edge error, time steps", in_steps, None)]


def _sum_counts(videos: Sequence[VideoSpans], classes: int, overlap: float) -> Floats:
    return np.sum([segment_counts(video, classes, overlap) for video in videos], axis=0).astype(float)


def _columns(spans: Sequence[Span]) -> Floats:
    """Spans as columns (4, n): class, start, end, score."""
    return np.array([tuple(span) for span in spans], float).reshape(-1, 4).T


def _intersections(predicted: Floats, truth: Floats) -> Floats:
    """(P, Q) seconds that spans have in common, whatever their classes."""
    first, last = np.maximum.outer(predicted[1], truth[1]), np.minimum.outer(predicted[2], truth[2])
    return (last - first).clip(0)


def _overlaps(predicted: Floats, truth: Floats) -> Floats:
    """(P, Q) intersection over union, 0 for spans of different classes."""
    common = _intersections(predicted, truth)
    union = np.add.outer(predicted[2] - predicted[1], truth[2] - truth[1]) - common
    return np.where((predicted[0][:, None] == truth[0]) & (union > 0), common / np.where(union > 0, union, 1), 0.0)


def _matches(predicted: Floats, truth: Floats, overlap: float) -> NDArray[np.int64]:
    """(m, 2) indices of predicted spans and the true spans that they hit."""
    if not predicted.shape[1] or not truth.shape[1]:
        return np.zeros((0, 2), np.int64)
    iou = _overlaps(predicted, truth)
    best = iou.argmax(1)
    hits = np.flatnonzero(iou[np.arange(len(best)), best] >= overlap)
    matched_truth, first = np.unique(best[hits], return_index=True)
    return np.stack([hits[first], matched_truth], 1)


def _overlapping(spans: Floats) -> bool:
    """Whether any two spans (4, n) overlap."""
    order = np.argsort(spans[1], kind="stable")
    return bool((spans[1][order][1:] < np.maximum.accumulate(spans[2][order])[:-1] - 1e-6).any())


def _edit_distance(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Levenshtein's distance, a row of the table at a time."""
    index = np.arange(len(b) + 1)
    row = index.copy()
    for i, item in enumerate(a):
        replaced = row[:-1] + (b != item)
        best = np.minimum(replaced, row[1:] + 1)
        # Insertions: each cell is also at most the one before it plus 1.
        row = np.minimum.accumulate(np.append(i + 1, best) - index) + index
    return int(row[-1])


class _PrecisionCurve:
    """The average precision of one class at one overlap, as a function of the weights (B, V) of the videos."""

    def __init__(self, scores: Floats, hits: NDArray[np.bool_], owner: NDArray[np.int64], truth: Floats) -> None:
        """Initialize.

        Args:
            scores: (n,) scores of the predictions of the class.
            hits: (n,) whether each is a hit.
            owner: (n,) index of its video.
            truth: (V,) number of true spans of each video.
        """
        order = np.argsort(-scores, kind="stable")
        self._hits, self._owner, self._truth = hits[order].astype(float), owner[order], truth

    def __call__(self, weights: Floats) -> Floats:
        span_weights = weights[:, self._owner]
        total = weights @ self._truth
        if not span_weights.shape[1]:
            return np.where(total > 0, 0.0, np.nan)
        hits, answered = np.cumsum(span_weights * self._hits, 1), np.cumsum(span_weights, 1)
        precision = np.divide(hits, answered, out=np.zeros_like(hits), where=answered > 0)
        precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        return ratio((np.diff(hits, axis=1, prepend=0.0) * precision).sum(1), total)


def _precision_curves(
    videos: Sequence[VideoSpans], classes: int, overlaps: Sequence[float]
) -> list[list[_PrecisionCurve | None]]:
    """For each overlap and each class its curve; None for a class without a true span."""
    truth = np.zeros((len(videos), classes))
    rows: list[Floats] = []
    for number, video in enumerate(videos):
        predicted, labels = _columns(video.predicted), _columns(video.truth)
        truth[number] = np.bincount(labels[0].astype(int), minlength=classes)
        hits = _ranked_hits(predicted, labels, overlaps)
        rows.append(np.concatenate([predicted[:1], predicted[3:], np.full((1, predicted.shape[1]), number), hits]))
    table = np.concatenate(rows, 1)
    curves: list[list[_PrecisionCurve | None]] = []
    for level in range(len(overlaps)):
        curves.append([])
        for k in range(classes):
            class_spans = table[:, table[0] == k]
            curve = _PrecisionCurve(class_spans[1], class_spans[3 + level] > 0, class_spans[2].astype(int), truth[:, k])
            curves[-1].append(curve if truth[:, k].any() else None)
    return curves


def _ranked_hits(predicted: Floats, truth: Floats, overlaps: Sequence[float]) -> Floats:
    """(len(overlaps), P) 1 for predictions that hit a true span that none of a higher score has hit."""
    hits = np.zeros((len(overlaps), predicted.shape[1]))
    if not truth.shape[1]:
        return hits
    iou = _overlaps(predicted, truth)
    taken = np.zeros((len(overlaps), truth.shape[1]), bool)
    for i in np.argsort(-predicted[3], kind="stable"):
        candidates = np.flatnonzero(iou[i] >= min(overlaps))
        for j in candidates[np.argsort(-iou[i, candidates], kind="stable")]:
            free = (iou[i, j] >= np.array(overlaps)) & ~taken[:, j] & (hits[:, i] == 0)
            hits[free, i], taken[free, j] = 1, True
    return hits
