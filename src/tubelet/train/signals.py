"""Signals that ask a run to stop: it finishes the step in progress and saves first."""

import signal
from types import FrameType, TracebackType
from typing import Any

from tubelet.types import TubeletError

# Ctrl-C, what launchers end a process with, and (not on Windows) what schedulers announce a pre-emption with.
STOP_SIGNALS = tuple(s for s in signal.Signals if s.name in ("SIGINT", "SIGTERM", "SIGUSR1"))


class InterruptedRunError(TubeletError):
    """A signal asked the run to stop; it saved a checkpoint first.

    Attributes:
        exit_code: what the shell expects of a process that such a signal ended.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopSignals:
    """Remembers a stop signal until the step in progress is done; a second one acts at once."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in STOP_SIGNALS:
            self.previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
