"""Films of any length in bounded memory: overlapping windows."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tubelet.data.decode import Video
from tubelet.errors import ConfigError, DecodeError


def read_windows(
    path: str | Path, frames: int, overlap: int, fps: float, tubelet: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The frames of a video, window by window; it is decoded once, from its beginning to its end.

    Args:
        path: the video, or its URL.
        frames: of a window; a video that is shorter is one shorter window.
        overlap: frames that a window shares with the one before; the last may share more, to be of full length.
        fps: frames per second.
        tubelet: frames of a time step; windows begin at whole steps of the video.

    Yields:
        (T, H, W, 3) uint8, which the next window overwrites, and (T,) float64 seconds.

    Raises:
        TubeletError: if the sizes do not fit together or the video cannot be read.
    """
    if frames < tubelet or frames % tubelet or overlap % tubelet or not 0 <= overlap < frames:
        raise ConfigError(
            f"windows of {frames} frames that overlap by {overlap}: expected multiples of {tubelet}, and less overlap"
        )
    with Video(path) as video:
        info = video.info
        # A duration is rounded to its container's clock; the frame that begins at the very end is none.
        count = max(1, int(np.ceil(info.duration_s * fps - 1e-3)))
        missing = -count % tubelet
        if missing:
            warnings.warn(
                f"{path}: {count} frames at {fps:g} a second are no whole tubelets of {tubelet}: the last is repeated",
                stacklevel=2,
            )
        total = count + missing
        times = torch.arange(total, dtype=torch.float64) / fps
        window = torch.empty(min(frames, total), info.height, info.width, 3, dtype=torch.uint8)
        bounds = _bounds(total, frames, overlap)
        begin, end = next(bounds)
        at = 0
        shown = np.minimum(np.arange(total), count - 1) / fps
        for picture, _, repeats in video.scan(shown):
            pixels = torch.from_numpy(np.ascontiguousarray(picture))
            for _ in range(repeats):
                window[at - begin] = pixels
                at += 1
                if at == end:
                    yield window, times[begin:end]
                    before = begin
                    begin, end = next(bounds, (begin, end))
                    kept = at - begin
                    window[:kept] = window[begin - before :][:kept].clone()
        if at < total:
            raise DecodeError(str(path), f"ends at {at / fps:.1f} s, its header promises {info.duration_s:.1f} s")


def _bounds(count: int, frames: int, overlap: int) -> Iterator[tuple[int, int]]:
    """First frame and end of each window over `count` frames."""
    begin = 0
    while begin + frames < count:
        yield begin, begin + frames
        begin += frames - overlap
    yield max(0, count - frames), count
