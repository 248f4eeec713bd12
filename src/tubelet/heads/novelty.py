"""How far a clip is from everything that a head was trained on.

n clips, D channels, R directions.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

_DIRECTIONS = 64
_ROWS_PER_DIRECTION = 4  # at least, so that the variance along a direction is known to about a third
_MIN_POWER = 1e-6  # of the largest; less is rounding
_QUANTILES = 101


class NoveltyModel(nn.Module):
    """The Mahalanobis distance from the mean of training features.

    The covariance is that of probabilistic principal component analysis (Tipping and Bishop 1999, equation 7): own
    variances along the first R directions, and their mean for all other directions. It can be inverted also where there
    are fewer clips than channels; and a clip that differs in a direction in which the training clips do not is far.

    Attributes:
        mean: (D,) mean of the features.
        directions: (D, R) the first principal directions, orthonormal.
        scale: (R,) standard deviation along each.
        rest: () standard deviation along every other direction.
    """

    mean: Tensor
    directions: Tensor
    scale: Tensor
    rest: Tensor

    def __init__(self, mean: Tensor, directions: Tensor, scale: Tensor, rest: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("directions", directions)
        self.register_buffer("scale", scale)
        self.register_buffer("rest", rest)

    @classmethod
    def empty_like(cls, tensors: Mapping[str, Tensor], prefix: str = "novelty.") -> Self:
        """A model of the sizes in a state dict."""
        names = ("mean", "directions", "scale", "rest")
        return cls(*(torch.zeros_like(tensors[prefix + name]) for name in names))

    @classmethod
    def fit(cls, pooled: Tensor) -> Self:
        """Fit to pooled features (n, D) of training clips; n is at least 1."""
        rows = pooled.detach().cpu().double()
        n, D = rows.shape
        mean = rows.mean(0)
        power, directions = _principal_directions(rows - mean)
        threshold = _MIN_POWER * power[0] if power[0] > 0 else torch.ones((), dtype=torch.float64)
        rank = max(1, min(_DIRECTIONS, D, n // _ROWS_PER_DIRECTION, int((power > threshold).sum())))
        # The discarded variance is spread over all other directions, those that few clips leave without any included.
        others = max(1, D - rank)
        rest = (power[rank:].sum() / others).clamp(min=float(threshold))
        scale = power[:rank].clamp(min=float(threshold)).sqrt()
        return cls(mean.float(), directions[:, :rank].float().contiguous(), scale.float(), rest.sqrt().float())

    def forward(self, pooled: Tensor) -> Tensor:
        """(n, D) pooled features -> (n,) distances, in standard deviations per direction; training clips are near 1."""
        offset = pooled.float() - self.mean
        along = offset @ self.directions
        across = (offset - along @ self.directions.mT).square().sum(-1) / self.rest.square()
        return (((along / self.scale).square().sum(-1) + across) / len(self.mean)).sqrt()


def _principal_directions(centered: Tensor) -> tuple[Tensor, Tensor]:
    """Variances (r,), the largest first, and directions (D, r) of centered rows (n, D)."""
    n, D = centered.shape
    if n > D:  # much faster for many rows
        power, directions = torch.linalg.eigh(centered.mT @ centered / (n - 1))
        return power.flip(0).clamp(min=0), directions.flip(1)
    _, singular, rows = torch.linalg.svd(centered, full_matrices=False)
    return singular.square() / max(1, n - 1), rows.mT


def fit_novelty(
    pooled: Tensor, splits: Sequence[tuple[ArrayLike, ArrayLike]]
) -> tuple[NoveltyModel, tuple[float, ...]]:
    """A model of training clips, and how far clips are that it was not fitted to.

    Args:
        pooled: (n, D) pooled features of all clips.
        splits: for each split, indices of the training clips and of the held-out clips. With several splits, the folds
            of a cross-validation, the distance of each clip is that by the model of its own fold, and the model itself
            is fitted to all clips.

    Returns:
        The model, and `novelty_quantiles` of the held-out clips.
    """
    index_splits = [tuple(torch.as_tensor(np.asarray(part, np.int64)) for part in split) for split in splits]
    distances = [NoveltyModel.fit(pooled[train])(pooled[held_out].cpu()) for train, held_out in index_splits]
    model = NoveltyModel.fit(pooled if len(index_splits) > 1 else pooled[index_splits[0][0]])
    return model, novelty_quantiles(torch.cat(distances))


def novelty_quantiles(distances: Tensor) -> tuple[float, ...]:
    """The distances at the quantiles 0, 0.01, ..., 1 of held-out clips.

    Each is a distance that occurs, the larger of two: of fewer than 100 clips the quantile 0.99 is the largest.

    Args:
        distances: (n,) from `NoveltyModel` of clips that it was not fitted to.
    """
    values = np.asarray(distances.detach().cpu(), float)
    return tuple(np.quantile(values, np.linspace(0, 1, _QUANTILES), method="higher").tolist())
