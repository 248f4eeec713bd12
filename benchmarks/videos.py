"""Videos for the data loading benchmarks: a moving texture, as H.264 with x264's defaults, created once and reused."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def make_videos(folder: Path, height: int, count: int, seconds: float) -> list[Path]:
    """Create `count` videos, 4:3 below 720 lines, else 16:9, alternating between 24 and 30 frames per second."""
    width = height * 4 // 3 if height < 720 else height * 16 // 9
    videos = []
    for k in range(count):
        path = folder / f"{height}p-{seconds:g}s-{k}.mp4"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            _write(path, height, width, (24, 30)[k % 2], seconds, k)
        videos.append(path)
    return videos


def _write(path: Path, height: int, width: int, fps: int, seconds: float, seed: int) -> None:
    scene = _scene(2 * height, 2 * width, seed)
    partial = path.with_suffix(".partial")
    with av.open(str(partial), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps), options={"profile": "high"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(round(seconds * fps)):
            # The camera moves slowly, with a cut every seven seconds.
            second = index / fps + 100 * (index // (7 * fps))
            y = round(height * (0.5 + 0.5 * np.sin(0.31 * second + seed)))
            x = round(width * (0.5 + 0.5 * np.cos(0.23 * second)))
            view = np.ascontiguousarray(scene[y : y + height, x : x + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode(None))
    partial.rename(path)


def _scene(height: int, width: int, seed: int) -> np.ndarray:
    """(height, width, 3) uint8: texture of all scales: noise of increasing frequency and decreasing amplitude."""
    rng = np.random.default_rng(seed)
    scene = np.zeros((height, width, 3), dtype=np.float32)
    for octave in range(2, 11):
        coarse = rng.integers(0, 256, (2**octave * 9 // 16, 2**octave, 3), dtype=np.uint8)
        layer = av.VideoFrame.from_ndarray(coarse, format="rgb24")
        scene += layer.reformat(width, height, "rgb24", interpolation="BICUBIC").to_ndarray() * 0.6**octave
    scene -= scene.min()
    return (255 * scene / scene.max()).astype(np.uint8)
