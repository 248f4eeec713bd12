"""Files to uint8 frames and their times.

Frames are chosen by their timestamps, never by counting: files of variable frame rate, with edit lists or cut from a
broadcast have no other truth. Whatever goes wrong with a file is a `DecodeError` that says what it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tubelet.data.containers import Media
from tubelet.data.limits import check_clip
from tubelet.data.video.reader import Shown, VideoReader
from tubelet.data.video.sequential import Scan, in_one_pass


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, by its header as far as its packets agree.

    Attributes:
        path: the file, or the name of a `Blob`.
        duration_s: of the video stream, in seconds.
        fps: frames per second, on average.
        width: pixels of the image as it is shown: turned upright, with square pixels.
        height: pixels, the same.
        rotation: degrees (0, 90, 180, 270) by which frames were turned counter-clockwise to stand upright.
        mirrored: whether left and right were swapped after that.
        frames: at least as many as there are frames; None if it is not known without reading the whole file.
    """

    path: str
    duration_s: float
    fps: float
    width: int
    height: int
    rotation: int
    mirrored: bool = False
    frames: int | None = None


@dataclass(frozen=True)
class Frames:
    """Decoded frames.

    Attributes:
        pixels: (T, H, W, 3) uint8 RGB, as they are shown.
        times: (T,) float64, seconds from the video's start at which each delivered frame begins to be shown.
    """

    pixels: Tensor
    times: np.ndarray


def read_info(media: Media) -> VideoInfo:
    """Length, rate and size of a video; decodes one frame.

    Raises:
        DecodeError: the file cannot be read as a video.
    """
    with VideoReader(media) as video:
        return _info(video)


def read_clips(media: Media, choose: Callable[[VideoInfo], list[np.ndarray]]) -> tuple[VideoInfo, list[Frames]]:
    """Clips of one video, which is opened once.

    Args:
        media: the file.
        choose: given the video's info, the times (T,) of each clip's frames in seconds from the video's start,
            ascending.

    Returns:
        The info, and for each clip the frames shown at its times: at time t, the last frame that begins at or before
        t; before the first frame, the first.

    Raises:
        DecodeError: the file cannot be read, ends before a wanted time, or has a single frame while a clip wants more.
    """
    with VideoReader(media) as video:
        info = _info(video)
        wanted = [np.asarray(times, dtype=np.float64) for times in choose(info)]
        return info, [_frames(video, video.frames_at(times)) for times in wanted]


def stream_clips(media: Media, choose: Callable[[VideoInfo], list[np.ndarray]]) -> Iterator[Frames]:
    """As `read_clips`, one clip after the other, so that a video of any length can be read; they ascend."""
    with VideoReader(media) as video:
        clips = choose(_info(video))
        if video.seekable and not video.joins:
            yield from (_frames(video, video.frames_at(times)) for times in clips)
        elif clips:
            passed = in_one_pass(video.path, _scan_of(video), clips)
            yield from (Frames(torch.from_numpy(pixels), times) for pixels, times in passed)


def read_frames(media: Media) -> Frames:
    """Every frame of a short video.

    Raises:
        DecodeError: the file cannot be read as a video.
    """
    with VideoReader(media) as video:
        video.prepare()
        found = []
        for shown in video.everything():
            found.append(shown)
            check_clip(video.path, len(found), shown.frame.width, shown.frame.height)
        return _frames(video, found)


@contextmanager
def open_video(media: Media) -> Iterator[tuple[VideoInfo, Scan]]:
    """A video to be read from end to end, however long: its info, and what passes over its images.

    Raises:
        DecodeError: the file cannot be read, here or on the way; see `read_clips`.
    """
    with VideoReader(media) as video:
        yield _info(video), _scan_of(video)


def _info(video: VideoReader) -> VideoInfo:
    facts = video.prepare()
    height, width = video.converter.size
    display = video.converter.display
    return VideoInfo(
        video.path, facts.duration_s, facts.fps, width, height, display.rotation, display.mirrored, facts.frames
    )


def _scan_of(video: VideoReader) -> Scan:
    """See `Scan`."""

    def scan(times: np.ndarray, size: tuple[int, int] | None) -> Iterator[tuple[np.ndarray, float, int]]:
        height, width = size or video.converter.size
        for shown in video.scan(times):
            yield video.converter.image(shown, height, width), shown.begins_s, shown.repeats

    return scan


def _frames(video: VideoReader, found: list[Shown]) -> Frames:
    """Frames, each as often as it is shown, as pixels and seconds."""
    repeats = [shown.repeats for shown in found]
    height, width = video.converter.size
    check_clip(video.path, sum(repeats), width, height)
    pixels = np.empty((sum(repeats), height, width, 3), dtype=np.uint8)
    for shown, end in zip(found, np.cumsum(repeats), strict=True):
        pixels[end - shown.repeats : end] = video.converter.image(shown, height, width)
    times = np.repeat([shown.begins_s for shown in found], repeats)
    return Frames(torch.from_numpy(pixels), times)
