"""Copies metrics from the device to the host without stalling it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


class MetricsBuffer:
    """Emits each step's metrics; on CUDA one step late, so that the device never waits for the host to read them."""

    def __init__(self, emit: Callable[[dict[str, Any]], None], device: torch.device) -> None:
        """Start with an empty buffer.

        Args:
            emit: called with each step's row of plain numbers, in order.
            device: where the steps run.
        """
        self.emit = emit
        self.late = device.type == "cuda"
        self.waiting: tuple[dict[str, Any], list[str], Tensor, torch.cuda.Event | None] | None = None

    def add(self, row: Mapping[str, Any]) -> None:
        """Take one step's metrics.

        Some of them are scalar tensors on the device, or functions that are called when the device has done the step.
        """
        names = [name for name, value in row.items() if isinstance(value, Tensor)]
        values = torch.stack([row[name].detach() for name in names])
        arrived = None
        if self.late:
            values = torch.empty(len(names), pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self.flush()
        self.waiting = dict(row), names, values, arrived
        if not self.late:
            self.flush()

    def flush(self) -> None:
        """Emit the buffered row."""
        if self.waiting is None:
            return
        row, names, values, arrived = self.waiting
        self.waiting = None
        if arrived is not None:
            arrived.synchronize()
        row |= dict(zip(names, values.tolist(), strict=True))
        row |= {name: value() for name, value in row.items() if callable(value)}
        self.emit(row)

    def drop(self) -> None:
        """Discard the buffered row."""
        self.waiting = None
