"""Video of features in colors next to the source."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tubelet.prediction.video_writer import rewrite_video

LINES = 480


def write_pca_video(
    path: Path,
    maps: Sequence[tuple[NDArray[np.uint8], NDArray[np.float64]]],
    out: Path,
    lines: int = LINES,
    bounds_s: tuple[float, float | None] = (0.0, None),
    stack_fps: float | None = None,
) -> None:
    """Write a video with maps of colors to the right of each frame, at the source's times.

    Args:
        path: the source.
        maps: (T', H', W', 3) colors and the seconds (T',) of their time steps, from the start of what is written; each
            frame gets the nearest step.
        out: MP4 file.
        lines: height of the video.
        bounds_s: start and end of what is written, in seconds of the source; None for its end.
        stack_fps: frames per second of a stack that states no rate.

    Raises:
        DecodeError: if the source cannot be read.
        FileError: if the video cannot be written.
    """

    def add_maps(pixels: NDArray[np.uint8], second: float) -> NDArray[np.uint8]:
        columns = [pixels]
        for colors, times in maps:
            nearest = Image.fromarray(colors[int(np.abs(times - second).argmin())])
            columns.append(np.asarray(nearest.resize((pixels.shape[1], pixels.shape[0]), Image.Resampling.BICUBIC)))
        return np.concatenate(columns, axis=1)

    rewrite_video(path, out, lines, add_maps, bounds_s=bounds_s, stack_fps=stack_fps)
