"""Patch embedding of videos and images (docs/system.md, steps 1 and 2)."""

import torch
from torch import Tensor, nn

from tubelet.config import ModelConfig
from tubelet.errors import DataError
from tubelet.grid import Grid, Modality
from tubelet.model.layers import random_vector


def modality_of(pixels: Tensor) -> Modality:
    """The modality of pixels (B, C, T, H, W): an image if T is 1, otherwise a video."""
    return Modality.IMAGE if pixels.shape[2] == 1 else Modality.VIDEO


def patchify(pixels: Tensor, grid: Grid) -> Tensor:
    """Cut clips into non-overlapping patches in (t, h, w) order.

    Args:
        pixels: (B, C, T, H, W).
        grid: the token grid; its steps divide T, H and W.

    Returns:
        (B, N, C·t·p·p), each patch flattened in (c, t, h, w) order, as a convolution's kernel is.
    """
    B, C, T, H, W = pixels.shape
    t, p, q = T // grid.t, H // grid.h, W // grid.w
    patches = pixels.view(B, C, grid.t, t, grid.h, p, grid.w, q).permute(0, 2, 4, 6, 1, 3, 5, 7)
    return patches.reshape(B, grid.tokens, C * t * p * q)


def gather_tokens(x: Tensor, ids: Tensor) -> Tensor:
    """The tokens `ids` (B, K) of x (B, N, D): (B, K, D)."""
    B, N, D = x.shape
    # index_select copies whole rows, where torch.gather would look up every channel.
    rows = ids + N * torch.arange(B, device=ids.device).unsqueeze(1)
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(B, -1, D)


class Tokenizer(nn.Module):
    """A linear patch embedding and a learnable modality embedding for videos and for images.

    A convolution whose kernel equals its stride is a matrix product over flattened patches. In this form, masked
    patches are not computed.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        area = config.channels * config.patch_size**2
        self.video = nn.Linear(config.tubelet_size * area, config.width)
        self.image = nn.Linear(area, config.width)
        self.video_embedding = random_vector(config.width)
        self.image_embedding = random_vector(config.width)

    def grid(self, pixels: Tensor) -> Grid:
        """The token grid of an input.

        Raises:
            TubeletError: if the shape is not (B, C, T, H, W) of whole patches.
        """
        if pixels.dim() != 5 or pixels.shape[1] != self.config.channels:
            raise DataError(
                f"pixels have shape {tuple(pixels.shape)}, "
                f"expected (clips, {self.config.channels}, frames, height, width)"
            )
        return self.config.grid(*pixels.shape[2:])

    def forward(self, pixels: Tensor, ids: Tensor | None = None) -> Tensor:
        """Embed all patches of an input, or only the patches `ids`.

        Args:
            pixels: (B, C, T, H, W) normalized pixels; T = 1 is an image.
            ids: (B, K) token indices, or None for all N.

        Returns:
            (B, K, D) tokens.
        """
        patches = patchify(pixels, self.grid(pixels))
        if ids is not None:
            patches = gather_tokens(patches, ids)
        if modality_of(pixels) is Modality.IMAGE:
            return self.image(patches) + self.image_embedding
        return self.video(patches) + self.video_embedding
