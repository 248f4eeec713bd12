"""The report of a fit: metrics on held-out files, errors, and what would improve the head."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tubelet.errors import escape_unprintable
from tubelet.fitting.clip_task import FROZEN
from tubelet.fitting.result import FitResult, LearningCurvePoint, ReliabilityBin
from tubelet.heads.calibration import ScoreBin, expected_calibration_error
from tubelet.heads.head_file import MetricInterval, ModelMetrics
from tubelet.tasks.common.result import RANDOM_WEIGHTS
from tubelet.view.page import Line, chart, write_page
from tubelet.view.results import image_uri, shrink_to_page
from tubelet.view.thumbnails import Thumbnail, make_thumbnail

SHOWN_ERRORS, SHOWN_SUGGESTIONS, SHOWN_FILES, SHOWN_CONFUSIONS, SHOWN_HEADS = 24, 12, 50, 10, 40
_NUMBERED = 26  # pixels of a cell of the confusion matrix from which its number fits in


def write_fit_report(result: FitResult, out: Path) -> None:
    """Write the report, one page that needs no other file.

    Args:
        result: the result of the fit.
        out: the page.

    Raises:
        FileError: if it cannot be written.
    """
    spec = result.spec
    values = {
        "result": result,
        "spec": spec,
        "sentence": trust_sentence(spec.scores),
        "unit": "time steps" if spec.task == "timeline" else "rows",
        "bars": score_bars(spec.scores),
        "metrics": _metric_rows(spec.scores),
        "confusion": None if result.confusion is None else confusion_matrix(result.confusion, spec.classes),
        "confusions": () if result.confusion is None else common_confusions(result.confusion, spec.classes),
        "reliability": _reliability_chart(result.reliability),
        "reliability_sentence": reliability_sentence(result.reliability),
        "curve": _curve_chart(result.curve),
        "curve_sentence": curve_sentence(result.curve, is_clearly_better(spec.scores)),
        "errors": [(each, _thumbnail(each, spec.input.fps)) for each in result.errors[:SHOWN_ERRORS]],
        "suggestions": [(each, _thumbnail(each, spec.input.fps)) for each in result.suggestions[:SHOWN_SUGGESTIONS]],
        "most_examples": max(result.examples.values(), default=1) or 1,
        "sweep": _sweep(result),
        "shown_files": SHOWN_FILES,
        "figures": {
            name: [(label, image_uri(shrink_to_page(pixels))) for label, pixels in images.items()]
            for name, images in result.figures.items()
        },
    }
    write_page("fit_report.html", out, values)


def trust_sentence(scores: Sequence[ModelMetrics]) -> str:
    """How far to trust a head, in plain words.

    The simple baselines decide whether a head knows more than a rule without an encoder. The same network with random
    weights decides nothing about that: it only shows whether the training of the encoder is what makes the head good.

    Args:
        scores: metrics of the head, then of the baselines.
    """
    if not scores or not scores[0].metrics:
        return "Nothing was measured on held-out files: how far to trust this head is not known."
    first = scores[0].metrics[0]
    reached = f"On files that it was not trained on, the head reaches {_shown(first)}, in {first.name}."
    simple, untrained = _best_rival(scores), _untrained(scores)
    if simple is None:
        return " ".join(filter(None, (f"{reached} There is no simple baseline to compare it with.", untrained)))
    name, best = simple
    against = f"the best simple baseline ({name}) {_shown(best)}"
    if not _is_better(first, best):
        return f"{reached} That is no better than {against}: do not rely on this head."
    if is_clearly_better(scores):
        verdict = f"{reached} That is clearly better than {against}: trust it as far as that is good enough for you."
        return " ".join(filter(None, (verdict, untrained)))
    reason = "the intervals overlap" if first.low is not None else "these are too few files to be sure"
    return (
        f"{reached} That is better than {against}, but {reason}: it may be chance. Label more files, so that more can "
        "be held out, before relying on it."
    )


def _untrained(scores: Sequence[ModelMetrics]) -> str:
    """What the same network with random weights says about the encoder; empty if the head is clearly better."""
    first = scores[0].metrics[0]
    random = next(
        (metric for model in scores if model.model == RANDOM_WEIGHTS if (metric := _metric(model, first.name))), None
    )
    if random is None or _is_clearly_better(first, random):
        return ""
    found = f"The same network with random weights reaches {_shown(random)}"
    if _is_better(first, random):
        return f"{found}: whether the training of the encoder makes the head better is not clear from these files."
    return (
        f"{found}: the head is as good as measured, but not because the encoder was trained; a smaller or another "
        "encoder may do as well."
    )


def caution(scores: Sequence[ModelMetrics]) -> str:
    """The shortest form of `trust_sentence`; empty for a head that is clearly better than all simple baselines."""
    if not scores or not scores[0].metrics:
        return "not measured on held-out files"
    rival = _best_rival(scores)
    if rival is None or is_clearly_better(scores):
        return ""
    name, best = rival
    better = _is_better(scores[0].metrics[0], best)
    return f"not clearly better than {name}" if better else f"no better than {name}: do not rely on it"


def is_clearly_better(scores: Sequence[ModelMetrics]) -> bool:
    """Whether the interval of a head's first metric is beyond that of the best simple baseline, or there is none."""
    rival = _best_rival(scores) if scores and scores[0].metrics else None
    return rival is None or _is_clearly_better(scores[0].metrics[0], rival[1])


