"""Linear heads on frozen features.

R rows (vectors of tokens, points or files), D width, K outputs, S heads side by side.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_INIT_STD = 0.01
_MIN_VARIANCE = 1e-6  # of the largest; along axes of less there is rounding, or nothing at all
_ROWS = 4096  # whose products are added up at a time


class LinearProbe(nn.Module):
    """A pooled vector to the classes, the channels standardized to mean 0 and standard deviation 1."""

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.linear = nn.Linear(len(mean), classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, pooled: Tensor) -> list[Tensor]:
        """(B, D) -> one output's (B, K)."""
        return [self.linear((pooled.float() - self.mean) / self.scale)]


def safe_std(std: Tensor, mean: Tensor) -> Tensor:
    """(D,) standard deviations to divide by: 1 for a channel that does not vary beyond rounding."""
    return torch.where(std > 1e-6 * mean.abs().clamp(min=1e-6), std, 1.0)


def fit_standardization(table: Tensor) -> tuple[Tensor, Tensor]:
    """(D,) mean and standard deviation of each channel of a table (n, D), 1 where it does not vary."""
    total = torch.zeros(table.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for rows in table.split(_ROWS):
        total += rows.double().sum(0)
        squares += rows.double().square().sum(0)
    mean = total / len(table)
    std = (squares / len(table) - mean.square()).clamp(min=0).sqrt()
    return mean.float(), safe_std(std, mean).float()


class Whitening(nn.Module):
    """Brings rows to mean 0, and to variance 1 along axes that are not correlated.

    The published protocols for dense tasks have batch norm before the head. But channels of frozen features are alike:
    their variance along a few directions is a thousand times that along most others, on which small things depend, and
    gradient descent learns from those last. On small sets, with few iterations, that is never. Whitening is as linear
    as batch norm; docs/evaluate-dense.md has what it changes.

    Args:
        mean: (D,).
        directions: (D, D), an axis a column; those along which rows do not vary are 0.
    """

    mean: Tensor
    directions: Tensor

    def __init__(self, mean: Tensor, directions: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("directions", directions)

    def forward(self, rows: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        whitened: Tensor = (rows - self.mean) @ self.directions
        return whitened

    @torch.no_grad()
    def before(self, head: nn.Module) -> nn.Module:
        """A head on whitened rows as one on rows as they are; a linear one stays linear."""
        if not isinstance(head, nn.Linear):
            return nn.Sequential(self, head)
        weight = head.weight @ self.directions.mT
        folded = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], device=weight.device)
        folded.weight.copy_(weight)
        folded.bias.copy_(head.bias - weight @ self.mean)
        return folded.requires_grad_(False)


def fit_whitening(batches: Iterable[Tensor]) -> Whitening:
    """The whitening of rows (R, D), which come in batches."""
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for rows in batches:
        x = rows.double()
        count, total, products = count + len(x), total + x.sum(0), products + x.mT @ x
    mean = total / count
    variance, directions = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    selected = variance > _MIN_VARIANCE * variance[-1].clamp(min=1e-12)
    scale = torch.where(selected, variance, 1.0).rsqrt() * selected
    return Whitening(mean.float(), (directions * scale).float())


def linear_head(width: int, outputs: int) -> nn.Linear:
    """A linear head on whitened rows, with small random weights."""
    head = nn.utils.skip_init(nn.Linear, width, outputs)
    nn.init.normal_(head.weight, std=_INIT_STD)
    nn.init.zeros_(head.bias)
    return head


def apply_heads(heads: nn.ModuleList, rows: Tensor) -> Tensor:
    """The outputs of S heads for the same rows: (R, D) -> (R, S, K); linear heads are one matrix product."""
    linear = [head for head in heads if isinstance(head, nn.Linear)]
    if len(linear) < len(heads):
        return torch.stack([head(rows) for head in heads], dim=1)
    out = F.linear(rows, torch.cat([head.weight for head in linear]), torch.cat([head.bias for head in linear]))
    return out.unflatten(1, (len(heads), -1))
