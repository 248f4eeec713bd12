"""The page of predictions: players with timelines, curves and lists of spans."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tubelet.errors import escape_unprintable
from tubelet.prediction.label_colors import assign_colors
from tubelet.prediction.media_predictions import MediaPredictions, ValueCurve
from tubelet.view.page import json_block, write_page
from tubelet.view.players import Player, make_player, relative_link

_POINTS, _MAX_POINTS = 400_000, 4_000  # of curves: on the page, and of one curve


def write_predictions_page(
    files: Sequence[MediaPredictions],
    out: Path,
    classes: Sequence[str] = (),
    title: str = "Predictions",
    heads: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the page of predictions. It is opened from the disk and links to the videos by relative paths.

    A video that browsers do not play as it is gets a small copy in the folder `players` next to the page.

    Args:
        files: the files with their predictions, in the order of the page.
        out: the page.
        classes: the classes of the heads, in their order, by which labels have the colors that they have elsewhere.
        title: heading of the page.
        heads: name of each head -> how far to trust it.

    Raises:
        FileError: if the page or a copy cannot be written.
    """
    labels = {label.label for each in files for label in each.labels}
    colors = {label: color for label, color in assign_colors(classes, labels).items() if label in labels}
    numbers = {label: number for number, label in enumerate(colors)}
    curves = sum(len(each.curves) for each in files)
    points = int(np.clip(_POINTS / max(1, curves), 100, _MAX_POINTS))
    data = {
        "labels": [{"name": escape_unprintable(label), "color": color} for label, color in colors.items()],
        "files": [_file(each, make_player(each, out.parent), out.parent, numbers, points) for each in files],
    }
    values = {
        "title": title,
        "data": json_block("data", data),
        "files": len(files),
        "videos": sum(each.duration_s > 0 for each in files),
        "length": _length(sum(each.duration_s for each in files)),
        "labels": sum(len(each.labels) for each in files),
        "curves": curves,
        "heads": [(escape_unprintable(name), escape_unprintable(sentence)) for name, sentence in heads.items()],
    }
    write_page("predictions.html", out, values, links_media=True)


def _file(each: MediaPredictions, player: Player, folder: Path, numbers: dict[str, int], points: int) -> dict[str, Any]:
    """One file as the page's script takes it; times in seconds."""
    spans = sorted(each.labels, key=lambda label: (label.start_s, label.end_s, numbers[label.label]))
    return {
        "path": escape_unprintable(each.path),
        "name": escape_unprintable(Path(each.path).name),
        "duration": round(each.duration_s, 3),
        "link": player.link,
        "note": escape_unprintable(" ".join(filter(None, (player.note, each.note)))),
        "spans": [
            [round(span.start_s, 3), round(span.end_s, 3), numbers[span.label], round(span.score, 4)] for span in spans
        ],
        "curves": [_curve(curve, points) for curve in each.curves if len(curve.values)],
        "overlays": [
            {
                "time": round(overlay.time_s, 3),
                "link": relative_link(overlay.image, folder),
                "caption": escape_unprintable(overlay.caption),
            }
            for overlay in each.overlays
        ],
    }


def _curve(curve: ValueCurve, points: int) -> dict[str, Any]:
    """A curve as the page's script takes it; of a long one, the lowest and the highest value of each interval."""
    rows = _extremes(curve.values, points)
    ends = curve.ends_s[rows]
    if len(rows) < len(curve.values):  # each value stands for those that are left out after it
        ends = np.append(curve.starts_s[rows][1:], curve.ends_s[-1])
    finite = curve.values[np.isfinite(curve.values)]
    return {
        "name": escape_unprintable(curve.name),
        "low": float(finite.min()) if len(finite) else 0.0,
        "high": float(finite.max()) if len(finite) else 1.0,
        "starts": [round(float(second), 3) for second in curve.starts_s[rows]],
        "ends": [round(float(second), 3) for second in ends],
        "values": [float(f"{value:.5g}") if np.isfinite(value) else None for value in curve.values[rows]],
    }


def _extremes(values: NDArray[np.float64], points: int) -> NDArray[np.int64]:
    """Indices of at most `points` values that show the course of all."""
    if len(values) <= points:
        return np.arange(len(values))
    bounds = np.linspace(0, len(values), points // 2 + 1).astype(int)
    indices: set[int] = set()
    for begin, end in pairwise(bounds):
        part = np.nan_to_num(values[begin:end])
        indices |= {begin + int(part.argmin()), begin + int(part.argmax())}
    return np.array(sorted(indices))


def _length(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} seconds"
