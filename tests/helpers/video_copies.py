"""Copies of a video that show the same frames at the same times by other means: variable frame rate, an edit list.

The frames are compressed without loss from the decoded ones, so that what a reader finds at a time is equal to the bit.
"""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.helpers.video_files import with_edits

_TICKS = 84_000  # per second: a multiple of 7, 12, 24, 25, 30
_LOSSLESS = {"qp": "0", "preset": "ultrafast", "bf": "2", "b-pyramid": "none", "g": "24"}


def write_variable_rate_copy(source: Path, target: Path, seed: int = 0) -> Path:
    """A copy in which each frame is shown once or in two parts of random length, so that no two steps are equal."""
    frames, fps = _decode(source)
    rng = np.random.default_rng(seed)
    shown, ticks = [], []
    for index, frame in enumerate(frames):
        shown.append(frame)
        ticks.append(round(index / fps * _TICKS))
        if index % 2 and index < len(frames) - 2:  # the last step is also the duration of the last frame
            shown.append(frame)
            ticks.append(round((index + rng.uniform(0.2, 0.8)) / fps * _TICKS))
    _encode(target, shown, ticks, fps)
    return target


def write_edit_list_copy(source: Path, target: Path, hidden: int = 5) -> Path:
    """A copy with `hidden` more frames in front, at a constant rate, that an edit list leaves out."""
    frames, fps = _decode(source)
    extra = frames[len(frames) // 2 : len(frames) // 2 + hidden]
    whole = target.with_name(f"{target.stem}-whole{target.suffix}")
    shown = [*extra, *frames]
    _encode(whole, shown, [round(index / fps * _TICKS) for index in range(len(shown))], fps)
    with_edits(whole, target, [(float(len(frames) / fps), float(len(extra) / fps))])
    whole.unlink()
    return target


def _decode(source: Path) -> tuple[list[av.VideoFrame], Fraction]:
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        return list(container.decode(stream)), stream.average_rate


def _encode(path: Path, frames: list[av.VideoFrame], ticks: list[int], fps: Fraction) -> None:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=fps, options=_LOSSLESS)
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
        stream.codec_context.time_base, stream.codec_context.thread_count = Fraction(1, _TICKS), 1
        for pixels, tick in zip(frames, ticks, strict=True):
            frame = av.VideoFrame.from_ndarray(pixels.to_ndarray(), format="yuv420p")
            frame.pts, frame.time_base = tick, Fraction(1, _TICKS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
