"""All predictions for one file, for videos, pages and ethograms."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tubelet.data.batch import MediaBytes
from tubelet.data.containers import Media
from tubelet.data.stacks import is_stack, read_stack_info
from tubelet.prediction.records import Prediction, ValuePrediction


@dataclass(frozen=True, kw_only=True)
class ValueCurve:
    """A predicted value over time.

    Attributes:
        name: the target.
        starts_s: (N,) float64 seconds from which each value holds, ascending.
        ends_s: (N,) float64 seconds until which it holds.
        values: (N,) float64.
    """

    name: str
    starts_s: NDArray[np.float64]
    ends_s: NDArray[np.float64]
    values: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """A predicted mask or depth map, painted over its image.

    Attributes:
        time_s: seconds of presentation time of the image; 0 for an image file.
        image: the file of the painted image.
        caption: names of the classes in it, or the range of the depth.
    """

    time_s: float
    image: Path
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class MediaPredictions:
    """All predictions for one file.

    Attributes:
        path: the file as the tables name it.
        duration_s: seconds of a video; 0 for an image.
        file: the file on this machine; None where there is none, such as for a URL.
        drawn: the video with the predictions drawn in, if it was written.
        labels: labels of spans, of all heads.
        curves: predicted values, of all heads.
        overlays: painted images, by ascending time.
        note: a sentence about the file as a whole; empty if there is none.
    """

    path: str
    duration_s: float
    file: Path | None = None
    drawn: Path | None = None
    labels: Sequence[Prediction] = ()
    curves: Sequence[ValueCurve] = ()
    overlays: Sequence[Overlay] = ()
    note: str = ""


def stack_fps(source: Media, duration_s: float) -> float | None:
    """Frames per second of a stack of which predictions have the duration; None for other files.

    Raises:
        DecodeError: if the stack cannot be read.
    """
    if isinstance(source, MediaBytes) or duration_s <= 0 or not is_stack(source):
        return None
    return read_stack_info(source).frames / duration_s


def value_curves(values: Sequence[ValuePrediction], targets: Sequence[str]) -> list[ValueCurve]:
    """The values of one head for one file as a curve for each target.

    Args:
        values: predictions by ascending time.
        targets: names of the targets.
    """
    starts = np.array([each.start_s for each in values], dtype=np.float64)
    ends = np.array([each.end_s for each in values], dtype=np.float64)
    table = np.array([each.values for each in values], dtype=np.float64).reshape(len(values), len(targets))
    return [
        ValueCurve(name=name, starts_s=starts, ends_s=ends, values=table[:, number])
        for number, name in enumerate(targets)
    ]


def labels_by_seconds(labels: Sequence[Prediction]) -> dict[str, float]:
    """Label -> seconds of all its spans, by descending seconds, then by name."""
    seconds: dict[str, float] = {}
    for each in labels:
        seconds[each.label] = seconds.get(each.label, 0.0) + each.end_s - each.start_s
    return dict(sorted(seconds.items(), key=lambda item: (-item[1], item[0])))
