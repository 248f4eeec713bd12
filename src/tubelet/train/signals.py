"""Signals that stop a run after the step in progress and a checkpoint."""

import logging
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from tubelet.errors import TrainingError, TubeletError

logger = logging.getLogger(__name__)

# Ctrl-C; the signal of launchers that end a process; and, not on Windows, the signal by which schedulers announce a
# preemption, and that of a closed terminal or a lost connection.
STOP_SIGNALS = tuple(s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"))
# A stop signal often arrives twice: SLURM and systemd signal every process of a job, and torchrun, one of them,
# forwards it. Only a signal that arrives later than this is a request to stop at once.
SAME_S = 2.0
# Modules of the errors that an interrupted compiler causes.
_COMPILER = ("torch._inductor", "torch._dynamo")


class InterruptedRunError(TrainingError):
    """A signal asked the run to stop.

    Attributes:
        exit_code: exit code of a process that was ended by the signal, 128 + its number.
    """

    prefix = ""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number

    def __reduce__(self) -> tuple[type["InterruptedRunError"], tuple[str, int]]:
        return (InterruptedRunError, (str(self), self.exit_code - 128))


class StopSignals:
    """Records a stop signal until the step in progress is done; a second one after `SAME_S` acts at once."""

    def __init__(self, remedy: Callable[[], str] = str) -> None:
        """Record nothing yet.

        Args:
            remedy: returns how a run whose step is lost is continued, such as "; continue with --resume".
        """
        self.remedy = remedy
        self.received: signal.Signals | None = None
        self.since = 0.0  # time of the first signal, by time.monotonic
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
        # Ctrl-C also interrupts a running compiler, whose failure is then an error of the step.
        if self.received and isinstance(error, Exception) and not isinstance(error, TubeletError):
            compiler = type(error).__module__.startswith(_COMPILER)
            during = "while the model was compiled" if compiler else f"in the middle of a step ({type(error).__name__})"
            raise InterruptedRunError(
                f"{self.received.name}: stopped {during}; the step is lost{self.remedy()}", self.received
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