def _is_better(first: MetricInterval, other: MetricInterval) -> bool:
    return first.value > other.value if first.higher_is_better else first.value < other.value


def _is_clearly_better(first: MetricInterval, other: MetricInterval) -> bool:
    worst, limit = (first.low, other.high) if first.higher_is_better else (first.high, other.low)
    sign = 1 if first.higher_is_better else -1
    return worst is not None and limit is not None and sign * worst > sign * limit


def _best_rival(scores: Sequence[ModelMetrics]) -> tuple[str, MetricInterval] | None:
    """The best simple baseline by the head's first metric, and its value; None without any."""
    first = scores[0].metrics[0]
    rivals = [
        (model.model, metric)
        for model in scores[1:]
        if model.model not in (FROZEN, RANDOM_WEIGHTS) and (metric := _metric(model, first.name)) is not None
    ]
    sign = 1 if first.higher_is_better else -1
    return max(rivals, key=lambda rival: sign * rival[1].value) if rivals else None


def curve_sentence(curve: Sequence[LearningCurvePoint], trusted: bool = True) -> str:
    """Whether more labels would help, judged by the last doubling of their number; empty for fewer than two points.

    Args:
        curve: the first metric by the number of labels.
        trusted: whether the head is clearly better than the simple baselines; otherwise the sentence says what more
            labels could change about that.
    """
    curve = _distinct(curve)
    if len(curve) < 2:
        return ""
    last = curve[-1]
    sign = 1 if last.metric.higher_is_better else -1
    doublings = np.log2([last.labels / point.labels for point in curve[:-1]])
    gains = np.array([sign * (last.metric.value - point.metric.value) for point in curve[:-1]])
    near = int(np.abs(doublings - 1).argmin())
    gain, before = float(gains[near] / doublings[near]), curve[near]
    unit = " points" if last.metric.unit == "%" else f" {last.metric.unit}" if last.metric.unit else ""
    difference = f"{abs(gain):.{1 if last.metric.unit == '%' else 3}f}{unit}"
    has_interval = last.metric.low is not None and last.metric.high is not None
    # Half of a half-width: about one standard error.
    noise = (last.metric.high - last.metric.low) / 4 if has_interval else np.inf  # type: ignore[operator]
    steps = f"From {before.labels} to {last.labels} labels"
    if not has_interval:
        change = "improved" if gain > 0 else "fell behind"
        return f"{steps}, the metric {change} by {difference} for each doubling, measured on too few files to be sure."
    if gain > noise:
        hope = "more labels would pay" if trusted else "with more labels, the head may become one to rely on"
        return f"{steps}, the metric improved by {difference} for each doubling: {hope}."
    if gain > 0:
        hope = "would pay little" if trusted else "would hardly make the head better, and only show how good it is"
        return (
            f"{steps}, the metric improved by {difference} for each doubling, which is within its uncertainty: more "
            f"labels {hope}, unless they are of cases that are rare so far."
        )
    hope = "would not pay" if trusted else "would not make the head better; try other labels, or another model"
    return f"{steps}, the metric did not improve: more labels of the same kind {hope}."


