"""What outputs of masks and depth maps have in common: files of maps, overlays, and the table of them.

H x W pixels of an image, S side of a square in pixels, V squares of an image, N tokens of a square, D channels, K
classes, or 1 for depth.
"""

import hashlib
import re
import shutil
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin
from torch import Tensor

from tubelet.config import PredictConfig
from tubelet.heads.head_file import Head
from tubelet.io.csv_tables import Kind
from tubelet.io.files import atomic_write
from tubelet.prediction.label_output import PREDICTIONS, SUMMARY
from tubelet.prediction.layout import WindowLayout
from tubelet.prediction.media_predictions import MediaPredictions, Overlay
from tubelet.prediction.outputs.base import FileScores, FileWindow, HeadOutput, ScoreRows, SourceFile
from tubelet.tasks import segmentation

PICTURES = "pictures"
_JPEG_QUALITY = 88


class PixelOutput(HeadOutput):
    """Maps of pixels as files, and a table of them.

    `predictions.csv` has the columns path, start_s (the time of the frame; empty for an image or stack), start_frame
    (the page of a stack), the map's file, the overlay's file, and what is known about the map. A file's maps are in a
    folder that its name and a hash of its path name; a map of a video is named by its time, of a stack by its page. A
    stack of which every page has a map also has them as the pages of one TIFF file, which `summary.csv` names.

    Attributes:
        kind: name of the folder of maps, and of the column.
        constants: name -> value of columns that are the same for all maps.
    """

    kind: str
    constants: Mapping[str, float] = MappingProxyType({})

    def __init__(self, head: Head, folder: Path, config: PredictConfig, layout: WindowLayout) -> None:
        """See `HeadOutput`."""
        super().__init__(head, folder, config, layout)
        self.pending: dict[str, list[tuple[Tensor, Tensor]]] = {}

    @abstractmethod
    def predict(self, tokens: Tensor, shape: tuple[int, int]) -> NDArray[Any]:
        """Tokens (V, N, D) of an image of (H, W) pixels to its map (H, W)."""

    @abstractmethod
    def encode(self, prediction: NDArray[Any]) -> Image.Image:
        """A map as the image that is saved as PNG."""

    @abstractmethod
    def paint(self, prediction: NDArray[Any], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A map (H', W') for an image (H', W', 3), painted."""

    @abstractmethod
    def summarize(self, prediction: NDArray[Any]) -> NDArray[np.float32]:
        """(K,) what the table has about a map (H, W)."""

    @abstractmethod
    def caption(self, summary: NDArray[np.float32]) -> str:
        """What a page shows below a painted map."""

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """Names of the K columns of `summarize`."""

    def score(self, tokens: Tensor, windows: Sequence[FileWindow], pixels: Tensor) -> Iterator[ScoreRows]:
        """Write the maps of the frames whose last square is in a batch.

        Raises:
            FileError: if a file cannot be written.
        """
        for own_tokens, own_pixels, item in zip(tokens, pixels, windows, strict=True):
            square = item.square
            assert square is not None  # the layout of these tasks sees frames whole
            if item.number == 0:
                self.discard(item.file.key)  # what is left of a call that was interrupted
            squares = self.pending.setdefault(item.file.key, [])
            squares.append((own_tokens[0], own_pixels[:, 0]))
            if square.number < square.count - 1:
                continue
            del self.pending[item.file.key]
            time_s = 0.0 if item.window is None else round(item.file.start_s + float(item.window.times[0]), 6)
            predictions = self.predict(torch.stack([each for each, _ in squares]), square.shape)
            self._write_files(item.file, time_s, predictions, torch.stack([each for _, each in squares]))
            yield ScoreRows(
                key=item.file.key,
                first=item.number // square.count,
                start_s=np.array([time_s]),
                end_s=np.array([time_s]),
                scores=self.summarize(predictions)[None],
                distance=np.array([np.nan], np.float32),
            )

    def _write_files(self, file: SourceFile, time_s: float, prediction: NDArray[Any], squares: Tensor) -> None:
        with atomic_write(self.folder / self.map_file(file, time_s)) as partial:
            self.encode(prediction).save(partial, format="PNG")
        size = self.layout.clips.image_size
        shape = (prediction.shape[0], prediction.shape[1])
        merged = segmentation.merge_windows(squares.float(), size, shape)
        image = merged.round().to(torch.uint8).permute(1, 2, 0).numpy()
        small = prediction[segmentation.nearest_pixels(shape, (image.shape[0], image.shape[1]))]
        with atomic_write(self.folder / self.overlay_file(file, time_s)) as partial:
            Image.fromarray(self.paint(small, image)).save(partial, format="JPEG", quality=_JPEG_QUALITY)

    def map_file(self, file: SourceFile, time_s: float) -> PurePosixPath:
        """The file of a map, relative to the folder of the tables."""
        return _file(self.kind, file, time_s, ".png")

    def overlay_file(self, file: SourceFile, time_s: float) -> PurePosixPath:
        """The file of a painted map, relative to the folder of the tables."""
        return _file(PICTURES, file, time_s, ".jpg")

    def discard(self, key: str) -> None:
        """Remove the maps of a file or span."""
        self.pending.pop(key, None)
        for kind in (self.kind, PICTURES):
            shutil.rmtree(self.folder / _file_folder(kind, key), ignore_errors=True)

    def write(self, files: Iterable[FileScores]) -> None:
        """Write `predictions.csv`, `predictions.parquet` and `summary.csv`, the means over the maps of each file."""
        map_column: tuple[str, Kind] = (f"{self.kind}_file", "text")
        fixed: list[tuple[str, Kind]] = [("path", "text"), ("start_s", "seconds"), ("start_frame", "count"), map_column]
        numbers: list[tuple[str, Kind]] = [(name, "number") for name in (*self.constants, *self.names)]
        ascii_only = self.ascii_paths and all(map(str.isascii, self.names))
        short: list[tuple[str, Kind]] = [("path", "text"), ("maps", "count"), map_column, *numbers]
        constants = tuple(self.constants.values())
        with (
            self.table_writer(PREDICTIONS, [*fixed, ("overlay_file", "text"), *numbers], ascii_only) as table,
            self.table_writer(SUMMARY, short, ascii_only, parquet=False) as summary,
        ):
            for item in files:
                file, times = item.file, []
                total = np.zeros(len(self.names))
                for time_s, values in self._maps(item):
                    files_of = (str(self.map_file(file, time_s)), str(self.overlay_file(file, time_s)))
                    second = time_s if file.duration_s > 0 and not file.pages else None
                    table.add((file.path, second, file.page_at(time_s), *files_of, *constants, *values.tolist()))
                    times.append(time_s)
                    total += values
                if times:
                    whole = self._write_pages(file, times) if len(times) == file.pages else ""
                    summary.add((file.key, len(times), whole, *constants, *(total / len(times)).tolist()))
        self.counts = {"maps": table.rows, **self.counts}

    def _maps(self, item: FileScores) -> Iterator[tuple[float, NDArray[np.float32]]]:
        """Time and summary of each map; of a page that several time steps show, of the first."""
        before = None
        for rows in item.rows:
            for time_s, values in zip(rows.start_s.tolist(), rows.scores, strict=True):
                page = item.file.page_at(time_s)
                if page is None or page != before:
                    yield time_s, values
                before = page

    def _write_pages(self, file: SourceFile, times: Sequence[float]) -> str:
        """Write the maps of all pages of a stack as one TIFF file; gives its place in the folder of the tables."""
        name = _file_folder(self.kind, file.key) / f"{_stem(file.key)}.tif"
        with atomic_write(self.folder / name) as partial, TiffImagePlugin.AppendingTiffWriter(partial, True) as pages:
            for time_s in times:
                with Image.open(self.folder / self.map_file(file, time_s)) as page:
                    page.save(pages, format="TIFF", compression="tiff_deflate")
                pages.newFrame()
        return str(name)

    def media_predictions(self, item: FileScores) -> MediaPredictions:
        """The painted maps of a file."""
        file = item.file
        overlays = [
            Overlay(
                time_s=time_s,
                image=self.folder / self.overlay_file(file, time_s),
                caption=f"page {file.page_at(time_s)}: " * bool(file.pages) + self.caption(values),
            )
            for time_s, values in self._maps(item)
        ]
        return MediaPredictions(path=file.path, duration_s=file.video_s, overlays=overlays)


def _file(kind: str, file: SourceFile, time_s: float, suffix: str) -> PurePosixPath:
    name = f"{time_s:010.3f}" if file.duration_s > 0 else "image"
    if (page := file.page_at(time_s)) is not None:
        name = f"page-{page:06d}"
    return _file_folder(kind, file.key) / f"{name}{suffix}"


def _stem(key: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", PurePosixPath(key).stem)[:60]


def _file_folder(kind: str, key: str) -> PurePosixPath:
    """The folder of the maps of a media file or span, relative to that of the tables."""
    return PurePosixPath(kind) / f"{_stem(key)}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
