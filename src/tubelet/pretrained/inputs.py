"""From images, videos, arrays and files to a batch of clips that divide into patches."""

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tubelet.config import ModelConfig
from tubelet.data.clips import center_clip_times, center_crop, resize_clip
from tubelet.data.decode import Video, VideoInfo
from tubelet.data.file_types import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from tubelet.data.images import read_image, rgb_of
from tubelet.data.storage import suffix_of
from tubelet.device import accumulation_dtype
from tubelet.errors import ConfigError, DataError

Resize = Literal["round"] | int | tuple[int, int] | None
DEFAULT_FPS = 4.0
# Above the values of normalized images: white is at most 2.64.
_BRIGHTEST = 3.0


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
        frames: number of frames.
        fps: sampling rate in frames per second; for frames in memory, their rate. None is 4 for a file, and unknown for
            frames in memory.
        start: time of the first frame in seconds; None takes the clip from the middle.
    """

    frames: int = 16
    fps: float | None = None
    start: float | None = None

    def __post_init__(self) -> None:
        if not _is_whole(self.frames):
            raise ConfigError(f"frames is {self.frames!r}, expected a whole number of at least 1")
        if self.fps is not None and not (_is_number(self.fps) and self.fps > 0):
            raise ConfigError(f"fps is {self.fps!r}, expected a positive number of frames per second")
        if self.start is not None and not (_is_number(self.start) and self.start >= 0):
            raise ConfigError(f"start is {self.start!r}, expected seconds from the beginning of the video, 0 or more")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.integer, np.floating)) and math.isfinite(value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= 1


def check_resize(resize: Any) -> None:
    """Raise a `ConfigError` for an invalid `Resize`."""
    pair = isinstance(resize, (tuple, list)) and len(resize) == 2 and all(map(_is_whole, resize))
    if not (resize is None or (isinstance(resize, str) and resize == "round") or _is_whole(resize) or pair):
        raise ConfigError(
            f'resize is {resize!r}, expected "round", the side of a center square, or (height, width), in pixels'
        )


def read_inputs(x: Any, config: ModelConfig, sampling: Sampling, resize: Resize) -> InputBatch:
    """A batch from any input of `Backbone.encode`.

    Raises:
        DataError: if it cannot be read as images or clips of one size that divides into patches.
    """
    check_resize(resize)
    if isinstance(x, (list, tuple)) and not (x and _is_image(x[0])):
        if not x:
            raise DataError("nothing to encode: the list is empty")
        batch = [resize_to_grid(*_read(item, config, sampling), config, resize) for item in x]
    elif not isinstance(x, (list, tuple)) and _dimensions(x) == 5:
        pixels = _channels_first(_tensor(x), config)
        if not len(pixels):
            raise DataError(f"nothing to encode: pixels have shape {tuple(pixels.shape)}")
        times = _in_memory_times(pixels.shape[2], sampling)
        batch = [resize_to_grid(clip, times, config, resize) for clip in pixels]
    else:
        batch = [resize_to_grid(*_read(x, config, sampling), config, resize)]
    shapes = {tuple(pixels.shape) for pixels, _ in batch}
    kinds = {pixels.dtype for pixels, _ in batch}
    if len(shapes) > 1 or len(kinds) > 1:
        raise DataError(
            f"a batch needs inputs of one type and size, found (channels, frames, height, width) = "
            f"{', '.join(map(str, sorted(shapes)))} of {', '.join(map(str, kinds))}; pass resize=(height, width), or "
            "encode them one by one"
        )
    known = [t for _, t in batch if t is not None]
    return InputBatch(torch.stack([p for p, _ in batch]), torch.stack(known) if len(known) == len(batch) else None)


def _read(x: Any, config: ModelConfig, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """One image or clip (C, T, H, W), and the times (T,) of its frames."""
    if isinstance(x, (str, Path)):
        return _read_file(x, sampling)
    if isinstance(x, (list, tuple)):
        if not (x and _is_image(x[0])):
            raise DataError("a clip is a non-empty list of images; this list has other entries or none")
        frames = [_image(frame, config) for frame in x]
        if len({frame.shape for frame in frames}) > 1:
            raise DataError(
                f"the frames of a clip must have one size, found {sorted({tuple(f.shape) for f in frames})}"
            )
        if len({frame.dtype for frame in frames}) > 1:
            raise DataError("the frames of a clip must have one type, found uint8 and normalized floats")
        pixels = torch.stack(frames, dim=1)
    elif _is_image(x):
        pixels = _image(x, config).unsqueeze(1)
    else:
        pixels = _channels_first(_tensor(x).unsqueeze(0), config)[0]
    return pixels, _in_memory_times(pixels.shape[1], sampling)


def _read_file(path: str | Path, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    suffix = suffix_of(str(path))
    if suffix in IMAGE_SUFFIXES:
        return read_image(path).permute(2, 0, 1).unsqueeze(1), torch.zeros(1, dtype=torch.float64)
    if suffix not in VIDEO_SUFFIXES:
        known = " ".join(sorted(VIDEO_SUFFIXES | IMAGE_SUFFIXES))
        raise DataError(
            f"{path}: expected a video or an image ({known}); pass names of released models to tubelet.load"
        )
    with Video(path) as video:
        times = _clip_times(video.info, sampling)
        (clip,) = video.clips([times])
    return clip.pixels.permute(3, 0, 1, 2), torch.from_numpy(times)


def _clip_times(info: VideoInfo, sampling: Sampling) -> np.ndarray:
    """(T,) seconds of the frames to read from a video."""
    fps = sampling.fps or DEFAULT_FPS
    if sampling.start is None:
        times, short = center_clip_times(info, sampling.frames, fps)
        if short:
            warnings.warn(
                f"{info.path}: {info.duration_s:.1f} s are too short for {sampling.frames} frames at {fps:g} a second: "
                "they are read at a higher rate",
                stacklevel=2,
            )
        return times
    times = sampling.start + np.arange(sampling.frames) / fps
    if times[-1] >= info.duration_s:
        raise DataError(
            f"{info.path}: lasts {info.duration_s:.1f} s, the clip would end at {times[-1]:.1f} s: begin earlier "
            "or take fewer frames"
        )
    return times


def _in_memory_times(frames: int, sampling: Sampling) -> Tensor | None:
    """Times of frames in memory: known for an image, and for a clip with a given rate."""
    if frames == 1:
        return torch.zeros(1, dtype=torch.float64)
    return None if sampling.fps is None else torch.arange(frames, dtype=torch.float64) / sampling.fps


def _dimensions(x: Any) -> int:
    return getattr(x, "ndim", 0)


def _is_image(x: Any) -> bool:
    return isinstance(x, Image.Image) or (isinstance(x, (Tensor, np.ndarray)) and x.ndim in (2, 3))


def _tensor(x: Any) -> Tensor:
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiub":
        # Copied if PyTorch cannot share the memory: read-only, as of a PIL image, or in another byte order.
        x = torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"]))
    if not isinstance(x, Tensor):
        what = f"an array of {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
        raise DataError(f"cannot encode {what}: expected a tensor, an array, an image, a list of frames or a path")
    if x.dim() < 3:
        raise DataError(
            f"pixels have shape {tuple(x.shape)}, expected three channels; repeat the values of a grayscale image"
        )
    if x.dtype != torch.uint8 and not x.is_floating_point():
        raise DataError(f"pixels are {x.dtype}, expected uint8 (0 to 255) or normalized floats")
    if x.is_floating_point() and x.numel():
        _check_floats(x)
    return x


def _check_floats(x: Tensor) -> None:
    """Reject values that are not finite; warn about those that are not normalized."""
    wide = accumulation_dtype(x.device)
    # Read together: each number that is read from a device is waited for.
    numbers = torch.stack([value.to(wide) for value in ((~x.isfinite()).sum(), *x.aminmax())])
    wrong, least, top = numbers.tolist()
    if wrong:
        raise DataError(
            f"{int(wrong)} of {x.numel()} pixel values are not finite (NaN or infinity), expected normalized floats or "
            "uint8"
        )
    if least >= 0 and (0.5 < top <= 1 or top > _BRIGHTEST):
        warnings.warn(
            "floats must be normalized pixels, but these look like values from 0 to "
            f"{1 if top <= 1 else 255}; pass uint8 instead",
            stacklevel=3,
        )


def _image(x: Any, config: ModelConfig) -> Tensor:
    """One image (C, H, W)."""
    if isinstance(x, Image.Image):
        x = rgb_of(x, "the image")
    pixels = _tensor(x)
    if pixels.shape[-1] == config.channels:
        return pixels.permute(2, 0, 1)
    if pixels.shape[0] == config.channels:
        return pixels
    raise DataError(f"an image has shape {tuple(pixels.shape)}, expected (height, width, 3) or (3, height, width)")


def _channels_first(x: Tensor, config: ModelConfig) -> Tensor:
    """(B, T, H, W, C) or (B, C, T, H, W) -> (B, C, T, H, W). An image is never as narrow as its number of channels."""
    C = config.channels
    if x.dim() == 5 and x.shape[-1] == C:
        return x.permute(0, 4, 1, 2, 3)
    if x.dim() == 5 and x.shape[1] == C and x.shape[2] != C:
        return x
    shape = tuple(x.shape)
    raise DataError(
        f"pixels have shape {shape[1:] if shape[0] == 1 else shape}, expected (clips, {C}, frames, height, width), "
        f"(clips, frames, height, width, {C}), or one clip or image of these; of (frames, {C}, height, width), which "
        f"could be images as well, make a clip with x.transpose(0, 1) or a batch of images with x.unsqueeze(2)"
    )


def resize_to_grid(
    pixels: Tensor, times: Tensor | None, config: ModelConfig, resize: Resize
) -> tuple[Tensor, Tensor | None]:
    """Resize and pad a clip (C, T, H, W) to whole patches and tubelets."""
    C, T, H, W = pixels.shape
    p, t = config.patch_size, config.tubelet_size
    if T > 1 and T % t:
        missing = -T % t
        warnings.warn(
            f"{T} frames do not divide into tubelets of {t}; the last is repeated {missing} time{'s' * (missing > 1)}",
            stacklevel=2,
        )
        pixels = torch.cat([pixels, pixels[:, -1:].expand(C, missing, H, W)], dim=1)
        if times is not None:
            times = torch.cat([times, times[-1] + (times[-1] - times[-2]) * torch.arange(1, missing + 1)])
    if isinstance(resize, (int, np.integer)):
        pixels = center_crop(pixels, int(resize))
    elif resize is not None:
        rounded = max(p, round(H / p) * p), max(p, round(W / p) * p)
        pixels = resize_clip(pixels, *(rounded if isinstance(resize, str) else resize))
    elif H % p or W % p:
        raise DataError(
            f"frames of {H} x {W} pixels (height x width) do not divide into patches of {p}; pass "
            f'resize="round" (nearest multiples), resize={14 * p} (center square) or resize=(height, width)'
        )
    config.grid(*pixels.shape[1:])  # a requested size must divide too
    return pixels, times


def step_times(times: Tensor | None, steps: int) -> Tensor | None:
    """Times of frames (B, T) -> times of time steps (B, T')."""
    return None if times is None else times.unflatten(1, (steps, -1)).mean(-1)
