"""Attention, and the choice of its kernel by device and precision.

PyTorch's fused kernels need no K x K score matrix and were the fastest in all measurements but one: in bf16 on a CPU
without AMX tiles, their backward pass computes in small blocks. There, the backward pass is five whole matrix products,
with probabilities recomputed from the saved log-sum-exp; see `docs/performance.md`.
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
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.requires_grad and not _has_amx():
        return _ProductBackward.apply(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


@cache
def _has_amx() -> bool:
    return torch.cpu._is_amx_tile_supported()


class _ProductBackward(torch.autograd.Function):
    """Attention with the fused forward pass, and a backward pass of whole matrix products."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # Unlike the public function, this one returns the log-sum-exp of each row of scores, for the backward pass.
        out, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, logsumexp = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        grad = grad.to(q.dtype)
        # In place: this fp32 tensor (B, heads, K, K) is the largest of the whole step.
        probs = (q @ k.mT).float().mul_(scale).sub_(logsumexp.unsqueeze(-1)).exp_()
        grad_v = probs.to(q.dtype).mT @ grad
        # d softmax: the gradient of a probability minus the row's mean gradient, which is grad · out.
        mean = (grad.float() * out.float()).sum(-1, keepdim=True)
        grad_scores = probs.mul_((grad @ v.mT).float().sub_(mean)).mul_(scale).to(q.dtype)
        return grad_scores @ k, grad_scores.mT @ q, grad_v
