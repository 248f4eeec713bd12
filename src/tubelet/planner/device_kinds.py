"""Kinds of devices that a run can be planned for, by their makers' data sheets."""

from dataclasses import dataclass

from tubelet.device import PEAK_FLOPS


@dataclass(frozen=True)
class DeviceKind:
    """The memory and speed of a kind of device.

    Attributes:
        memory: Bytes that programs see.
        flops: Dense bf16 operations a second.
        link: Bytes a second, in each direction, to the other devices of a machine.
        network: Bytes a second of a device's share of the network between machines.
    """

    memory: float
    flops: float
    link: float
    network: float


DEVICE_KINDS = {
    "b200": DeviceKind(178 * 2**30, PEAK_FLOPS["B200"], 900e9, 50e9),  # NVLink 5, 400 Gb/s InfiniBand for each
    "h200": DeviceKind(139 * 2**30, PEAK_FLOPS["H200"], 450e9, 50e9),  # NVLink 4
    "h100": DeviceKind(79 * 2**30, PEAK_FLOPS["H100"], 450e9, 50e9),
    "a100": DeviceKind(79 * 2**30, PEAK_FLOPS["A100"], 300e9, 25e9),  # NVLink 3, 200 Gb/s
    "cpu": DeviceKind(16 * 2**30, 2e11, 5e9, 1e9),  # a laptop
}
