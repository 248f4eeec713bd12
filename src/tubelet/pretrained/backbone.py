"""A trained encoder that takes videos and images as they are and gives dense features."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelet.data.clips import normalize
from tubelet.errors import ConfigError, DataError
from tubelet.pretrained.dense_features import DenseFeatures
from tubelet.pretrained.hub_encoder import HubEncoder
from tubelet.pretrained.inputs import DEFAULT_FPS, Resize, Sampling, check_resize, read_inputs, step_times
from tubelet.pretrained.sliding_windows import read_windows


class Backbone(HubEncoder):
    """An encoder with everything that using it takes; made by `tubelet.load`.

    It has the interface that heads for ViTs expect of `timm`'s, see `TimmEncoder`, and the methods of
    `huggingface_hub`, see `HubEncoder`.
    """

    @torch.no_grad()
    def encode(
        self,
        x: Any,
        *,
        resize: Resize = None,
        frames: int = 16,
        fps: float | None = None,
        start: float | None = None,
    ) -> DenseFeatures:
        """Encode one picture or clip, or a batch.

        Args:
            x: a tensor or array: (H, W, 3) or (3, H, W) a picture, (T, H, W, 3) or (3, T, H, W) a clip, with a batch
                dimension in front several; uint8 colors, or floats that are normalized already. Or a PIL image; a list
                of pictures, which are the frames of one clip; the path or URL of a video or an image; or a list of any
                of these but pictures, which is a batch. What has one frame goes through the image tokenizer.
            resize: None takes pictures as they are, if they divide into patches; "round" brings each side to the
                nearest size that does; a number makes the middle square of that side; a pair is (height, width).
            frames: T, of a video file; an odd count repeats the last frame, with a warning.
            fps: frames per second that a video file is read at (4 by default); for frames in memory their own rate,
                for `times`.
            start: seconds into a video file at which the clip begins; None takes it from the middle.

        Raises:
            TubeletError: if x cannot be read, or does not divide into patches.
        """
        clips = read_inputs(x, self.config, Sampling(frames, fps, start), resize)
        return self._features(clips.pixels, clips.times)

    def stream(
        self,
        path: str | Path,
        *,
        frames: int = 16,
        overlap: int | None = None,
        fps: float | None = None,
        resize: Resize = None,
    ) -> Iterator[DenseFeatures]:
        """Encode all of a video, however long, in memory that does not grow.

        `DenseFeatures.merge(model.stream(path))` is the whole in one, which does take memory for all of it.

        Args:
            path: the video, or its URL.
            frames: T of a window; a video that is shorter is one window.
            overlap: frames that a window shares with the one before, half of them by default; the last may share more.
            fps: frames per second, 4 by default.
            resize: as in `encode`.

        Yields:
            The features of one window after the other, each a batch of one.

        Raises:
            TubeletError: if the video cannot be read, or the sizes do not divide into patches and tubelets.
        """
        check_resize(resize)
        Sampling(frames, fps)  # refuses odd numbers before a file is opened
        fps = DEFAULT_FPS if fps is None else fps
        if overlap is None:
            overlap = frames // 2 - frames // 2 % self.config.tubelet_size
        if not isinstance(overlap, (int, np.integer)):
            raise ConfigError(f"overlap is {overlap!r}, expected a whole number of frames")
        for pixels, times in read_windows(path, frames, overlap, fps, self.config.tubelet_size):
            clips = read_inputs(pixels, self.config, Sampling(), resize)
            with torch.no_grad():
                features = self._features(clips.pixels, times.unsqueeze(0))
            yield features  # not above: until the next window is asked for, gradients are the caller's affair

    def _features(self, pixels: Tensor, times: Tensor | None) -> DenseFeatures:
        """Features of whole clips (B, C, T, H, W), all levels, the times (B, T) of their frames beside them."""
        pixels = pixels.to(self.device, non_blocking=True)
        if pixels.dtype == torch.uint8:
            pixels = normalize(pixels, self.dtype)
        elif not (pixels := pixels.to(self.dtype)).isfinite().all():
            dtype = str(self.dtype).removeprefix("torch.")
            raise DataError(f"pixel values are too large for {dtype}; normalize them, or pass uint8")
        grid = self.tokenizer.grid(pixels)
        outputs = self.get_intermediate_layers(pixels, self.config.levels)
        levels = tuple(norm(x) for norm, x in zip(self.norms, outputs, strict=True))
        return DenseFeatures(levels, grid, step_times(times, grid.t))
