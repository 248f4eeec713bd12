"""Which frames of a video, which part of the picture: from decoded frames to what the model sees."""

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.data.decode import VideoInfo

# Mean and standard deviation of red, green and blue over ImageNet, on pixels scaled to [0, 1].
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What is cut to its middle square is resized whole up to this ratio of long to short side.
_LONGEST = 4


def clip_times(info: VideoInfo, frames: int, fps: float, rng: np.random.Generator) -> tuple[np.ndarray, bool]:
    """Times of one clip at a random place of a video.

    Args:
        info: the video.
        frames: T, how many.
        fps: frames per second of the clip, not of the video.
        rng: draws the start.

    Returns:
        (T,) float64 seconds, and whether the video is shorter than T / fps seconds: then the times are spread evenly
        over all of it, which makes a clip of a higher rate than asked for.
    """
    return _times(info, frames, fps, float(rng.random()))


def center_clip_times(info: VideoInfo, frames: int, fps: float) -> tuple[np.ndarray, bool]:
    """As `clip_times`, from the middle of the video, without chance."""
    return _times(info, frames, fps, 0.5)


def window_times(info: VideoInfo, frames: int, fps: float, stride_s: float | None) -> tuple[list[np.ndarray], bool]:
    """Times of clips that cover a video.

    Args:
        info: the video.
        frames: T of each clip.
        fps: frames per second of a clip.
        stride_s: seconds from one clip to the next; None is their length. The last clip ends with the video, so the
            distances are evened out a little. There are at most as many clips as the video has frames.

    Returns:
        for each clip (T,) float64 seconds, and whether the video is too short for one, as in `clip_times`.
    """
    span = frames / fps
    count = max(1, 1 + round((info.duration_s - span) / (stride_s or span)))
    count = min(count, max(1, info.frames or count))
    if count == 1:
        times, short = center_clip_times(info, frames, fps)
        return [times], short
    # All at once: a file may promise a week.
    starts = np.arange(count) / (count - 1) * max(0.0, info.duration_s - span)
    return list(starts[:, None] + np.arange(frames, dtype=np.float64) / fps), False


def segment_times(info: VideoInfo, frames: int, fps: float, segments: int) -> tuple[list[np.ndarray], bool]:
    """Times of a fixed number of clips, the first at the video's start, the last at its end, the others between them.

    Args:
        info: the video.
        frames: T of each clip.
        fps: frames per second of a clip.
        segments: how many clips; a single one is taken from the middle. A video with no room for more than one gives
            one, for all would be equal.

    Returns:
        for each clip (T,) float64 seconds, and whether the video is too short for one, as in `clip_times`.
    """
    if segments == 1 or info.duration_s <= frames / fps + 1e-3:
        times, short = center_clip_times(info, frames, fps)
        return [times], short
    return [_times(info, frames, fps, k / (segments - 1))[0] for k in range(segments)], False


def _times(info: VideoInfo, frames: int, fps: float, place: float) -> tuple[np.ndarray, bool]:
    """Times of a clip that starts at the share `place` in [0, 1] of the possible starts."""
    steps = np.arange(frames, dtype=np.float64)
    span = frames / fps
    # A duration is rounded to its container's clock: a video of exactly the wanted length is not short.
    if info.duration_s < span - 1e-3:
        return steps * (info.duration_s / frames), True
    return place * max(0.0, info.duration_s - span) + steps / fps, False


def augment(
    pixels: Tensor,
    size: int,
    rng: np.random.Generator,
    scale: tuple[float, float],
    aspect: tuple[float, float],
    flip: bool,
) -> Tensor:
    """A random crop, mirrored in half of the cases if `flip`; the same for all frames.

    Args:
        pixels: (T, H, W, 3) uint8.
        size: side of the result in pixels.
        rng: draws crop and mirroring.
        scale: range of the crop's share of the picture's area.
        aspect: range of the crop's width over height.
        flip: whether to mirror left and right at all.

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
    """A crop of random area, shape and place, the same for all frames, resized to a square; see `augment`."""
    top, left, height, width = crop_box(pixels.shape[1], pixels.shape[2], rng, scale, aspect)
    return resize(pixels[:, top : top + height, left : left + width], size, size)


def crop_box(
    height: int, width: int, rng: np.random.Generator, scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random crop of an H x W picture, in pixels.

    The area is uniform, the aspect ratio uniform on a log scale. A draw that does not fit is drawn again, ten times;
    then it is the largest crop in the middle whose aspect ratio is in range.
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


def resize_center_crop(pixels: Tensor, size: int) -> Tensor:
    """The middle square of each frame, for evaluation: the short side becomes `size`, the long side is cut.

    Args:
        pixels: (T, H, W, 3) uint8.
        size: side of the result in pixels.

    Returns:
        (3, T, size, size) uint8, contiguous.
    """
    rows, columns = middle(pixels.shape[1], pixels.shape[2])
    pixels = pixels[:, rows, columns]
    height, width = resize_shape(pixels.shape[1], pixels.shape[2], size)
    top, left = (height - size) // 2, (width - size) // 2
    resized = resize(pixels, height, width)
    return resized[:, :, top : top + size, left : left + size].contiguous()


def crops_along(pixels: Tensor, size: int, count: int) -> Tensor:
    """Squares that cover each frame from one end of its long side to the other; the short side becomes `size`.

    Args:
        pixels: (T, H, W, 3) uint8.
        size: side of a square in pixels.
        count: how many; a single one is the middle. A frame that is square itself gives one, for all would be equal.

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


def middle(height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of what is resized for the middle square: of very long pictures not all, which could be vast."""
    longest = _LONGEST * min(height, width)
    top, left = max(0, height - longest) // 2, max(0, width - longest) // 2
    return slice(top, top + longest), slice(left, left + longest)


def resize_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width in pixels at which the short side is `size` and the shape is kept."""
    short = min(height, width)
    return max(size, round(height * size / short)), max(size, round(width * size / short))


def resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """(T, H, W, 3) uint8 -> (3, T, height, width) uint8: bilinear, antialiased when it shrinks."""
    frames = pixels.permute(0, 3, 1, 2)  # a view in PyTorch's channels-last layout, for which there is a uint8 kernel
    if pixels.shape[1:3] != (height, width):
        frames = F.interpolate(frames, (height, width), mode="bilinear", antialias=True, align_corners=False)
    return frames.permute(1, 0, 2, 3).contiguous()


def normalize(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels as the model takes them: mean 0 and standard deviation 1 over ImageNet.

    Args:
        pixels: (B, 3, T, H, W) uint8, on any device.
        dtype: of the result; the arithmetic is in float32.

    Returns:
        (B, 3, T, H, W) of `dtype` on the same device.
    """
    mean, std = _statistics(pixels.device)
    return ((pixels.float() - mean) / std).to(dtype)


@cache
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation on the scale of uint8, each (3, 1, 1, 1): copied to a device once, not every step."""
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1, 1) * 255 for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std
