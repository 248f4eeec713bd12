"""What the media of a label table say about its rows: lengths, sizes, times of frames, and the values of masks."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tubelet.data.decode import Video
from tubelet.data.process_map import process_map, track_file
from tubelet.data.stacks import is_image_file
from tubelet.datasets.annotations import image_shape
from tubelet.errors import DecodeError, TubeletError
from tubelet.labels.depth_maps import read_depth
from tubelet.labels.masks import read_mask
from tubelet.labels.records import LabelRow, LabelTable, MaskShapes

_ROWS_OF_JOB = 64


@dataclass(frozen=True)
class MaskFacts:
    """What is known about the mask or depth map of a row.

    Attributes:
        size: height and width in pixels; None if it cannot be read.
        values: class index -> number of pixels; empty for depth maps.
        fault: why it cannot be read; empty if it can.
    """

    size: tuple[int, int] | None = None
    values: Mapping[int, int] = field(default_factory=dict)
    fault: str = ""


@dataclass(frozen=True)
class MediaFacts:
    """What is known about a media file.

    Attributes:
        duration_s: seconds of a video; 0 for an image.
        size: height and width of the displayed image in pixels.
        frames: number of frames; 0 where no row counts frames.
        frame_s: frame number -> second at which it begins, of the frames that rows name.
        masks: row number -> what its mask or depth map has.
        fault: why the file cannot be used; empty if it can.
        missing: whether there is no such file.
    """

    duration_s: float = 0.0
    size: tuple[int, int] = (0, 0)
    frames: int = 0
    frame_s: Mapping[int, float] = field(default_factory=dict)
    masks: Mapping[int, MaskFacts] = field(default_factory=dict)
    fault: str = ""
    missing: bool = False


@dataclass(frozen=True)
class MediaJob:
    """A media file and the rows about it, for a worker process.

    Attributes:
        path: the file.
        rows: number in the table and row, of those that count frames, or whose masks are examined.
    """

    path: Path
    rows: tuple[tuple[int, LabelRow], ...]


def read_media_facts(
    table: LabelTable,
    task: str | None,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[Path, MediaFacts]:
    """Open each media file once.

    Args:
        table: the table.
        task: masks and depth maps are examined for tasks that need them; None examines both.
        workers: number of processes; 1 for this one.
        progress: called with the number of files done and of all files.
    """
    rows: dict[Path, list[tuple[int, LabelRow]]] = defaultdict(list)
    for number, row in enumerate(table.rows):
        of_file = rows[row.path]
        counts_frames = row.start_frame is not None or row.end_frame is not None
        masked = (row.mask is not None and task in (None, "segmentation")) or (
            row.depth is not None and task in (None, "depth")
        )
        if counts_frames or masked:
            of_file.append((number, row))
    jobs = [MediaJob(path, tuple(of_file)) for path, of_file in rows.items()]
    facts_by_path: dict[Path, MediaFacts] = {}

    def collect(batch: Sequence[MediaJob], facts: Sequence[MediaFacts]) -> None:
        facts_by_path.update(zip((job.path for job in batch), facts, strict=True))
        progress(len(facts_by_path), len(jobs))

    batches = [jobs[first : first + _ROWS_OF_JOB] for first in range(0, len(jobs), _ROWS_OF_JOB)]
    process_map(_facts_of_all, batches, workers, collect, "check the file, and run the same command again")
    return facts_by_path


def _facts_of_all(jobs: Sequence[MediaJob]) -> list[MediaFacts]:
    return [_facts(job) for job in jobs]


def _facts(job: MediaJob) -> MediaFacts:
    """What one file has; what cannot be read is in its `fault`."""
    try:
        if not job.path.exists():
            return MediaFacts(fault="does not exist", missing=True)
    except OSError as error:  # such as a name that is too long
        return MediaFacts(fault=f"cannot be looked up ({error.strerror})", missing=True)
    masks = {number: _mask_facts(row) for number, row in job.rows if row.mask is not None or row.depth is not None}
    frames = sorted({f for _, row in job.rows for f in (row.start_frame, row.end_frame) if f is not None})
    try:
        with track_file(str(job.path)):
            if is_image_file(job.path):
                return MediaFacts(size=image_shape(job.path), masks=masks)
            with Video(str(job.path), full_depth=True) as video:  # a deep stack has no window to be shown by
                info = video.info
                times = video.frame_times() if frames else np.empty(0)
    except DecodeError as error:
        return MediaFacts(fault=error.reason)
    except TubeletError as error:
        return MediaFacts(fault=str(error))
    # The frame after the last one begins at the end of the video.
    begins = np.append(times, info.duration_s)
    frame_s = {f: float(begins[f]) for f in frames if f < len(begins)}
    return MediaFacts(info.duration_s, (info.height, info.width), len(times), frame_s, masks)


def _mask_facts(row: LabelRow) -> MaskFacts:
    try:
        if isinstance(row.mask, MaskShapes):
            indices = {shape.index: 1 for shape in row.mask.shapes}
            return MaskFacts(row.mask.size, {0: 1} | indices)
        if row.mask is not None:
            with track_file(str(row.mask)):
                mask = read_mask(row)
            counts = np.bincount(mask.ravel(), minlength=256)
            return MaskFacts((mask.shape[0], mask.shape[1]), {int(v): int(counts[v]) for v in np.flatnonzero(counts)})
        with track_file(str(row.depth)):
            depth = read_depth(row)
        return MaskFacts((depth.shape[0], depth.shape[1]))
    except TubeletError as error:
        return MaskFacts(fault=str(error))
