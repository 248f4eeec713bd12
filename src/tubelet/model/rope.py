"""3-D rotary position embedding of queries and keys in every attention layer (docs/system.md, step 2).

Each head is split into three equal even-sized sections for time, row and column, and a rest that is not rotated. A
section of size d rotates d/2 pairs of channels by position / 10000^(2i/d), i = 0..d/2-1 (V-JEPA 2, arXiv 2506.09985,
section 2.1).

The release pairs channel 2i with 2i+1. Here a head has all first members of its pairs in its first half and all
second members in its second half, so that a rotation is arithmetic on two contiguous halves; `pair_permutation`
converts released weights.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from tubelet.config import RopeVersion
from tubelet.grid import Grid

# Tokens that `rotate_out` rotates at once: a megabyte of queries, keys and temporaries in a ViT-B.
_TOKENS_IN_CACHE = 64


class RotaryTable(NamedTuple):
    """Cosines and sines of every token's angles, shared by all blocks of a forward pass.

    Both channels of a pair rotate by the same angle, and `second_*` are the same tensors as the first two. In V-JEPA
    2.0 they use two angles, which is not a rotation, but is what its weights were trained with.

    Attributes:
        cos: (B or 1, 1, K, head_dim / 2) fp32 cosines for the first member of each pair.
        sin: sines of the same angles and shape.
        second_cos: cosines for the second member of each pair, of the same shape.
        second_sin: sines of the same angles and shape.
    """

    cos: Tensor
    sin: Tensor
    second_cos: Tensor
    second_sin: Tensor


def axis_size(head_dim: int) -> int:
    """Channels of a head that each of the three axes rotates: the largest even number not over head_dim / 3."""
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
    """Angles of the tokens `ids`.

    Args:
        ids: (B or 1, K) int64 token indices.
        grid: the grid they index.
        head_dim: channels of an attention head, even.
        rope_grid: rows and columns of the pre-training grid, which row and column positions are rescaled to so that
            the first and last keep their angles at any resolution; None leaves positions as they are.
        rope: "2.0" repeats an axis's frequencies end to end over its channels, where pairs lie side by side, and leaves
            positions as they are (see `ModelConfig.rope`).
    """
    pairs = axis_size(head_dim) // 2
    frequency = 10000.0 ** (-torch.arange(pairs, dtype=torch.float32, device=ids.device) / max(pairs, 1))
    positions = [position.float() for position in grid_positions(ids, grid)]
    if rope == "2.0":
        first, second = frequency.repeat(2).view(pairs, 2).unbind(-1)
        return RotaryTable(*_cos_sin(positions, first, head_dim), *_cos_sin(positions, second, head_dim))
    if rope_grid is not None:
        # A grid with a single row or column has nothing to stretch: its only position is 0.
        positions[1] = positions[1] * ((rope_grid - 1) / max(grid.h - 1, 1))
        positions[2] = positions[2] * ((rope_grid - 1) / max(grid.w - 1, 1))
    cos, sin = _cos_sin(positions, frequency, head_dim)
    return RotaryTable(cos, sin, cos, sin)


def _cos_sin(positions: list[Tensor], frequency: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B or 1, 1, K, head_dim / 2) of one member of each pair, the three axes side by side."""
    angles = torch.cat([position.unsqueeze(-1) * frequency for position in positions], dim=-1)
    # The rest of the head rotates by angle 0, which leaves it unchanged without a branch in the rotation.
    angles = torch.nn.functional.pad(angles, (0, head_dim // 2 - angles.shape[-1])).unsqueeze(1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Rotate heads by their tokens' angles.

    Args:
        x: (B, heads, K, head_dim).
        table: the angles of the K tokens.

    Returns:
        (B, heads, K, head_dim) of the dtype of x; the arithmetic is in fp32, in which the angles are.
    """
    first, second = x.chunk(2, dim=-1)
    rotated = [first * table.cos - second * table.sin, second * table.second_cos + first * table.second_sin]
    return torch.cat(rotated, dim=-1).to(x.dtype)


def rotate_out(out: Tensor, heads: Tensor, table: RotaryTable) -> None:
    """`rotate` into a preallocated tensor, a few tokens at a time; for forward passes on a CPU without gradients.

    The fp32 temporaries stay in the core's cache. For all tokens at once they take several times as long, in memory
    that is returned to the system after every block.

    Args:
        out: (B, heads, K, head_dim), where the result is written.
        heads: (B, K, heads, head_dim).
        table: the angles of the K tokens.
    """
    out = out.transpose(1, 2)
    cos, sin, second_cos, second_sin = (angles.transpose(1, 2) for angles in table)
    step = max(1, _TOKENS_IN_CACHE // len(heads))
    for i in range(0, heads.shape[1], step):
        chunk = slice(i, i + step)
        x = heads[:, chunk].float()
        y = torch.empty_like(x)
        (first, second), (rotated, rotated_second) = x.chunk(2, dim=-1), y.chunk(2, dim=-1)
        torch.mul(first, cos[:, chunk], out=rotated).addcmul_(second, sin[:, chunk], value=-1)
        torch.mul(second, second_cos[:, chunk], out=rotated_second).addcmul_(first, second_sin[:, chunk])
        out[:, chunk].copy_(y)
