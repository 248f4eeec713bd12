"""How the videos and tables of the sample set, and of its layouts, are written."""

import csv
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

# Two thirds of the usual preset's time to write and to read, for half as many bytes again.
H264 = {"crf": "18", "preset": "superfast", "tune": "fastdecode"}


def write_video(
    path: Path,
    frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    fps: Fraction,
    codec: str = "libx264",
    options: dict[str, str] = H264,
) -> None:
    """Write frames (H, W, 3) in the container that the file's name asks for; the same bytes for the same pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4" if path.suffix.lower() == ".mp4" else None) as container:
        stream: Any = container.add_stream(codec, rate=fps)  # of any kind, to the type checker
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", options | {"threads": "1"}
        stream.thread_count = 1
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def write_rows(path: Path, rows: Iterable[tuple[object, ...]]) -> None:
    """Write a CSV table, the first row of which is the header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
