"""Preprocessing of images, videos, arrays and files to a batch of clips whose size is a multiple of the patch size."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tubelet.config import ModelConfig
from tubelet.data.clips import (
    center_clip_times,
    center_crop,
    normalize_fractions,
    repeats_frames,
    resize_clip,
    window_fractions,
)
from tubelet.data.decode import VideoInfo
from tubelet.data.file_types import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from tubelet.data.model_frames import as_fractions, describe_outside, is_outside_window, open_frames, read_still
from tubelet.data.stacks import is_image_file, is_stack
from tubelet.data.storage import suffix_of
from tubelet.errors import ConfigError, DataError
from tubelet.pretrained.pixels import PixelFormat, is_image, read_pixels, stack_images, unpack_frames
from tubelet.user_warnings import warn_user

Resize = Literal["round"] | int | tuple[int, int] | None
DEFAULT_FPS = 4.0


@dataclass(frozen=True)
class InputBatch:
    """A batch of clips of one size.

    Attributes:
        pixels: (B, C, T, H, W), uint8 RGB, or floats that are normalized already.
        times: (B, T) float64 display times of the frames in seconds; None if unknown.
    """

    pixels: Tensor
    times: Tensor | None


@dataclass(frozen=True)
class Sampling:
    """The frames to take from a video file.

    Attributes:
        frames: number of frames; None is `native_frames` for a video file.
        fps: sampling rate in frames per second; for frames in memory, their rate. None is `native_fps` for a file, and
            unknown for frames in memory.
        start: time of the first frame in seconds; None takes the clip from the middle.
        native_frames: number of frames of a file if `frames` is None.
        native_fps: sampling rate of a file if `fps` is None.
    """

    frames: int | None = None
    fps: float | None = None
    start: float | None = None
    native_frames: int = 16
    native_fps: float = DEFAULT_FPS

    def __post_init__(self) -> None:
        if not (self.frames is None or _is_whole(self.frames)):
            raise ConfigError(f"frames is {self.frames!r}, expected a whole number of at least 1")
        if self.fps is not None and not (is_number(self.fps) and self.fps > 0):
            raise ConfigError(f"fps is {self.fps!r}, expected a positive number of frames per second")
        if self.start is not None and not (is_number(self.start) and self.start >= 0):
            raise ConfigError(f"start is {self.start!r}, expected seconds from the beginning of the video, 0 or more")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return number and math.isfinite(value)


_LARGEST_SIDE = 2**15  # pixels


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= 1


def check_resize(resize: Any, crop: Any, patch: int) -> None:
    """Raise a `ConfigError` for an invalid `Resize`, side of a crop, or side that does not divide into patches."""
    if not (crop is None or _is_whole(crop)):
        raise ConfigError(f"crop is {crop!r}, expected the side of a center square in pixels")
    pair = isinstance(resize, (tuple, list)) and len(resize) == 2 and all(map(_is_whole, resize))
    named = isinstance(resize, str) and resize == "round"
    if not (resize is None or named or _is_whole(resize) or pair):
        raise ConfigError(
            f'resize is {resize!r}, expected "native", "round", the side of a center square, or (height, width), in '
            "pixels, or None for the input's own size"
        )
    largest = max(resize) if pair else resize if _is_whole(resize) else 0
    if largest > _LARGEST_SIDE:
        raise ConfigError(f"resize is {resize!r}, expected at most {_LARGEST_SIDE} pixels")
    name, side = ("resize", resize) if crop is None else ("crop", crop)
    if isinstance(side, (int, np.integer)) and side % patch:
        nearest = max(patch, round(side / patch) * patch)
        raise ConfigError(
            f"{name} is {side}, expected a multiple of the patch size of {patch} pixels, such as {nearest}"
        )


def read_inputs(
    x: Any,
    config: ModelConfig,
    sampling: Sampling,
    resize: Resize,
    pixel_format: PixelFormat | None = None,
    crop: int | None = None,
) -> InputBatch:
    """A batch from any input of `Backbone.encode`.

    Args:
        x: the input.
        config: architecture of the model.
        sampling: frames to take from a video file.
        resize: as in `Backbone.encode`, but for "native".
        pixel_format: what pixels in memory are.
        crop: side of a center crop after resizing.

    Raises:
        ConfigError: if an option is out of range.
        DataError: if it cannot be read as images or clips of one size that divides into patches.
    """
    check_resize(resize, crop, config.patch_size)
    pixel_format = pixel_format or PixelFormat()
    batch = [
        resize_to_grid(pixels, times, config, resize, crop)
        for pixels, times in _clips(x, config, sampling, pixel_format)
    ]
    if not pixel_format.normalized:
        _warn_outside_window(x, [pixels for pixels, _ in batch], config)
    shapes = {tuple(pixels.shape) for pixels, _ in batch}
    kinds = {pixels.dtype for pixels, _ in batch}
    if len(shapes) > 1 or len(kinds) > 1:
        raise DataError(
            f"a batch needs inputs of one type and size, found (channels, frames, height, width) = "
            f"{', '.join(map(str, sorted(shapes)))} of {', '.join(map(str, kinds))}; pass resize=(height, width), or "
            "encode them one by one"
        )
    stacked = torch.stack([pixels for pixels, _ in batch])
    if stacked.is_floating_point() and not pixel_format.normalized:
        stacked = normalize_fractions(stacked, config.pixels)
    spans = [times for _, times in batch if times is not None]
    return InputBatch(stacked, torch.stack(spans) if len(spans) == len(batch) else None)


def _warn_outside_window(x: Any, clips: Sequence[Tensor], config: ModelConfig) -> None:
    """Warn of clips whose values are nearly all outside of the model's window."""
    if config.pixels is None:
        return
    statistics = as_fractions(config.pixels)
    fractions = (c if c.is_floating_point() else window_fractions(c.float(), config.pixels) for c in clips)
    if outside := sum(is_outside_window(clip, statistics) for clip in fractions):
        name = f"{x}: " if isinstance(x, (str, Path)) else ""
        which = f"in {outside} of {len(clips)} clips, " if len(clips) > 1 else ""
        warn_user(f"{name}{which}{describe_outside(config.pixels)}")


