"""Bitwise reproducible training steps on CUDA."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

# cuBLAS then uses buffers of its own for each stream, and sums in one order (NVIDIA's manual, section 2.1.4).
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextmanager
def deterministic_algorithms(enabled: bool) -> Iterator[None]:
    """Use PyTorch's deterministic algorithms in this context, if enabled; earlier settings are restored.

    The backward pass of attention then sums gradients in a fixed order. An operator without a deterministic algorithm
    raises PyTorch's error. On a CPU nothing changes: all operators of a step are deterministic there.
    """
    if not enabled:
        yield
        return
    name, value = _WORKSPACE
    workspace = os.environ.get(name)
    mode, memory = torch.get_deterministic_debug_mode(), torch.utils.deterministic
    fill = memory.fill_uninitialized_memory  # type: ignore[attr-defined]
    os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(True)
    # Nothing reads memory before it is written, and filling all of it takes time.
    memory.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        memory.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        if workspace is None:
            os.environ.pop(name, None)
