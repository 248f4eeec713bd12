"""An image of all videos over time, with labels as colors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from tubelet.errors import escape_unprintable
from tubelet.io.files import atomic_write
from tubelet.prediction.label_colors import assign_colors
from tubelet.prediction.media_predictions import MediaPredictions, labels_by_seconds

MAX_ROWS, MAX_LEGEND = 200, 40
_FAINTEST = 0.25
_WIDTH, _LEFT, _TOP, _LEGEND_COLUMNS = 11.0, 2.5, 0.35, 5  # inches, and columns


def draw_ethogram(files: Sequence[MediaPredictions], out: Path, classes: Sequence[str] = ()) -> None:
    """Draw the labels of videos over time, a row for each video.

    Labels that overlap in a video share the height of its row. Of more than 200 videos the first 200 are drawn, which
    the title says.

    Args:
        files: the videos; those without duration, such as images, are left out.
        out: a PNG or SVG, by its suffix.
        classes: the classes of the heads, in their order, by which labels have the colors that they have elsewhere.

    Raises:
        FileError: if it cannot be written.
    """
    videos = [each for each in files if each.duration_s > 0]
    videos_drawn = videos[:MAX_ROWS]
    found = labels_by_seconds([label for each in videos_drawn for label in each.labels])
    colors = assign_colors(classes, found)
    labels = [label for label in colors if label in found]
    row = 0.34 if len(videos_drawn) <= 40 else 0.2 if len(videos_drawn) <= 100 else 0.13
    style: dict[Any, Any] = {
        "font.size": 9,
        "font.family": "sans-serif",
        "svg.hashsalt": "tubelet",
        "text.parse_math": False,
    }
    with matplotlib.rc_context(style):
        rows = -(-min(len(labels), MAX_LEGEND + 1) // _LEGEND_COLUMNS)
        below, body = 0.65 + 0.22 * rows, row * max(1, len(videos_drawn))
        height = _TOP + body + below
        figure = Figure(figsize=(_WIDTH, height))
        axes = figure.add_axes((_LEFT / _WIDTH, below / height, (_WIDTH - _LEFT - 0.2) / _WIDTH, body / height))
        _draw_rows(axes, videos_drawn, colors)
        _set_axes(axes, videos_drawn, row)
        title = f"{len(videos)} video{'s' * (len(videos) != 1)}"
        axes.set_title(title + (f", the first {MAX_ROWS} of them" if len(videos) > MAX_ROWS else ""), loc="left")
        handles = [Patch(color=colors[label], label=_shorten(label, 26)) for label in labels[:MAX_LEGEND]]
        if len(labels) > MAX_LEGEND:
            handles.append(Patch(color="none", label=f"and {len(labels) - MAX_LEGEND} more"))
        if handles:
            figure.legend(handles=handles, loc="lower left", ncols=_LEGEND_COLUMNS, frameon=False)
        with atomic_write(out) as partial:
            kind = out.suffix.lower().removeprefix(".")
            figure.savefig(partial, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)


def _draw_rows(axes: Any, videos: Sequence[MediaPredictions], colors: dict[str, str]) -> None:
    """All spans as one collection of rectangles, which is drawn many times faster than one by one."""
    boxes, fills = [], []
    for row_index, each in enumerate(videos):
        boxes.append(_box(0.0, each.duration_s, row_index - 0.45, 0.9))
        fills.append(to_rgba("#8c929c", 0.15))
        lanes = _assign_lanes(each)
        height = 0.9 / (max(lanes.values(), default=0) + 1)
        for span in each.labels:
            boxes.append(_box(span.start_s, span.end_s, row_index - 0.45 + lanes[span.label] * height, height))
            opacity = _FAINTEST + (1 - _FAINTEST) * min(1.0, max(0.0, span.score))
            fills.append(to_rgba(colors[span.label], opacity))
    axes.add_collection(PolyCollection(boxes, facecolors=fills, linewidths=0))


def _box(begin: float, end: float, top: float, height: float) -> list[tuple[float, float]]:
    return [(begin, top), (end, top), (end, top + height), (begin, top + height)]


def _assign_lanes(each: MediaPredictions) -> dict[str, int]:
    """Label -> lane of a video's row: labels that never overlap share a lane."""
    lanes: list[list[tuple[float, float]]] = []
    found: dict[str, int] = {}
    for label in labels_by_seconds(each.labels):
        spans = [(span.start_s, span.end_s) for span in each.labels if span.label == label]
        for number, taken in enumerate(lanes):
            if not _overlap(spans, taken):
                taken += spans
                found[label] = number
                break
        else:
            lanes.append(spans)
            found[label] = len(lanes) - 1
    return found


def _overlap(spans: list[tuple[float, float]], others: list[tuple[float, float]]) -> bool:
    """Whether a span of one list overlaps with one of the other."""
    marked = sorted([(*span, 0) for span in spans] + [(*span, 1) for span in others])
    ends = [-1.0, -1.0]
    for start, end, which in marked:
        if start < ends[1 - which] - 1e-6:
            return True
        ends[which] = max(ends[which], end)
    return False


def _set_axes(axes: Any, videos: Sequence[MediaPredictions], row: float) -> None:
    axes.set_ylim(max(1, len(videos)) - 0.5, -0.5)
    axes.set_xlim(0, max((each.duration_s for each in videos), default=1.0))
    names = [_shorten(Path(each.path).name, 34) for each in videos]
    axes.set_yticks(range(len(videos)), names, fontsize=8.5 if row > 0.3 else 7 if row >= 0.2 else 5.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("seconds")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _shorten(text: str, limit: int) -> str:
    text = escape_unprintable(text)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
