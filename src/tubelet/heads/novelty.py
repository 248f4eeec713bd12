"""How far a clip is from everything that a head was trained on.

n clips, D channels, R directions.
"""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor, nn

_DIRECTIONS = 64
_LEAST_POWER = 1e-6  # of the largest; directions of less are rounding


class NoveltyModel(nn.Module):
    """The Mahalanobis distance from the mean of training features, within their principal directions.

    Attributes:
        mean: (D,) mean of the features.
        directions: (D, R) principal directions, each divided by the standard deviation along it.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self, mean: Tensor, directions: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("directions", directions)

    @classmethod
    def empty_like(cls, tensors: Mapping[str, Tensor], prefix: str = "novelty.") -> Self:
        """A model of the sizes in a state dict."""
        return cls(torch.zeros_like(tensors[f"{prefix}mean"]), torch.zeros_like(tensors[f"{prefix}directions"]))

    @classmethod
    def fit(cls, pooled: Tensor) -> Self:
        """Fit to pooled features (n, D) of training clips."""
        rows = pooled.double()
        mean = rows.mean(0)
        _, singular, directions = torch.linalg.svd(rows - mean, full_matrices=False)
        power = singular.square() / max(1, len(rows) - 1)
        kept = (power > _LEAST_POWER * power.max().clamp(min=1e-12)).sum().clamp(1, _DIRECTIONS)
        scaled = directions[:kept].T / power[:kept].clamp(min=1e-12).sqrt()
        return cls(mean.float(), scaled.float())

    def forward(self, pooled: Tensor) -> Tensor:
        """(n, D) pooled features -> (n,) distances, in standard deviations per direction."""
        return ((pooled.float() - self.mean) @ self.directions).square().mean(-1).sqrt()
