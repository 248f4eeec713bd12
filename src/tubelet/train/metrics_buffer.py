"""Copies metrics from the device to the host without stalling it."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class BufferedRow(NamedTuple):
    """A row whose values may still be in transfer from the device.

    Attributes:
        row: metrics of the step; some are functions, called once the device has done the step.
        names: names of the metrics that are tensors.
        values: values of these, in host memory; valid after `arrived`.
        arrived: CUDA event after the copy; None if the values are valid already.
        delay: number of later rows that this one, and those after it, wait for.
    """

    row: dict[str, Any]
    names: list[str]
    values: Tensor
    arrived: torch.cuda.Event | None
    delay: int


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
        self.waiting: deque[BufferedRow] = deque()

    def add(self, row: Mapping[str, Any], delay: int = 1) -> None:
        """Take one step's metrics.

        Some of them are scalar tensors on the device, or functions that are called when the device has done the step.

        Args:
            row: the metrics.
            delay: on CUDA, the number of steps by which this row may be late: a number and not a time, since processes
                that saw a row at different steps would rewind at different steps.
        """
        names = [name for name, value in row.items() if isinstance(value, Tensor)]
        values = torch.stack([row[name].detach() for name in names])
        arrived = None
        if self.late:
            values = torch.empty(len(names), pin_memory=True).copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        if self.waiting and (before := self.waiting[-1].arrived) is not None:
            before.synchronize()  # the host is at most one step ahead
        self.waiting.append(BufferedRow(dict(row), names, values, arrived, delay if self.late else 0))
        while self.waiting and len(self.waiting) > self.waiting[0].delay:
            self._emit_oldest()

    def flush(self) -> None:
        """Emit the buffered rows."""
        while self.waiting:
            self._emit_oldest()

    def drop(self) -> None:
        """Discard the buffered rows."""
        self.waiting.clear()

    def _emit_oldest(self) -> None:
        row, names, values, arrived, _ = self.waiting.popleft()
        if arrived is not None:
            arrived.synchronize()
        row |= dict(zip(names, values.tolist(), strict=True))
        row |= {name: value() for name, value in row.items() if callable(value)}
        self.emit(row)
