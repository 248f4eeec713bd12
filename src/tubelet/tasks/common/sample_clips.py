"""Clips of the sample set: frozen features, and the ground truth of the same pixels.

Features are an encoder's, those of the same architecture with random weights, and the pixels' own. A clip is decoded
once and goes through both encoders in the same batch, so that the three kinds of features are of the same pixels.

B clips, T frames of H x W pixels, N tokens of a clip, S time steps of (H', W') tokens, D width, K classes, P points.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data.clips import normalize, resize_center_crop, resize_shape
from tubelet.data.decode import read_frames
from tubelet.device import tf32_products
from tubelet.errors import DataError
from tubelet.grid import Grid
from tubelet.model.encoder import Encoder
from tubelet.model.tokenizer import patchify
from tubelet.sample_data.truth import VOID, ClipTruth, SampleEntry, read_truth
from tubelet.tasks.common.correspondence import StepTracks, tracks_by_step
from tubelet.tasks.common.result import RANDOM_WEIGHTS

TRAINED, RANDOM, RAW = "trained", RANDOM_WEIGHTS, "raw patches"
FEATURES = (TRAINED, RANDOM, RAW)
_TOKENS_PER_BATCH = 4096


@torch.no_grad()
def frozen_features(encoders: Mapping[str, Encoder], pixels: Tensor, grid: Grid) -> dict[str, Tensor]:
    """The features of clips: each encoder's last level, and the patches as they are.

    Args:
        encoders: kind of feature -> encoder.
        pixels: (B, 3, T, H, W) normalized pixels on the encoders' device.
        grid: the token grid.

    Returns:
        kind of feature -> (B, N, D) float32 on the CPU.
    """
    with tf32_products(pixels.device):
        levels = {kind: encoder(pixels)[-1] for kind, encoder in encoders.items()}
    return {kind: x.float().cpu() for kind, x in (levels | {RAW: patchify(pixels, grid)}).items()}


def frames_that_fit(requested: int, available: int, tubelet: int) -> int:
    """As many of the wanted frames as a clip has, in whole tubelets; one frame is an image."""
    count = min(requested, available)
    return count if count == 1 else max(count - count % tubelet, tubelet)


def crop_nearest(truth: NDArray, size: int) -> Tensor:
    """The pixels of a truth (T, H, W) at the centers of those that `resize_center_crop` makes: (T, size, size)."""
    before: tuple[int, int] = (truth.shape[1], truth.shape[2])
    rows, columns = (
        ((np.arange(size) + (after - size) // 2 + 0.5) * old / after).astype(np.int64)
        for old, after in zip(before, resize_shape(*before, size), strict=True)
    )
    return torch.from_numpy(truth[:, rows[:, None], columns])


def check_truth(entry: SampleEntry, frames: Tensor, truth: ClipTruth, needed: int) -> None:
    """Check that an annotation is of the same frames (T, H, W, 3), and that there are enough of them.

    Raises:
        TubeletError: naming the file.
    """
    if frames.shape[:3] != truth.classes.shape or len(frames) != truth.tracks.shape[1]:
        raise DataError(
            f"{entry.media}: {tuple(frames.shape[:3])} frames x rows x columns, but {entry.truth} describes "
            f"{truth.classes.shape}; create the sample set again"
        )
    if len(frames) < needed:
        raise DataError(f"{entry.media}: {len(frames)} frames, expected at least {needed}")


@dataclass(frozen=True)
class ClipCrop:
    """How clips are cropped, and the names of their classes.

    Attributes:
        image_size: side of the center crop in pixels.
        frames: T, taken from the middle of the clip at the file's own rate.
        classes: names of the pixels' classes.
        motions: names of the camera's motions.
    """

    image_size: int
    frames: int
    classes: tuple[str, ...]
    motions: tuple[str, ...]


@dataclass(frozen=True)
class TokenTargets:
    """Features and targets of B clips, on the CPU.

    Attributes:
        features: kind of feature -> (B, N, D) float32; D differs between the kinds.
        class_pixels: (B, N, K) int64, how many pixels of the token's patch are of each class; none are of void.
        log_depth: (B, N) float32, mean over the patch of the logarithm of depth in map units where depth is known;
            NaN where it is known of no pixel.
    """

    features: dict[str, Tensor]
    class_pixels: Tensor
    log_depth: Tensor


def count_classes(labels: Tensor, grid: Grid, classes: int) -> Tensor:
    """How many pixels of each patch are of each class, void left out.

    Args:
        labels: (B, T, H, W) uint8 class indices.
        grid: the token grid.
        classes: K.

    Returns:
        (B, N, K) int64.
    """
    patches = patchify(labels.unsqueeze(1), grid)
    B, N, _ = patches.shape
    ids = torch.arange(B * N).view(B, N, 1) * classes + patches
    counts = torch.bincount(ids.flatten(), minlength=B * N * classes).view(B, N, classes)
    counts[..., VOID] = 0
    return counts


def mean_log_depth(depth: Tensor, grid: Grid) -> Tensor:
    """Mean of the logarithm of the known depths of each patch; NaN where none is known.

    Args:
        depth: (B, T, H, W) float32; what is not finite is not known.
        grid: the token grid.

    Returns:
        (B, N) float32.
    """
    patches = patchify(depth.unsqueeze(1), grid)
    valid = patches.isfinite() & (patches > 0)
    return torch.where(valid, patches, 1.0).log().sum(-1) / valid.sum(-1)


def iter_token_targets(
    entries: Sequence[SampleEntry], encoders: Mapping[str, Encoder], view: ClipCrop
) -> Iterator[TokenTargets]:
    """Features and targets of clips, in their order, a batch at a time.

    Args:
        entries: the clips.
        encoders: kind of feature -> encoder; all of the same configuration and on the same device.
        view: how clips are cropped.

    Raises:
        TubeletError: a clip or its truth cannot be read, or they do not fit together.
    """
    first = next(iter(encoders.values()))
    grid = first.config.grid(view.frames, view.image_size, view.image_size)
    device = first.tokenizer.video.weight.device
    size = max(1, _TOKENS_PER_BATCH // grid.tokens)
    for start in range(0, len(entries), size):
        clips = [_read(entry, view) for entry in entries[start : start + size]]
        pixels, labels, depth = (torch.stack(parts) for parts in zip(*clips, strict=True))
        yield TokenTargets(
            features=frozen_features(encoders, normalize(pixels.to(device), first.config.pixels), grid),
            class_pixels=count_classes(labels, grid, len(view.classes)),
            log_depth=mean_log_depth(depth, grid),
        )


def _read(entry: SampleEntry, view: ClipCrop) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (3, T, H, W), classes (T, H, W) and depth (T, H, W) of a clip."""
    frames, truth = read_frames(entry.media).pixels, read_truth(entry.truth)
    check_truth(entry, frames, truth, view.frames)
    first = (len(frames) - view.frames) // 2
    middle = slice(first, first + view.frames)
    pixels = resize_center_crop(frames[middle], view.image_size)
    labels = crop_nearest(truth.classes[middle], view.image_size)
    return pixels, labels, crop_nearest(truth.depth[middle], view.image_size)


