"""One source file -> the members of shards that are made of it."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from tubelet.config import ShardConfig
from tubelet.data.decode import VideoInfo, open_video
from tubelet.data.images import read_image
from tubelet.errors import DecodeError
from tubelet.grid import Modality

# Fine enough that a reader, which allows half a tick, finds each frame at the very moment it begins in the source.
_TICKS = 90_000
# Segments that one frame may fill: what lasts long and shows little is not worth more.
_STILL = 4


@dataclass(frozen=True)
class Piece:
    """What becomes a member: the bytes of an MP4 or JPEG, and what the index says of it; see `Member`."""

    data: bytes
    modality: Modality
    start_s: float
    duration_s: float
    fps: float
    width: int
    height: int


def cut(path: str, modality: Modality, recipe: ShardConfig) -> Iterator[Piece]:
    """The members made of one file, in its order; of a video, one segment at a time is in memory.

    Raises:
        DecodeError: the file cannot be read, perhaps after some pieces.
    """
    if modality is Modality.IMAGE:
        yield _image(path, recipe)
    else:
        yield from _segments(path, recipe)


def _image(path: str, recipe: ShardConfig) -> Piece:
    pixels = read_image(path).numpy()
    height, width = fit(pixels.shape[0], pixels.shape[1], recipe.size, multiple=1)
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=recipe.image_quality)
    return Piece(file.getvalue(), Modality.IMAGE, 0.0, 0.0, 0.0, width, height)


def _segments(path: str, recipe: ShardConfig) -> Iterator[Piece]:
    """Equal segments of a video, each with the frames that are shown at the moments 0, 1 / fps, 2 / fps, ...

    A frame keeps the time at which it begins, so that whatever falls between two moments is later than in the source by
    less than 1 / fps, and whatever falls on one is the same frame.
    There are at most four segments for each frame of the video.
    """
    with open_video(path) as (info, scan):
        moments = int(np.ceil(info.duration_s * recipe.fps - 1e-3))
        if moments < 2:
            raise DecodeError(path, f"lasts {info.duration_s:.3f} s, less than two frames at {recipe.fps:g} fps")
        count = max(1, min(int(info.duration_s / recipe.segment_s + 1e-3), _STILL * (info.frames or moments)))
        bounds = [moments * k // count for k in range(count + 1)]
        height, width = fit(info.height, info.width, recipe.size, multiple=2)
        at, segment, film = 0, 0, _Film(recipe, height, width)
        for picture, begins_s, repeats in scan(np.arange(moments) / recipe.fps, (height, width)):
            shown_until = at + repeats
            while at < shown_until:
                # The source's clock may round a frame to a little after the moment that shows it.
                film.add(picture, min(begins_s, at / recipe.fps) - bounds[segment] / recipe.fps)
                at = min(shown_until, bounds[segment + 1])
                if at == bounds[segment + 1]:
                    if film.frames == 1:  # a picture that stands still; a video has two frames
                        film.add(picture, (at - 1 - bounds[segment]) / recipe.fps)
                    yield _piece(film, info, recipe, bounds[segment], None if at == moments else at)
                    segment, film = segment + 1, _Film(recipe, height, width)


def _piece(film: "_Film", info: VideoInfo, recipe: ShardConfig, first: int, end: int | None) -> Piece:
    """A finished segment from moment `first` to moment `end`, or to the end of the video."""
    start_s = first / recipe.fps
    duration_s = (info.duration_s if end is None else end / recipe.fps) - start_s
    fps = min(recipe.fps, info.fps or recipe.fps)
    return Piece(film.finish(), Modality.VIDEO, start_s, duration_s, fps, film.width, film.height)


def fit(height: int, width: int, size: int, multiple: int) -> tuple[int, int]:
    """Height and width whose short side is at most `size` and whose shape is kept, as far as multiples allow."""
    scale = min(1.0, size / min(height, width))
    high, wide = (max(multiple, round(side * scale / multiple) * multiple) for side in (height, width))
    return high, wide


class _Film:
    """An MP4 in memory that grows frame by frame: H.264 of short GOPs, without what is slow to decode."""

    def __init__(self, recipe: ShardConfig, height: int, width: int) -> None:
        self.height, self.width, self.frames = height, width, 0
        self.file = io.BytesIO()
        self.container = av.open(self.file, "w", format="mp4", container_options={"fflags": "+bitexact"})
        self.stream = self.container.add_stream("libx264", rate=Fraction(recipe.fps).limit_denominator(1000))
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        self.stream.codec_context.time_base = Fraction(1, _TICKS)
        self.stream.codec_context.thread_count = 1  # files are spread over processes; and the same bytes each time
        self.stream.options = {
            "preset": "superfast",
            "tune": "fastdecode",
            "crf": str(recipe.crf),
            "g": str(recipe.gop),
            "bf": "0",
            "sc_threshold": "0",
            "threads": "1",
        }
        self.converter = VideoReformatter()

    def add(self, picture: np.ndarray, begins_s: float) -> None:
        """Show (H, W, 3) uint8 from `begins_s` on; the first one from 0 on, whenever it began."""
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        frame = self.converter.reformat(rgb, format="yuv420p", threads=1)
        frame.pts = round(begins_s * _TICKS) if self.frames else 0
        frame.time_base = Fraction(1, _TICKS)
        self.container.mux(self.stream.encode(frame))
        self.frames += 1

    def finish(self) -> bytes:
        """The whole file."""
        self.container.mux(self.stream.encode(None))
        self.container.close()
        return self.file.getvalue()
