"""A trained encoder that computes dense features of videos and images of any size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from tubelet.checkpoint.native_clip import log_native
from tubelet.config.fields import check
from tubelet.data.clips import normalize
from tubelet.data.stacks import is_image_file
from tubelet.errors import ConfigError, DataError
from tubelet.pretrained.dense_features import DenseFeatures
from tubelet.pretrained.hub_encoder import HubEncoder
from tubelet.pretrained.inputs import Resize, Sampling, check_resize, is_number, read_inputs, step_times
from tubelet.pretrained.pixels import PixelFormat
from tubelet.pretrained.sliding_windows import read_windows


class Backbone(HubEncoder):
    """An encoder for images and videos; `tubelet.load` creates it with trained weights, `Backbone(config)` with random.

    It also has the interface of `timm`'s vision transformers, and the methods `from_pretrained`, `save_pretrained` and
    `push_to_hub` of `huggingface_hub`. Called as a module, it takes normalized pixels, see `forward`.

    Attributes:
        config: the architecture, a `ModelConfig`.
        native_clip: size, length and rate of the clips that the model is for, a `NativeClip`.
        predictor: the predictor, or None.
    """

    _native_clip_logged = False

    @torch.no_grad()
    def encode(
        self,
        x: Any,
        *,
        resize: Resize | Literal["native"] = "native",
        crop: int | None = None,
        frames: int | None = None,
        fps: float | None = None,
        start: float | None = None,
        layout: str | None = None,
        normalized: bool = False,
        bgr: bool = False,
    ) -> DenseFeatures:
        """Encode one image or clip, or a batch.

        Args:
            x: a tensor or array: an image (H, W, C) or (C, H, W), a clip (T, H, W, C), (T, C, H, W) or (C, T, H, W), or
                a batch of clips with another axis in front; for a model of one channel also a clip (T, H, W); uint8
                colors, or floats from 0 to 1. For a model with statistics of pixels, integers are stored values, and 0
                and 1 the ends of its window. Or a PIL image; a list or an iterator of images, which are the frames of
                one clip; a clip of `tubelet.Video`, or a `FrameBatch` of torchcodec; the path or URL of a video or an
                image; or a list of any of these except images, which is a batch. An input of one frame goes through the
                image tokenizer.
            resize: "native" brings the short side to `native_clip.image_size` and crops the center of the long one,
                unless pixels are `normalized`; a number does the same for any size. "round" resizes each side to the
                nearest multiple of the patch size; a pair is (height, width). None leaves the size unchanged; it must
                divide into patches.
            crop: side of a center crop after resizing; resize=438, crop=384 is the transform of the release's
                evaluations, whose short side is 256 / 224 of the crop.
            frames: T, for video files only, by default `native_clip.frames`; an odd count repeats the last frame, with
                a warning.
            fps: sampling rate of a video file in frames per second, by default `native_clip.fps`; for frames in memory,
                their rate, from which `times` are computed.
            start: start of the clip in seconds, for video files only; None takes the clip from the middle.
            layout: a letter for each axis of pixels in memory: B of a batch, C channels, T frames, H height, W width;
                for a list, its own axis may be the first. None finds the axis of the channels by its size, and takes
                four axes for a clip: "BCHW" and "BHWC" are batches of images.
            normalized: whether floats are normalized already, as `model(pixels)` takes them.
            bgr: whether the channels are blue, green and red, as of OpenCV.

        Returns:
            Features of all output levels, (B, N, D) float32 each, on the device of the model.

        Raises:
            ConfigError: if an argument is out of range.
            DataError: if x cannot be read, its layout is ambiguous, its floats are not in range, or its size does not
                divide into patches.
        """
        native = self.native_clip
        sampling = Sampling(frames, fps, start, native.frames, native.fps)
        size = self._size(resize, normalized)
        clips = read_inputs(x, self.config, sampling, size, PixelFormat(layout, normalized, bgr), crop)
        return self.dense_features(clips.pixels, clips.times).float()

    def stream(
        self,
        path: str | Path,
        *,
        frames: int | None = None,
        overlap: int | None = None,
        fps: float | None = None,
        resize: Resize | Literal["native"] = "native",
        crop: int | None = None,
        start: float = 0.0,
        end: float | None = None,
        causal: bool = False,
    ) -> Iterator[DenseFeatures]:
        """Encode a whole video of any length in constant memory.

        `DenseFeatures.merge(model.stream(path))` returns the whole video at once, in memory proportional to its length.

        Args:
            path: path or URL of the video.
            frames: T of a window, by default `native_clip.frames`; a shorter video is one window.
            overlap: frames that a window shares with the previous one, by default half of them; the last may share
                more.
            fps: sampling rate in frames per second, by default `native_clip.fps`.
            resize: as in `encode`.
            crop: as in `encode`.
            start: where to start in the video, in seconds.
            end: where to end, in seconds; None, or a later time, for the end of the video.
            causal: whether the features of a time t come from frames up to t only, as in a live application; by
                default those of a time step come from all frames of its window, later ones too. Each time step then has
                a window of its own that ends with it, for T' / 2 times the computation of windows that overlap by half,
                and its `times` are those of its last frame. Before the video, its first frame is repeated.

        Yields:
            Features of the windows, or of the time steps where `causal`, in order, each a batch of one, in float32.

        Raises:
            ConfigError: if an argument is out of range, or the window does not divide into tubelets.
            DataError: if the video cannot be read, or its size does not divide into patches.
        """
        check(bool, causal, "causal")
        size, native = self._size(resize), self.native_clip
        frames, fps = native.frames if frames is None else frames, native.fps if fps is None else fps
        check_resize(size, crop, self.config.patch_size)
        _check_span(path, start, end)
        Sampling(frames, fps, start)  # validates before a file is opened
        step = self.config.tubelet_size
        if causal:
            if overlap is not None:
                raise ConfigError(f"overlap is {overlap!r}, but causal windows advance by one time step; leave it out")
            overlap = frames - step
        elif overlap is None:
            overlap = frames // 2 - frames // 2 % step
        if not isinstance(overlap, (int, np.integer)):
            raise ConfigError(f"overlap is {overlap!r}, expected a whole number of frames")
        lead = frames - step if causal else 0
        for pixels, times in read_windows(path, frames, overlap, fps, step, start, end, lead, self.config.pixels):
            clips = read_inputs(pixels, self.config, Sampling(), size, PixelFormat("THWC"), crop)
            with torch.no_grad():
                features = self.dense_features(clips.pixels, times.unsqueeze(0)).float()
            if causal:
                features = replace(features.last_step(), times=times[None, -1:])
            yield features  # outside of no_grad, so that the mode of the caller is unchanged meanwhile

    def _size(self, resize: Resize | Literal["native"], normalized: bool = False) -> Resize:
        """The size that inputs are resized to; if it is the model's native size, that is logged once."""
        if resize != "native":
            return resize
        if normalized:
            return None
        if not self._native_clip_logged:
            options = dict.fromkeys(("resize=", "frames=", "fps="))
            log_native(self.name, self.native_clip, str(self.native_clip), options)
            self._native_clip_logged = True
        return self.native_clip.image_size

    def dense_features(self, pixels: Tensor, times: Tensor | None = None) -> DenseFeatures:
        """Dense features of clips whose size is a multiple of the patch size, without any preprocessing.

        Args:
            pixels: (B, C, T, H, W) uint8 colors or normalized floats, on any device.
            times: (B, T) seconds of the frames; their mean over each time step is kept.

        Returns:
            Features of all output levels, (B, N, D) each, in the data type of the model.

        Raises:
            DataError: if values are too large for the data type of the model, or integers of another type.
        """
        pixels = pixels.to(self.device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            pixels = normalize(pixels, self.config.pixels, self.dtype)
        elif not pixels.is_floating_point():
            kind = str(pixels.dtype).removeprefix("torch.")
            raise DataError(f"pixels are {kind}, expected colors of uint8 or normalized floats")
        else:
            # A look at the values waits for the device: bfloat16 ends where float32 does.
            narrower = torch.finfo(self.dtype).max < 0.99 * torch.finfo(pixels.dtype).max
            pixels = pixels.to(self.dtype)
            if narrower and not pixels.isfinite().all():
                dtype = str(self.dtype).removeprefix("torch.")
                raise DataError(f"pixel values are too large for {dtype}; normalize them, or pass uint8")
        grid = self.tokenizer.grid(pixels)
        outputs = self.get_intermediate_layers(pixels, self.config.levels)
        levels = tuple(norm(x) for norm, x in zip(self.norms, outputs, strict=True))
        return DenseFeatures(levels, grid, step_times(times, grid.t))


def _check_span(path: Any, start: Any, end: Any) -> None:
    """Raise an error if these are not a video, and where to start and end in it."""
    if not isinstance(path, (str, Path)) or is_image_file(path):
        kind = f"the image {path}" if isinstance(path, (str, Path)) else type(path).__name__
        raise DataError(f"stream takes the path or URL of a video, found {kind}; pass it to encode")
    if not is_number(start):
        raise ConfigError(f"start is {start!r}, expected seconds from the beginning of the video, 0 or more")
    if end is not None and not (is_number(end) and end > start):
        raise ConfigError(f"end is {end!r}, expected seconds after start, which is {start:g}")
