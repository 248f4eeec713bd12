"""The device of a run, its precision, and what devices can do."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tubelet.config import Precision, TrainConfig

# Narrower networks train faster in fp32 on a CPU with bf16 units: masks have other lengths at every step, and oneDNN
# generates, and keeps, bf16 kernels for each length (docs/performance.md).
_BF16_WIDTH = 384


def pick_device() -> torch.device:
    """CUDA where there is one, then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def has_bf16_units(device: torch.device) -> bool:
    """Whether bf16 products are faster than fp32 ones on this device."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The dtype for long sums on a device: float64, or float32 on Apple's MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of matrix products: the requested one, or bf16 where the device supports it in hardware."""
    if precision == "auto":
        return torch.bfloat16 if has_bf16_units(device) else torch.float32
    return torch.float32 if precision == "fp32" else torch.bfloat16


def training_dtype(config: TrainConfig, device: torch.device) -> torch.dtype:
    """The dtype of a run's matrix products: the requested one, or bf16 where it makes training faster."""
    if config.precision == "auto":
        return fast_training_dtype(config.model.width, device)
    return pick_dtype(config.precision, device)


def fast_training_dtype(width: int, device: torch.device) -> torch.dtype:
    """The dtype of matrix products that trains an encoder of a width fastest: fp32, or bf16 where it is faster."""
    return torch.float32 if device.type == "cpu" and width < _BF16_WIDTH else pick_dtype("auto", device)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that computations on a device draw from, as `torch.manual_seed` does.

    That function seeds all kinds of devices, and formats a stack trace for each that is not in use, which takes a third
    of a millisecond: about as long as a step of a small head.
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Let CUDA multiply fp32 matrices in TF32, with 10 bits of mantissa, while the block runs; on others do nothing."""
    if device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# Dense bf16 operations a second by the makers' data sheets, by words of the name that CUDA or ROCm reports: the first
# entry whose words are all in the name. Boards of one chip differ by power and clock.
PEAK_FLOPS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "GH200": 9.89e14,
    "H200 NVL": 8.35e14,
    "H200": 9.89e14,
    "H100 NVL": 8.35e14,
    "H100 PCIe": 7.56e14,
    "H100": 9.89e14,  # SXM, whose name has "HBM3"
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "RTX 4090": 1.65e14,
    "RTX 3090": 7.1e13,
    "MI325X": 1.307e15,
    "MI300X": 1.307e15,
    "MI250X": 1.915e14,  # one of its two dies, each of which is a device
}


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 operations a second of a CUDA device, for model FLOPs utilization; None where it is not known."""
    if device.type != "cuda":
        return None
    name_parts = set(torch.cuda.get_device_name(device).replace("-", " ").split())
    return next((flops for name, flops in PEAK_FLOPS.items() if name_parts.issuperset(name.split())), None)
