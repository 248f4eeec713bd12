"""Kinds of devices that a run can be planned for: this machine's own, and others by their makers' data sheets."""

import time
from dataclasses import dataclass

import psutil
import torch

from tubelet.config import PlanConfig
from tubelet.device import PEAK_FLOPS, peak_flops, pick_device
from tubelet.errors import ConfigError

# Side of the matrices whose product measures a CPU, and number of products.
_SIDE, _PRODUCTS = 1024, 5


@dataclass(frozen=True)
class DeviceKind:
    """The memory and speed of a kind of device.

    Attributes:
        name: Its name in a plan.
        memory: Bytes that programs see.
        flops: Dense operations a second: in bf16 by a data sheet, in fp32 as measured on a CPU.
        link: Bytes a second, in each direction, to the other devices of a machine.
        network: Bytes a second of a device's share of the network between machines.
    """

    name: str
    memory: float
    flops: float
    link: float
    network: float


DEVICE_KINDS = {
    "b200": DeviceKind("b200", 178 * 2**30, PEAK_FLOPS["B200"], 900e9, 50e9),  # NVLink 5, 400 Gb/s InfiniBand for each
    "h200": DeviceKind("h200", 139 * 2**30, PEAK_FLOPS["H200"], 450e9, 50e9),  # NVLink 4
    "h100": DeviceKind("h100", 79 * 2**30, PEAK_FLOPS["H100"], 450e9, 50e9),
    "a100": DeviceKind("a100", 79 * 2**30, PEAK_FLOPS["A100"], 300e9, 25e9),  # NVLink 3, 200 Gb/s
    "cpu": DeviceKind("cpu", 16 * 2**30, 2e11, 5e9, 1e9),  # a laptop
}


def planned_device(planned: PlanConfig) -> tuple[DeviceKind, bool]:
    """The device of a plan, and whether it is a CPU.

    Raises:
        ConfigError: it is this machine's own, of which there is no data sheet here.
    """
    if planned.device_kind != "auto":
        return DEVICE_KINDS[planned.device_kind], planned.device_kind == "cpu"
    device = pick_device()
    if device.type == "cpu":
        links = DEVICE_KINDS["cpu"]
        memory, measured = psutil.virtual_memory().total, _measure_cpu_flops()
        return DeviceKind("cpu (this machine, measured)", memory, measured, links.link, links.network), True
    flops = peak_flops(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "an Apple GPU"
    if flops is None or (known := _find_kind(name)) is None:
        raise ConfigError(
            f"--device-kind is auto and this machine has {name}, of which there is no data sheet here; name one of "
            f"{', '.join(DEVICE_KINDS)}"
        )
    memory = torch.cuda.get_device_properties(device).total_memory
    return DeviceKind(f"{name} (this machine)", memory, flops, known.link, known.network), False


def _find_kind(name: str) -> DeviceKind | None:
    words = name.lower().replace("-", " ").split()
    return next((kind for word, kind in DEVICE_KINDS.items() if word in words), None)


def _measure_cpu_flops() -> float:
    """Operations a second of fp32 matrix products on this CPU, the fastest of a few, measured in tenths of a second."""
    x = torch.ones(_SIDE, _SIDE)
    seconds = []
    for _ in range(_PRODUCTS):
        start_time = time.perf_counter()
        x @ x
        seconds.append(time.perf_counter() - start_time)
    return 2 * _SIDE**3 / min(seconds)
