"""The token grid, masks over it, and modalities.

Shape legend, used in all docstrings: B clips in a batch, C channels, T frames, H x W pixels, (T', H', W') the token
grid, N = T'·H'·W' tokens, K tokens of an index list, D width, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # processes that only render or read files need not spend seconds on importing torch
    import torch
    from torch import Tensor


class Modality(StrEnum):
    """Which tokenizer an input goes through."""

    VIDEO = "video"
    IMAGE = "image"


class Grid(NamedTuple):
    """The token grid (T', H', W'): time steps, rows, columns. Tokens are numbered in (t, h, w) order."""

    t: int
    h: int
    w: int

    @property
    def tokens(self) -> int:
        """N, the number of tokens."""
        return self.t * self.h * self.w

    @property
    def shape(self) -> tuple[int, int, int]:
        """(T', H', W')."""
        return (self.t, self.h, self.w)

    def __str__(self) -> str:
        return f"{self.t}x{self.h}x{self.w}"


@dataclass(frozen=True)
class Mask:
    """One mask of a batch: which tokens the student sees and which it must predict.

    Attributes:
        context: (B, Kc) int64 token indices that the student sees, sorted.
        target: (B, Kt) int64 token indices that it must predict, sorted.
    """

    context: Tensor
    target: Tensor

    def to(self, device: torch.device) -> Mask:
        """The same mask on another device."""
        return Mask(self.context.to(device, non_blocking=True), self.target.to(device, non_blocking=True))


class MaskedGrid(NamedTuple):
    """The mask of a batch, with the grid and the modality of the batch.

    Attributes:
        mask: the indices of context and target tokens.
        grid: the grid that they index.
        modality: which tokenizer the batch went through.
    """

    mask: Mask
    grid: Grid
    modality: Modality


def round_to_patches(length: float, patch_size: int) -> int:
    """The nearest multiple of the patch size to a length in pixels, at least one patch."""
    return max(1, round(length / patch_size)) * patch_size
