"""Reading of stacks like videos: frames shown at times, at the rate of the file or of the caller."""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np

from tubelet.data.stacks import open_stack, read_frames_of
from tubelet.data.stacks.stack import Stack, StackInfo
from tubelet.data.video.reader import DecodedFrame, VideoInfo
from tubelet.errors import DecodeError

# Frames per second of a stack that states no rate, where the caller has none: as many as clips have by default.
DEFAULT_FPS = 4.0
# Percentiles that displays show as black and white, of values of frames that are spread evenly.
DISPLAY_PERCENTILES = (0.5, 99.5)
_DISPLAY_FRAMES, _DISPLAY_VALUES = 8, 2**18


class StackReader:
    """One open stack, with the methods of `VideoReader`.

    Attributes:
        path: the file.
        stack: the open stack.
        fps: frames per second.
        converter: conversion of its frames to images.
    """

    seekable, joins = True, 0

    def __init__(
        self, path: str, full_depth: bool, window: tuple[float, float] | None, fps: float | None, display: bool
    ) -> None:
        self.path = path
        self.stack = open_stack(path)
        self.fps = self.stack.info.fps or fps or DEFAULT_FPS
        self.tick = 1 / Fraction(self.fps).limit_denominator(1_000_000)
        try:
            if display:
                self.stack = displayed(self.stack, path)
            self.converter = StackConverter(path, self.stack.info, full_depth, window)
        except BaseException:
            self.close()
            raise

    def prepare(self) -> VideoInfo:
        """Properties of the stack in those of a video."""
        info = self.stack.info
        return VideoInfo(
            self.path,
            info.frames / self.fps,
            self.fps,
            info.width,
            info.height,
            rotation=0,
            frames=info.frames,
            channels=self.converter.channels,
            bits=info.bits if self.converter.full_depth else 8,
            window=info.window,
        )

    def close(self) -> None:
        """Close the file."""
        self.stack.close()

    def frame_times(self) -> np.ndarray:
        """(N,) seconds from the start at which the frames begin to be shown."""
        return np.arange(self.stack.info.frames) / self.fps

    def frames_at(self, times: np.ndarray) -> list[DecodedFrame]:
        """The frames shown at ascending `times` (T,) in seconds from the start."""
        return list(self._shown(times, len(times)))

    def scan(self, times: np.ndarray) -> Iterator[DecodedFrame]:
        """As `frames_at`, with one frame in memory."""
        return self._shown(times, 1)

    def all_frames(self) -> Iterator[DecodedFrame]:
        """All frames."""
        return self.scan(self.frame_times())

    def _shown(self, times: np.ndarray, at_once: int) -> Iterator[DecodedFrame]:
        if len(times) == 0 or np.any(np.diff(times) < 0):
            raise ValueError(f"a clip needs ascending times, got {times}")
        frames = self.stack.info.frames
        if frames == 1 and len(times) > 1:
            raise DecodeError(self.path, "has 1 frame, expected at least 2; it is an image")
        # A time that was computed from a frame's number may be a rounding below it.
        indices = np.clip(np.floor(times * self.fps + 1e-6).astype(np.int64), 0, frames - 1)
        distinct, repeats = np.unique(indices, return_counts=True)
        for first in range(0, len(distinct), at_once):
            chosen = distinct[first : first + at_once]
            pixels = read_frames_of(self.stack, self.path, chosen)
            for number, frame, repeat in zip(chosen, pixels, repeats[first : first + at_once], strict=True):
                yield DecodedFrame(frame, int(repeat), float(number / self.fps))


