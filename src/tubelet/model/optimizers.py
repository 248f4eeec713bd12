"""Optimizers of PyTorch without the import of its compiler.

PyTorch wraps methods of optimizers so that they are left out of graphs. Their first call imports torch._dynamo and
SymPy, 1.8 seconds of processor time in every process, although optimizers are never compiled here. These classes call
the wrapped functions themselves.
"""

from inspect import unwrap

import torch
from torch.optim import Optimizer


class _Unwrapped(Optimizer):
    add_param_group = unwrap(Optimizer.add_param_group)
    zero_grad = unwrap(Optimizer.zero_grad)
    state_dict = unwrap(Optimizer.state_dict)
    load_state_dict = unwrap(Optimizer.load_state_dict)


class AdamW(_Unwrapped, torch.optim.AdamW):
    """`torch.optim.AdamW`."""

    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


class LBFGS(_Unwrapped, torch.optim.LBFGS):
    """`torch.optim.LBFGS`."""