Clip = tuple[Tensor, Tensor | None]
"""Pixels (C, T, H, W), and the times (T,) of their frames in seconds, if known."""


def _clips(x: Any, config: ModelConfig, sampling: Sampling, pixel_format: PixelFormat) -> list[Clip]:
    """The clips of a batch; of a single clip or image one."""
    if isinstance(x, Iterator):  # one of PIL gives the same object again and again
        x = [item.copy() if isinstance(item, Image.Image) else item for item in x]
    if isinstance(x, (list, tuple)):
        return _clips_of_list(x, config, sampling, pixel_format)
    if isinstance(x, (str, Path)):
        if pixel_format != PixelFormat():
            raise DataError(f"layout, normalized and bgr are for pixels in memory, found the path {x}; leave them out")
        return [_read_file(x, config, sampling)]
    x, seconds = unpack_frames(x)
    pixels = read_pixels(x, config, pixel_format)
    times = _in_memory_times(len(pixels), pixels.shape[2], sampling, seconds)
    return [(clip, None if times is None else times[i]) for i, clip in enumerate(pixels)]


def _clips_of_list(x: Sequence[Any], config: ModelConfig, sampling: Sampling, pixel_format: PixelFormat) -> list[Clip]:
    """The frames of one clip, or the entries of a batch: the first letter of a layout of the whole list decides."""
    if not x:
        raise DataError("nothing to encode: the list is empty")
    layout = pixel_format.layout or ""
    first, _ = unpack_frames(x[0])
    images = is_image(first)
    if layout[:1] == "B" or (images and layout[:1] == "T"):
        pixel_format = pixel_format.inner()
    if not images or layout[:1] == "B":
        clips = [_clips(item, config, sampling, pixel_format) for item in x]
        if any(len(clip) > 1 for clip in clips):
            raise DataError("an entry of the list is a batch itself; encode the entries one by one")
        return [clip for (clip,) in clips]
    frames, seconds = zip(*map(unpack_frames, x), strict=True)
    pixels = stack_images(frames, config, pixel_format)
    given = [time for time in seconds if time is not None]
    times = torch.stack(given) if len(given) == len(frames) else None
    times = _in_memory_times(1, len(frames), sampling, times)
    return [(pixels, None if times is None else times[0])]


