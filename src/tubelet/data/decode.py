"""Videos and stacks to frames and their times.

Frames are chosen by their timestamps, never by counting: files of variable frame rate, with edit lists or cut from a
broadcast have no other reliable order. A file that cannot be read is a `DecodeError` that says why.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import ArrayLike

from tubelet.config.fields import check
from tubelet.data.batch import MediaBytes
from tubelet.data.containers import Media
from tubelet.data.size_limits import check_clip
from tubelet.data.stacks import is_stack
from tubelet.data.stacks.reader import StackReader
from tubelet.data.video.reader import DecodedFrame, VideoInfo, VideoReader
from tubelet.data.video.sequential import decode_clips_sequentially

if TYPE_CHECKING:  # processes that only render or read files need not spend seconds on importing torch
    from torch import Tensor

__all__ = ["Frames", "Video", "VideoInfo", "read_frames"]


@dataclass(frozen=True)
class Frames:
    """Decoded frames.

    Attributes:
        pixels: PyTorch tensor (T, H, W, 3) of uint8 RGB, as displayed; at full depth (T, H, W, C) of the file's type.
        times: NumPy array (T,) of float64, seconds from the start of the video at which each frame begins to be shown.
    """

    pixels: Tensor
    times: np.ndarray


class Video:
    """An open video file or stack, to be used in a `with` statement.

    Example:
        ```python
        with tubelet.Video("a.mp4") as video:
            middle = video.info.duration_s / 2
            (clip,) = video.clips([middle + np.arange(16) / 4])
        ```

    Attributes:
        info: properties of the video.
    """

    def __init__(
        self,
        media: Media,
        *,
        full_depth: bool = False,
        window: tuple[float, float] | None = None,
        stack_fps: float | None = None,
        display: bool = False,
    ) -> None:
        """Open a video and decode its first frame.

        Args:
            media: path or URL of a video, or its bytes as a `MediaBytes`; or the path of a stack (TIFF with pages,
                NumPy, Zarr, DICOM, a folder of slices or of numbered images).
            full_depth: whether pixels have the file's own channels and depth, instead of 8-bit RGB: of a stack the
                stored values; of a video uint8, or uint16 scaled to 16 bits if it has more than 8, with one channel
                if it is gray.
            window: values of a stack that 8-bit RGB shows as black and white; None for those that the file states.
            stack_fps: frames per second of a stack that states no rate; None for 4.
            display: whether 8-bit RGB is only looked at: a stack of more than 8 bits that states no window is shown
                between percentiles of its values, and of other channels than gray and colors the first ones are shown.

        Raises:
            DecodeError: the file cannot be read as a video; or it is a stack of more than 8 bits without a window, and
                not to be read at full depth.
            MissingPackageError: the package that reads the stack is not installed.
            StorageError: the URL cannot be reached.
        """
        check(bool, full_depth, "full_depth")
        check(bool, display, "display")
        self._reader: VideoReader | StackReader
        if not isinstance(media, MediaBytes) and is_stack(media):
            self._reader = StackReader(str(media), full_depth, window, stack_fps, display)
        else:
            self._reader = VideoReader(media, full_depth)
        try:
            self.info = self._reader.prepare()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._reader.close()

    def clips(self, times: Sequence[ArrayLike]) -> list[Frames]:
        """Decode clips, seeking to a position near each.

        Args:
            times: for each clip, (T,) ascending seconds from the start of the video.

        Returns:
            For each clip, the frames shown at its times: at time t, the last frame that begins at or before t; before
            the first frame, the first.

        Raises:
            DecodeError: the file is corrupt, ends before a time, or has a single frame while a clip has several.
        """
        return [self._clip(clip) for clip in times]

    def stream(self, times: Sequence[ArrayLike]) -> Iterator[Frames]:
        """Decode clips one by one, so that a video of any length fits into memory.

        Args:
            times: see `clips`; the first and the last times ascend from clip to clip.

        Yields:
            The frames of each clip, see `clips`.

        Raises:
            DecodeError: see `clips`.
        """
        if self._reader.seekable and not self._reader.joins:
            yield from map(self._clip, times)
        elif len(times):
            clips = [np.asarray(clip, dtype=np.float64) for clip in times]
            for pixels, seconds in decode_clips_sequentially(self.info.path, self.scan, clips):
                yield Frames(_tensor(pixels), seconds)

    def scan(self, times: np.ndarray, size: tuple[int, int] | None = None) -> Iterator[tuple[np.ndarray, float, int]]:
        """Decode frames in one sequential pass, with a few of them in memory.

        Args:
            times: (T,) ascending seconds from the start of the video.
            size: height and width of the images in pixels; None for those of the video.

        Yields:
            Each frame that is shown at some of the times: a NumPy array (H, W, C), the second from which it is shown,
            and at how many of the times.

        Raises:
            DecodeError: see `clips`.
        """
        converter = self._reader.converter
        height, width = size or converter.size
        for frame in self._reader.scan(times):
            yield converter.image(frame, height, width), frame.start_s, frame.repeats

    @property
    def time_base(self) -> Fraction:
        """Seconds per tick of the stream; frames start at whole ticks."""
        return self._reader.tick

    def iter_frames(self, size: tuple[int, int] | None = None) -> Iterator[tuple[np.ndarray, float]]:
        """Decode all frames in one sequential pass, with a few of them in memory; the first call after opening.

        Args:
            size: height and width of the images in pixels; None for those of the video.

        Yields:
            Each frame: a NumPy array (H, W, C), and the second from which it is shown.

        Raises:
            DecodeError: the file is corrupt.
        """
        height, width = size or self._reader.converter.size
        for frame in self._reader.all_frames():
            yield self._reader.converter.image(frame, height, width), frame.start_s

    def frame_times(self) -> np.ndarray:
        """Start times of all frames in seconds, from their packets; nothing is decoded.

        Returns:
            (N,) float64, ascending seconds from the start of the video.

        Raises:
            DecodeError: the packets cannot be read.
        """
        return self._reader.frame_times()

    def frames(self) -> Frames:
        """Decode all frames of a short video; the first call after opening.

        Raises:
            DecodeError: the file is corrupt, or its frames take too much memory.
        """
        pixels, times = self._all_frames()
        return Frames(_tensor(pixels), times)

    def _all_frames(self) -> tuple[np.ndarray, np.ndarray]:
        frames = []
        for frame in self._reader.all_frames():
            frames.append(frame)
            check_clip(self.info.path, len(frames), self.info.width, self.info.height)
        return self._convert(frames)

    def _clip(self, times: ArrayLike) -> Frames:
        pixels, begins = self._convert(self._reader.frames_at(np.asarray(times, dtype=np.float64)))
        return Frames(_tensor(pixels), begins)

    def _convert(self, frames: list[DecodedFrame]) -> tuple[np.ndarray, np.ndarray]:
        """Convert decoded frames to pixels and times, repeating each frame as often as it is shown."""
        repeats = [frame.repeats for frame in frames]
        converter = self._reader.converter
        height, width = converter.size
        check_clip(self.info.path, sum(repeats), width, height)
        pixels = np.empty((sum(repeats), height, width, converter.channels), converter.dtype)
        for frame, end in zip(frames, np.cumsum(repeats), strict=True):
            pixels[end - frame.repeats : end] = converter.image(frame, height, width)
        times = np.repeat([frame.start_s for frame in frames], repeats)
        return pixels, times


def _tensor(pixels: np.ndarray) -> Tensor:
    import torch

    return torch.from_numpy(pixels)


def read_frames(media: Media) -> Frames:
    """Every frame of a short video.

    Raises:
        DecodeError: the file cannot be read as a video.
    """
    with Video(media) as video:
        return video.frames()


def read_frame_array(media: Media) -> np.ndarray:
    """Every frame of a short video, (T, H, W, 3) uint8, without importing torch.

    Raises:
        DecodeError: the file cannot be read as a video.
    """
    with Video(media) as video:
        return video._all_frames()[0]
