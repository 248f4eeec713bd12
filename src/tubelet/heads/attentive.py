"""The attentive probe of V-JEPA 2 (arXiv 2506.09985, appendix on classification): attention over frozen tokens.

Blocks of self-attention over the frozen tokens, then a block in which a learnable query for each head attends to them,
then a linear layer. No positions are added: the tokens carry them. The cross-attention has no output projection.

B clips, M tokens, D width, Q queries, K classes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tubelet.model.attention import attention
from tubelet.model.layers import INIT_STD, MLP, NORM_EPS

BLOCKS = 4
HEADS = 16
_MLP_RATIO = 4


class AttentiveProbe(nn.Module):
    """Frozen tokens to the logits of one or several outputs."""

    def __init__(self, width: int, classes: Sequence[int], heads: int, blocks: int = BLOCKS) -> None:
        """Initialize with the published initial weights.

        Args:
            width: D.
            classes: K of each head.
            heads: attention heads.
            blocks: of attention, the last of which is the cross-attention.
        """
        super().__init__()
        self_attention = [_SelfAttention(width, heads) for _ in range(blocks - 1)]
        self.blocks = nn.ModuleList(self_attention)
        self.queries = nn.Parameter(torch.empty(len(classes), width))
        self.pool = _CrossAttention(width, heads)
        self.linears = nn.ModuleList(nn.Linear(width, k) for k in classes)
        self._initialize(self_attention)

    def _initialize(self, blocks: Sequence["_SelfAttention"]) -> None:
        nn.init.trunc_normal_(self.queries, std=INIT_STD)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.zeros_(part.bias)
        for part in (*self.blocks.modules(), *self.pool.modules()):
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=INIT_STD)
        with torch.no_grad():
            for i, block in enumerate(blocks, start=1):
                block.proj.weight.div_(math.sqrt(2 * i))
                block.mlp.fc2.weight.div_(math.sqrt(2 * i))
            self.pool.mlp.fc2.weight.div_(math.sqrt(2 * max(1, len(blocks))))

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """(B, M, D) tokens -> for each output (B, K)."""
        for block in self.blocks:
            tokens = block(tokens)
        pooled = self.pool(self.queries.expand(len(tokens), -1, -1), tokens)
        return [linear(pooled[:, q]) for q, linear in enumerate(self.linears)]


def probe_heads(width: int, encoder_heads: int) -> int:
    """The attention heads of a probe on tokens of width D.

    They are 16 as published for widths of 1024 and more, or `encoder_heads` if those are fewer: sixteen heads of
    a few channels each are slow and see little.
    """
    return HEADS if width % HEADS == 0 and encoder_heads >= HEADS else encoder_heads


class _SelfAttention(nn.Module):
    """Pre-norm attention among the tokens, and an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, _MLP_RATIO * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, M, D) -> (B, M, D)."""
        B, M, D = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, M, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj(attention(q, k, v).transpose(1, 2).reshape(B, M, D))
        return x + self.mlp(self.norm2(x))


class _CrossAttention(nn.Module):
    """Cross-attention from queries to normed tokens (the queries are not normed), and an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = MLP(width, _MLP_RATIO * width)

    def forward(self, queries: Tensor, x: Tensor) -> Tensor:
        """(B, Q, D) queries and (B, M, D) tokens -> (B, Q, D)."""
        B, Q, D = queries.shape
        q = self.q(queries).view(B, Q, self.heads, -1).transpose(1, 2)
        k, v = self.kv(self.norm1(x)).view(B, x.shape[1], 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        output = queries + nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, Q, D)
        return output + self.mlp(self.norm2(output))
