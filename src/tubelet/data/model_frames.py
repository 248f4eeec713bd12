"""Frames in the form that a model takes: 8-bit RGB, or normalized floats of any depth and number of channels.

A model without `PixelStatistics` takes (T, H, W, 3) uint8 RGB, which is normalized on its device. For a model with
them, frames are scaled by the window, clipped and normalized when they are read, and are float32 from there on.

T frames of H x W pixels, C channels of the model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from tubelet.config import PixelStatistics
from tubelet.data.clips import LUMA
from tubelet.data.containers import Media, media_name
from tubelet.data.decode import Frames, Video, VideoInfo
from tubelet.data.images import read_image
from tubelet.errors import DecodeError

MIN_COVERED = 0.1
"""Fraction of a model's window that 8-bit values must be able to cover."""
MAX_OUTSIDE = 0.99
"""Fraction of the values outside of a model's window above which features are nearly constant."""
_SAMPLED_VALUES = 2**14


class FrameReader(Protocol):
    """The interface that `Video` and its counterparts for other files share; see `Video`."""

    info: VideoInfo

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def clips(self, times: Sequence[ArrayLike]) -> list[Frames]:
        """As `Video.clips`."""

    def stream(self, times: Sequence[ArrayLike]) -> Iterator[Frames]:
        """As `Video.stream`."""

    def scan(self, times: np.ndarray) -> Iterator[tuple[np.ndarray, float, int]]:
        """As `Video.scan`."""


def open_frames(media: Media, pixels: PixelStatistics | None, fps: float | None = None) -> FrameReader:
    """Open a video or stack as a context manager; its frames are in the form that a model takes.

    Args:
        media: path or URL, or the bytes of a video.
        pixels: statistics of the model; None for one of 8-bit RGB.
        fps: frames per second of a stack that states no rate: the rate of the clips takes its frames one by one; None
            for that of `Video`.

    Raises:
        DecodeError: the file cannot be read, or has other channels than the model.
    """
    if pixels is None:
        return Video(media, stack_fps=fps)
    return _Converted(Video(media, full_depth=True, stack_fps=fps), pixels)


def read_still(media: Media, pixels: PixelStatistics | None) -> Tensor:
    """Read an image (H, W, C) in the form that a model takes: uint8, or normalized float32; see `open_frames`."""
    if pixels is None:
        return read_image(media)
    return to_input(read_image(media, full_depth=True).numpy(), pixels, media_name(media))


def as_fractions(pixels: PixelStatistics | None) -> PixelStatistics | None:
    """The same window with values from 0 to 1, for frames that are normalized later, as those in memory are."""
    if pixels is None:
        return None
    return replace(pixels, mean=(0.0,) * pixels.channels, std=(1.0,) * pixels.channels)


def depth_problem(dtype: np.dtype, pixels: PixelStatistics) -> str:
    """Why values of a type cannot be those that a model was trained on, if they have too few bits; otherwise empty."""
    if dtype.kind not in "ui" or dtype.itemsize > 1:
        return ""
    (low, high), limits = pixels.window, np.iinfo(dtype)
    covered = max(0.0, min(high, limits.max) - max(low, limits.min)) / (high - low)
    if covered >= MIN_COVERED:
        return ""
    return (
        f"has 8-bit values (up to {limits.max}), which cover {100 * covered:.0f} % of the window of the model, {low:g} "
        f"to {high:g}, expected at least {100 * MIN_COVERED:.0f} %; use the original values of more bits, or a model "
        "of 8-bit data"
    )


