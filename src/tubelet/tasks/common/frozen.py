"""Frozen features of a sample set's clips, and the truth of the same pixels.

Features are an encoder's, those of the same architecture with random weights, and the pixels' own. B clips, T frames of
H x W pixels, N tokens of a clip, D width.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data.clips import resize_shape
from tubelet.errors import TubeletError
from tubelet.grid import Grid
from tubelet.model.encoder import Encoder
from tubelet.model.tokenizer import patchify
from tubelet.sample_data.truth import ClipTruth, SampleEntry

TRAINED, RANDOM, RAW = "trained", "random", "raw patches"
FEATURES = (TRAINED, RANDOM, RAW)


@torch.no_grad()
def frozen_features(encoders: Mapping[str, Encoder], pixels: Tensor, grid: Grid) -> dict[str, Tensor]:
    """The features of clips: each encoder's last level, and the patches as they are.

    Args:
        encoders: kind of feature -> encoder.
        pixels: (B, 3, T, H, W) normalised pixels on the encoders' device.
        grid: the token grid.

    Returns:
        kind of feature -> (B, N, D) float32 on the CPU.
    """
    levels = {kind: encoder(pixels)[-1] for kind, encoder in encoders.items()}
    return {kind: x.float().cpu() for kind, x in (levels | {RAW: patchify(pixels, grid)}).items()}


def frames_that_fit(wanted: int, there: int, tubelet: int) -> int:
    """As many of the wanted frames as a clip has, in whole tubelets; one frame is an image."""
    count = min(wanted, there)
    return count if count == 1 else max(count - count % tubelet, tubelet)


def crop_nearest(truth: NDArray, size: int) -> Tensor:
    """The pixels of a truth (T, H, W) at the centres of those that `resize_centre_crop` makes: (T, size, size)."""
    before: tuple[int, int] = (truth.shape[1], truth.shape[2])
    rows, columns = (
        ((np.arange(size) + (after - size) // 2 + 0.5) * old / after).astype(np.int64)
        for old, after in zip(before, resize_shape(*before, size), strict=True)
    )
    return torch.from_numpy(truth[:, rows[:, None], columns])


def check_truth(entry: SampleEntry, frames: Tensor, truth: ClipTruth, needed: int) -> None:
    """Refuse a truth that is of other frames (T, H, W, 3), and a clip of fewer frames than are needed.

    Raises:
        TubeletError: naming the file.
    """
    if frames.shape[:3] != truth.classes.shape or len(frames) != truth.tracks.shape[1]:
        raise TubeletError(
            f"{entry.media}: {tuple(frames.shape[:3])} frames x rows x columns, but {entry.truth} describes "
            f"{truth.classes.shape}; make the sample set anew"
        )
    if len(frames) < needed:
        raise TubeletError(f"{entry.media}: {len(frames)} frames, but {needed} are to be evaluated")
