"""Signals that stop a run after the step in progress and a checkpoint."""

import logging
import signal
import threading
import time
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from tubelet.errors import TrainingError, TubeletError

logger = logging.getLogger(__name__)

# Ctrl-C, what launchers end a process with, and (not on Windows) what schedulers announce a pre-emption with and what a
# terminal that is closed or a connection that breaks sends.
STOP_SIGNALS = tuple(s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"))
# A stop signal often comes twice in a moment: SLURM and systemd signal every process of a job, and torchrun,
# which is one of them, hands it on. Only what comes later than this is someone who does not want to wait.
SAME_S = 2.0


class InterruptedRunError(TrainingError):
    """A signal asked the run to stop.

    Attributes:
        exit_code: what the shell expects of a process that such a signal ended.
    """

    prefix = ""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number

    def __reduce__(self) -> tuple[type["InterruptedRunError"], tuple[str, int]]:
        return (InterruptedRunError, (str(self), self.exit_code - 128))


class StopSignals:
    """Remembers a stop signal until the step in progress is done; a second one, `SAME_S` later, acts at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.since = 0.0  # when
        self.previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is not threading.main_thread():
            return self  # Python handles signals in the main thread only
        for number in STOP_SIGNALS:
            if number.name == "SIGHUP" and signal.getsignal(number) == signal.SIG_IGN:
                continue  # as under nohup: the run is to outlive its terminal
            self.previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        # Ctrl-C reaches a compiler at work too, whose end is then an error of the step.
        if self.received and isinstance(error, Exception) and not isinstance(error, TubeletError):
            raise InterruptedRunError(
                f"{self.received.name}: stopped in the middle of a step ({type(error).__name__}), which is lost; "
                "continue from the last checkpoint with --resume",
                self.received,
            ) from error

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self.since = signal.Signals(number), time.monotonic()
            with suppress(RuntimeError):  # it came in the middle of a write to the same stream, which is not reentrant
                logger.warning("%s: stopping after this step; send it again to stop at once", self.received.name)
        elif time.monotonic() - self.since > SAME_S:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