class StackConverter:
    """From frames of a stack to images.

    Attributes:
        size: height and width of the images in pixels.
        channels: channels of the images.
        dtype: type of the images' values.
    """

    def __init__(self, path: str, info: StackInfo, full_depth: bool, window: tuple[float, float] | None) -> None:
        self.size = (info.height, info.width)
        self.full_depth = full_depth
        self.channels = info.channels if full_depth else 3
        self.dtype = np.dtype(info.dtype if full_depth else np.uint8)
        self.window = None if full_depth else _window(path, info, window)

    def image(self, decoded: DecodedFrame, height: int, width: int) -> np.ndarray:
        """A frame as (height, width, C) values of `dtype`; resampled if it has another size."""
        pixels = decoded.frame if self.full_depth else to_rgb(decoded.frame, self.window)
        if (height, width) == pixels.shape[:2]:
            return pixels
        import torch
        import torch.nn.functional as F

        planes = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1).unsqueeze(0)
        planes = F.interpolate(planes, (height, width), mode="bilinear", antialias=True, align_corners=False)
        resized = planes[0].permute(1, 2, 0).numpy()
        return (resized if self.dtype.kind == "f" else np.rint(resized)).astype(self.dtype)


def displayed(stack: Stack, path: str) -> Stack:
    """A stack that can be shown as 8-bit RGB, whatever its depth and channels.

    Of channels that are neither gray nor colors, the first three are shown as red, green and blue; of two, the first.
    Where the file states no window and has more than 8 bits, `display_window` is that of up to 8 frames.
    """
    info = stack.info
    channels = info.channels if info.channels in (1, 3, 4) else 3 if info.channels > 3 else 1
    shown = Stack(replace(info, channels=channels), lambda indices: stack.read(indices)[..., :channels], stack.close)
    if info.window is not None or info.dtype == "uint8":
        return shown
    numbers = np.unique(np.linspace(0, info.frames - 1, _DISPLAY_FRAMES).astype(np.int64))
    frames = (read_frames_of(shown, path, np.array([number])) for number in numbers)
    step = -(-info.height * info.width * channels * len(numbers) // _DISPLAY_VALUES)
    values = np.concatenate([frame.ravel()[::step] for frame in frames])
    return replace(shown, info=replace(shown.info, window=display_window(values)))


def display_window(values: np.ndarray) -> tuple[float, float]:
    """Percentiles 0.5 and 99.5 of the finite values, which displays show as black and white."""
    finite = values[np.isfinite(values)].astype(np.float64)
    low, high = map(float, np.percentile(finite, DISPLAY_PERCENTILES)) if finite.size else (0.0, 1.0)
    return (low, high) if low < high else (low, low + max(1.0, abs(low)))


def to_rgb(pixels: np.ndarray, window: tuple[float, float] | None) -> np.ndarray:
    """(..., C) values of one channel, or of red, green, blue and perhaps alpha, as (..., 3) uint8.

    Args:
        pixels: the values.
        window: values that become 0 and 255; None for uint8, which is kept.
    """
    colors = pixels[..., :3]
    if window is not None:
        low, high = window
        scaled = (colors.astype(np.float64) - low) * (255 / (high - low))
        colors = np.rint(np.nan_to_num(np.clip(scaled, 0, 255))).astype(np.uint8)
    return np.repeat(colors, 3, axis=-1) if colors.shape[-1] == 1 else colors


def _window(path: str, info: StackInfo, window: tuple[float, float] | None) -> tuple[float, float] | None:
    """The window of an 8-bit image: that of the caller, else of the file; none for values of 8 bits.

    Raises:
        DecodeError: the file has no colors, or is deeper and nobody states a window.
    """
    if info.channels not in (1, 3, 4):
        raise DecodeError(
            path, f"has {info.channels} channels, expected 1, or 3 of colors; train with as many channels, or split it"
        )
    window = window or info.window
    if window is None and info.dtype != "uint8":
        raise DecodeError(
            path,
            f"has values of type {info.dtype}, expected 8 bits; pass a window to tubelet.Video, or use a model of "
            "such values (tubelet stats)",
        )
    if window is not None and not window[0] < window[1]:
        raise DecodeError(path, f"has the window {window[0]:g} to {window[1]:g}, expected two ascending values")
    return window
