"""Thumbnails of images and of clips that play, as data URIs."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from tubelet.data.decode import Video
from tubelet.data.images import read_image
from tubelet.errors import TubeletError
from tubelet.prediction.video_writer import round_to_even, write_frames
from tubelet.view.page import data_uri

SIDE, FPS, FRAMES = 176, 8, 32


@dataclass(frozen=True)
class Thumbnail:
    """A small image or clip.

    Attributes:
        image: data URI of an image; empty for none.
        clip: data URI of an MP4 without sound; empty for none.
        speed: how much faster than in reality the clip plays.
        fault: why there is neither.
    """

    image: str = ""
    clip: str = ""
    speed: float = 1.0
    fault: str = ""


def make_thumbnail(
    path: Path, start_s: float, end_s: float, side: int = SIDE, stack_fps: float | None = None
) -> Thumbnail:
    """A thumbnail of a span of a video, at most 32 frames at 8 a second, or of an image; tens of kilobytes.

    Args:
        path: the file.
        start_s: start of the span in seconds.
        end_s: its end in seconds; not after the start for an image.
        side: largest width and height in pixels.
        stack_fps: frames per second of a stack that states no rate.
    """
    try:
        if end_s <= start_s:
            return Thumbnail(image=data_uri(_shrink(read_image(str(path), display=True).numpy(), side), "jpeg"))
        length_s = end_s - start_s
        count = int(np.clip(round(length_s * FPS), 2, FRAMES))
        with Video(str(path), stack_fps=stack_fps, display=True) as video:
            size = _size(video.info.height, video.info.width, side)
            last = max(start_s, min(end_s, video.info.duration_s) - 1e-3)
            times = np.minimum(start_s + (np.arange(count) + 0.5) * length_s / count, last)
            frames = [pixels for pixels, _, repeats in video.scan(times, size) for _ in range(repeats)]
        return Thumbnail(clip=_encode(frames), speed=max(1.0, length_s * FPS / count))
    except TubeletError as error:
        return Thumbnail(fault=str(error))


def _size(height: int, width: int, side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(height, width))
    return round_to_even(height * scale), round_to_even(width * scale)


def _shrink(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    height, width = _size(pixels.shape[0], pixels.shape[1], side)
    return np.asarray(Image.fromarray(pixels).resize((width, height)))


def _encode(frames: list[NDArray[np.uint8]]) -> Markup:
    def timed() -> Iterator[tuple[NDArray[np.uint8], float]]:
        for number, pixels in enumerate(frames):
            yield pixels, number / FPS

    buffer = io.BytesIO()
    write_frames(timed(), buffer, Fraction(1, FPS), len(frames) / FPS, crf=30)
    return Markup(f"data:video/mp4;base64,{base64.b64encode(buffer.getvalue()).decode()}")
