"""The clips of a collection, decoded by worker processes into batches of one size."""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from tubelet.config import EmbedConfig
from tubelet.data.clips import resize_centre_crop, window_times
from tubelet.data.decode import Video
from tubelet.data.images import read_image
from tubelet.data.prefetch import prefetch_within
from tubelet.data.sample_index import SampleIndex, build_index
from tubelet.data.sources import MediaList
from tubelet.data.storage import StorageError
from tubelet.data.worker_loader import WorkerLoader
from tubelet.data.worker_status import WorkerStatus
from tubelet.embed.table import Done
from tubelet.errors import BadFile, DecodeError, escape_filename
from tubelet.grid import Modality


@dataclass(frozen=True)
class ClipBatch:
    """Clips of one modality, or what happened to a file.

    Attributes:
        pixels: (B, 3, T, S, S) uint8; None if there is nothing to encode.
        rows: path, modality, size_bytes and changed_s (which version of the file it is), clip (its number in the file),
            clips (of the file) and times (T,) in seconds of each.
        ended: files that are through, whole or bad.
        short: how many of `ended` are videos too short for the rate that was asked for.
        bad: the files among them that could not be read to their end.
        failure: why nothing more can be read, if so.
    """

    pixels: Tensor | None
    rows: list[dict[str, Any]]
    ended: int
    short: int
    bad: list[BadFile]
    failure: str | None = None


class CollectionClips(IterableDataset[ClipBatch]):
    """Every clip of a collection that is not done; each worker takes its share of the files.

    Attributes:
        samples: modality -> numbers (F,) of the files that are not done.
        changed: paths of files whose rows were made of an older version.
    """

    def __init__(self, media: MediaList, config: EmbedConfig, done: Mapping[str, Done]) -> None:
        self.config = config
        self.indices = {modality: build_index(media, modality) for modality in Modality}
        self.status = WorkerStatus(config.workers)
        self.done: dict[str, set[int]] = {}
        self.changed: set[str] = set()
        self.samples: dict[Modality, np.ndarray] = {}
        for modality, index in self.indices.items():
            undone = np.ones(len(index), bool)
            for sample in range(len(index) if done else 0):
                path = escape_filename(index.name(sample))
                before = done.get(path)
                if before is not None:
                    version = version_of(index, sample)
                    if version is not None and before.versions != {version}:
                        self.changed.add(path)
                    elif before.whole:
                        undone[sample] = False
                    else:
                        self.done[path] = before.found
            self.samples[modality] = np.flatnonzero(undone)

    def left(self) -> int:
        """How many files are not done."""
        return sum(map(len, self.samples.values()))

    def _share(self, first: int, step: int) -> Iterator[tuple[Modality, int]]:
        """Every `step`-th file from `first` on, of all modalities as one list."""
        for modality, samples in self.samples.items():
            yield from ((modality, int(sample)) for sample in samples[first::step])
            first = (first - len(samples)) % step

    def __iter__(self) -> Iterator[ClipBatch]:
        """Batches of clips, videos first."""
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        pixels: list[Tensor] = []
        rows: list[dict[str, Any]] = []
        bad: list[BadFile] = []
        ended = short = 0
        for modality, sample in self._share(first, step):
            if rows and rows[0]["modality"] != modality:
                yield ClipBatch(torch.stack(pixels), rows, ended, short, bad)
                pixels, rows, ended, short, bad = [], [], 0, 0, []
            index = self.indices[modality]
            try:
                with self.status.track(worker.id if worker else None, index.name(sample)):
                    for clip, row, is_short in self._clips(index, modality, sample):
                        pixels.append(clip)
                        rows.append(row)
                        short += is_short and row["clip"] == 0
                        if len(rows) == self.config.batch_size:
                            yield ClipBatch(torch.stack(pixels), rows, ended, short, bad)
                            pixels, rows, ended, short, bad = [], [], 0, 0, []
            except DecodeError as error:
                bad.append(BadFile(error.path, error.reason))
            except StorageError as error:  # what was read before it is kept
                yield ClipBatch(torch.stack(pixels) if pixels else None, rows, ended, short, bad, str(error))
                return
            ended += 1
        yield ClipBatch(torch.stack(pixels) if pixels else None, rows, ended, short, bad)

    def _clips(
        self, index: SampleIndex, modality: Modality, sample: int
    ) -> Iterator[tuple[Tensor, dict[str, Any], bool]]:
        """The clips of one file that are not done, with their rows, and whether the video is too short for one."""
        version = version_of(index, sample)  # before it is read: what is changed in the meantime is found out next time
        media, shown_s = index.read(sample)
        path, size = escape_filename(index.name(sample)), self.config.image_size
        size_bytes, changed_s = version or (0, 0.0)  # gone in between: reading it has said so, or was in time
        about = {"path": path, "modality": str(modality), "size_bytes": size_bytes, "changed_s": changed_s}
        if modality is Modality.IMAGE:
            pixels = resize_centre_crop(read_image(media).unsqueeze(0), size)
            yield pixels, about | {"clip": 0, "clips": 1, "times": np.zeros(1)}, False
            return
        with Video(media) as video:
            info = replace(video.info, duration_s=shown_s or video.info.duration_s)
            times, is_short = window_times(info, self.config.frames, self.config.fps, self.config.stride_s)
            missing = [clip for clip in range(len(times)) if clip not in self.done.get(path, ())]
            for clip, frames in zip(missing, video.stream([times[clip] for clip in missing]), strict=True):
                row = about | {"clip": clip, "clips": len(times), "times": times[clip]}
                yield resize_centre_crop(frames.pixels, size), row, is_short


def version_of(index: SampleIndex, sample: int) -> tuple[int, float] | None:
    """Size of a file in bytes and when it was last changed, in seconds since 1970; None if it is not there.

    A member of a shard has no time of its own; what stands in its place is its checksum.
    """
    if member := index.member(sample):
        folder, place = member
        return int(folder.members["size"][place]), float(folder.members["crc32"][place])
    try:
        status = Path(index.files[sample]).stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime


def clip_loader(clips: CollectionClips) -> WorkerLoader[ClipBatch]:
    """Batches, decoded ahead of need, see `EmbedConfig.prefetch_mb`.

    Raises:
        TubeletError: there is no room for what the workers hand over.
    """
    config = clips.config
    count, frames = config.batch_size, config.frames
    if not len(clips.samples[Modality.VIDEO]):
        count, frames = min(count, clips.left()), 1
    batch_bytes = count * 3 * frames * config.image_size**2
    workers = min(config.workers, clips.left())
    ahead = prefetch_within(config.prefetch_mb, "the clips of a batch", batch_bytes, workers)
    if ahead.note:
        warnings.warn(ahead.note, stacklevel=2)
    return WorkerLoader(
        clips,
        ahead.workers,
        status=clips.status,
        item_bytes=batch_bytes,
        prefetch=ahead.factor,
        batch_size=None,
    )
