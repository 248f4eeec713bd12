"""Data workers: how one begins, bound to the life of its parent; what each is reading; what is said when one dies."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from multiprocessing.process import BaseProcess
from multiprocessing.queues import SimpleQueue
from multiprocessing.sharedctypes import RawArray
from typing import TypeVar

from tubelet.types import TubeletError, one_line

T = TypeVar("T")
J = TypeVar("J")
_NAME_BYTES = 1024


@dataclass(frozen=True)
class Reading:
    """What a worker is at.

    Attributes:
        worker: its number.
        pid: its process.
        file: what it reads.
        seconds: for how long.
    """

    worker: int
    pid: int
    file: str
    seconds: float


class Readings:
    """Which file each worker is reading, in memory that its parent sees too."""

    def __init__(self, workers: int) -> None:
        """Args:
        workers: how many there are.
        """
        self.names = [RawArray("c", _NAME_BYTES) for _ in range(workers)]
        self.pids = RawArray("q", max(workers, 1))
        self.since = RawArray("d", max(workers, 1))

    @contextmanager
    def of(self, worker: int | None, name: str) -> Iterator[None]:
        """Say what a worker reads while it does; None is no worker."""
        if worker is None:
            yield
            return
        self.names[worker].value = name.encode(errors="replace")[-_NAME_BYTES + 1 :]
        self.pids[worker], self.since[worker] = os.getpid(), time.monotonic()
        try:
            yield
        finally:
            self.since[worker] = 0.0

    def all(self) -> list[Reading]:
        """What is being read, the longest first; a worker that died is at what it died of."""
        now = time.monotonic()
        started = sorted((since, worker) for worker, since in enumerate(self.since) if since)
        names = {worker: self.names[worker].value.decode(errors="replace") for _, worker in started}
        return [Reading(worker, self.pids[worker], names[worker], now - since) for since, worker in started]

    def why(self, error: str) -> str:
        """Why a worker may have died and what to do, to go on a sentence with.

        Args:
            error: what PyTorch says of it, which names the process; "" for any.
        """
        pids = set(map(int, re.findall(r"\d+", error)))
        files = [reading.file for reading in self.all() if reading.pid in pids or not error]
        if not files:
            return ": memory may have run out (lower --workers)"
        return (
            f" while {' or '.join(files)} was read: memory may have run out (lower --workers), or the file crashes its "
            "decoder (move it away)"
        )


@contextmanager
def deaths_in_words(after: str, readings: Readings | None = None) -> Iterator[None]:
    """Around all that is done while a loader's processes live: PyTorch says at any moment that one of them died.

    Args:
        after: how to go on.
        readings: what the processes read.

    Raises:
        TubeletError: a process died.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        said = one_line(error)
        why = (readings or Readings(0)).why(said)
        raise TubeletError(f"a worker process ended unexpectedly{why}; {after} ({said})") from error


def without_traceback(loader: Iterable[T]) -> Iterator[T]:
    """What a `DataLoader` yields; a `TubeletError` of a worker says what it said there.

    PyTorch raises it anew with the worker's whole traceback for its text, of which the sentence is the end.
    """
    try:
        yield from loader
    except TubeletError as error:
        name = f"{TubeletError.__module__}.{TubeletError.__qualname__}: "
        raise TubeletError(str(error).rpartition(name)[2].rstrip()) from error


def run_all(
    work: Callable[[J], T],
    jobs: Sequence[J],
    workers: int,
    done: Callable[[J, T], None],
    after: str,
    timeout_s: float | None = None,
) -> None:
    """Run jobs in this process, or over several.

    Args:
        work: what is done for each; it may say what it reads by `reading`.
        jobs: in the order in which they are begun.
        workers: processes, 1 for this one alone.
        done: called here with each job and its result as it ends.
        after: how to go on when a process died.
        timeout_s: for all, where there are processes.

    Raises:
        TimeoutError: so long has passed.
        TubeletError: a process died.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            done(job, work(job))
        return
    # Spawned, not forked: a parent that has started torch's threads does not survive a fork.
    context = get_context("spawn")
    readings, numbers = Readings(workers), context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin, initargs=(readings, numbers))
    try:
        futures = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(futures, timeout=timeout_s):
            done(futures[future], future.result())
    except BrokenProcessPool as error:
        raise TubeletError(f"a worker ended unexpectedly{readings.why('')}; {after}") from error
    finally:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


# In a process of `run_all`: where it says what it reads, and its number there.
_own: tuple[Readings, int] | None = None


def _begin(readings: Readings, numbers: "SimpleQueue[int]") -> None:
    global _own
    _own = readings, numbers.get()
    start_worker()


def reading(name: str) -> AbstractContextManager[None]:
    """Around what a job does with a file, for the sentence on a process that died of it."""
    return _own[0].of(_own[1], name) if _own else nullcontext()


def start_worker(*_: object) -> None:
    """Call first in a worker.

    Terminals and launchers send their signals to all processes of a group, but the parent decides when its workers
    end: a run that saves before it stops still needs them. If the parent is killed it cannot decide: then they end
    themselves, under every start method.
    """
    for name in ("SIGINT", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    parent = parent_process()
    if parent is None:
        return
    if hasattr(signal, "sigwaitinfo"):  # macOS has none: there a SIGTERM to the whole group ends workers at once
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])  # before threads start, which inherit it
        threading.Thread(target=_end_when_told_by, args=(parent,), daemon=True).start()
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_when_told_by(parent: BaseProcess) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent.pid:
        pass
    os._exit(0)


def _end_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)
