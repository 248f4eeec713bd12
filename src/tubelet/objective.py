"""Targets and the dense predictive loss (docs/system.md, step 8; arXiv 2603.14482, section 3)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.grid import Grid, Mask
from tubelet.model.tokenizer import gather_tokens


class Losses(NamedTuple):
    """Scalars of one batch under one mask.

    Attributes:
        total: prediction + λ · context.
        prediction: mean L1 over masked tokens and channels.
        context: mean L1 over context tokens and channels, optionally weighted by distance.
    """

    total: Tensor
    prediction: Tensor
    context: Tensor


def normalize_targets(levels: list[Tensor]) -> Tensor:
    """Normalize the channels of each token of each level to mean 0 and variance 1, as LayerNorm does.

    Args:
        levels: L tensors (B, N, D).

    Returns:
        (B, N, L·D) in fp32.
    """
    return torch.cat([F.layer_norm(level.float(), level.shape[-1:]) for level in levels], dim=-1)


def target_distance(mask: Mask, grid: Grid) -> Tensor:
    """Euclidean distance in the (t, h, w) grid from every context token to the nearest target token.

    Squared Euclidean distance is a sum over axes, so its minimum over all targets can be taken axis by axis: three
    small minima instead of a table of every context token against every target.

    Returns:
        (B, Kc), at least 1.
    """
    B = mask.target.shape[0]
    squared = torch.full((B, grid.tokens), torch.inf, device=mask.target.device)
    squared = squared.scatter(1, mask.target, 0.0).view(B, *grid.shape)
    for axis, size in enumerate(grid.shape, start=1):
        step = torch.arange(size, device=squared.device)
        sq_dist = (step.unsqueeze(1) - step).square()  # (size, size)
        squared = (squared.movedim(axis, -1).unsqueeze(-2) + sq_dist).amin(-1).movedim(-1, axis)
    return squared.flatten(1).gather(1, mask.context).sqrt()


def token_errors(predicted: Tensor, targets: Tensor, ids: Tensor) -> Tensor:
    """L1 error of each predicted token, mean over channels.

    Args:
        predicted: (B, K, L·D) predictions.
        targets: (B, N, L·D) targets of the whole grid.
        ids: (B, K) indices of the predicted tokens.

    Returns:
        (B, K).
    """
    return (predicted.float() - gather_tokens(targets, ids)).abs().mean(-1)


def dense_predictive_loss(
    target_pred: Tensor,
    context_pred: Tensor,
    targets: Tensor,
    mask: Mask,
    grid: Grid,
    context_weight: float | Tensor,
    distance_weighting: bool = True,
) -> Losses:
    """L_predict + λ · L_context for one mask.

    Args:
        target_pred: (B, Kt, L·D) predictions at target tokens.
        context_pred: (B, Kc, L·D) predictions at context tokens.
        targets: (B, N, L·D) normalized targets.
        mask: context and target tokens.
        grid: the token grid that the mask indexes.
        context_weight: λ.
        distance_weighting: whether to weight each context token by 1 / sqrt(distance to the nearest masked token), or
            all equally, as in the released cool-down.
    """
    prediction = token_errors(target_pred, targets, mask.target).mean()
    errors = token_errors(context_pred, targets, mask.context)
    context = (errors / target_distance(mask, grid).sqrt() if distance_weighting else errors).mean()
    return Losses(prediction + context_weight * context, prediction, context)
