"""Windows of a collection, decoded by worker processes into batches of fixed composition.

Rounding differs from batch to batch of another size, so tables are equal to the byte after an interruption only if each
window is in the same batch as before. The windows of a video that fill a batch are in batches of their own. Shorter
files share batches within a group of consecutive files, and are read again together if one of them is missing.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from tubelet.config import ModelConfig, PredictConfig
from tubelet.data.batch import MediaBytes
from tubelet.data.containers import Media
from tubelet.data.model_frames import FrameReader, is_outside_window, open_frames, read_still
from tubelet.data.prefetch import prefetching_loader
from tubelet.data.sample_index import SampleIndex, build_index
from tubelet.data.sources import MediaList
from tubelet.data.stacks import is_stack
from tubelet.data.storage import StorageError
from tubelet.data.worker_loader import WorkerLoader
from tubelet.data.worker_status import WorkerStatus
from tubelet.errors import BadFile, DecodeError, escape_filename
from tubelet.grid import Modality
from tubelet.heads.window_grid import Window
from tubelet.prediction.layout import WindowLayout
from tubelet.prediction.outputs.base import FileWindow, FrameSquare, SourceFile
from tubelet.tasks.segmentation import image_windows


@dataclass(frozen=True, kw_only=True)
class DoneFile:
    """A file or span whose scores are in the table.

    Attributes:
        version: size in bytes and modification time in seconds of the file when they were computed.
        windows: number of its windows.
    """

    version: tuple[int, float]
    windows: int


@dataclass
class WindowBatch:
    """Windows of one modality, and the files that ended.

    Attributes:
        pixels: (B, V, C, T, S, S) uint8 colors, or normalized floats, with V the `views` of the clips; None if there is
            nothing to encode.
        windows: the B windows.
        ended: number of files that were read to their end or are bad.
        bad: files among them that could not be read to their end.
        failure: error that ends reading, if any.
    """

    pixels: Tensor | None
    windows: list[FileWindow]
    ended: int = 0
    bad: list[BadFile] = field(default_factory=list)
    failure: str | None = None


class CollectionWindows(IterableDataset[WindowBatch]):
    """The windows of all files of a collection that a table lacks; each worker reads its share of the groups.

    Attributes:
        stale: keys of files and spans whose rows in the table are to be replaced.
        changed: those of them that changed since.
        pending: for each modality, indices of the files to read, group by group.
    """

    def __init__(
        self,
        media: MediaList,
        layout: WindowLayout,
        config: PredictConfig,
        model: ModelConfig,
        done: Mapping[str, DoneFile],
    ) -> None:
        self.layout, self.config, self.model = layout, config, model
        self.status = WorkerStatus(config.workers)
        self.indices = {modality: build_index(media, modality) for modality in layout.modalities}
        self.stale: set[str] = set()
        self.changed: set[str] = set()
        self.pending: dict[Modality, list[list[int]]] = {
            modality: list(self._groups(index, done)) for modality, index in self.indices.items()
        }

    def _groups(self, index: SampleIndex, done: Mapping[str, DoneFile]) -> Iterator[list[int]]:
        """The files to read of each group that lacks some."""
        size = self.config.batch_size
        for first in range(0, len(index), size):
            group = range(first, min(first + size, len(index)))
            files = {sample: done.get(self._key(index, sample)) for sample in group} if done else {}
            changed = {
                sample
                for sample, file in files.items()
                if file is not None and (version := index.version(sample)) is not None and version != file.version
            }
            self.changed |= {self._key(index, sample) for sample in changed}
            missing = {sample for sample in group if files.get(sample) is None} | changed
            if missing:
                short = {sample for sample, file in files.items() if file is not None and file.windows < size}
                chosen = sorted(missing | short)
                self.stale |= {self._key(index, sample) for sample in chosen if files.get(sample) is not None}
                yield chosen

    @staticmethod
    def _key(index: SampleIndex, sample: int) -> str:
        return escape_filename(index.key(sample))

    def remaining(self) -> int:
        """Number of files to read."""
        return sum(len(group) for groups in self.pending.values() for group in groups)

    def __iter__(self) -> Iterator[WindowBatch]:
        """Batches of windows, videos first; those of a file in order."""
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for modality, groups in self.pending.items():
            for group in groups[first::step]:
                for batch in self._read_group(modality, group, worker.id if worker else None):
                    yield batch
                    if batch.failure is not None:
                        return
            first = (first - len(groups)) % step

    def _read_group(self, modality: Modality, group: Sequence[int], worker: int | None) -> Iterator[WindowBatch]:
        index, size = self.indices[modality], self.config.batch_size
        shared = _Batcher(size)
        for sample in group:
            try:
                with self.status.track(worker, index.name(sample)):
                    windows = self._windows(index, modality, sample)
                    file, pixels = next(windows)
                    file = replace(file, outside=is_outside_window(pixels, self.model.pixels))
                    if file.file.windows < size:
                        # Read to its end before it joins others, which must not depend on whether that succeeds.
                        yield from shared.add([(file, pixels), *windows])
                        shared.ended += 1
                    else:
                        batcher = _Batcher(size)
                        yield from batcher.add([(file, pixels)])
                        for each in windows:
                            yield from batcher.add([each])
                        batcher.ended = 1
                        yield batcher.flush()
            except DecodeError as error:
                name = error.path if index.span(sample) is None else index.key(sample)
                shared.bad.append(BadFile(name, error.reason))
                shared.ended += 1
            except StorageError as error:  # keeps what was read before it
                last = shared.flush()
                last.failure = str(error)
                yield last
                return
        yield shared.flush()

    def _windows(self, index: SampleIndex, modality: Modality, sample: int) -> Iterator[tuple[FileWindow, Tensor]]:
        """The windows of one file, and their pixels (V, C, T, S, S)."""
        version = index.version(sample)  # before reading: a change in the meantime is detected by the next call
        source = index.read(sample)
        size_bytes, changed_s = version or (0, 0.0)  # None if removed after it was opened
        file = SourceFile(
            path=escape_filename(index.name(sample)),
            modality=modality,
            size_bytes=size_bytes,
            changed_s=changed_s,
            duration_s=0.0,
            windows=1,
            span=index.span(sample),
        )
        if modality is Modality.IMAGE:
            image = read_still(source.media, self.model.pixels)
            if self.layout.whole:
                yield from _squares(image, self.layout, file, [(None, False)])
            else:
                pixels = self.layout.clips.crop_views(image.unsqueeze(0))
                yield FileWindow(file=file, number=0, window=None), pixels
            return
        with open_frames(source.media, self.model.pixels, self.layout.clips.fps) as video:
            duration_s = source.limit(video.info).duration_s
            video_s = duration_s if file.span is None else video.info.duration_s
            pages = (video.info.frames or 0) if _is_stack(source.media) else 0
            file = replace(file, duration_s=duration_s, video_s=video_s, pages=pages)
            if self.layout.whole:
                yield from _video_squares(video, self.layout, file)
                return
            file = replace(file, windows=self.layout.count(duration_s))
            decoded = decode_windows(video, self.layout, duration_s, file.start_s)
            for number, (window, stretched, pixels) in enumerate(decoded):
                yield FileWindow(file=file, number=number, window=window, stretched=stretched), pixels


def _is_stack(media: Media) -> bool:
    return not isinstance(media, MediaBytes) and is_stack(media)


class _Batcher:
    """Windows on their way into batches, and the files that ended among them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.items: deque[tuple[FileWindow, Tensor]] = deque()
        self.ended = 0
        self.bad: list[BadFile] = []

    def add(self, items: Collection[tuple[FileWindow, Tensor]]) -> Iterator[WindowBatch]:
        """Take windows; gives the batches that are full."""
        self.items.extend(items)
        while len(self.items) >= self.size:
            yield self._batch(self.size)

    def flush(self) -> WindowBatch:
        """What is left."""
        return self._batch(len(self.items))

    def _batch(self, count: int) -> WindowBatch:
        items = [self.items.popleft() for _ in range(count)]
        pixels = torch.stack([pixels for _, pixels in items]) if items else None
        batch = WindowBatch(pixels, [window for window, _ in items], self.ended, self.bad)
        self.ended, self.bad = 0, []
        return batch


