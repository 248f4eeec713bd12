"""Features as colors: the first three principal components become red, green and blue."""

from dataclasses import dataclass

import torch
from torch import Tensor

PERCENTILES = (0.02, 0.98)


@dataclass(frozen=True)
class Projection:
    """Projection of tokens of width D to colors.

    Attributes:
        mean: (D,) float64 mean, subtracted first.
        axes: (D, 3) float64, orthonormal principal directions, in order of decreasing variance.
        low, high: (3,) float64 coordinates of colors 0 and 255.
        shares: (3,) float64 fraction of the variance that each direction explains.
    """

    mean: Tensor
    axes: Tensor
    low: Tensor
    high: Tensor
    shares: Tensor

    def colors(self, tokens: Tensor) -> Tensor:
        """(..., D) tokens -> (..., 3) uint8; coordinates beyond low and high are clipped."""
        where = (tokens.detach().cpu().double() - self.mean) @ self.axes
        shares = (where - self.low) / (self.high - self.low).clamp_min(1e-12)
        return (shares.clamp(0, 1) * 255).round().to(torch.uint8)


def fit_projection(tokens: Tensor) -> Projection:
    """Fit the principal directions of tokens.

    The sign of an eigenvector is arbitrary: each is flipped so that its largest entry is positive, so that the same
    tokens always have the same colors. Colors span percentiles, so that an outlier does not leave the rest gray.

    Args:
        tokens: (K, D) with K >= 2 and D >= 3, on any device.
    """
    x = tokens.detach().cpu().double()
    mean = x.mean(0)
    centered = x - mean
    values, vectors = torch.linalg.eigh(centered.T @ centered)  # ascending
    axes = vectors[:, -3:].flip(1)
    peaks = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    axes = axes * torch.where(peaks < 0, -1.0, 1.0)
    where = centered @ axes
    ends = torch.quantile(where, torch.tensor(PERCENTILES, dtype=where.dtype), dim=0)
    shares = values[-3:].flip(0).clamp_min(0) / values.clamp_min(0).sum().clamp_min(1e-12)
    return Projection(mean, axes, ends[0], ends[1], shares)
