"""The result of a fit, as its report shows it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tubelet.errors import BadFile
from tubelet.heads.head_file import HeadSpec, MetricInterval, ModelMetrics


@dataclass(frozen=True, kw_only=True)
class HeldOutError:
    """A wrong answer on a held-out file.

    Attributes:
        path: the media file.
        start_s: start of the clip or span in seconds; 0 for an image.
        end_s: its end in seconds; 0 for an image.
        truth: the label or the value, as text.
        answer: the prediction, as text.
        score: how sure the head was, from 0 to 1; for values the error in standard deviations of the target.
    """

    path: Path
    start_s: float
    end_s: float
    truth: str
    answer: str
    score: float


@dataclass(frozen=True, kw_only=True)
class LearningCurvePoint:
    """The first metric of heads trained on a part of the labels.

    Attributes:
        labels: number of training rows.
        metric: the metric on the same held-out files.
    """

    labels: int
    metric: MetricInterval


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Predictions of about the same score.

    Attributes:
        score: mean score, from 0 to 1.
        accuracy: fraction that was right.
        count: number of predictions.
    """

    score: float
    accuracy: float
    count: int


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """An unlabeled clip that would teach the head most.

    Attributes:
        path: the video.
        start_s: start of the clip in seconds.
        end_s: its end in seconds.
        answer: what the head says now.
        score: how sure it is, from 0 to 1.
    """

    path: Path
    start_s: float
    end_s: float
    answer: str
    score: float


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """The result of a fit.

    Attributes:
        spec: the head, with its metrics and those of the baselines.
        protocol: a description of the data, the heads and the choice among them in a few sentences.
        counts: numbers of files, rows, classes, heads, ...
        confusion: (K, K) held-out rows, truth by answer; None where classes do not exclude each other.
        reliability: scores against accuracy, by ascending score.
        curve: metric against number of labels.
        errors: the worst held-out errors, worst first.
        sweep: for each head that was trained: its network, learning rate, weight decay, metric.
        examples: class -> number of training rows.
        suggestions: clips to label next.
        skipped: files that could not be read.
        figures: for pixel tasks, name -> (H, W, 3) uint8 pictures of held-out files: input, truth, answer.
        legend: class -> its color in the figures; empty where colors do not stand for classes.
    """

    spec: HeadSpec
    protocol: str
    counts: Mapping[str, int]
    confusion: NDArray[np.int64] | None = None
    reliability: Sequence[ReliabilityBin] = ()
    curve: Sequence[LearningCurvePoint] = ()
    errors: Sequence[HeldOutError] = ()
    sweep: Sequence[Mapping[str, Any]] = ()
    examples: Mapping[str, int] = field(default_factory=dict)
    suggestions: Sequence[Suggestion] = ()
    skipped: Sequence[BadFile] = ()
    figures: Mapping[str, Mapping[str, NDArray[np.uint8]]] = field(default_factory=dict)
    legend: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class HeadEvaluation:
    """The metrics of a head on a label table.

    Attributes:
        scores: metrics of the head, then those of the constant answer that suits the measured rows best.
        counts: numbers of files, rows, ...
        left_out: files of the table that the head was trained on, which were not measured.
        skipped: files that could not be read.
        includes_training_files: whether files that the head was trained on were measured.
    """

    scores: tuple[ModelMetrics, ...]
    counts: Mapping[str, int]
    includes_training_files: bool = False
    left_out: Sequence[Path] = ()
    skipped: Sequence[BadFile] = ()
