"""Dense features of whole files on a fine token grid, and how surprising each token is to a predictor."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.config import MaskConfig
from tubelet.data.clips import normalize
from tubelet.data.masks import covering_masks
from tubelet.errors import DataError
from tubelet.grid import Grid, MaskedGrid, round_to_patches
from tubelet.model.tokenizer import modality_of
from tubelet.objective import normalize_targets, token_errors
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.dense_features import DenseFeatures
from tubelet.pretrained.inputs import Sampling, read_inputs
from tubelet.pretrained.pixels import PixelFormat
from tubelet.pretrained.sliding_windows import read_windows
from tubelet.vjepa import VJEPA


@dataclass(frozen=True)
class FrameSampling:
    """The frames of a file that the model sees.

    Attributes:
        height, width: size in pixels, multiples of the patch size.
        frames: frames of a window of a video.
        fps: frames per second of a video.
        start_s: start in seconds of a video.
        end_s: end in seconds of a video; None for its end.
    """

    height: int
    width: int
    frames: int
    fps: float
    start_s: float = 0.0
    end_s: float | None = None


@dataclass(frozen=True)
class FileTokens:
    """Features of a whole video or an image.

    Attributes:
        grid: time steps, rows and columns of the tokens.
        times: (T',) seconds of the time steps, from the start of the sampled span.
        levels: requested output levels, (N, D) float16 each.
    """

    grid: Grid
    times: NDArray[np.float64]
    levels: tuple[Tensor, ...]


def fine_size(height: int, width: int, side: int, patch_size: int) -> tuple[int, int]:
    """Height and width in whole patches, the shorter one near `side` pixels, of frames of a size."""
    scale = side / min(height, width)
    return round_to_patches(height * scale, patch_size), round_to_patches(width * scale, patch_size)


def encode_file(model: Backbone, path: Path, video: bool, sampling: FrameSampling, levels: Sequence[int]) -> FileTokens:
    """Features of all time steps of a file; windows of a video overlap by half, and their features are averaged.

    Args:
        model: the encoder.
        path: the file.
        video: whether it is a video, not an image.
        sampling: size and rate of its frames.
        levels: output levels, 0 the shallowest.

    Raises:
        DataError: if it cannot be read.
    """
    resize = (sampling.height, sampling.width)
    if video:
        windows = model.stream(
            path,
            frames=sampling.frames,
            fps=sampling.fps,
            resize=resize,
            start=sampling.start_s,
            end=sampling.end_s,
        )
        features = DenseFeatures.merge(_keep(window, levels) for window in windows)
    else:
        features = _keep(model.encode(path, resize=resize), levels)
    assert features.times is not None
    if not all(bool(level.isfinite().all()) for level in features.levels):
        raise DataError(f"{path}: the model's features are not finite; load its weights as float32 to see which")
    return FileTokens(
        features.grid, features.times[0].numpy() - sampling.start_s, tuple(level[0].half() for level in features.levels)
    )


def _keep(features: DenseFeatures, levels: Sequence[int]) -> DenseFeatures:
    return DenseFeatures(tuple(features.levels[i].cpu() for i in levels), features.grid, features.times)


def surprise(
    model: VJEPA,
    path: Path,
    video: bool,
    sampling: FrameSampling,
    masks: MaskConfig,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> NDArray[np.float32]:
    """The error of the predictor for each token of a file when the token is hidden.

    Each window is seen under a few masks of training that together hide each token at least once, see
    `covering_masks`. The L1 errors at hidden tokens are averaged over the masks and over overlapping windows.

    Args:
        model: student, predictor and teacher, in eval mode.
        path: the file.
        video: whether it is a video, not an image.
        sampling: size and rate of its frames.
        masks: what training hides.
        seed: of the masks.
        progress: called after each window.

    Returns:
        (T', H', W') mean L1 error over the channels of all levels; NaN where no mask hid a token.

    Raises:
        DataError: if the file cannot be read.
    """
    rng = np.random.default_rng(seed)
    sums: dict[float, NDArray[np.float64]] = {}
    counts: dict[float, NDArray[np.float64]] = {}
    for pixels, times in _windows(model, path, video, sampling):
        total, count = _window_errors(model, pixels, masks, rng)
        for step, second in enumerate(times):
            sums[second] = sums.get(second, 0.0) + total[step]
            counts[second] = counts.get(second, 0.0) + count[step]
        progress()
    order = sorted(sums)
    total, count = np.stack([sums[t] for t in order]), np.stack([counts[t] for t in order])
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).astype(np.float32)


def _windows(model: VJEPA, path: Path, video: bool, sampling: FrameSampling) -> Iterator[tuple[Tensor, list[float]]]:
    """Clips (1, C, T, H, W) that cover a file, and the seconds of their time steps."""
    resize, tubelet = (sampling.height, sampling.width), model.config.tubelet_size
    if not video:
        yield read_inputs(str(path), model.config, Sampling(), resize).pixels, [0.0]
        return
    span, statistics = (sampling.start_s, sampling.end_s), model.config.pixels
    for frames, times in read_windows(path, sampling.frames, 0, sampling.fps, tubelet, *span, statistics=statistics):
        pixels = read_inputs(frames, model.config, Sampling(), resize, PixelFormat("THWC")).pixels
        yield pixels, times.unflatten(0, (-1, tubelet)).mean(-1).tolist()


@torch.no_grad()
def _window_errors(
    model: VJEPA, pixels: Tensor, masks: MaskConfig, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums of the errors of hidden tokens, and how often each was hidden, (T', H', W') both."""
    weight = model.predictor.target_head.weight
    pixels = normalize(pixels.to(weight.device), model.config.pixels, weight.dtype)
    grid, modality = model.student.tokenizer.grid(pixels), modality_of(pixels)
    targets = normalize_targets(model.teacher(pixels))
    total, count = torch.zeros(2, grid.tokens, dtype=torch.float64)
    for drawn in covering_masks(masks.specs_for(modality), grid, rng):
        mask = drawn.to(weight.device)
        ((predicted, _),) = model.predictor(model.student(pixels, mask.context), [MaskedGrid(mask, grid, modality)])
        total[drawn.target[0]] += token_errors(predicted, targets, mask.target)[0].cpu().double()
        count[drawn.target[0]] += 1
    return total.view(grid.shape).numpy(), count.view(grid.shape).numpy()
