"""Which kernel attention runs on, by device and precision.

PyTorch's fused kernels need no K x K table and are the fastest wherever they were measured, but for one place: in bf16
on a CPU without tiles (AMX) the backward pass of the fused kernel computes in small pieces. There it is written as five
whole matrix products, with the probabilities made again from the saved normaliser; see `docs/performance.md`.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v.

    Args:
        q: (B, heads, K, d) queries, rotated.
        k: keys, of the same shape.
        v: values, of the same shape.

    Returns:
        (B, heads, K, d).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled() and not _has_amx():
        return _ProductBackward.apply(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


@cache
def _has_amx() -> bool:
    return torch.cpu._is_amx_tile_supported()


class _ProductBackward(torch.autograd.Function):
    """The fused forward pass with a backward pass of whole matrix products."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # The public call does not give the normaliser, log Σ exp of each row of scores, that the backward pass needs.
        out, normaliser = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        ctx.save_for_backward(q, k, v, out, normaliser)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, normaliser = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        grad = grad.to(q.dtype)
        # In place: a table (B, heads, K, K) of fp32 is the largest thing of the whole step.
        shares = (q @ k.mT).float().mul_(scale).sub_(normaliser.unsqueeze(-1)).exp_()
        of_v = shares.to(q.dtype).mT @ grad
        # d softmax: a share's gradient less the row's mean gradient, which is grad · out.
        mean = (grad.float() * out.float()).sum(-1, keepdim=True)
        of_scores = shares.mul_((grad @ v.mT).float().sub_(mean)).mul_(scale).to(q.dtype)
        return of_scores @ k, of_scores.mT @ q, of_v
