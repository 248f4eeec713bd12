"""The interface of outputs: from tokens of clips to rows of scores, and from rows of scores to tables.

Scores are kept in a table of their own, from which all tables are written when every file has been read: in the order
of the sources, whatever the order in which worker processes read them, and again with another threshold at no cost.

B clips of V views, T time steps, S cells of a step, D channels, K classes or targets, n rows.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.config import PredictConfig
from tubelet.data.listed_rows import span_name
from tubelet.errors import ConfigError
from tubelet.grid import Modality
from tubelet.heads.head_file import Head
from tubelet.heads.window_grid import Window
from tubelet.io.csv_tables import Kind
from tubelet.prediction.layout import WindowLayout
from tubelet.prediction.media_predictions import MediaPredictions
from tubelet.prediction.records import Prediction, ValuePrediction
from tubelet.prediction.tables import TableWriter

Floats = NDArray[np.float32]
Seconds = NDArray[np.float64]
_ROUNDED_PAGE = 0.01  # of a page: times are stored with six decimals


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A media file that is read, or a listed span of one.

    Attributes:
        path: the file as the sources name it.
        modality: whether it is a video or an image.
        size_bytes: size of the version that is read.
        changed_s: its modification time in seconds since 1970.
        duration_s: seconds of the video or span; 0 for an image.
        windows: number of its windows; 1 for an image, or the number of its squares if it is seen whole.
        span: start and end of the span as it is listed, in seconds of the video; None for a whole file.
        video_s: seconds of the whole video; 0 for an image.
        pages: number of pages of a stack; 0 of other files.
    """

    path: str
    modality: Modality
    size_bytes: int
    changed_s: float
    duration_s: float
    windows: int
    span: tuple[float, float | None] | None = None
    video_s: float = 0.0
    pages: int = 0

    def page_at(self, second: float) -> int | None:
        """The page of a stack that is shown at a time; None for other files."""
        if not self.pages:
            return None
        return min(self.pages - 1, int(second * self.pages / self.video_s + _ROUNDED_PAGE))

    @property
    def key(self) -> str:
        """Unique key: the path, with the times of a span."""
        return self.path if self.span is None else span_name(self.path, *self.span)

    @property
    def start_s(self) -> float:
        """Where it starts, in seconds of the video."""
        return 0.0 if self.span is None else self.span[0]


@dataclass(frozen=True, kw_only=True)
class FrameSquare:
    """Which part of a frame that is seen whole a window shows.

    Attributes:
        number: which of the squares of the frame, from 0, in the order of `tubelet.tasks.segmentation.image_windows`.
        count: number of squares of the frame.
        shape: (H, W) of the frame in pixels.
    """

    number: int
    count: int
    shape: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class FileWindow:
    """A window of a file.

    Attributes:
        file: the file.
        number: which of its windows, from 0.
        window: its time steps; None for an image.
        stretched: whether it is a video shorter than a clip, at a higher rate.
        square: the part of the frame; None for the central square.
        outside: whether it is the first of its file, and nearly all values are outside of the model's window.
    """

    file: SourceFile
    number: int
    window: Window | None
    stretched: bool = False
    square: FrameSquare | None = None
    outside: bool = False


@dataclass(frozen=True, kw_only=True)
class ScoreRows:
    """Consecutive rows of scores of one file or span and one head.

    Attributes:
        key: the key of the file or span.
        first: number of the first row among those of the file.
        start_s: (n,) start of each row in seconds of the file; 0 for an image.
        end_s: (n,) end of each row in seconds of the file; 0 for an image.
        scores: (n, K) probabilities or values.
        distance: (n,) distance from the training features, see `NoveltyModel`; NaN where the head has no such model.
    """

    key: str
    first: int
    start_s: Seconds
    end_s: Seconds
    scores: Floats
    distance: Floats


@dataclass(frozen=True, kw_only=True)
class FileScores:
    """All rows of scores of one file and one head.

    Attributes:
        file: the file.
        rows: the rows in order, read when they are iterated.
    """

    file: SourceFile
    rows: Iterable[ScoreRows]