def reliability_sentence(bins: Sequence[ReliabilityBin]) -> str:
    """How far scores can be read as probabilities; empty without predictions."""
    total = sum(each.count for each in bins)
    if not total:
        return ""
    error = sum(each.count * (each.score - each.accuracy) for each in bins) / total
    gap = expected_calibration_error([ScoreBin(each.score, each.accuracy, each.count) for each in bins])
    if gap < 0.05:
        return f"Scores can be read as probabilities: on average, they are {gap:.2f} off the fraction that was right."
    direction = "too sure of itself" if error > 0.02 else "less sure than it could be" if error < -0.02 else "uneven"
    return (
        f"On average, scores are {gap:.2f} off the fraction that was right (the head is {direction}): use them "
        "to order answers, not as probabilities."
    )


@dataclass(frozen=True)
class ScoreBar:
    """One bar of the headline: a model's first metric with its interval, in percent of the axis.

    Attributes:
        model: the head or a baseline.
        text: the metric with its interval.
        start: left end of the bar.
        width: its length.
        low: left end of the interval.
        span: its length; None where there is no interval.
    """

    model: str
    text: str
    start: float
    width: float
    low: float
    span: float | None


def score_bars(scores: Sequence[ModelMetrics]) -> list[ScoreBar]:
    """The first metric of the head and of each baseline as bars on one axis."""
    if not scores or not scores[0].metrics:
        return []
    name = scores[0].metrics[0].name
    bars = [(model.model, metric) for model in scores if (metric := _metric(model, name)) is not None]
    ends = [x for _, metric in bars for x in (metric.value, metric.low, metric.high) if x is not None]
    finite = [x for x in ends if np.isfinite(x)]
    low = min(0.0, *finite) if finite else 0.0
    high = max([100.0 if bars[0][1].unit == "%" else 0.0, *finite])
    scale = 100 / ((high - low) or 1.0)

    def place(value: float | None) -> float:
        shown = value if value is not None and np.isfinite(value) else low
        return round(scale * (float(np.clip(shown, low, high)) - low), 2)

    return [
        ScoreBar(
            model=model,
            text=str(metric),
            start=place(min(0.0, metric.value)),
            width=abs(place(metric.value) - place(0.0)),
            low=place(metric.low),
            span=None if metric.low is None or metric.high is None else place(metric.high) - place(metric.low),
        )
        for model, metric in bars
    ]


def confusion_matrix(counts: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """A confusion matrix for the template.

    Args:
        counts: (K, K) truth by answer.
        classes: K names.
    """
    K = len(classes)
    size = int(np.clip(760 / max(1, K), 11, 44))
    rows = counts.sum(1, keepdims=True)
    shares = counts / np.maximum(rows, 1)
    cells = [
        {"row": int(i), "column": int(j), "count": int(counts[i, j]), "share": round(float(shares[i, j]), 3)}
        for i, j in zip(*np.nonzero(counts), strict=True)
    ]
    names = [escape_unprintable(name) for name in classes]
    return {
        "size": size,
        "cells": cells,
        "numbered": size >= _NUMBERED,
        "names": names,
        "short": [name if len(name) <= 22 else f"{name[:21]}…" for name in names],
        "font": min(13, max(9, size - 2)),
        "left": 8 + round(7.2 * min(22, max((len(name) for name in names), default=0))),
        "recall": [None if not rows[i, 0] else float(shares[i, i]) for i in range(K)],
    }


def common_confusions(counts: NDArray[np.int64], classes: Sequence[str]) -> list[tuple[str, str, int, int]]:
    """The most frequent errors, of those that happened twice: truth, answer, their number, rows of that truth."""
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:SHOWN_CONFUSIONS]
    pairs = [divmod(int(index), len(classes)) for index in order]
    return [(classes[i], classes[j], int(wrong[i, j]), int(counts[i].sum())) for i, j in pairs if wrong[i, j] > 1]