def decode_windows(
    video: FrameReader, layout: WindowLayout, duration_s: float, start_s: float = 0.0
) -> Iterator[tuple[Window, bool, Tensor]]:
    """Decode the windows of a video or span in one pass, each frame once, with the frames of one window in memory.

    Args:
        video: the video.
        layout: how it is covered.
        duration_s: seconds of the video or span.
        start_s: start of the span in seconds of the video.

    Yields:
        Each window, whose times are from the start of the span; whether it is a short video at a higher rate; and its
        pixels (V, C, T, S, S).

    Raises:
        DecodeError: the video cannot be read to its end.
    """
    times = layout.times(duration_s)
    windows = layout.windows(duration_s)
    upcoming = next(windows, None)
    buffer: deque[Tensor] = deque()  # the crops at times[end - len(buffer) : end]
    end = 0
    for image, _, repeats in video.scan(times + start_s):
        crop = layout.clips.crop_views(torch.from_numpy(np.ascontiguousarray(image)).unsqueeze(0))
        buffer.extend([crop] * repeats)
        end += repeats
        while upcoming is not None and upcoming[0].times[-1] <= times[end - 1]:
            window, stretched = upcoming
            indices = np.searchsorted(times, window.times) - (end - len(buffer))
            yield window, stretched, torch.cat([buffer[index] for index in indices], dim=2)
            upcoming = next(windows, None)
            while upcoming is not None and buffer and times[end - len(buffer)] < upcoming[0].times[0]:
                buffer.popleft()


