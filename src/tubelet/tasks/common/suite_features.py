"""From clips and their ground truth to features and targets of tokens.

N tokens of a clip, K classes. A clip is decoded once and goes through both encoders in the same batch; the three kinds
of features are therefore of the same pixels, and their probes see the same tokens and targets.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tubelet.data.clips import normalise, resize_centre_crop
from tubelet.data.decode import read_frames
from tubelet.grid import Grid
from tubelet.model.encoder import Encoder
from tubelet.model.tokenizer import patchify
from tubelet.sample_data.truth import VOID, SampleEntry, read_truth
from tubelet.tasks.common.frozen import check_truth, crop_nearest, frozen_features

_TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class View:
    """How clips are cut, and what their truth is named after.

    Attributes:
        image_size: side of the centre crop in pixels.
        frames: T, taken from the middle of the clip at the file's own rate.
        classes: names of the pixels' classes.
        motions: names of the camera's motions.
    """

    image_size: int
    frames: int
    classes: tuple[str, ...]
    motions: tuple[str, ...]


@dataclass(frozen=True)
class ClipBatch:
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
    known = patches.isfinite() & (patches > 0)
    return torch.where(known, patches, 1.0).log().sum(-1) / known.sum(-1)


def batches(entries: Sequence[SampleEntry], encoders: Mapping[str, Encoder], view: View) -> Iterator[ClipBatch]:
    """Features and targets of clips, in their order, a batch at a time.

    Args:
        entries: the clips.
        encoders: kind of feature -> encoder; all of the same configuration and on the same device.
        view: how clips are cut.

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
        yield ClipBatch(
            features=frozen_features(encoders, normalise(pixels.to(device)), grid),
            class_pixels=count_classes(labels, grid, len(view.classes)),
            log_depth=mean_log_depth(depth, grid),
        )


def _read(entry: SampleEntry, view: View) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels (3, T, H, W), classes (T, H, W) and depth (T, H, W) of a clip."""
    frames, truth = read_frames(entry.media).pixels, read_truth(entry.truth)
    check_truth(entry, frames, truth, view.frames)
    first = (len(frames) - view.frames) // 2
    middle = slice(first, first + view.frames)
    pixels = resize_centre_crop(frames[middle], view.image_size)
    labels = crop_nearest(truth.classes[middle], view.image_size)
    return pixels, labels, crop_nearest(truth.depth[middle], view.image_size)