def _reliability_chart(bins: Sequence[ReliabilityBin]) -> Any:
    if not bins:
        return None
    diagonal = Line("", [0, 1], [0, 1], faint=True, style={"linestyle": "--", "alpha": 0.8, "linewidth": 1.0})
    points = Line("", [each.score for each in bins], [each.accuracy for each in bins], style={"marker": "o"})
    return chart([diagonal, points], x="score", y="fraction right", size=(3.6, 2.8), margin=0.03)


def _distinct(curve: Sequence[LearningCurvePoint]) -> list[LearningCurvePoint]:
    """Points of ascending numbers of labels; of equal numbers the last, for a part of few files may be the same."""
    return sorted({point.labels: point for point in curve}.values(), key=lambda point: point.labels)


def _curve_chart(curve: Sequence[LearningCurvePoint]) -> Any:
    curve = _distinct(curve)
    if len(curve) < 2:
        return None
    labels = [point.labels for point in curve]
    interval = {"linestyle": ":", "alpha": 0.9, "linewidth": 1.1}
    lows = [np.nan if point.metric.low is None else point.metric.low for point in curve]
    highs = [np.nan if point.metric.high is None else point.metric.high for point in curve]
    lines = [
        Line("", labels, lows, faint=True, style=interval),
        Line("", labels, highs, faint=True, style=interval),
        Line("", labels, [point.metric.value for point in curve], style={"marker": "o"}),
    ]
    first = curve[-1].metric
    unit = f" ({first.unit})" if first.unit else ""
    return chart(lines, x="labels", y=f"{first.name}{unit}", size=(4.6, 2.8), margin=0.03)


def _thumbnail(each: Any, fps: float) -> Thumbnail:
    return make_thumbnail(each.path, each.start_s, each.end_s, stack_fps=fps)


def _sweep(result: FitResult) -> dict[str, Any] | None:
    """The heads that were trained, the best first, as a table."""
    if not result.sweep:
        return None
    columns = list(dict.fromkeys(name for row in result.sweep for name in row))
    values = [[_cell(row.get(name)) for name in columns] for row in result.sweep[:SHOWN_HEADS]]
    return {"columns": columns, "rows": values, "more": max(0, len(result.sweep) - SHOWN_HEADS)}


def _metric_rows(scores: Sequence[ModelMetrics]) -> dict[str, Any]:
    """All metrics as a table: a row for each model, of each metric the value, the interval, and whether it is best."""
    heads, columns = [], []
    for name in _metric_names(scores):
        metrics = [_metric(model, name) for model in scores]
        defined = [each for each in metrics if each is not None]
        sign = 1 if defined[0].higher_is_better else -1
        best = max(sign * each.value for each in defined)
        unit = f" ({defined[0].unit})" if defined[0].unit else ""
        heads.append((name, unit, defined[0].higher_is_better))
        columns.append(
            [None if each is None else (*_value_and_interval(each), sign * each.value == best) for each in metrics]
        )
    rows = [(model.model, [column[number] for column in columns]) for number, model in enumerate(scores)]
    return {"heads": heads, "rows": rows}


def _value_and_interval(metric: MetricInterval) -> tuple[str, str]:
    """A metric and its interval as text; an unknown interval is empty."""
    value, _, rest = str(metric).partition(" [")
    has_interval = metric.low is not None and metric.high is not None
    return value, rest.partition("]")[0].replace(", ", " to ") if has_interval else ""


def _cell(value: Any) -> str:
    if isinstance(value, MetricInterval):
        return str(value)
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _metric_names(scores: Sequence[ModelMetrics]) -> list[str]:
    return list(dict.fromkeys(metric.name for model in scores for metric in model.metrics))


def _metric(model: ModelMetrics, name: str) -> MetricInterval | None:
    return next((metric for metric in model.metrics if metric.name == name), None)


def _shown(metric: MetricInterval) -> str:
    """A metric in a sentence."""
    digits = 1 if metric.unit == "%" else 3
    unit = f" {metric.unit}" if metric.unit else ""
    if metric.low is None or metric.high is None:
        return f"{metric.value:.{digits}f}{unit} (from too few files for an interval)"
    interval = f"between {metric.low:.{digits}f} and {metric.high:.{digits}f}{unit} with 95 % confidence"
    return f"{metric.value:.{digits}f}{unit} ({interval})"
