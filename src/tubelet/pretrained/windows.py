"""Films of any length in bounded memory: overlapping windows."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tubelet.data.decode import read_clips, read_info
from tubelet.types import TubeletError


def read_windows(path: Path, frames: int, overlap: int, fps: float, tubelet: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The frames of a video, window by window; no frame is decoded twice, and one window is held at a time.

    Args:
        path: the video.
        frames: of a window; a video that is shorter is one shorter window.
        overlap: frames that a window shares with the one before; the last may share more, to be of full length.
        fps: frames per second.
        tubelet: frames of a time step; windows begin at whole steps of the video.

    Yields:
        (T, H, W, 3) uint8 and (T,) float64 seconds.

    Raises:
        TubeletError: if the sizes do not fit together or the video cannot be read.
    """
    if frames < tubelet or frames % tubelet or overlap % tubelet or not 0 <= overlap < frames:
        raise TubeletError(
            f"windows of {frames} frames that overlap by {overlap}: expected multiples of {tubelet}, and less overlap"
        )
    info = read_info(path)
    # A duration is rounded to its container's clock; the frame that begins at the very end is none.
    count = max(1, int(np.ceil(info.duration_s * fps - 1e-3)))
    missing = -count % tubelet
    if missing:
        warnings.warn(
            f"{path}: {count} frames at {fps:g} a second are no whole tubelets of {tubelet}: the last is repeated",
            stacklevel=2,
        )
    times = np.arange(count + missing) / fps
    read = np.minimum(times, times[count - 1])
    held, at = torch.empty(0), 0  # the frames before `at` that the next window needs
    for begin, end in _bounds(len(times), frames, overlap):
        new = _read_at(path, read[max(at, begin) : end])
        keep = max(0, at - begin)
        held = torch.cat([held[len(held) - keep :], new]) if keep else new
        at = end
        yield held, torch.from_numpy(times[begin:end])


def _read_at(path: Path, times: np.ndarray) -> Tensor:
    """(T, H, W, 3) the frames at `times`."""
    _, (clip,) = read_clips(path, lambda _: [times])
    return clip.pixels


def _bounds(count: int, frames: int, overlap: int) -> Iterator[tuple[int, int]]:
    """First frame and end of each window over `count` frames."""
    begin = 0
    while begin + frames < count:
        yield begin, begin + frames
        begin += frames - overlap
    yield max(0, count - frames), count
