"""Packing of several batches into one sequence: layers run once for all of them; only attention separates them."""

from collections.abc import Sequence

import torch
from torch import Tensor

Segments = tuple[tuple[int, int], ...]
"""(B, K) of each batch in a packed sequence."""


def pack(batches: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors (B, K, ...) along tokens to one tensor (1, ΣB·K, ...)."""
    flat = [x.reshape(1, -1, *x.shape[2:]) for x in batches]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)  # torch.cat would copy a single tensor


def unpack(x: Tensor, segments: Segments) -> list[Tensor]:
    """Split a packed sequence (1, ΣB·K, ...) into its batches (B, K, ...), as views."""
    parts = x.split([B * K for B, K in segments], dim=1) if len(segments) > 1 else [x]
    return [part.view(B, K, *x.shape[2:]) for part, (B, K) in zip(parts, segments, strict=True)]
