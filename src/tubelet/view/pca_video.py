"""A video beside its features in colors."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray
from PIL import Image

from tubelet.data.decode import Video
from tubelet.io.files import atomic_write
from tubelet.prediction.video_writer import even, write_frames

LINES = 480


def write_pca_video(
    path: Path, maps: Sequence[tuple[NDArray[np.uint8], NDArray[np.float64]]], out: Path, lines: int = LINES
) -> None:
    """Write a video with maps of colors to the right of each frame, at the source's times.

    Args:
        path: the source.
        maps: (T', H', W', 3) colors and the seconds (T',) of their time steps; each frame gets the nearest step.
        out: MP4 file.
        lines: height of the video.

    Raises:
        DecodeError: if the source cannot be read.
        FileError: if the video cannot be written.
    """
    with Video(path) as video, atomic_write(out, also=(FFmpegError,)) as partial:
        height, width = even(lines), even(lines * video.info.width / video.info.height)

        def frames() -> Iterator[tuple[NDArray[np.uint8], float]]:
            for pixels, second in video.iter_frames((height, width)):
                columns = [pixels]
                for colors, times in maps:
                    nearest = colors[int(np.abs(times - second).argmin())]
                    columns.append(
                        np.asarray(Image.fromarray(nearest).resize((width, height), Image.Resampling.BICUBIC))
                    )
                yield np.concatenate(columns, axis=1), second

        write_frames(frames(), partial, video.time_base, video.info.duration_s)