def _video_squares(video: FrameReader, layout: WindowLayout, file: SourceFile) -> Iterator[tuple[FileWindow, Tensor]]:
    """The squares (1, C, 1, S, S) of all frames of a video that are seen whole, with one frame in memory.

    Raises:
        DecodeError: the video cannot be read to its end.
    """
    times = layout.times(file.duration_s)
    windows = layout.windows(file.duration_s)
    file = replace(file, windows=len(times))
    done = 0
    for image, _, repeats in video.scan(times + file.start_s):
        repeated = list(islice(windows, repeats))
        yield from _squares(torch.from_numpy(np.ascontiguousarray(image)), layout, file, repeated, done)
        done += repeats


def _squares(
    image: Tensor,
    layout: WindowLayout,
    file: SourceFile,
    windows: Sequence[tuple[Window | None, bool]],
    first: int = 0,
) -> Iterator[tuple[FileWindow, Tensor]]:
    """The squares (1, C, 1, S, S) of a frame (H, W, C), for each window that shows it.

    Args:
        image: the frame.
        layout: how it is covered.
        file: its file, of which `windows` is still the number of frames.
        windows: the windows that show the frame, and whether each is a short video at a higher rate.
        first: number of frames before it.
    """
    squares = image_windows(image, layout.clips.image_size)
    file = replace(file, windows=file.windows * len(squares))
    for frame, (window, stretched) in enumerate(windows, first):
        for number, pixels in enumerate(squares):
            square = FrameSquare(number=number, count=len(squares), shape=(image.shape[0], image.shape[1]))
            yield (
                FileWindow(
                    file=file, number=frame * len(squares) + number, window=window, stretched=stretched, square=square
                ),
                pixels.unsqueeze(0),
            )


def window_loader(windows: CollectionWindows) -> WorkerLoader[WindowBatch]:
    """Prefetching loader of batches, see `PredictConfig.prefetch_mb`.

    Raises:
        TubeletError: shared memory is too small for the batches of the workers.
    """
    config, clips = windows.config, windows.layout.clips
    batch_bytes = config.batch_size * clips.views * windows.model.clip_bytes(clips.frames, clips.image_size)
    workers = min(config.workers, sum(map(len, windows.pending.values())))
    return prefetching_loader(windows, windows.status, config.prefetch_mb, "the clips of a batch", batch_bytes, workers)
