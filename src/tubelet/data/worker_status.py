"""Worker processes: what each is reading, how one ended and what to do, and their handling of signals."""

import os
import re
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import Any

import psutil

from tubelet.errors import FileError, TrainingError

_TEXT_BYTES = 1024
SHARED_MEMORY = Path("/dev/shm")
POLL_S = 1.0  # interval at which a wait checks whether workers are alive
STALL_S = 300.0  # a worker that reads a file for so long without using the CPU waits for a disk or a network
NO_MAIN_GUARD = 86  # exit code of a worker that runs the script of its parent again
_MAIN_GUARD = (
    'the script that started it has no `if __name__ == "__main__":` guard; put what the script does below such a line, '
    "or use 0 workers"
)
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


def shared_memory_full(problem: str, size: str = "") -> str:
    """The message about too little shared memory, for example with size " 8g" as a proposal."""
    return (
        f"{SHARED_MEMORY}: {problem}; start the container with more (docker run --shm-size{size}), or lower --workers "
        "(0 needs none) or --prefetch-mb"
    )


class WorkerCrashError(TrainingError):
    """A worker process died."""


@dataclass(frozen=True)
class ActiveRead:
    """A file that a worker is reading.

    Attributes:
        worker: number of the worker.
        pid: process of the worker.
        file: name of the file.
        seconds: time since the read began.
    """

    worker: int
    pid: int
    file: str
    seconds: float


class WorkerStatus:
    """Which file each worker is reading, and its last message, in memory that workers and their parent share.

    Attributes:
        processes: the workers, as far as this process started them.
    """

    def __init__(self, workers: int) -> None:
        self.names = [RawArray("c", _TEXT_BYTES) for _ in range(workers)]
        self.messages = [RawArray("c", _TEXT_BYTES) for _ in range(workers)]
        self.pids = RawArray("q", max(workers, 1))
        self.since = RawArray("d", max(workers, 1))
        self.processes: Sequence[BaseProcess] = ()
        self.oom_kills = oom_kills()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"processes": ()}

    @contextmanager
    def track(self, worker: int | None, name: str) -> Iterator[None]:
        """Record that a worker reads a file while the block runs; None for no worker."""
        if worker is None:
            yield
            return
        self.names[worker].value = name.encode(errors="replace")[-_TEXT_BYTES + 1 :]
        self.pids[worker], self.since[worker] = os.getpid(), time.monotonic()
        try:
            yield
        finally:
            self.since[worker] = 0.0

    def set_message(self, worker: int, text: str) -> None:
        """Record why a worker is about to exit."""
        self.messages[worker].value = text.encode(errors="replace")[: _TEXT_BYTES - 1]

    def active(self) -> list[ActiveRead]:
        """The files being read, the longest read first; that of a dead worker is the one it died of."""
        now = time.monotonic()
        started = sorted((since, worker) for worker, since in enumerate(self.since) if since)
        names = {worker: self.names[worker].value.decode(errors="replace") for _, worker in started}
        return [ActiveRead(worker, self.pids[worker], names[worker], now - since) for since, worker in started]

    def named_in(self, error: str) -> set[int]:
        """Process IDs of those of these workers that PyTorch's message names."""
        pids = {process.pid for process in self.processes if process.pid} | {read.pid for read in self.active()}
        return pids.intersection(map(int, re.findall(r"\d+", error)))

    def explain(self, error: str) -> str:
        """How a worker ended, which file it was reading and what to do, to append to a sentence.

        Args:
            error: PyTorch's message, which names the process; "" for any.
        """
        dead = {process.pid: process.exitcode for process in self.processes if process.pid and process.exitcode}
        pids = self.named_in(error) or set(dead)
        files = [read.file for read in self.active() if read.pid in pids or not error]
        message = next((text.value.decode(errors="replace") for text in self.messages if text.value), "")
        code = next((code for pid, code in dead.items() if pid in pids), None) or _code_in(error)
        return explain_exit(code, files, message, self.oom_kills)


def _code_in(error: str) -> int | None:
    """The exit code in a message of PyTorch's."""
    if match := re.search(r"exit code (\d+)", error):
        return int(match[1])
    names = {signal.strsignal(number): number for number in signal.valid_signals()}
    match = re.search(r"by signal: (.+?)\.", error)
    return -names[match[1]] if match and match[1] in names else None


def explain_exit(code: int | None, files: Sequence[str], message: str, oom_before: int | None) -> str:
    """How a worker ended and what to do, to append to "a worker process ended unexpectedly".

    Args:
        code: its exit code, negative for a signal; None if it is not known.
        files: what it was reading.
        message: the last line that it printed.
        oom_before: `oom_kills` at the start.
    """
    if code == NO_MAIN_GUARD:
        return f": {_MAIN_GUARD}"
    status = f" ({describe_exit(code)})" if code else ""
    context = f" while reading {' or '.join(files)}" if files else ""
    cause = f": {message}" if message else ""
    if code is not None and -code in _CRASHES and files:
        cause += ": the decoder crashed on this file (exclude it)"
    elif code == -getattr(signal, "SIGBUS", 0):
        cause += f": {SHARED_MEMORY} is full, or a file was truncated while it was read"
    elif code == -getattr(signal, "SIGKILL", 0):
        now = oom_kills()
        if now is None or oom_before is None:
            cause += ": possibly out of memory (lower --workers)"
        elif now > oom_before:
            cause += ": the kernel killed a process because it was out of memory (lower --workers)"
        else:
            cause += ": killed by another process, not for lack of memory"
    return status + context + cause


def describe_exit(code: int) -> str:
    """An exit code in words; negative ones are signals."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


def oom_kills() -> int | None:
    """How many processes the kernel has killed for lack of memory, here or in this container; None if unknown."""
    files = [Path("/proc/vmstat")]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                files.append(Path(f"/sys/fs/cgroup{path}/memory.events"))
            elif "memory" in controllers.split(","):
                files.append(Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control"))
    counts = []
    for file in files:
        with suppress(OSError):
            counts += re.findall(r"^oom_kill (\d+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    return sum(map(int, counts)) if counts else None


class StallDetector:
    """Finds workers that wait for a disk or a network that does not respond."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, str], tuple[float, float]] = {}

    def check(self, active: Iterable[tuple[int, str, float]]) -> None:
        """Check workers, each given by its process, its file, and the seconds since the read began.

        Raises:
            TubeletError: one has not used the CPU for `STALL_S`.
        """
        now, stalled = time.monotonic(), {}
        for pid, file, seconds in active:
            try:
                used = sum(psutil.Process(pid).cpu_times()[:2])
            except psutil.Error:
                continue
            since, before = self.seen.get((pid, file), (now, used))
            if used - before >= 0.05:
                since, before = now, used
            if now - since >= STALL_S:
                raise FileError(
                    f"{file}: no data for the last {now - since:.0f} s of a read of {seconds:.0f} s; check whether its "
                    "disk or server responds"
                )
            stalled[pid, file] = since, before
        self.seen = stalled


def setup_worker(parent: int | None) -> None:
    """Call first in a worker: ignore all signals but a SIGTERM from its parent.

    Terminals and launchers send their signals to all processes of a group, but the parent decides when its workers
    end: a run that saves before it stops still needs them.

    Args:
        parent: the process that may end it by SIGTERM.
    """
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # macOS has none: there a SIGTERM to the whole group ends workers at once
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # before threads start, which inherit it
        threading.Thread(target=_exit_on_sigterm_of, args=(parent,), daemon=True).start()


def _exit_on_sigterm_of(parent: int | None) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
