"""Clips of a collection, decoded by worker processes into batches of one shape."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from tubelet.checkpoint.native_clip import NativeClip
from tubelet.config import EmbedConfig, ModelConfig
from tubelet.data.clips import causal_times, repeats_frames, resize_center_crop, window_times
from tubelet.data.decode import VideoInfo
from tubelet.data.model_frames import is_outside_window, open_frames, read_still
from tubelet.data.part_table import span_columns
from tubelet.data.prefetch import prefetching_loader
from tubelet.data.sample_index import SampleIndex, build_index
from tubelet.data.sources import MediaList
from tubelet.data.storage import StorageError
from tubelet.data.worker_loader import WorkerLoader
from tubelet.data.worker_status import WorkerStatus
from tubelet.embed.table import FileProgress
from tubelet.errors import BadFile, DecodeError, escape_filename
from tubelet.grid import Modality


@dataclass(frozen=True)
class EmbedBatch:
    """Clips of one modality, and the state of their files.

    Attributes:
        pixels: (B, C, T, S, S) uint8 colors, or normalized floats; None if there is nothing to encode.
        rows: for each clip key (of the file or span), path, modality, size_bytes and changed_s (the version of the
            file), clip_index (in the file or span), clips (their number there), times (T,) in seconds of the file, or
            those of the last time step where features are causal, span_start_s and span_end_s; of a video's first clip
            also short, whether it is too short for the rate of the clips, and repeating, whether its own rate is lower;
            of a file's first clip outside, whether nearly all values are outside of the model's window.
        ended: number of files that were read to their end or are bad.
        bad: files among them that could not be read to their end.
        failure: error that ends reading, if any.
    """

    pixels: Tensor | None
    rows: list[dict[str, Any]]
    ended: int
    bad: list[BadFile]
    failure: str | None = None


class CollectionClips(IterableDataset[EmbedBatch]):
    """All clips of a collection that a table lacks; each worker reads its share of the files.

    Attributes:
        samples: modality -> indices (F,) of incomplete files.
        changed: keys of files and spans with rows of an earlier version of the file.
        gone: keys of files and spans in the table that are no longer in the collection and whose files do not exist.
        clip: size, length and rate of the clips.
        entry: "file" or "span".
    """

    def __init__(
        self,
        media: MediaList,
        clip: NativeClip,
        config: EmbedConfig,
        model: ModelConfig,
        done: Mapping[str, FileProgress],
    ) -> None:
        self.clip, self.config, self.model, self.entry = clip, config, model, media.entry
        self.indices = {modality: build_index(media, modality) for modality in Modality}
        self.status = WorkerStatus(config.workers)
        self.done: dict[str, set[int]] = {}
        self.changed: set[str] = set()
        self.samples: dict[Modality, np.ndarray] = {}
        for modality, index in self.indices.items():
            undone = np.ones(len(index), bool)
            for sample in range(len(index) if done else 0):
                key = escape_filename(index.key(sample))
                before = done.get(key)
                if before is not None:
                    version = index.version(sample)
                    if version is not None and before.versions != {version}:
                        self.changed.add(key)
                    elif before.complete:
                        undone[sample] = False
                    else:
                        self.done[key] = before.clip_indices
            self.samples[modality] = np.flatnonzero(undone)
        done_names = {escape_filename(i.key(n)) for i in self.indices.values() for n in range(len(i) if done else 0)}
        self.gone = {key for key, file in done.items() if key not in done_names and file.is_gone()}

    def remaining(self) -> int:
        """Number of incomplete files."""
        return sum(map(len, self.samples.values()))

    def _share(self, first: int, step: int) -> Iterator[tuple[Modality, int]]:
        """Every `step`-th file from `first` on, of all modalities as one list."""
        for modality, samples in self.samples.items():
            yield from ((modality, int(sample)) for sample in samples[first::step])
            first = (first - len(samples)) % step

    def __iter__(self) -> Iterator[EmbedBatch]:
        """Batches of clips, videos first."""
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        pixels: list[Tensor] = []
        rows: list[dict[str, Any]] = []
        bad: list[BadFile] = []
        ended = 0
        for modality, sample in self._share(first, step):
            if rows and rows[0]["modality"] != modality:
                yield EmbedBatch(torch.stack(pixels), rows, ended, bad)
                pixels, rows, ended, bad = [], [], 0, []
            index = self.indices[modality]
            try:
                with self.status.track(worker.id if worker else None, index.name(sample)):
                    for clip, row in self._clips(index, modality, sample):
                        pixels.append(clip)
                        rows.append(row)
                        if len(rows) == self.config.batch_size:
                            yield EmbedBatch(torch.stack(pixels), rows, ended, bad)
                            pixels, rows, ended, bad = [], [], 0, []
            except DecodeError as error:
                bad.append(BadFile(error.path if index.span(sample) is None else index.key(sample), error.reason))
            except StorageError as error:  # keeps the clips read before it
                yield EmbedBatch(torch.stack(pixels) if pixels else None, rows, ended, bad, str(error))
                return
            ended += 1
        yield EmbedBatch(torch.stack(pixels) if pixels else None, rows, ended, bad)

    def _clips(self, index: SampleIndex, modality: Modality, sample: int) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Missing clips of one file, and their rows."""
        version = index.version(sample)  # before reading: a change in the meantime is detected by the next call
        source = index.read(sample)
        key, size = escape_filename(index.key(sample)), self.clip.image_size
        size_bytes, changed_s = version or (0, 0.0)  # None if removed after it was opened
        shared: dict[str, Any] = {"key": key, "path": escape_filename(index.name(sample)), "modality": str(modality)}
        shared |= {"size_bytes": size_bytes, "changed_s": changed_s, **span_columns(index.span(sample))}
        if modality is Modality.IMAGE:
            pixels = resize_center_crop(read_still(source.media, self.model.pixels).unsqueeze(0), size)
            outside = is_outside_window(pixels, self.model.pixels)
            yield pixels, shared | {"clip_index": 0, "clips": 1, "times": np.zeros(1), "outside": outside}
            return
        with open_frames(source.media, self.model.pixels, self.clip.fps) as video:
            info = source.limit(video.info)
            times, is_short = self._times(info)
            missing = [clip for clip in range(len(times)) if clip not in self.done.get(key, ())]
            chosen = [source.start_s + times[clip] for clip in missing]
            for clip, seconds, frames in zip(missing, chosen, video.stream(chosen), strict=True):
                row_times = seconds[-self.model.tubelet_size :] if self.config.causal else seconds
                row = shared | {"clip_index": clip, "clips": len(times), "times": row_times}
                pixels = resize_center_crop(frames.pixels, size)
                if clip == 0:
                    row |= {"short": is_short, "repeating": repeats_frames(info, self.clip.fps)}
                    row |= {"outside": is_outside_window(pixels, self.model.pixels)}
                yield pixels, row

    def _times(self, info: VideoInfo) -> tuple[list[np.ndarray], bool]:
        """The times of the clips of a video, and whether it is too short for the rate."""
        clip, stride_s = self.clip, self.config.stride_s
        if self.config.causal:
            return causal_times(info, clip.frames, clip.fps, self.model.tubelet_size, stride_s), False
        return window_times(info, clip.frames, clip.fps, stride_s)


def clip_loader(clips: CollectionClips) -> WorkerLoader[EmbedBatch]:
    """Prefetching loader of batches, see `EmbedConfig.prefetch_mb`.

    Raises:
        TubeletError: shared memory is too small for the batches of the workers.
    """
    config = clips.config
    count, frames = config.batch_size, clips.clip.frames
    if not len(clips.samples[Modality.VIDEO]):
        count, frames = min(count, clips.remaining()), 1
    batch_bytes = count * clips.model.clip_bytes(frames, clips.clip.image_size)
    workers = min(config.workers, clips.remaining())
    return prefetching_loader(clips, clips.status, config.prefetch_mb, "the clips of a batch", batch_bytes, workers)
