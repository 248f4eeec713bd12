"""Frozen features of clips: an encoder's, those of the same architecture with random weights, and the pixels' own.

B clips, T frames, N tokens of a clip, D width.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from tubelet.model.encoder import Encoder
from tubelet.model.tokenizer import patchify
from tubelet.types import Grid

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