def _read_file(path: str | Path, config: ModelConfig, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    statistics = as_fractions(config.pixels)
    if is_image_file(path):
        return read_still(path, statistics).permute(2, 0, 1).unsqueeze(1), torch.zeros(1, dtype=torch.float64)
    if suffix_of(str(path)) not in VIDEO_SUFFIXES and not is_stack(path):
        if Path(path).is_dir():
            raise DataError(
                f"{path}: is a folder, expected a video or an image; `tubelet embed` encodes all of a folder"
            )
        suffixes = " ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))
        raise DataError(
            f"{path}: expected a video or an image ({suffixes}); pass names of released models to tubelet.load"
        )
    with open_frames(path, statistics, sampling.fps or sampling.native_fps) as video:
        warn_of_repeats(video.info, sampling.fps or sampling.native_fps)
        times = _clip_times(video.info, sampling)
        (clip,) = video.clips([times])
    return clip.pixels.permute(3, 0, 1, 2), torch.from_numpy(times)


def warn_of_repeats(info: VideoInfo, fps: float) -> None:
    """Warn if a rate is above that of the video."""
    if repeats_frames(info, fps):
        warn_user(f"{info.path}: has {info.fps:.4g} frames a second, the clips {fps:g}: frames are repeated")


def _clip_times(info: VideoInfo, sampling: Sampling) -> np.ndarray:
    """(T,) seconds of the frames to read from a video."""
    fps, frames = sampling.fps or sampling.native_fps, sampling.frames or sampling.native_frames
    if sampling.start is None:
        times, short = center_clip_times(info, frames, fps)
        if short:
            warn_user(
                f"{info.path}: {info.duration_s:.1f} s are too short for {frames} frames at {fps:g} a second: "
                "they are read at a higher rate"
            )
        return times
    times = sampling.start + np.arange(frames) / fps
    if times[-1] >= info.duration_s:
        raise DataError(
            f"{info.path}: lasts {info.duration_s:.1f} s, the clip would end at {times[-1]:.1f} s: begin earlier "
            "or take fewer frames"
        )
    return times


def _in_memory_times(clips: int, frames: int, sampling: Sampling, seconds: Tensor | None) -> Tensor | None:
    """(B, T) times of frames in memory: those that they have, or of images, or of clips with a given rate.

    Raises:
        DataError: if frames are to be taken from them, as from a file.
    """
    for name in ("frames", "start"):
        if (value := getattr(sampling, name)) is not None:
            raise DataError(f"{name} is {value}, which is for files; select the frames of pixels in memory by indexing")
    if seconds is not None:
        if sampling.fps is not None:
            raise DataError(f"fps is {sampling.fps:g}, but the frames have times of their own; leave fps out")
        if seconds.numel() != clips * frames:
            raise DataError(f"{clips * frames} frames have {seconds.numel()} times, expected one for each")
        return seconds.reshape(clips, frames)
    if frames > 1 and sampling.fps is None:
        return None
    return (torch.arange(frames, dtype=torch.float64) / (sampling.fps or 1.0)).expand(clips, frames)


def resize_to_grid(
    pixels: Tensor, times: Tensor | None, config: ModelConfig, resize: Resize, crop: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Resize and pad a clip (C, T, H, W) to whole patches and tubelets."""
    C, T, H, W = pixels.shape
    p, t = config.patch_size, config.tubelet_size
    if T > 1 and T % t:
        missing = -T % t
        warn_user(
            f"{T} frames do not divide into tubelets of {t}; the last is repeated {missing} time{'s' * (missing > 1)}"
        )
        pixels = torch.cat([pixels, pixels[:, -1:].expand(C, missing, H, W)], dim=1)
        if times is not None:
            times = torch.cat([times, times[-1] + (times[-1] - times[-2]) * torch.arange(1, missing + 1)])
    if isinstance(resize, (int, np.integer)):
        pixels = center_crop(pixels, int(resize))
    elif resize is not None:
        rounded = max(p, round(H / p) * p), max(p, round(W / p) * p)
        pixels = resize_clip(pixels, *(rounded if isinstance(resize, str) else resize))
    elif (H % p or W % p) and crop is None:
        raise DataError(
            f"frames of {H} x {W} pixels (height x width) do not divide into patches of {p}; pass "
            f'resize="round" (nearest multiples), resize={14 * p} (center square) or resize=(height, width)'
        )
    if crop is not None:
        H, W = pixels.shape[2:]
        if crop > min(H, W):
            raise DataError(f"crop is {crop}, but frames have {H} x {W} pixels (height x width); resize to more first")
        top, left = (H - crop) // 2, (W - crop) // 2
        pixels = pixels[:, :, top : top + crop, left : left + crop]
    config.grid(*pixels.shape[1:])  # a requested size must divide too
    return pixels, times


def step_times(times: Tensor | None, steps: int) -> Tensor | None:
    """Times of frames (B, T) -> times of time steps (B, T')."""
    return None if times is None else times.unflatten(1, (steps, -1)).mean(-1)