class HeadOutput(ABC):
    """Turns the scores of one head into tables.

    Attributes:
        head: the head, on the encoder's device.
        folder: where its tables are written.
        config: settings.
        layout: how media are covered by windows.
        limit: distance from the training features beyond which a clip is none of the classes; None for no limit.
        ascii_paths: whether all paths are ASCII, which says how tables are encoded; set before `write`.
        counts: what the log reports at the end: what was counted -> how often.
    """

    def __init__(self, head: Head, folder: Path, config: PredictConfig, layout: WindowLayout) -> None:
        """Prepare; writes nothing.

        Raises:
            ConfigError: if the settings do not fit the head.
        """
        self.head, self.folder, self.config, self.layout = head, folder, config, layout
        self.limit = distance_limit(head, config.none_of_these)
        self.ascii_paths = False
        self.counts: dict[str, int] = {}

    def accepts(self, item: FileWindow) -> bool:
        """Whether the head is applied to a window; a short video may have one window for each kind of heads."""
        if item.window is None:
            return True
        return item.stretched == (self.layout.stretched and self.layout.is_short(item.file.duration_s))

    def score(self, tokens: Tensor, windows: Sequence[FileWindow], pixels: Tensor) -> Iterator[ScoreRows]:
        """Apply the head to a batch: here, one row for each clip.

        Args:
            tokens: (B * V, T, S, D) as `reduce_tokens` gives them, on the head's device: all V views of a window, over
                which scores are averaged, then those of the next.
            windows: the B windows; those of a file come in order, and batches in a fixed composition.
            pixels: (B, C, F, H, W) of the first view, their F frames, on the CPU; (B, 3, 1, H, W) uint8 colors to look
                at where frames are seen whole.

        Yields:
            Rows of scores, those of a file in order.
        """
        scores = as_floats(self.head(tokens).unflatten(0, (len(windows), -1)).mean(1))
        distances = self.distances(tokens).reshape(len(windows), -1).mean(1)
        for number, item in enumerate(windows):
            start_s, end_s = self.bounds(item)
            yield ScoreRows(
                key=item.file.key,
                first=item.number,
                start_s=np.array([start_s]),
                end_s=np.array([end_s]),
                scores=scores[number : number + 1],
                distance=distances[number : number + 1],
            )

    def end(self, file: SourceFile) -> Iterator[ScoreRows]:
        """Return the remaining rows of a file, after its last window was passed to `score`."""
        yield from ()

    def discard(self, key: str) -> None:
        """Forget a file or span that turned out to be unreadable."""
        return

    @abstractmethod
    def write(self, files: Iterable[FileScores]) -> None:
        """Write the tables from the scores of all files, in the order of the sources; `counts` is filled."""

    @abstractmethod
    def media_predictions(self, item: FileScores) -> MediaPredictions:
        """What videos, pages and ethograms show of a file."""

    def records(self, item: FileScores) -> Iterator[Prediction | ValuePrediction]:
        """The rows of the table of a file, where predictions are no files of their own.

        Raises:
            ConfigError: they are.
        """
        raise ConfigError(f"a head for {self.head.spec.task} writes files; pass out, and read its tables")

    @property
    def columns(self) -> Sequence[tuple[str, Kind]]:
        """Names and kinds of the columns of `records`."""
        return ()

    def table_writer(
        self, name: str, columns: Sequence[tuple[str, Kind]], ascii_only: bool, parquet: bool = True
    ) -> TableWriter:
        """A table in the folder, with the CSV in the dialect of the settings; see `TableWriter`."""
        return TableWriter(self.folder, name, columns, ascii_only, self.config.csv_dialect, parquet)

    def distances(self, tokens: Tensor) -> Floats:
        """(B,) distances of clips (B, T, S, D) from the training features, NaN without a model of them."""
        if self.head.novelty is None:
            return np.full(len(tokens), np.nan, np.float32)
        return as_floats(self.head.novelty(tokens.float().mean((1, 2))))

    def bounds(self, item: FileWindow) -> tuple[float, float]:
        """Start and end in seconds of the file of the time steps that a window owns."""
        if item.window is None:
            return 0.0, 0.0
        start_s, duration_s = item.file.start_s, item.file.duration_s
        if item.stretched:
            return start_s, start_s + duration_s
        step_s = self.layout.step_s
        first, last = (item.window.start_step + step for step in (item.window.first, item.window.last))
        return start_s + first * step_s, start_s + min(last * step_s, duration_s)

    def is_novel(self, distance: Floats) -> NDArray[np.bool_]:
        """(n,) whether clips are none of the classes."""
        return np.zeros(len(distance), bool) if self.limit is None else distance > self.limit

    def nearer_fraction(self, distance: Floats) -> Seconds:
        """(n,) the fraction of held-out clips that are nearer to the training clips."""
        quantiles = self.head.spec.novelty_quantiles
        return np.interp(distance, quantiles, np.linspace(0, 1, len(quantiles)))

    def count(self, name: str, number: int = 1) -> None:
        """Count something for the log."""
        if number:
            self.counts[name] = self.counts.get(name, 0) + int(number)


def as_floats(x: Tensor) -> Floats:
    """A tensor as float32 in memory of the CPU."""
    values: Floats = x.detach().to("cpu", torch.float32).numpy()
    return values


def distance_limit(head: Head, fraction: float | None) -> float | None:
    """The distance from the training features that a fraction of held-out clips stays within.

    Raises:
        ConfigError: if the head has no model of its training features.
    """
    quantiles = head.spec.novelty_quantiles
    if fraction is None:
        return None
    if head.novelty is None or not quantiles:
        raise ConfigError(
            "--none-of-these needs a head that knows its training features, and this one does not; fit it again, or "
            "leave the option out"
        )
    return float(np.interp(fraction, np.linspace(0, 1, len(quantiles)), quantiles))
