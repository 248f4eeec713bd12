"""An index of all samples of one modality: plain files, spans of files, and members of shards."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import fsum
from pathlib import Path

import numpy as np

from tubelet.config import DataConfig
from tubelet.data.containers import Media
from tubelet.data.listed_rows import ListedRows, span_name
from tubelet.data.shards.reader import ShardFolder
from tubelet.data.sources import MediaList
from tubelet.data.stacks.listing import stored_files
from tubelet.data.video.reader import VideoInfo
from tubelet.errors import ConfigError, DecodeError
from tubelet.grid import Modality

# Seconds by which a listed end may be after that of the video: tables are written with two decimals, and the last frame
# of a video may be shown for a moment longer than its header says.
_ROUNDING_S = 0.05


@dataclass(frozen=True)
class Sample:
    """A video or image, or a span of a video.

    Attributes:
        media: path, or the bytes of a member of a shard.
        start_s: start of the span in seconds of the file.
        end_s: end of the span; None for the end of the file.
        place: list and line that the span is from; empty for whole files and members of shards.
    """

    media: Media
    start_s: float = 0.0
    end_s: float | None = None
    place: str = ""

    def limit(self, info: VideoInfo) -> VideoInfo:
        """Properties of the span, from those of the file.

        Raises:
            DecodeError: a listed span is not within the video.
        """
        end_s = info.duration_s if self.end_s is None else self.end_s
        if self.place:
            last, fault = info.duration_s, ""
            if end_s > last + _ROUNDING_S:
                fault = f"end_s is {end_s:g}, after the end of the video at {last:.3f} s"
            elif self.start_s >= min(end_s, last):
                fault = f"start_s is {self.start_s:g}, not before the end of the video at {last:.3f} s"
            if fault:
                raise DecodeError(info.path, f"{self.place}: {fault}; correct the line")
            end_s = min(end_s, last)
        return replace(info, duration_s=end_s - self.start_s)


@dataclass(frozen=True)
class SampleIndex:
    """Samples numbered 0 to M - 1: first the files, then the members of each folder of shards.

    Attributes:
        files: paths.
        folders: folders of shards, each with the rows (P,) of its members of this modality.
        rows: spans and weights of the files; None without any.
    """

    files: Sequence[str]
    folders: list[tuple[ShardFolder, np.ndarray]]
    rows: ListedRows | None = None

    def __len__(self) -> int:
        return len(self.files) + sum(len(rows) for _, rows in self.folders)

    def shard_ids(self) -> np.ndarray:
        """(M,) shard of each sample, with one id for each plain file; computed in each call."""
        ids, first = [np.arange(len(self.files))], len(self.files)
        for folder, rows in self.folders:
            used, shard = np.unique(folder.members["shard"][rows], return_inverse=True)
            ids.append(first + shard)
            first += len(used)
        return np.concatenate(ids)

    def weights(self) -> np.ndarray | None:
        """(M,) sampling weights; None if all samples are drawn equally often."""
        listed = np.ones(len(self.files)) if self.rows is None else self.rows.weight.numpy()
        weights = np.concatenate([listed, *(folder.members["weight"][rows] for folder, rows in self.folders)])
        return None if (weights == weights[0]).all() else weights

    def span(self, sample: int) -> tuple[float, float | None] | None:
        """Start and end in seconds of a sample that is a span of a file; None for a whole file or member."""
        if self.rows is None or sample >= len(self.files) or self.rows.span(sample) == (0.0, None):
            return None
        return self.rows.span(sample)

    def name(self, sample: int) -> str:
        """The name of a sample in messages and lists of bad files."""
        member = self.member(sample)
        return self.files[sample] if member is None else member[0].title(member[1])

    def key(self, sample: int) -> str:
        """Unique key of a sample: its name, with the times of a span."""
        span = self.span(sample)
        return self.name(sample) if span is None else span_name(self.name(sample), *span)

    def read(self, sample: int) -> Sample:
        """A sample: the path of its file, or its bytes if it is a member of a shard.

        Raises:
            DecodeError: a member's bytes are corrupt.
            StorageError: its shard cannot be reached.
        """
        if (member := self.member(sample)) is None:
            if (span := self.span(sample)) is None or self.rows is None:
                return Sample(self.files[sample])
            return Sample(self.files[sample], *span, self.rows.place(sample))
        folder, row = member
        # The last frame of a segment may last longer than the segment.
        return Sample(folder.read(row), end_s=float(folder.members["duration_s"][row]) or None)

    def version(self, sample: int) -> tuple[int, float] | None:
        """Size of a file in bytes and its modification time in seconds since 1970; None if it does not exist.

        A member of a shard has no modification time; its checksum takes the place. See `version_of` for stacks.
        """
        if member := self.member(sample):
            folder, place = member
            return int(folder.members["size"][place]), float(folder.members["crc32"][place])
        return version_of(self.files[sample])

    def member(self, sample: int) -> tuple[ShardFolder, int] | None:
        """The shards that have a sample and its row among their members; None for a plain file."""
        if sample < len(self.files):
            return None
        sample -= len(self.files)
        for folder, rows in self.folders:
            if sample < len(rows):
                return folder, int(rows[sample])
            sample -= len(rows)
        raise IndexError(f"no sample {sample}")


def version_of(path: str) -> tuple[int, float] | None:
    """Size of a file in bytes and its modification time; None if it does not exist.

    Of a Zarr array and of a series of DICOM slices, the sum of the sizes and the mean of the times of all files, which
    changes with any of them.
    """
    try:
        status = [each.stat() for each in stored_files(Path(path))]
    except OSError:
        return None
    return sum(each.st_size for each in status), fsum(each.st_mtime for each in status) / len(status)


def build_index(media: MediaList, modality: Modality) -> SampleIndex:
    """The samples of a modality in all sources."""
    image = modality is Modality.IMAGE
    files = media.images if image else media.videos
    folders = [(folder, np.flatnonzero(folder.members["image"] == image)) for folder in media.shards]
    return SampleIndex(files, folders, media.rows(modality))


def check_shard_configs(media: MediaList, data: DataConfig) -> None:
    """Refuse shards whose videos or images are smaller, shorter or sparser than a run needs.

    Raises:
        ConfigError: a folder of shards does not fit; the message says what to change.
    """
    span_s = data.frames / data.fps
    for folder in media.shards:
        made, videos = folder.config, not folder.members["image"].all() and data.frames > 1
        fault = ""
        if videos and data.fps > made.fps:
            fault = f"--fps {data.fps:g} is more than the {made.fps:g} frames per second of these shards; "
            fault += f"lower it, or shard the sources again with --fps {data.fps:g}"
        elif videos and span_s > made.segment_s:
            fault = f"--frames {data.frames} at --fps {data.fps:g} span {span_s:g} s, more than the "
            fault += (
                f"{made.segment_s:g} s segments of these shards; shard the sources again with --segment-s {span_s:g}"
            )
        elif data.image_size > made.size:
            fault = f"--image-size {data.image_size} is more than the {made.size} pixels of these shards; "
            fault += f"lower it, or shard the sources again with --size {data.image_size}"
        if fault:
            raise ConfigError(f"{folder.root}: {fault}")
