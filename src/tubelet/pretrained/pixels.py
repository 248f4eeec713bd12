"""Conversion of pixels in memory (tensors, arrays and PIL images of any layout) to clips (C, T, H, W)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tubelet.config import ModelConfig, PixelStatistics
from tubelet.data.clips import window_fractions
from tubelet.data.decode import Frames
from tubelet.data.images import rgb_of, stored_of
from tubelet.data.model_frames import MIN_COVERED, as_fractions, depth_problem, to_input
from tubelet.device import accumulation_dtype
from tubelet.errors import ConfigError, DataError
from tubelet.user_warnings import warn_user

# Number of axes -> the layouts that are told apart by the axis of the channels.
_LAYOUTS = {
    2: ("HW",),
    3: ("HWC", "CHW"),
    4: ("THWC", "TCHW", "CTHW"),
    5: ("BTHWC", "BTCHW", "BCTHW"),
}
_AXES = "BCTHW"
_MAX_COLORS = 4  # red, green, blue and alpha: a longer first and last axis are no colors
# Colors from 0 to 1 that were resized or converted may exceed the range by a rounding error.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class PixelFormat:
    """What the axes and values of pixels in memory are.

    Attributes:
        layout: a letter for each axis: B clips or images of a batch, C channels, T frames, H height, W width; None
            finds the axis of the channels by its size.
        normalized: whether floats are normalized already; otherwise they are colors from 0 to 1.
        bgr: whether the channels are blue, green and red, as OpenCV has them.
    """

    layout: str | None = None
    normalized: bool = False
    bgr: bool = False

    def __post_init__(self) -> None:
        layout = self.layout
        if layout is not None and not (
            isinstance(layout, str) and set("HW") <= set(layout) <= set(_AXES) and len(set(layout)) == len(layout)
        ):
            raise ConfigError(
                f'layout is {layout!r}, expected a letter for each axis: some of B, T, C, H and W, such as "TCHW"'
            )
        for name in ("normalized", "bgr"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} is {getattr(self, name)!r}, expected True or False")

    def inner(self) -> "PixelFormat":
        """The format of the entries of a list whose format this is."""
        assert self.layout is not None
        return PixelFormat(self.layout[1:], self.normalized, self.bgr)


def is_image(x: Any) -> bool:
    """Whether an object in memory is a single image by its number of axes."""
    return isinstance(x, Image.Image) or (isinstance(x, (Tensor, np.ndarray)) and x.ndim in (2, 3))


def unpack_frames(x: Any) -> tuple[Any, Tensor | None]:
    """The pixels of `Frames`, or of torchcodec's `FrameBatch` or `Frame`, and their seconds; others as they are.

    Returns:
        The pixels, and () seconds of a frame, (T,) of a clip or (B, T) of a batch as float64 on the CPU, or None.
    """
    if isinstance(x, Frames):
        return x.pixels, torch.from_numpy(x.times)
    seconds = getattr(x, "pts_seconds", None)
    if seconds is not None and isinstance(pixels := getattr(x, "data", None), Tensor):
        return pixels, torch.as_tensor(seconds, dtype=torch.float64).cpu()
    return x, None


def stack_images(images: Sequence[Any], config: ModelConfig, pixel_format: PixelFormat) -> Tensor:
    """The frames of one clip, each an image -> (C, T, H, W).

    Raises:
        DataError: if they are not images of one size and type.
    """
    if not all(map(is_image, images)):
        raise DataError("a clip is a non-empty list of images; this list has other entries too")
    if len(images) > 1 and getattr(images[0], "n_frames", 1) > 1 and all(image is images[0] for image in images):
        raise DataError(
            "the frames of the clip are one and the same PIL image of an animation; copy each: "
            "[frame.copy() for frame in ImageSequence.Iterator(image)]"
        )
    clips = [read_pixels(image, config, pixel_format)[0] for image in images]
    if any(clip.shape[1] > 1 for clip in clips):
        raise DataError('the entries of the list are clips of one channel (THW); pass layout="BTHW"')
    frames = [clip[:, 0] for clip in clips]
    if len({frame.shape for frame in frames}) > 1:
        sizes = sorted({image.size[::-1] if isinstance(image, Image.Image) else tuple(image.shape) for image in images})
        raise DataError(f"the frames of a clip must have one size, found {', '.join(map(str, sizes))}")
    if len({frame.dtype for frame in frames}) > 1:
        raise DataError(f"the frames of a clip must have one type, found {', '.join({str(f.dtype) for f in frames})}")
    return torch.stack(frames, dim=1)


def read_pixels(x: Any, config: ModelConfig, pixel_format: PixelFormat) -> Tensor:
    """An image, a clip or a batch in memory -> (B, C, T, H, W), uint8 colors or floats.

    Raises:
        DataError: if its layout or its values are not those of pixels.
    """
    if isinstance(x, Image.Image):
        if pixel_format.bgr or pixel_format.normalized:
            raise DataError("bgr and normalized are for tensors and arrays; a PIL image has RGB colors")
        statistics, name = as_fractions(config.pixels), "the image"
        pages = getattr(x, "n_frames", 1) if x.format == "TIFF" else 1
        if pages > 1:
            raise DataError(
                f"the image is page {x.tell()} of {pages} of a TIFF file; pass the path of the file to encode all, or "
                "image.copy() to encode this page"
            )
        x = rgb_of(x, name) if statistics is None else to_input(stored_of(x), statistics, name)
    pixels = _tensor(x, config.pixels)
    if config.pixels is not None and (problem := depth_problem(np.dtype(_dtype_name(pixels)), config.pixels)):
        raise DataError(f"the input {problem}")
    layout = _find_layout(tuple(pixels.shape), config.channels, pixel_format.layout)
    if not pixels.numel():
        raise DataError(f"nothing to encode: pixels have shape {tuple(pixels.shape)}")
    if pixels.is_floating_point():
        _check_floats(pixels, pixel_format.normalized, config.pixels)
    elif pixel_format.normalized:
        raise DataError(f"normalized is True, but pixels are {_dtype_name(pixels)}; leave it out, or pass floats")
    elif pixels.dtype != torch.uint8:
        assert config.pixels is not None
        exact = torch.float32 if pixels.dtype.itemsize <= 2 else accumulation_dtype(pixels.device)
        pixels = window_fractions(pixels.to(exact), config.pixels).float()
    if config.pixels is None and config.channels != 3 and not pixel_format.normalized:
        raise DataError(
            f"the model takes {config.channels} channel{'s' * (config.channels > 1)}, but has no mean and std of "
            "pixels; normalize them, and pass normalized=True"
        )
    pixels = pixels.permute([layout.index(axis) for axis in _AXES if axis in layout])
    for index, axis in enumerate(_AXES):
        if axis not in layout:
            pixels = pixels.unsqueeze(index)
    if pixel_format.bgr:
        if config.channels != 3:
            raise DataError(f"bgr is True, which is for three channels; the model takes {config.channels}")
        pixels = pixels.flip(1)
    return pixels


def _tensor(x: Any, statistics: PixelStatistics | None) -> Tensor:
    """Pixels as a tensor of uint8, of floats of 32 bits or more, or of stored integers where there are statistics.

    Raises:
        DataError: if they are of another type.
    """
    if isinstance(x, np.ndarray) and x.dtype.kind in "fiub" and x.dtype.itemsize <= 8:
        # Copied if PyTorch cannot share the memory: read-only, as of a PIL image, or in another byte order.
        x = torch.from_numpy(np.require(x, x.dtype.newbyteorder("="), ["C", "W"]))
    if not isinstance(x, Tensor):
        what = f"an array of {x.dtype}" if isinstance(x, np.ndarray) else type(x).__name__
        raise DataError(f"cannot encode {what}: expected a tensor, an array, an image, a list of frames or a path")
    if x.layout != torch.strided or x.is_meta or x.is_quantized or x.is_nested:
        raise DataError("pixels are a tensor that is sparse, nested, quantized or without values, expected a dense one")
    if x.is_floating_point():
        return x.float() if x.dtype.itemsize < 4 else x  # fewer bits are too coarse for resizing
    stored = statistics is not None and not x.is_complex() and x.dtype != torch.bool
    if x.dtype != torch.uint8 and not stored:
        raise DataError(
            f"pixels are {_dtype_name(x)}, expected uint8 (0 to 255) or floats from 0 to 1; "
            "divide by the largest value that a color can have"
        )
    return x


def _dtype_name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def _find_layout(shape: tuple[int, ...], channels: int, layout: str | None) -> str:
    """The letters of the axes of a shape.

    Raises:
        DataError: if the layout does not fit the shape; or, where there is none, if no axis or several may be that of
            the channels.
    """
    if layout is not None:
        sizes = dict(zip(layout, shape, strict=False))
        if len(layout) != len(shape) or sizes.get("C", 1) != channels:
            raise DataError(
                f'pixels have shape {shape}, which does not fit layout="{layout}" and a model of {channels} channels'
            )
        return layout
    candidates = _LAYOUTS.get(len(shape), ())
    fitting = [each for each in candidates if _fits(dict(zip(each, shape, strict=True)), channels)]
    # Where C is 1, layouts that fit differ in the place of axes of size 1 only.
    if len(fitting) == 1 or (fitting and channels == 1):
        return fitting[0]
    if not fitting and len(shape) == 3 and channels == 1 and min(shape[0], shape[2]) > _MAX_COLORS:
        return "THW"
    if fitting:
        raise DataError(
            f"pixels have shape {shape}, which may be {' or '.join(fitting)}; pass the one that it is, such as "
            f'layout="{fitting[0]}"'
        )
    example = {(4, 3): "BCHW", (3, 1): "THW"}.get((len(shape), channels))
    remedy = f', such as layout="{example}"' if example else ""
    if channels == 3 and (len(shape) == 2 or 1 in (*shape[:1], *shape[-1:])):
        remedy += "; repeat the values of a grayscale image"
    elif channels == 3 and len(shape) == 3:
        remedy += "; repeat the values of a grayscale clip (THW): np.repeat(x[..., None], 3, axis=-1)"
    raise DataError(
        f"pixels have shape {shape}, expected {channels} channel{'s' * (channels > 1)}: an image (HWC or CHW), a clip "
        f"(THWC, TCHW or CTHW) or a batch of clips (BTHWC, BTCHW or BCTHW), or another order by layout={remedy}"
    )


def _fits(sizes: dict[str, int], channels: int) -> bool:
    """Whether a shape may have a layout. No frame is as narrow as its number of channels, where that is small."""
    narrow = 1 < channels < 8 and channels in (sizes["H"], sizes["W"])
    return sizes.get("C", 1) == channels and not narrow


def _check_floats(x: Tensor, normalized: bool, statistics: PixelStatistics | None) -> None:
    """Reject values that are not finite, and colors that are not from 0 to 1."""
    # One pass, in which NaN propagates, and one read: each number that is read from a device is waited for.
    lowest, top = torch.stack(x.aminmax()).tolist()
    if not (np.isfinite(lowest) and np.isfinite(top)):
        not_finite = int((~x.isfinite()).sum())
        raise DataError(
            f"{not_finite} of {x.numel()} pixel values are not finite (NaN or infinity), expected floats or uint8"
        )
    if not normalized and (lowest < -_ROUNDING or top > 1 + _ROUNDING):
        scale, remedy = "colors from 0 to 1", "pass normalized=True if they are normalized by the model's mean and std"
        if lowest >= -_ROUNDING and top <= 255:
            remedy = f"divide by 255, or pass uint8; {remedy}"
        if statistics is not None:
            low, high = statistics.window
            scale = f"0 to 1 for the model's window of {low:g} to {high:g}"
            remedy = "pass stored values as integers, or normalized=True if they are normalized already"
        raise DataError(f"floats are from {lowest:.4g} to {top:.4g}, expected {scale}; {remedy}")
    if statistics is not None and not normalized and 0 < top < MIN_COVERED:
        low, high = statistics.window
        warn_user(
            f"floats are from {lowest:.4g} to {top:.4g}, the darkest tenth of the model's window, {low:g} to {high:g}, "
            "which is 0 to 1; pass stored values as integers, or (values - low) / (high - low)"
        )
