"""Video with predictions drawn below the image: a timeline of labels, curves of values, and the current labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tubelet.data.containers import Media
from tubelet.data.decode import Video
from tubelet.errors import escape_unprintable
from tubelet.io.files import atomic_write
from tubelet.prediction.label_colors import assign_colors, rgb
from tubelet.prediction.media_predictions import MediaPredictions, ValueCurve, labels_by_seconds, stack_fps
from tubelet.prediction.video_writer import round_to_even, write_frames

MIN_LINES, MIN_COLUMNS = 480, 480
WHOLE_S, WINDOW_S = 120.0, 60.0  # of a longer video, the minute of now is shown
MAX_LANES, MAX_CURVES = 12, 6
_BACKGROUND, _LANE, _TEXT, _FAINT, _CURSOR = (
    (22, 24, 28),
    (42, 46, 54),
    (230, 231, 233),
    (140, 147, 158),
    (255, 255, 255),
)
_CURVE = (98, 174, 226)


def draw_video(source: Media, predictions: MediaPredictions, out: Path, classes: Sequence[str] = ()) -> None:
    """Write a video with its predictions drawn under the image, in memory that does not depend on its length.

    Each frame is shown at the same time as in the source, at variable frame rates, too. A small video is enlarged to
    480 lines, and a dark border makes a narrow one 480 columns wide. There is no sound.

    Args:
        source: the video.
        predictions: the labels and values, and the note below them; overlays are not drawn.
        out: the MP4 (H.264), which players and browsers take.
        classes: the classes of the heads, in their order, by which labels have the same colors in all videos.

    Raises:
        DecodeError: if the source cannot be read.
        FileError: if the output cannot be written.
    """
    fps = stack_fps(source, predictions.duration_s)
    with (
        Video(source, stack_fps=fps, display=True) as video,
        atomic_write(out, also=(FFmpegError,)) as partial,
    ):
        layout = _Layout(video.info.height, video.info.width)
        panel = _Panel(predictions, layout, video.info.duration_s, classes)
        frames = (
            (_compose(pixels, panel.image(second), layout), second)
            for pixels, second in video.iter_frames((layout.lines, layout.columns))
        )
        write_frames(frames, partial, video.time_base, video.info.duration_s)


class _Layout:
    """Sizes of the output.

    Attributes:
        lines: height of the image.
        columns: width of the image.
        width: width of the output, at least that of the image.
        font: the font of labels.
        line: height of a line of text.
    """

    def __init__(self, height: int, width: int) -> None:
        scale = max(1.0, MIN_LINES / height)
        self.lines, self.columns = round_to_even(height * scale), round_to_even(width * scale)
        self.width = max(self.columns, MIN_COLUMNS)
        size = max(15, round(min(self.lines, self.width) / 34))
        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self.font = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), size)
        self.line = round(1.5 * size)

    def shorten(self, text: str, width: float) -> str:
        """Text that fits into a width, with an ellipsis where something is left out."""
        text = escape_unprintable(text)
        if self.font.getlength(text) <= width:
            return text
        while text and self.font.getlength(text + "…") > width:
            text = text[:-1]
        return text + "…"


def _compose(pixels: NDArray[np.uint8], panel: NDArray[np.uint8], layout: _Layout) -> NDArray[np.uint8]:
    image = np.full((layout.lines + len(panel), layout.width, 3), _BACKGROUND, dtype=np.uint8)
    left = (layout.width - layout.columns) // 2
    image[: layout.lines, left : left + layout.columns] = pixels
    image[layout.lines :] = panel
    return image


@dataclass(frozen=True)
class _Span:
    start_s: float
    end_s: float
    score: float


class _Panel:
    """The panel below the image: current labels, timeline and time."""

    def __init__(
        self, predictions: MediaPredictions, layout: _Layout, duration_s: float, classes: Sequence[str]
    ) -> None:
        self.layout, self.duration_s = layout, max(duration_s, 1e-6)
        labels = list(labels_by_seconds(predictions.labels))
        self.colors = {label: rgb(color) for label, color in assign_colors(classes, labels).items()}
        self.spans: dict[str, list[_Span]] = {label: [] for label in labels}
        for each in sorted(predictions.labels, key=lambda each: each.start_s):
            self.spans[each.label].append(_Span(each.start_s, each.end_s, each.score))
        self.lanes = labels[:MAX_LANES]
        self.more = len(labels) - len(self.lanes)
        self.curves = list(predictions.curves)[:MAX_CURVES]
        names = [*self.lanes, *(curve.name for curve in self.curves)]
        self.gap = max(4, layout.line // 4)
        widest = max((layout.font.getlength(escape_unprintable(name)) for name in names), default=0)
        self.left = ceil(min(widest, 0.3 * layout.width)) + 3 * self.gap
        self.right = layout.width - 2 * self.gap
        self.lane_height, self.curve_height = layout.line, 2 * layout.line
        self.top = layout.line + 3 * self.gap if labels else self.gap
        bottom = self.top + len(self.lanes) * self.lane_height + len(self.curves) * (self.curve_height + self.gap)
        self.bottom = bottom + self.gap
        self.note = predictions.note
        self.height = round_to_even(self.bottom + (2 if self.note else 1) * layout.line + self.gap)
        self.drawn: tuple[Any, NDArray[np.uint8]] | None = None

    def image(self, now_s: float) -> NDArray[np.uint8]:
        """(H, W, 3) at a time; what did not change since the last call is not drawn again."""
        begin, end = self._shown_range(now_s)
        active = tuple(self._active(now_s))
        values = tuple(_value_at(curve, now_s) for curve in self.curves)
        clock = f"{_clock(now_s)} / {_clock(self.duration_s)}"
        key = (begin, end, active, values, clock)
        if self.drawn is None or self.drawn[0] != key:
            self.drawn = key, self._draw(begin, end, active, values, clock)
        image = self.drawn[1].copy()
        x = round(self._x(now_s, begin, end))
        image[self.top - self.gap // 2 : self.bottom, max(0, x - 1) : x + 1] = _CURSOR
        return image

    def _shown_range(self, now_s: float) -> tuple[float, float]:
        if self.duration_s <= WHOLE_S:
            return 0.0, self.duration_s
        begin = min(now_s // WINDOW_S * WINDOW_S, self.duration_s - WINDOW_S)
        return begin, begin + WINDOW_S

    def _x(self, second: float, begin: float, end: float) -> float:
        return self.left + (self.right - self.left) * float(np.clip((second - begin) / (end - begin), 0, 1))

    def _active(self, now_s: float) -> Iterator[tuple[str, float]]:
        """Labels that hold at a time and their scores, the highest first."""
        active = []
        for label, spans in self.spans.items():
            index = int(np.searchsorted(self._starts[label], now_s + 1e-9, side="right")) - 1
            if index >= 0 and now_s < spans[index].end_s - 1e-9:
                active.append((label, spans[index].score))
        yield from sorted(active, key=lambda item: -item[1])

    @cached_property
    def _starts(self) -> dict[str, NDArray[np.float64]]:
        return {label: np.array([span.start_s for span in spans]) for label, spans in self.spans.items()}

    def _draw(self, begin: float, end: float, active: Any, values: Any, clock: str) -> NDArray[np.uint8]:
        layout = self.layout
        image = Image.new("RGB", (layout.width, self.height), _BACKGROUND)
        draw = ImageDraw.Draw(image)
        self._draw_active(draw, active)
        y = self.top
        for label in self.lanes:
            self._draw_lane(draw, label, y, begin, end)
            y += self.lane_height
        for curve, value in zip(self.curves, values, strict=True):
            self._draw_curve(draw, curve, value, y + self.gap, begin, end)
            y += self.curve_height + self.gap
        self._write(draw, 2 * self.gap, self.bottom, clock if not self.more else f"{clock}  +{self.more} labels")
        if self.note:
            note = layout.shorten(self.note, layout.width - 4 * self.gap)
            self._write(draw, 2 * self.gap, self.bottom + layout.line, note)
        if self.duration_s > WHOLE_S:
            self._draw_window_marker(draw, begin, end)
        return np.asarray(image)

    def _draw_active(self, draw: Any, active: Any) -> None:
        """The labels of now, as far as they fit in a line."""
        x, layout = 2 * self.gap, self.layout
        for label, score in active:
            text = f"{layout.shorten(label, 0.5 * layout.width)}  {score:.2f}"
            width = layout.font.getlength(text) + 2 * self.gap
            if x + width > layout.width - self.gap:
                return
            color = self.colors[label]
            draw.rounded_rectangle((x, self.gap, x + width, self.gap + layout.line), radius=self.gap, fill=color)
            self._write(draw, x + self.gap, self.gap, text, _contrast(color))
            x += round(width) + self.gap

    def _draw_lane(self, draw: Any, label: str, y: int, begin: float, end: float) -> None:
        low, high = y + 2, y + self.lane_height - 2
        self._write(draw, 2 * self.gap, y, self.layout.shorten(label, self.left - 3 * self.gap))
        draw.rectangle((self.left, low, self.right, high), fill=_LANE)
        spans, color = self.spans[label], np.array(self.colors[label])
        first = max(0, int(np.searchsorted(self._starts[label], begin)) - 1)
        for span in spans[first:]:
            if span.start_s >= end:
                break
            if span.end_s <= begin:
                continue
            opacity = 0.3 + 0.7 * float(np.clip(span.score, 0, 1))
            fill = tuple(np.round(opacity * color + (1 - opacity) * np.array(_LANE)).astype(int).tolist())
            left, right = round(self._x(span.start_s, begin, end)), round(self._x(span.end_s, begin, end))
            draw.rectangle((left, low, max(left, right - 1), high), fill=fill)

    def _draw_curve(self, draw: Any, curve: ValueCurve, value: float | None, y: int, begin: float, end: float) -> None:
        width = self.left - 3 * self.gap
        self._write(draw, 2 * self.gap, y, self.layout.shorten(curve.name, width))
        text = "" if value is None else f"{value:.4g}"
        self._write(draw, 2 * self.gap, y + self.layout.line, self.layout.shorten(text, width), _FAINT)
        draw.rectangle((self.left, y, self.right, y + self.curve_height), fill=_LANE)
        finite = curve.values[np.isfinite(curve.values)]
        if not len(finite):
            return
        low, high = float(finite.min()), float(finite.max())
        margin = 0.08 * self.curve_height
        scale = (self.curve_height - 2 * margin) / ((high - low) or 1.0)
        first = max(0, int(np.searchsorted(curve.starts_s, begin)) - 1)
        lines: list[list[tuple[float, float]]] = [[]]
        for start, stop, number in zip(curve.starts_s[first:], curve.ends_s[first:], curve.values[first:], strict=True):
            if start >= end:
                break
            if not np.isfinite(number):  # a gap
                lines.append([])
            elif stop > begin:
                height = y + self.curve_height - margin - scale * (float(number) - low)
                lines[-1] += [(self._x(start, begin, end), height), (self._x(stop, begin, end), height)]
        for points in filter(None, lines):
            draw.line(points, fill=_CURVE, width=max(2, self.gap // 3), joint="curve")

    def _draw_window_marker(self, draw: Any, begin: float, end: float) -> None:
        """Draw the position of the shown window within the whole video."""
        y = self.bottom + self.layout.line // 2
        left = max(self.left, 2 * self.gap + round(self.layout.font.getlength("0:00:00 / 0:00:00  +99 labels")))
        scale = (self.right - left) / self.duration_s
        draw.rectangle((left, y - 2, self.right, y + 2), fill=_LANE)
        draw.rectangle((left + begin * scale, y - 2, left + end * scale, y + 2), fill=_FAINT)

    def _write(self, draw: Any, x: float, y: float, text: str, fill: tuple[int, int, int] = _TEXT) -> None:
        draw.text((x, y + self.layout.line / 2), text, font=self.layout.font, fill=fill, anchor="lm")


def _value_at(curve: ValueCurve, now_s: float) -> float | None:
    index = int(np.searchsorted(curve.starts_s, now_s + 1e-9, side="right")) - 1
    if index < 0 or now_s >= curve.ends_s[index] + 1e-9:
        return None
    return float(curve.values[index])


def _contrast(color: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever is easier to read on a color."""
    red, green, blue = color
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def _clock(seconds: float) -> str:
    whole = int(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
