"""What the benchmarks share: a device's matrix-product rate, peak memory, waiting for a device."""

import resource
import statistics
import sys
import time

import torch


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_gb(device: torch.device) -> float:
    """Peak memory in GB: of the device's allocator on CUDA, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def matrix_rate(device: torch.device, dtype: torch.dtype, width: int, rounds: int = 7) -> float:
    """Floating-point operations a second of an MLP's matrix product (2,048 tokens, width -> 4 x width), the median."""
    x = torch.randn(2048, width, device=device, dtype=dtype)
    weight = torch.randn(width, 4 * width, device=device, dtype=dtype)
    seconds = []
    for _ in range(rounds + 1):
        synchronise(device)
        began = time.perf_counter()
        x @ weight
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return 2 * x.numel() * 4 * width / statistics.median(seconds[1:])