def temporal_windows(frames: Tensor, window: int, size: int) -> Tensor:
    """The middle of a clip (T, H, W, 3) in as many whole windows as it has: (windows, 3, window, size, size) uint8."""
    count = len(frames) // window
    first = (len(frames) - count * window) // 2
    pixels = resize_center_crop(frames[first : first + count * window], size)
    return pixels.unflatten(1, (count, window)).transpose(0, 1).contiguous()


def crop_tracks(
    tracks: NDArray, visible: NDArray, shape: tuple[int, int], window: int, size: int
) -> tuple[Tensor, Tensor]:
    """The tracks of the pixels that `temporal_windows` keeps.

    Args:
        tracks: (P, T, 2) x, y in pixels of the frames.
        visible: (P, T) bool.
        shape: H, W of the frames.
        window: frames.
        size: pixels.

    Returns:
        (P, windows · window, 2) float32 x, y in pixels of the view, and whether each is visible in it.
    """
    count = tracks.shape[1] // window
    first = (tracks.shape[1] - count * window) // 2
    middle = slice(first, first + count * window)
    height, width = resize_shape(*shape, size)
    scale = torch.tensor([width / shape[1], height / shape[0]])
    margin = torch.tensor([(width - size) // 2, (height - size) // 2])
    points = torch.from_numpy(tracks[:, middle]) * scale - margin
    return points, torch.from_numpy(visible[:, middle]) & ((points >= 0) & (points < size)).all(-1)


@dataclass(frozen=True)
class WholeClip:
    """A clip of S time steps, on the CPU.

    Attributes:
        maps: kind of feature -> (S, H', W', D) float32.
        tracks: of its points.
        motion: index of the camera's motion.
    """

    maps: dict[str, Tensor]
    tracks: StepTracks
    motion: int


def iter_whole_clips(
    entries: Sequence[SampleEntry], encoders: Mapping[str, Encoder], window: int, size: int
) -> Iterator[WholeClip]:
    """Features of whole clips, one after the other.

    Args:
        entries: the clips.
        encoders: kind of feature -> encoder; all of the same configuration and on the same device.
        window: frames that an encoder sees at once.
        size: pixels along the side of the view.

    Raises:
        TubeletError: a clip or its truth cannot be read, they do not fit together, or the clip is shorter than one
            window.
    """
    first = next(iter(encoders.values()))
    grid, device = first.config.grid(window, size, size), first.tokenizer.video.weight.device
    for entry in entries:
        frames, truth = read_frames(entry.media).pixels, read_truth(entry.truth)
        check_truth(entry, frames, truth, window)
        pixels = normalize(temporal_windows(frames, window, size).to(device), first.config.pixels)
        features = frozen_features(encoders, pixels, grid)
        points, visible = crop_tracks(truth.tracks, truth.visible, truth.classes.shape[1:], window, size)
        yield WholeClip(
            {kind: x.view(-1, grid.h, grid.w, x.shape[-1]) for kind, x in features.items()},
            tracks_by_step(points, visible, window // grid.t, first.config.patch_size),
            truth.motion,
        )
