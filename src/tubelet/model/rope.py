"""3-D rotary position embedding of queries and keys in every attention layer (docs/system.md, step 2).

Each head is split into three equal even-sized sections for time, row and column, and a rest that is not rotated. A
section of size d rotates d/2 pairs of channels by position / 10000^(2i/d), i = 0..d/2-1 (V-JEPA 2, arXiv 2506.09985,
section 2.1).

The release pairs channel 2i with 2i+1. Here a head has all first members of its pairs in its first half and all
second members in its second half, so that a rotation is arithmetic on two contiguous halves; `pair_permutation`
converts released weights.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from tubelet.config import RopeVersion
from tubelet.grid import Grid
from tubelet.model.packing import Segments, pack

# Tokens per chunk of `rotate_out`: a megabyte of queries, keys and temporaries in a ViT-B.
_TOKENS_IN_CACHE = 64


class RotaryTable(NamedTuple):
    """Cosines and sines of every token's angles, shared by all blocks of a forward pass.

    Both channels of a pair rotate by the same angle, and both halves of a head have the same cosines. In V-JEPA 2.0
    they use two angles, which is not a rotation, but is what its weights were trained with.

    Attributes:
        cos: (B or 1, K, 1, head_dim) fp32 cosines.
        sin: sines of the same angles and shape, negative in the first half of a head.
        segments: (B, K) of each batch in a packed sequence; empty for the tokens (B, K, D) of one batch.
    """

    cos: Tensor
    sin: Tensor
    segments: Segments = ()

    @staticmethod
    def packed(tables: "Sequence[RotaryTable]", segments: Segments) -> "RotaryTable":
        """Pack the tables of several batches."""
        cos, sin = (
            pack([angles.expand(B, -1, -1, -1) for angles, (B, _) in zip(each, segments, strict=True)])
            for each in ([table.cos for table in tables], [table.sin for table in tables])
        )
        return RotaryTable(cos, sin, segments)


def axis_size(head_dim: int) -> int:
    """Channels of a head that each of the three axes rotates: the largest even number up to head_dim / 3."""
    return 2 * (head_dim // 3 // 2)


def pair_permutation(head_dim: int) -> Tensor:
    """(head_dim,) indices: channel j of a head here is channel `pair_permutation(head_dim)[j]` of a released head."""
    first = torch.arange(0, head_dim, 2)
    return torch.cat([first, first + 1])


def grid_positions(ids: Tensor, grid: Grid) -> tuple[Tensor, Tensor, Tensor]:
    """Time step, row and column of token indices, each of the shape of `ids`."""
    frame = grid.h * grid.w
    time = ids // frame
    in_frame = ids - frame * time  # not ids % frame, which the ONNX exporter cannot translate
    row = in_frame // grid.w
    return time, row, in_frame - grid.w * row


def rotary_table(
    ids: Tensor, grid: Grid, head_dim: int, rope_grid: int | None, rope: RopeVersion = "2.1"
) -> RotaryTable:
    """Cosines and sines of the angles of some tokens.

    Args:
        ids: (B or 1, K) int64 token indices.
        grid: the token grid that they index.
        head_dim: channels of an attention head, even.
        rope_grid: rows and columns of the pre-training grid, which row and column positions are rescaled to so that
            the first and last keep their angles at any resolution; None leaves positions as they are.
        rope: "2.0" repeats the frequencies of an axis end to end over its channels, although pairs are adjacent
            channels, and does not rescale positions (see `ModelConfig.rope`).
    """
    pairs = axis_size(head_dim) // 2
    frequency = 10000.0 ** (-torch.arange(pairs, dtype=torch.float32, device=ids.device) / max(pairs, 1))
    positions = [position.float() for position in grid_positions(ids, grid)]
    if rope == "2.0":
        return _table(positions, frequency.repeat(2).view(pairs, 2).unbind(-1), head_dim)
    if rope_grid is not None:
        # A grid with a single row or column has nothing to stretch: its only position is 0.
        positions[1] = positions[1] * ((rope_grid - 1) / max(grid.h - 1, 1))
        positions[2] = positions[2] * ((rope_grid - 1) / max(grid.w - 1, 1))
    return _table(positions, (frequency, frequency), head_dim)


def _table(positions: list[Tensor], frequencies: Sequence[Tensor], head_dim: int) -> RotaryTable:
    """The table of positions, from the frequencies of the first and second channels of the pairs."""
    halves = []
    for frequency, sign in zip(frequencies, (-1, 1), strict=True):
        # The first half has negative sines; cosines are the same.
        angles = torch.cat([position.unsqueeze(-1) * (sign * frequency) for position in positions], dim=-1)
        # The rest of the head is rotated by angle 0, which leaves it unchanged.
        halves.append(torch.nn.functional.pad(angles, (0, head_dim // 2 - angles.shape[-1])))
    angles = torch.cat(halves, dim=-1).unsqueeze(2)
    return RotaryTable(angles.cos(), angles.sin())


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate heads by their tokens' angles.

    Args:
        x: (B, K, heads, head_dim).
        table: the angles of the K tokens.

    Returns:
        (B, K, heads, head_dim) of the dtype of x; the arithmetic is in fp32, in which the angles are.
    """
    if torch.is_grad_enabled():
        rotated: Tensor = _Rotation.apply(x, table.cos, table.sin)
        return rotated
    return _rotate(x, table.cos, table.sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return (x * cos).addcmul_(_swap_halves(x), sin).to(x.dtype)


def _swap_halves(x: Tensor) -> Tensor:
    return x.roll(x.shape[-1] // 2, -1)


class _Rotation(torch.autograd.Function):
    """Rotation whose backward pass is the transposed rotation: half of the operations that autograd would record."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(grad, cos, _swap_halves(sin)), None, None


def rotate_out(out: Tensor, heads: Tensor, table: RotaryTable) -> None:
    """`rotate` into a preallocated tensor, in chunks of tokens, for forward passes on a CPU without gradients.

    The fp32 temporaries of a chunk fit into the cache. Rotating all tokens at once takes several times as long.

    Args:
        out: (B, K, heads, head_dim), the result.
        heads: (B, K, heads, head_dim).
        table: the angles of the K tokens.
    """
    step = max(1, _TOKENS_IN_CACHE // len(heads))
    for i in range(0, heads.shape[1], step):
        chunk = slice(i, i + step)
        x, cos, sin = heads[:, chunk].float(), table.cos[:, chunk], table.sin[:, chunk]
        y = x * cos
        (first, second), (rotated, rotated_second) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
        sin_first, sin_second = sin.chunk(2, dim=-1)
        rotated.add_(second * sin_first)
        rotated_second.add_(first * sin_second)
        out[:, chunk].copy_(y)
