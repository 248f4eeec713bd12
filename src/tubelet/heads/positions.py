"""Positions of tokens in a square window, as channels.

Rotary encoders give tokens that say where they are relative to each other, hardly where they are in the image: a head
on pixels gets that in addition to the features.
"""

import torch
from torch import Tensor

POSITION_CHANNELS = 5


def token_positions(tokens: int, like: Tensor) -> Tensor:
    """Row and column from -1 to 1, their squares and their product, of the tokens of a square window.

    Args:
        tokens: N, a square number.
        like: gives type and device.

    Returns:
        (N, 5).
    """
    side = round(tokens**0.5)
    if side * side != tokens:
        raise ValueError(f"tokens is {tokens}, expected those of a square window, a square number")
    steps = torch.linspace(-1, 1, side, device=like.device) if side > 1 else torch.zeros(1, device=like.device)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([y, x, y * y, x * x, x * y], dim=-1).flatten(0, 1).to(like.dtype)


def append_positions(tokens: Tensor) -> Tensor:
    """(..., N, D) tokens of square windows -> (..., N, D + 5)."""
    positions = token_positions(tokens.shape[-2], tokens)
    return torch.cat([tokens, positions.expand(*tokens.shape[:-1], -1)], dim=-1)
