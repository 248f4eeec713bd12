"""Monitoring of the data pipeline: how long steps wait for data, and the throughput of the workers."""

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

import torch

logger = logging.getLogger(__name__)

_WARMUP_STEPS = 10  # not measured: they compile, and use batches that were prefetched
_REPORTED_STEPS = 20  # number of steps after these over which rates are reported, once
_WINDOW, _MAX_WAIT_FRACTION = 50, 0.2  # an alert above that fraction of the time of so many steps


class StepTimer:
    """Times steps on the host and, on CUDA, between events, without synchronization."""

    def __init__(self, device: torch.device) -> None:
        """Start timing a step."""
        self.on_cuda = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        """Start a step now; the time since the last one does not count."""
        self.start_time = time.perf_counter()
        self.ended: torch.cuda.Event | None = None  # of the step before, on the device

    def data_arrived(self, requested_at: float) -> None:
        """Record that the data of a step arrived; call this before any work is sent to the device.

        Args:
            requested_at: When the data were requested, by `time.perf_counter`.
        """
        self.data_wait = time.perf_counter() - requested_at
        self.started = self._event()

    def lap(self, samples: int) -> dict[str, Any]:
        """Metrics of the step that ends now; functions among them have values once the device has done the step.

        Args:
            samples: Samples of the step.

        Returns:
            `clips_per_s`; `data_wait_fraction`, the fraction of the host's time spent waiting for data; and on CUDA
            `device_wait_fraction`, the fraction of the time that the device was idle between two steps.
        """
        before, started = self.ended, self.started
        start_time, self.start_time = self.start_time, time.perf_counter()
        self.ended = ended = self._event()
        elapsed = self.start_time - start_time
        metrics: dict[str, Any] = {"clips_per_s": samples / elapsed, "data_wait_fraction": self.data_wait / elapsed}
        if before is not None and started is not None and ended is not None:
            metrics["device_wait_fraction"] = lambda: before.elapsed_time(started) / before.elapsed_time(ended)
        return metrics

    def _event(self) -> torch.cuda.Event | None:
        if not self.on_cuda:
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class DataMonitor:
    """Reports the throughput of workers and device, once, and alerts if steps wait for data."""

    def __init__(self, workers: int, samples: float, alert: Callable[[int, str, str], None]) -> None:
        """Start without history.

        Args:
            workers: Number of data workers of this process; 0 decodes in the process itself.
            samples: Samples of this process in a step.
            alert: Called with the step, the kind and the message of an alert, once.
        """
        self.workers, self.samples, self.alert = workers, samples, alert
        self.steps = 0
        self.waits: deque[float] = deque(maxlen=_WINDOW)  # fractions of a step's time
        self.worker_seconds: deque[float] = deque(maxlen=_WINDOW)  # seconds that one worker takes for a step's samples
        self.device_seconds: deque[float] = deque(maxlen=_WINDOW)  # seconds of a step without its wait
        self.alerted = self.reported_short = False

    def observe(self, row: Mapping[str, Any], step_samples: int) -> None:
        """Take the next step's row of metrics.

        Args:
            row: Plain numbers.
            step_samples: Samples of the step, over all processes.
        """
        self.steps += 1
        if row.get("short_clips") and not self.reported_short:
            self.reported_short = True
            logger.warning(
                "step %d has %d clips of videos that are too short for --frames at --fps and are sampled at a higher "
                "rate; further ones are counted in metrics.jsonl (short_clips)",
                *(row["step"], row["short_clips"]),
            )
        if self.steps <= _WARMUP_STEPS:
            return
        wait = row.get("device_wait_fraction", row["data_wait_fraction"])
        self.waits.append(wait)
        self.worker_seconds.append(row["data_seconds"])
        self.device_seconds.append(step_samples / row["clips_per_s"] * (1 - wait))
        if self.steps == _WARMUP_STEPS + _REPORTED_STEPS:
            logger.info("data: %s, measured over %d steps", self.rates(), _REPORTED_STEPS)
        fraction = fmean(self.waits)
        if not self.alerted and len(self.waits) == _WINDOW and fraction > _MAX_WAIT_FRACTION:
            self.alerted = True
            self.alert(
                row["step"],
                "data",
                f"{100 * fraction:.0f} % of the time of the last {_WINDOW} steps was spent waiting for data: "
                f"{self.rates()}; raise --workers, or read from shards (tubelet shard)",
            )

    def rates(self) -> str:
        """Samples per second that the workers of this process produce, and that its device consumes."""
        worker_rate = max(self.workers, 1) * self.samples / max(fmean(self.worker_seconds), 1e-9)
        device_rate = self.samples / max(fmean(self.device_seconds), 1e-9)
        workers = (
            f"{self.workers} worker{'s' * (self.workers != 1)}"
            if self.workers
            else "the training process (--workers 0)"
        )
        verb = "make" if self.workers > 1 else "makes"
        return f"{workers} {verb} {worker_rate:,.1f} samples/s and the device takes {device_rate:,.1f}"
