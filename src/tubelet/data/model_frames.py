"""Frames in the form that a model takes: 8-bit RGB, or normalized floats of any depth and number of channels.

A model without `PixelStatistics` takes (T, H, W, 3) uint8 RGB, which is normalized on its device. For a model with
them, frames are scaled by the window, clipped and normalized when they are read, and are float32 from there on.

T frames of H x W pixels, C channels of the model.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
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
from tubelet.data.stacks import is_stack, read_stack_info
from tubelet.errors import ConfigError, DecodeError


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


def require_8_bits(media: Media) -> None:
    """Reject a stack if training a model of 8-bit RGB on it would lose depth or channels.

    Raises:
        ConfigError: its values have more than 8 bits, or its channels are neither gray nor colors.
        DecodeError: it cannot be read.
    """
    if depth := depth_beyond_rgb(media):
        raise ConfigError(
            f"{media}: has {depth}, the model takes 8-bit RGB: measure the collection with `tubelet stats SOURCE --out "
            "stats.json`, and train with --stats stats.json"
        )


def depth_beyond_rgb(media: Media) -> str:
    """A description of the channels and dtype of a stack, if 8-bit RGB cannot represent them; otherwise empty.

    Raises:
        DecodeError: it cannot be read.
    """
    if isinstance(media, (str, Path)) and is_stack(media):
        info = read_stack_info(media)
        if info.dtype != "uint8" or info.channels not in (1, 3, 4):
            return f"{info.channels} channel{'s' * (info.channels > 1)} of {info.dtype}"
    return ""


def to_input(values: np.ndarray, pixels: PixelStatistics, name: str) -> Tensor:
    """Convert stored values (..., C') to the normalized float32 input (..., C) of a model.

    A model of one channel gets the luma of RGB; a model of three gets a single channel repeated.

    Args:
        values: colors or values of any real type.
        pixels: statistics of the model.
        name: name of the file in messages.

    Raises:
        DecodeError: there are other channels than the model's, or values that are not finite.
    """
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
