"""Several batches as one sequence, for which each layer is called once; only attention sees where a batch ends."""

from collections.abc import Sequence

import torch
from torch import Tensor

Segments = tuple[tuple[int, int], ...]
"""(B, K) of each batch in a packed sequence."""


def pack(batches: Sequence[Tensor]) -> Tensor:
    """Tensors (B, K, ...) as one (1, ΣB·K, ...), all tokens of all samples one after the other."""
    flat = [x.reshape(1, -1, *x.shape[2:]) for x in batches]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=1)  # of a single tensor, cat is a copy


def unpack(x: Tensor, segments: Segments) -> list[Tensor]:
    """The batches (B, K, ...) of a packed sequence (1, ΣB·K, ...), as views."""
    parts = x.split([B * K for B, K in segments], dim=1) if len(segments) > 1 else [x]
    return [part.view(B, K, *x.shape[2:]) for part, (B, K) in zip(parts, segments, strict=True)]
