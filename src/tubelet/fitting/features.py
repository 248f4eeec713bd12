"""Features of labeled clips and videos, computed once and kept on disk.

M clips, V clips of a row, T time steps, S cells, D channels.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.config import PixelStatistics
from tubelet.data.clips import resize_center_crop
from tubelet.data.model_frames import open_frames, read_still
from tubelet.errors import BadFile, DataError
from tubelet.heads.head_file import HeadInput, reduce_tokens
from tubelet.heads.window_grid import count_steps, frame_times, iter_windows, row_windows
from tubelet.labels.records import LabelRow, LabelTable
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.extract import FeatureSet, Source

CHUNK_FRAMES = 64
"""Frames of a video that are decoded together."""
THUMBNAIL = 8
"""Side of the thumbnails in pixels."""
KEPT = ("tokens", "pixels", "motion")
"""Names of what is kept of clips, see `encode_tokens`."""
MEMORY_FRACTION = 0.4
"""Part of the free memory that features may take."""

Extract = Callable[..., FeatureSet]


@dataclass(frozen=True)
class ClipFeatures:
    """Tokens of the clips of rows, and which row each clip is of.

    Attributes:
        tokens: (M, T, S, D) float16.
        pixels: (M, T, P) float16, gray thumbnails of time steps, for a baseline.
        motion: (M, T, 1) float16, mean absolute difference of consecutive frames, for a baseline.
        owner: (M,) int64 index into `rows` of each clip, ascending.
        rows: the readable rows.
        bad_files: unreadable files, with the reasons.
    """

    tokens: Tensor
    pixels: Tensor
    motion: Tensor
    owner: Tensor
    rows: list[LabelRow]
    bad_files: list[BadFile]

    @property
    def pooled(self) -> Tensor:
        """(rows, D) float32, the mean over all clips, steps and cells of each row."""
        return mean_by_row(self.tokens.float().mean((1, 2)), self.owner)


@dataclass(frozen=True)
class VideoSteps:
    """Tokens of all time steps of a video.

    Attributes:
        path: the video.
        tokens: (T, S, D) float16.
        pixels: (T, P) float16, gray thumbnails, for a baseline.
        motion: (T, 1) float16, mean absolute difference of consecutive frames, for a baseline.
        duration_s: seconds of the video.
    """

    path: Path
    tokens: Tensor
    pixels: Tensor
    motion: Tensor
    duration_s: float


def mean_by_row(values: Tensor, owner: Tensor) -> Tensor:
    """Values (M, ...) of clips -> their means (rows, ...)."""
    counts = torch.bincount(owner)
    total = torch.zeros(len(counts), *values.shape[1:], dtype=values.dtype).index_add_(0, owner, values)
    return total / counts.view(-1, *[1] * (values.dim() - 1))


def span_of(row: LabelRow, table: LabelTable) -> tuple[float, float]:
    """Start and end in seconds of what a row is about: its span, or the whole file."""
    end_s = table.durations_s.get(row.path, 0.0) if row.end_s is None else row.end_s
    return row.start_s or 0.0, end_s


def read_row_clips(source: Source, head_input: HeadInput, statistics: PixelStatistics | None = None) -> Tensor:
    """The clips of a labeled span, (V, C, T, S, S); those of an image are the image.

    Args:
        source: the span.
        head_input: the clips.
        statistics: of the pixels of the model that takes them.

    Raises:
        DecodeError: the file cannot be read.
    """
    (path,), (start_s, end_s) = source.files, map(float, source.part)
    if head_input.frames == 1:
        return resize_center_crop(read_still(path, statistics).unsqueeze(0), head_input.image_size).unsqueeze(0)
    with open_frames(path, statistics, head_input.fps) as video:
        clips = video.clips(row_windows(start_s, end_s, video.info.duration_s, head_input))
    return torch.stack([resize_center_crop(clip.pixels, head_input.image_size) for clip in clips])


def read_chunk_windows(
    source: Source, head_input: HeadInput, tubelet: int, statistics: PixelStatistics | None = None
) -> Tensor:
    """Some windows of the grid over a video, (V, C, T, S, S); their frames are decoded once. See `read_row_clips`.

    Raises:
        DecodeError: the file cannot be read.
    """
    first, last, duration_s = int(source.part[0]), int(source.part[1]), float(source.part[2])
    windows = list(iter_windows(duration_s, head_input, tubelet))[first:last]
    frames = [window.start_step * tubelet for window in windows]
    count = frames[-1] + head_input.frames - frames[0]
    with open_frames(source.files[0], statistics, head_input.fps) as video:
        (clip,) = video.clips([frame_times(frames[0], count, duration_s, head_input.fps)])
    pixels = resize_center_crop(clip.pixels, head_input.image_size)  # (C, count, S, S)
    return torch.stack([pixels[:, frame - frames[0] :][:, : head_input.frames] for frame in frames])


def encode_tokens(model: Backbone, pixels: Tensor, head_input: HeadInput) -> dict[str, Tensor]:
    """Features of normalized clips (B, C, T, H, W) that are stored on disk.

    Returns:
        `tokens` (B, T, S, D) as a head takes them; and for baselines that see no features `pixels` (B, T, P), a gray
        thumbnail of each time step, and `motion` (B, T, 1), the mean absolute difference of consecutive frames.
    """
    tokens = reduce_tokens(model.dense_features(pixels), head_input)
    gray = pixels.float().mean(1)  # (B, frames, H, W)
    changes = (gray[:, 1:] - gray[:, :-1]).abs().mean((2, 3))
    changes = F.pad(changes, (1, 0), mode="replicate") if changes.shape[1] else gray.new_zeros(gray.shape[:2])
    steps = tokens.shape[1]
    thumbnails = F.adaptive_avg_pool3d(gray.unsqueeze(1), (steps, THUMBNAIL, THUMBNAIL))[:, 0]
    return {
        "tokens": tokens,
        "pixels": thumbnails.flatten(2),
        "motion": changes.unflatten(1, (steps, -1)).mean(2, keepdim=True),
    }


def extract_rows(
    extract: Extract,
    rows: Sequence[LabelRow],
    table: LabelTable,
    head_input: HeadInput,
    statistics: PixelStatistics | None = None,
) -> ClipFeatures:
    """Tokens of the clips of rows.

    Args:
        extract: `tubelet.tasks.common.extract.extract` with model and cache.
        rows: the rows.
        table: the table that they are of.
        head_input: the clips.
        statistics: of the pixels of the model.

    Raises:
        DataError: more features than fit in memory, or more unreadable files than allowed.
    """
    sources = [Source(files=(row.path,), part=tuple(round(end, 6) for end in span_of(row, table))) for row in rows]
    recipe = {"clips": "rows", **asdict(head_input)}
    features = extract(
        sources,
        recipe,
        partial(read_row_clips, head_input=head_input, statistics=statistics),
        partial(encode_tokens, head_input=head_input),
    )
    parts = _load(features)
    owner = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor([len(part["tokens"]) for part in parts]))
    tokens, pixels, motion = (torch.cat([part[name] for part in parts]) for name in KEPT)
    return ClipFeatures(tokens, pixels, motion, owner, [rows[i] for i in features.indices], features.bad_files)


def extract_videos(
    extract: Extract,
    paths: Sequence[Path],
    durations_s: Sequence[float],
    head_input: HeadInput,
    tubelet: int,
    statistics: PixelStatistics | None = None,
) -> tuple[list[VideoSteps], list[BadFile]]:
    """Tokens of all time steps of videos, each from the window that owns it.

    Args:
        extract: `tubelet.tasks.common.extract.extract` with model and cache.
        paths: the videos.
        durations_s: seconds of each.
        head_input: the windows.
        tubelet: frames of a time step.
        statistics: of the pixels of the model.

    Returns:
        The readable videos, and the others with the reasons.

    Raises:
        DataError: more features than fit in memory, or more unreadable files than allowed.
    """
    sources: list[Source] = []
    owned: list[list[tuple[int, int]]] = []
    for path, duration_s in zip(paths, durations_s, strict=True):
        windows = list(iter_windows(duration_s, head_input, tubelet))
        stride = (windows[1].start_step - windows[0].start_step) * tubelet if len(windows) > 1 else head_input.frames
        size = max(1, (CHUNK_FRAMES - head_input.frames) // stride + 1)
        for first in range(0, len(windows), size):
            chunk = windows[first : first + size]
            sources.append(Source(files=(path,), part=(first, first + len(chunk), duration_s)))
            owned.append([(window.first, window.last) for window in chunk])
    recipe = {"clips": "grid", **asdict(head_input)}
    features = extract(
        sources,
        recipe,
        partial(read_chunk_windows, head_input=head_input, tubelet=tubelet, statistics=statistics),
        partial(encode_tokens, head_input=head_input),
    )
    broken = {bad.path for bad in features.bad_files}
    steps: dict[Path, dict[str, list[Tensor]]] = {}
    for index, part in zip(features.indices, _load(features), strict=True):
        video_parts = steps.setdefault(sources[index].files[0], {name: [] for name in KEPT})
        for name in KEPT:
            video_parts[name] += [
                clip[first:last] for clip, (first, last) in zip(part[name], owned[index], strict=True)
            ]
    videos = [
        VideoSteps(path=path, duration_s=duration_s, **{name: torch.cat(parts) for name, parts in steps[path].items()})
        for path, duration_s in zip(paths, durations_s, strict=True)
        if str(path) not in broken and path in steps
    ]
    assert all(len(video.tokens) == count_steps(video.duration_s, head_input, tubelet) for video in videos)
    return videos, list({bad.path: bad for bad in features.bad_files}.values())


def _load(features: FeatureSet) -> list[dict[str, Tensor]]:
    """The tensors of each source, see `encode_tokens`; float16.

    Raises:
        DataError: if they do not fit in memory.
    """
    parts: list[dict[str, Tensor]] = []
    for i in range(len(features)):
        parts.append(features[i])
        total = len(features) * parts[0]["tokens"].nbytes
        limit = MEMORY_FRACTION * psutil.virtual_memory().available if not i else total
        if total > limit:
            raise DataError(
                f"the features of {len(features)} clips take {total / 1e9:.1f} GB, above the {limit / 1e9:.1f} GB that "
                "are free for them; use a smaller --image-size, fewer --levels, or fewer rows"
            )
    shapes = {tuple(part["tokens"].shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise DataError(f"clips give tokens of different shapes {sorted(shapes)}; fit images and videos separately")
    return parts
