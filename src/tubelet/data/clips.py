"""Sampling of clips in time, cropping and resizing of frames, and normalization of pixels."""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.config import PixelStatistics
from tubelet.data.decode import VideoInfo
from tubelet.errors import DataError

# Mean and standard deviation of red, green and blue over ImageNet, on pixels scaled to [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# Weights of red, green and blue in gray (ITU-R BT.601), as of Pillow's mode L.
LUMA = (0.299, 0.587, 0.114)
# Largest ratio of long to short side up to which a whole image is resized before its center is cropped.
_LONGEST = 4


def clip_times(info: VideoInfo, frames: int, fps: float, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Times of one clip at a random position of a video.

    Args:
        info: properties of the video.
        frames: number of frames T.
        fps: frames per second of the clip, not of the video.
        rng: draws the start.

    Returns:
        (T,) float64 seconds, and whether the video is shorter than T / fps seconds; then the times are spread evenly
        over all of it, at a higher rate than requested.
    """
    return _times(info, frames, fps, float(rng.random()))


def center_clip_times(info: VideoInfo, frames: int, fps: float) -> tuple[np.ndarray, bool]:
    """Like `clip_times`, but from the middle of the video."""
    return _times(info, frames, fps, 0.5)


def repeats_frames(info: VideoInfo, fps: float) -> bool:
    """Whether clips at a rate repeat frames of a video, by more than rounding."""
    return fps > 1.01 * info.fps > 0


def window_times(info: VideoInfo, frames: int, fps: float, stride_s: float | None) -> tuple[list[np.ndarray], bool]:
    """Times of clips that cover a video.

    Args:
        info: properties of the video.
        frames: number of frames T of each clip.
        fps: frames per second of a clip.
        stride_s: seconds from one clip to the next; None for the duration of a clip. The last clip ends with the video,
            so distances are adjusted a little. There are at most as many clips as the video has frames.

    Returns:
        For each clip, (T,) float64 seconds, and whether the video is too short for one, as in `clip_times`.
    """
    span = frames / fps
    count = max(1, 1 + round((info.duration_s - span) / (stride_s or span)))
    count = min(count, max(1, info.frames or count))
    if count == 1:
        times, short = center_clip_times(info, frames, fps)
        return [times], short
    # In one array operation: a file may declare a week.
    starts = np.arange(count) / (count - 1) * max(0.0, info.duration_s - span)
    return list(starts[:, None] + np.arange(frames, dtype=np.float64) / fps), False


def causal_times(
    info: VideoInfo, frames: int, fps: float, tubelet: int, stride_s: float | None = None
) -> list[np.ndarray]:
    """Times of clips that end with each time step of a video, so that they contain no later frame.

    Args:
        info: properties of the video.
        frames: number of frames T of each clip.
        fps: frames per second of a clip.
        tubelet: frames of a time step.
        stride_s: seconds from one clip to the next, rounded to whole time steps; None for one time step.

    Returns:
        For each clip, (T,) float64 seconds; before the video its first frame is repeated, and after it the last.
    """
    count = max(1, math.ceil(info.duration_s * fps - 1e-3))
    stride = tubelet * max(1, round((stride_s or 0) * fps / tubelet))
    ends = np.arange(tubelet, count + tubelet, stride)
    ends = ends[: max(1, info.frames or len(ends))]  # a file may declare a week
    return list((ends[:, None] - frames + np.arange(frames)).clip(0, count - 1) / fps)


def segment_times(info: VideoInfo, frames: int, fps: float, segments: int) -> tuple[list[np.ndarray], bool]:
    """Times of a fixed number of clips, the first at the video's start, the last at its end, the others between them.

    Args:
        info: properties of the video.
        frames: number of frames T of each clip.
        fps: frames per second of a clip.
        segments: number of clips; a single one is from the middle. A video with no room for more than one gives one.

    Returns:
        For each clip, (T,) float64 seconds, and whether the video is too short for one, as in `clip_times`.
    """
    if segments == 1 or info.duration_s <= frames / fps + 1e-3:
        times, short = center_clip_times(info, frames, fps)
        return [times], short
    return [_times(info, frames, fps, k / (segments - 1))[0] for k in range(segments)], False


def _times(info: VideoInfo, frames: int, fps: float, position: float) -> tuple[np.ndarray, bool]:
    """Times of a clip that starts at the fraction `position`, in [0, 1], of the possible starts."""
    steps = np.arange(frames, dtype=np.float64)
    span = frames / fps
    # A duration is rounded to the container's time base: a video of exactly the requested length is not short.
    if info.duration_s < span - 1e-3:
        return steps * (info.duration_s / frames), True
    return position * max(0.0, info.duration_s - span) + steps / fps, False


def augment(
    pixels: Tensor,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    flip: bool,
) -> Tensor:
    """Random resized crop and horizontal flip, the same for all frames of a clip.

    Args:
        pixels: (T, H, W, 3) uint8.
        size: side of the result in pixels.
        rng: draws the crop and the flip.
        scale: range of the crop's fraction of the image area.
        aspect: range of the crop's width over height.
        flip: whether to flip left and right with probability 0.5.

    Returns:
        (3, T, size, size) uint8, contiguous.
    """
    clip = random_resized_crop(pixels, size, rng, scale, aspect)
    return clip.flip(-1) if flip and rng.random() < 0.5 else clip


def random_resized_crop(
    pixels: Tensor,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> Tensor:
    """A crop of random area, aspect ratio and position, the same for all frames, resized to a square; see `augment`."""
    top, left, height, width = crop_box(pixels.shape[1], pixels.shape[2], rng, scale, aspect)
    return resize(pixels[:, top : top + height, left : left + width], size, size)


def crop_box(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop of an H x W image, in pixels.

    The area is uniform, the aspect ratio log-uniform. A crop that does not fit is drawn again up to ten times; then it
    is the largest central crop with an aspect ratio in range.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    ratio = min(max(width / height, aspect[0]), aspect[1])
    w = min(width, max(1, round(height * ratio)))
    h = min(height, max(1, round(width / ratio)))
    return (height - h) // 2, (width - w) // 2, h, w


def resize_center_crop(pixels: Tensor, size: int, resize: int | None = None) -> Tensor:
    """The central square of each frame, for evaluation; see `center_crop`.

    Args:
        pixels: (T, H, W, 3) uint8.
        size: side of the result in pixels.
        resize: length of the resized short side in pixels; None is `size`.

    Returns:
        (3, T, size, size) uint8, contiguous.
    """
    return center_crop(pixels.permute(3, 0, 1, 2), size, resize).contiguous()


def center_crop(pixels: Tensor, size: int, resize: int | None = None) -> Tensor:
    """(C, T, H, W) -> (C, T, size, size): the short side becomes `resize` (None is `size`), the center is cropped."""
    height, width = pixels.shape[2:]
    longest = _LONGEST * min(height, width)  # very long images are cropped first: resized as a whole they may be vast
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    pixels = pixels[:, :, top : top + longest, left : left + longest]
    pixels = resize_clip(pixels, *resize_shape(pixels.shape[2], pixels.shape[3], resize or size))
    top, left = (pixels.shape[2] - size) // 2, (pixels.shape[3] - size) // 2
    return pixels[:, :, top : top + size, left : left + size]


def crops_along(pixels: Tensor, size: int, count: int) -> Tensor:
    """Square crops that cover each frame along its long side; the short side is resized to `size`.

    Args:
        pixels: (T, H, W, 3) uint8.
        size: side of a square in pixels.
        count: number of squares; a single one is the central one. A square frame gives one.

    Returns:
        (count or 1, 3, T, size, size) uint8, contiguous.
    """
    height, width = resize_shape(pixels.shape[1], pixels.shape[2], size)
    room = max(height, width) - size
    if room == 0 or count == 1:
        return resize_center_crop(pixels, size).unsqueeze(0)
    resized = resize(pixels, height, width)
    axis = 2 if height > width else 3
    starts = [round(k * room / (count - 1)) for k in range(count)]
    return torch.stack([resized.narrow(axis, start, size) for start in starts])


def resize_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width in pixels at which the short side is `size` and the aspect ratio is kept."""
    short = min(height, width)
    return max(size, round(height * size / short)), max(size, round(width * size / short))


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """(T, H, W, 3) uint8 -> (3, T, height, width) uint8, contiguous; see `resize_clip`."""
    return resize_clip(pixels.permute(3, 0, 1, 2), height, width).contiguous()


def resize_clip(pixels: Tensor, height: int, width: int) -> Tensor:
    """(C, T, H, W) -> (C, T, height, width) of the same type: bilinear, antialiased when it shrinks."""
    if pixels.shape[2:] == (height, width):
        return pixels
    frames = pixels.transpose(0, 1)  # of decoded frames a channels-last view, for which there is a uint8 kernel
    on_cpu_or_float = frames if frames.is_floating_point() or frames.device.type == "cpu" else frames.float()
    resized = F.interpolate(on_cpu_or_float, (height, width), mode="bilinear", antialias=True, align_corners=False)
    if resized.dtype != frames.dtype:
        resized = resized.round().clamp(0, 255).to(frames.dtype)
    return resized.transpose(0, 1)


def normalize(pixels: Tensor, statistics: PixelStatistics | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normalize pixels to mean 0 and standard deviation 1 over the data that the model was trained on.

    Args:
        pixels: (B, C, T, H, W) uint8 colors or stored values, on any device; or floats, which are normalized already,
            as `tubelet.data.model_frames` reads them.
        statistics: `ModelConfig.pixels`; None are those of ImageNet.
        dtype: type of the result; the arithmetic is in float32.

    Returns:
        (B, C, T, H, W) of `dtype` on the same device. For a model of one channel, the luma of the colors.

    Raises:
        DataError: the pixels have other channels than the model, and are not gray or RGB for a model of the other.
    """
    if pixels.is_floating_point():
        return pixels.to(dtype)
    mean, std = _constants(pixels.device, statistics)
    values = pixels.float()
    if statistics is not None:
        channels, expected = pixels.shape[1], statistics.channels
        if channels != expected and {channels, expected} != {1, 3}:
            raise DataError(f"pixels have {channels} channel{'s' * (channels > 1)}, the model takes {expected}")
        if channels > expected:
            values = torch.einsum("bcthw,c->bthw", values, values.new_tensor(LUMA)).unsqueeze(1)
        values = window_fractions(values, statistics)
    return ((values - mean) / std).to(dtype)


def window_fractions(values: Tensor, statistics: PixelStatistics) -> Tensor:
    """Stored floats as fractions of the window of a model, clipped to it."""
    low, high = statistics.window
    return ((values - low) / (high - low)).clamp(0, 1)


def normalize_fractions(pixels: Tensor, statistics: PixelStatistics | None = None) -> Tensor:
    """Floats (B, C, T, H, W) from 0 to 1, the ends of the colors or of the window of the model -> as `normalize`."""
    mean, std = _constants(pixels.device, statistics)
    return (pixels.float() * (255 if statistics is None else 1) - mean) / std


def to_colors(pixels: Tensor, statistics: PixelStatistics | None) -> Tensor:
    """Convert a model's pixels (C, ...) to uint8 RGB (3, ...) for display; uint8 RGB is returned as it is.

    One channel is shown as gray, two as the gray of their mean, and of more the first three as red, green and blue.
    """
    if statistics is None or not pixels.is_floating_point():
        return pixels
    mean, std = (torch.tensor(each).view(-1, *[1] * (pixels.dim() - 1)) for each in (statistics.mean, statistics.std))
    fractions = pixels.float() * std + mean
    colors = fractions[:3] if len(fractions) >= 3 else fractions.mean(0, keepdim=True).expand(3, *pixels.shape[1:])
    return (255 * colors).round().clamp(0, 255).to(torch.uint8)


@cache
def _constants(device: torch.device, statistics: PixelStatistics | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each (C, 1, 1, 1), copied to a device once; ImageNet's on the scale of uint8."""
    both = (IMAGENET_MEAN, IMAGENET_STD) if statistics is None else (statistics.mean, statistics.std)
    scale = 255 if statistics is None else 1
    with torch.inference_mode(False):  # gradients may be computed with them later
        mean, std = (torch.tensor(values, device=device).view(-1, 1, 1, 1) * scale for values in both)
    return mean, std
