"""Videos of any length in bounded memory: overlapping windows."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tubelet.config import PixelStatistics
from tubelet.data.model_frames import as_fractions, open_frames
from tubelet.errors import ConfigError, DecodeError
from tubelet.pretrained.inputs import warn_of_repeats
from tubelet.user_warnings import warn_user


def read_windows(
    path: str | Path,
    frames: int,
    overlap: int,
    fps: float,
    tubelet: int,
    start_s: float = 0.0,
    end_s: float | None = None,
    lead: int = 0,
    statistics: PixelStatistics | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Decode a video once, in order, and yield overlapping windows of frames.

    Args:
        path: path or URL of the video.
        frames: frames per window; a shorter video is one shorter window.
        overlap: frames that a window shares with the previous one; the last may share more, to have full length.
        fps: sampling rate in frames per second.
        tubelet: frames per time step; windows start at multiples of it.
        start_s: start in seconds of the video.
        end_s: end in seconds of the video; None for its end.
        lead: number of times that the first frame is repeated before the video.
        statistics: of the pixels of the model that takes the windows.

    Yields:
        Pixels (T, H, W, C), uint8 colors or fractions of the model's window, which the next window overwrites, and
        times (T,) float64 in seconds of the video.

    Raises:
        ConfigError: if the sizes are not multiples of the tubelet.
        DecodeError: if the video cannot be read.
    """
    if frames < tubelet or frames % tubelet or overlap % tubelet or not 0 <= overlap < frames:
        raise ConfigError(
            f"windows of {frames} frames that overlap by {overlap}: expected multiples of {tubelet}, and less overlap"
        )
    with open_frames(path, as_fractions(statistics), fps) as video:
        info = video.info
        warn_of_repeats(info, fps)
        # Durations are rounded to the container's time base; a frame that starts at the very end does not exist.
        duration_s = (info.duration_s if end_s is None else min(end_s, info.duration_s)) - start_s
        if duration_s <= 0:
            raise DecodeError(str(path), f"lasts {info.duration_s:.3f} s, windows would start at {start_s:g} s")
        count = max(1, int(np.ceil(duration_s * fps - 1e-3)))
        missing = -count % tubelet
        if missing:
            warn_user(
                f"{path}: {count} frames at {fps:g} fps do not divide into tubelets of {tubelet}; the last is repeated"
            )
        total = lead + count + missing
        frame = np.maximum(np.arange(total) - lead, 0)
        times = torch.from_numpy(start_s + frame / fps)
        channels, dtype = (3, torch.uint8) if statistics is None else (statistics.channels, torch.float32)
        window = torch.empty(min(frames, total), info.height, info.width, channels, dtype=dtype)
        bounds = _bounds(total, frames, overlap)
        begin, end = next(bounds)
        at = 0
        frame_times = start_s + np.minimum(frame, count - 1) / fps
        for image, _, repeats in video.scan(frame_times):
            pixels = torch.from_numpy(np.ascontiguousarray(image))
            for _ in range(repeats):
                window[at - begin] = pixels
                at += 1
                if at == end:
                    yield window, times[begin:end]
                    before = begin
                    begin, end = next(bounds, (begin, end))
                    skipped = at - begin
                    window[:skipped] = window[begin - before :][:skipped].clone()
        if at < total:
            raise DecodeError(
                str(path),
                f"ends at {start_s + max(0, at - lead) / fps:.1f} s, its header promises {info.duration_s:.1f} s",
            )


def _bounds(count: int, frames: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Start and end of each window over `count` frames."""
    begin = 0
    while begin + frames < count:
        yield begin, begin + frames
        begin += frames - overlap
    yield max(0, count - frames), count
