"""The transformer block: pre-norm attention with rotary positions, and a GELU MLP."""

import math
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from tubelet.model.attention import attention
from tubelet.model.packing import pack, unpack
from tubelet.model.rope import RotaryTable, rotate, rotate_out

NORM_EPS = 1e-6
INIT_STD = 0.02
# A matrix product of this many rows is as fast per row as a longer one.
_CHUNK_ROWS = 1024


def use_chunked_inference(x: Tensor) -> bool:
    """Whether a forward pass processes its tokens in chunks, in place where possible: on a CPU without gradients.

    On a CPU, tensors larger than the cache are slow: cores wait for memory, and for the system, which zeroes large
    blocks each time that it allocates them. Autograd and compilers need whole tensors, and under autocast every chunk
    would cast all weights again.
    """
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def token_chunks(x: Tensor) -> Iterator[slice]:
    """Equal ranges of the tokens of x (B, K, D), each of about `_CHUNK_ROWS` tokens of all clips at most."""
    B, K, _ = x.shape
    step = math.ceil(K / max(1, round(B * K / _CHUNK_ROWS)))
    return (slice(i, i + step) for i in range(0, K, step))


class Attention(nn.Module):
    """Multi-head self-attention whose queries and keys are rotated by 3-D position."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.kernel = attention  # an attribute, so that the planner can replace it

    def forward(self, x: Tensor, table: RotaryTable) -> Tensor:
        """(B, K, D) -> (B, K, D), or packed, (1, ΣB·K, D) -> (1, ΣB·K, D)."""
        B, K, D = x.shape
        segments = table.segments or ((B, K),)
        if use_chunked_inference(x):
            qk, v = self._chunked_qkv(x, table).split([2 * self.heads, self.heads], dim=2)
        else:
            heads = self.qkv(x).view(B, K, 3 * self.heads, D // self.heads)
            qk, v = heads.split([2 * self.heads, self.heads], dim=2)
            qk = rotate(qk, table)
        pairs = zip(unpack(qk, segments), unpack(v, segments), strict=True)
        return self.proj(pack([self._attend(*pair) for pair in pairs]).reshape(B, K, D))

    def _attend(self, qk: Tensor, v: Tensor) -> Tensor:
        """(B, K, 2·heads, head_dim) and (B, K, heads, head_dim) -> (B, K, heads, head_dim).

        The kernels write their output in the layout of the queries: with tokens before heads, no copy is needed.
        """
        q, k = qk.chunk(2, dim=2)
        return self.kernel(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)

    def _chunked_qkv(self, x: Tensor, table: RotaryTable) -> Tensor:
        """Queries, keys and values (B, K, 3·heads, head_dim), the first two rotated, in the CPU's fastest layout."""
        B, K, D = x.shape
        out = x.new_empty(B, 3 * self.heads, K, D // self.heads).transpose(1, 2)
        for chunk in token_chunks(x):
            heads = self.qkv(x[:, chunk]).view(B, -1, 3 * self.heads, D // self.heads)
            qk, v = heads.split([2 * self.heads, self.heads], dim=2)
            rotate_out(out[:, chunk, : 2 * self.heads], qk, RotaryTable(table.cos[:, chunk], table.sin[:, chunk]))
            out[:, chunk, 2 * self.heads :] = v
        return out


class MLP(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, D) -> (B, K, D)."""
        if use_chunked_inference(x):
            return torch.cat(
                [self.fc2(torch.ops.aten.gelu_(self.fc1(x[:, chunk]))) for chunk in token_chunks(x)], dim=1
            )
        return self.fc2(F.gelu(self.fc1(x)))


class Norm(nn.LayerNorm):
    """LayerNorm that casts its weights to the dtype of its input: a sharded run gathers them in lower precision."""

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
        # width · 48/11 is a whole number, but its float may be slightly less.
        self.mlp = MLP(width, int(width * mlp_ratio + 1e-6))

    def forward(self, x: Tensor, table: RotaryTable) -> Tensor:
        """(B, K, D) -> (B, K, D), or packed, (1, ΣB·K, D) -> (1, ΣB·K, D)."""
        x = x + self.attention(self.norm1(x), table)
        update = self.mlp(self.norm2(x))
        return x.add_(update) if use_chunked_inference(x) else x + update


def random_vector(width: int) -> nn.Parameter:
    """A learnable vector (width,), initialized close to zero."""
    vector = torch.empty(width)
    # See `init_weights` about the meta device.
    return nn.Parameter(vector if vector.is_meta else vector.normal_(std=1e-6))


def init_weights(module: nn.Module, blocks: Iterable[Block]) -> None:
    """Truncated-normal weights, zero biases; block i's residual projections divided by sqrt(2i), i from 1.

    Skipped on the meta device, where PyTorch would import its compiler and SymPy to initialize nothing.
    """
    if next(module.parameters()).is_meta:
        return
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=INIT_STD)
            nn.init.zeros_(part.bias)
    with torch.no_grad():
        for i, block in enumerate(blocks, start=1):
            block.attention.proj.weight.div_(math.sqrt(2 * i))
            block.mlp.fc2.weight.div_(math.sqrt(2 * i))


def run_block(block: nn.Module, x: Tensor, table: RotaryTable, recompute: bool) -> Tensor:
    """Run one block; `recompute` discards its activations and recomputes them in the backward pass."""
    if _is_compiled(block) and x._base is not None:
        # A compiler guards the sizes of the tensor of which x is a view: the first block, whose tokens are a view,
        # would be compiled apart from the others.
        x = x.clone()
    if recompute and torch.is_grad_enabled():
        # A block uses no random numbers.
        return torch.utils.checkpoint.checkpoint(block, x, table, use_reentrant=False, preserve_rng_state=False)
    return block(x, table)


def _is_compiled(block: nn.Module) -> bool:
    return block._compiled_call_impl is not None or "forward" in vars(block)