def is_outside_window(normalized: Tensor, pixels: PixelStatistics | None) -> bool:
    """Whether nearly all values of normalized pixels (..., C, T, H, W) are clipped by the window.

    Up to 16,384 of the values are compared with the ends of the window, so that the check costs little.
    """
    if pixels is None or not normalized.is_floating_point():
        return False
    mean, std = (torch.tensor(each, device=normalized.device) for each in (pixels.mean, pixels.std))
    values = normalized.flatten(end_dim=-5) if normalized.dim() > 4 else normalized.unsqueeze(0)
    values = values.transpose(0, 1).flatten(1)  # (C, n)
    step = max(1, values.numel() // _SAMPLED_VALUES) | 1  # odd, so that it does not follow the columns of a frame
    values = values[:, ::step].float()
    low, high = (((end - mean) / std)[:, None] for end in (0.0, 1.0))
    tolerance = 1e-4 * (high - low)
    outside = (values <= low + tolerance) | (values >= high - tolerance)
    return float(outside.float().mean()) > MAX_OUTSIDE


def describe_outside(pixels: PixelStatistics) -> str:
    """What is wrong with pixels that `is_outside_window` finds, and the remedy."""
    low, high = pixels.window
    return (
        f"more than {100 * MAX_OUTSIDE:.0f} % of the values are outside of the model's window, {low:g} to {high:g}, so "
        "that the features are nearly constant; are they in the units of the data that the model was trained on?"
    )


def to_input(values: np.ndarray, pixels: PixelStatistics, name: str) -> Tensor:
    """Convert stored values (..., C') to the normalized float32 input (..., C) of a model.

    A model of one channel gets the luma of RGB; a model of three gets a single channel repeated.

    Args:
        values: colors or values of any real type.
        pixels: statistics of the model.
        name: name of the file in messages.

    Raises:
        DecodeError: there are other channels than the model's, values that are not finite, or 8-bit values that cannot
            fill the model's window.
    """
    if problem := depth_problem(values.dtype, pixels):
        raise DecodeError(name, problem)
    kind = np.float32 if values.dtype.itemsize <= 2 or values.dtype == np.float32 else np.float64
    scaled = match_channels(values.astype(kind), pixels.channels, name)
    if values.dtype.kind == "f" and not np.isfinite(scaled).all():
        raise DecodeError(name, "has values that are not finite numbers; replace them")
    low, high = pixels.window
    scaled = np.clip((scaled - low) / (high - low), 0, 1).astype(np.float32)
    mean, std = (np.asarray(each, dtype=np.float32) for each in (pixels.mean, pixels.std))
    return torch.from_numpy((scaled - mean) / std)


def match_channels(values: np.ndarray, channels: int, name: str) -> np.ndarray:
    """Values (..., C') as (..., C): gray and RGB are converted, everything else must be equal."""
    count = values.shape[-1]
    if count == channels:
        return values
    if (count, channels) == (3, 1):
        return (values @ np.asarray(LUMA, dtype=values.dtype))[..., None]
    if (count, channels) == (1, 3):
        return np.broadcast_to(values, (*values.shape[:-1], 3))
    has = f"has {count} channel{'s' * (count > 1)}"
    raise DecodeError(name, f"{has}, the model takes {channels}; leave it out, or select its channels")


class _Converted:
    """A reader whose frames are converted by `to_input`."""

    def __init__(self, reader: FrameReader, pixels: PixelStatistics) -> None:
        self._reader, self.info = reader, reader.info
        self._convert: Callable[[np.ndarray], Tensor] = lambda values: to_input(values, pixels, self.info.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._reader.__exit__(*error)

    def clips(self, times: Sequence[ArrayLike]) -> list[Frames]:
        return [Frames(self._convert(clip.pixels.numpy()), clip.times) for clip in self._reader.clips(times)]

    def stream(self, times: Sequence[ArrayLike]) -> Iterator[Frames]:
        for clip in self._reader.stream(times):
            yield Frames(self._convert(clip.pixels.numpy()), clip.times)

    def scan(self, times: np.ndarray) -> Iterator[tuple[np.ndarray, float, int]]:
        for image, begins_s, repeats in self._reader.scan(times):
            yield self._convert(image).numpy(), begins_s, repeats
