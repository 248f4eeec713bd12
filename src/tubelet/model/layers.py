"""The transformer block: pre-norm attention with rotary positions, and a GELU MLP."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from tubelet.model.attention import attention
from tubelet.model.rope import RotaryTable, rotate

NORM_EPS = 1e-6
INIT_STD = 0.02


class Attention(nn.Module):
    """Multi-head self-attention whose queries and keys are rotated by 3-D position."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, table: RotaryTable) -> Tensor:
        """(B, K, D) -> (B, K, D)."""
        B, K, D = x.shape
        heads = self.qkv(x).view(B, K, 3 * self.heads, D // self.heads).transpose(1, 2)
        qk, v = heads.split([2 * self.heads, self.heads], dim=1)
        q, k = rotate(qk, table).chunk(2, dim=1)
        return self.proj(attention(q, k, v).transpose(1, 2).reshape(B, K, D))


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, D) -> (B, K, D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Norm(nn.LayerNorm):
    """LayerNorm in the precision of what it normalises: a sharded run gathers its weights in a lower one."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = Norm(width, eps=NORM_EPS)
        self.attention = Attention(width, heads)
        self.norm2 = Norm(width, eps=NORM_EPS)
        # A ratio such as 48/11 names a whole number of channels, which its float may miss from below.
        self.mlp = MLP(width, int(width * mlp_ratio + 1e-6))

    def forward(self, x: Tensor, table: RotaryTable) -> Tensor:
        """(B, K, D) -> (B, K, D)."""
        x = x + self.attention(self.norm1(x), table)
        return x + self.mlp(self.norm2(x))


def initialise(module: nn.Module, blocks: Iterable[Block]) -> None:
    """Truncated-normal weights, zero biases; block i's residual projections divided by sqrt(2i), i from 1."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=INIT_STD)
            nn.init.zeros_(part.bias)
    with torch.no_grad():
        for i, block in enumerate(blocks, start=1):
            block.attention.proj.weight.div_(math.sqrt(2 * i))
            block.mlp.fc2.weight.div_(math.sqrt(2 * i))


def run_block(block: nn.Module, x: Tensor, table: RotaryTable, recompute: bool) -> Tensor:
    """One block, its activations kept for the backward pass or recomputed in it."""
    if recompute and torch.is_grad_enabled():
        return torch.utils.checkpoint.checkpoint(block, x, table, use_reentrant=False)
    return block(x, table)
