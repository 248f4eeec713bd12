"""Channels brought to mean 0 and standard deviation 1 over the training features.

n rows, D channels.
"""

import torch
from torch import Tensor, nn

from tubelet.heads.linear import fit_standardization


class Standardization(nn.Module):
    """The map of each channel to mean 0 and standard deviation 1; the identity until it is fitted.

    Attributes:
        mean: (D,).
        scale: (D,) standard deviation; 1 for a channel that does not vary.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))

    def fit(self, rows: Tensor) -> None:
        """Fit to training rows (n, D)."""
        mean, scale = fit_standardization(rows)
        self.mean.copy_(mean)
        self.scale.copy_(scale)

    def forward(self, rows: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        return (rows - self.mean) / self.scale
