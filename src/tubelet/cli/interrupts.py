"""Ctrl-C, where it would be lost: while a compiled module is imported."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from types import FrameType

_RETRY_S = 0.05


@contextmanager
def interrupts_after_imports() -> Iterator[None]:
    """Raise KeyboardInterrupt after the import of a compiled module in progress; a second Ctrl-C raises it at once.

    Compiled modules swallow an interrupt of their initialization, or turn it into a SystemError.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield  # Python handles signals in the main thread only; Windows has no timers
        return
    pending = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pending
        if _is_importing(frame) and not (pending and number == signal.SIGINT):
            pending = True
            signal.setitimer(signal.ITIMER_REAL, _RETRY_S)
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False
