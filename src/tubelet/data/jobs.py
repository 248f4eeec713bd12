"""Jobs in processes of their own, given out over pipes.

They need no semaphore and no shared memory, which somebody would have to remove, and nothing of the script that asked:
it may lack a `__main__` guard, or be no file at all.
"""

import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, TypeVar

from tubelet.data.workers import POLL_S, Idle, oom_kills, start_worker, why_ended
from tubelet.errors import TubeletError

T = TypeVar("T")
J = TypeVar("J")


class DeathError(TubeletError):
    """A worker process died."""


def run_all(
    work: Callable[[J], T],
    jobs: Sequence[J],
    workers: int,
    done: Callable[[J, T], None],
    after: str,
    timeout_s: float | None = None,
    isolated: bool = False,
) -> None:
    """Run jobs in this process, or over several.

    Args:
        work: what is done for each, a function of a module; it may say what it reads by `reading`.
        jobs: in the order in which they are begun.
        workers: processes, 1 for this one alone.
        done: called here with each job and its result as it ends.
        after: how to go on when a process died.
        timeout_s: for all, where there are processes.
        isolated: run no job in this process, which would not survive what a job may do.

    Raises:
        TimeoutError: so long has passed.
        DeathError: a process died.
        TubeletError: a job's own, or one reads a file that does not come.
    """
    workers = min(workers, len(jobs))
    if workers <= 1 and not isolated:
        for job in jobs:
            done(job, work(job))
        return
    began, idle, before = time.monotonic(), Idle(), oom_kills()
    waiting: queue.SimpleQueue[tuple[int, J]] = queue.SimpleQueue()
    for pair in enumerate(jobs):
        waiting.put(pair)
    ended: queue.SimpleQueue[tuple[_JobProcess, int, bool, Any]] = queue.SimpleQueue()
    processes = []
    try:
        processes += [_JobProcess(work, waiting, ended) for _ in range(workers)]
        left = len(jobs)
        while left:
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                raise TimeoutError
            try:
                process, number, succeeded, result = ended.get(timeout=POLL_S)
            except queue.Empty:
                idle.check([p.reading for p in processes if p.reading is not None])
                continue
            if succeeded:
                done(jobs[number], result)
                left -= 1
            elif result is not None:
                raise result
            else:
                why = why_ended(process.wait(), process.files, process.last_words(), before)
                raise DeathError(f"a worker process ended unexpectedly{why}; {after}")
    finally:
        for process in processes:
            process.stop()


_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); from tubelet.data.jobs import _serve; _serve()"
)


class _JobProcess:
    """A process that does jobs one after the other, and the thread that hands them to it.

    Attributes:
        reading: process, file and seconds, while it reads one.
    """

    def __init__(self, work: Callable, waiting: "queue.SimpleQueue", ended: "queue.SimpleQueue") -> None:
        self.printed = tempfile.TemporaryFile()  # noqa: SIM115 - its standard error: shown when it ends, so that it can be quoted
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.printed
        )
        self.file, self.since, self.running = "", 0.0, True
        self.thread = threading.Thread(target=self._hand_over, args=(work, waiting, ended), daemon=True)
        self.thread.start()

    @property
    def reading(self) -> tuple[int, str, float] | None:
        return (self.process.pid, self.file, time.monotonic() - self.since) if self.file else None

    @property
    def files(self) -> list[str]:
        return [self.file] if self.file else []

    def _hand_over(self, work: Callable, waiting: "queue.SimpleQueue", ended: "queue.SimpleQueue") -> None:
        jobs, results = self.process.stdin, self.process.stdout
        assert jobs is not None and results is not None
        number = -1
        try:
            pickle.dump(sys.path, jobs)
            while self.running:
                try:
                    number, job = waiting.get_nowait()
                except queue.Empty:
                    return
                pickle.dump((work, job), jobs)
                jobs.flush()
                while (message := pickle.load(results))[0] == "reading":
                    self.file, self.since = message[1], time.monotonic()
                ended.put((self, number, *message))
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            if self.running:
                ended.put((self, number, False, None))
        except Exception as error:  # a job that cannot be pickled is a mistake of the caller's
            ended.put((self, number, False, error))

    def wait(self) -> int:
        """Its exit code."""
        return self.process.wait()

    def last_words(self) -> str:
        """The last line that it printed."""
        self.printed.seek(0)
        lines = self.printed.read().decode(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

    def stop(self) -> None:
        """End it, and show what it printed."""
        self.running = False
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.thread.join()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):  # what was still to be sent
                pipe.close()
        self.printed.seek(0)
        sys.stderr.write(self.printed.read().decode(errors="replace"))
        self.printed.close()


# In a process of `run_all`: what it sends to its parent, and what it does first when that has ended.
_send: Callable[[object], None] | None = None
_at_parents_end: set[Callable[[], None]] = set()


def _serve() -> None:
    """What a process of `run_all` does."""
    global _send
    start_worker(os.getppid())
    incoming, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a job prints is no message
    received: queue.SimpleQueue[tuple[Callable[[Any], Any], Any]] = queue.SimpleQueue()

    def send(message: object) -> None:
        data = pickle.dumps(message)
        results.write(data)
        results.flush()

    def receive() -> None:
        while True:
            try:
                received.put(pickle.load(incoming))
            except (EOFError, OSError, pickle.UnpicklingError):  # the parent has ended
                for clean in _at_parents_end:
                    clean()
                os._exit(1)
            except Exception as error:
                send((False, RuntimeError(f"a job that cannot be received: {error!r}")))

    _send = send
    threading.Thread(target=receive, daemon=True).start()
    while True:
        work, job = received.get()
        try:
            message: tuple[bool, Any] = True, work(job)
        except Exception as error:
            if not isinstance(error, TubeletError):
                error.add_note(f"in a worker process:\n{traceback.format_exc()}")
            message = False, error
        try:
            send(message)
        except (TypeError, AttributeError, pickle.PicklingError):
            send((False, RuntimeError(f"a result or an error that cannot be sent: {message[1]!r}")))


def call_at_parents_end(clean: Callable[[], None]) -> None:
    """Have a process of `run_all` call a function when its parent has ended, before it ends too."""
    _at_parents_end.add(clean)


def reading(name: str) -> AbstractContextManager[None]:
    """Around what a job does with a file, for the sentence on a process that died of it."""
    return _read(name, _send) if _send else nullcontext()


@contextmanager
def _read(name: str, send: Callable[[object], None]) -> Iterator[None]:
    send(("reading", name))
    try:
        yield
    finally:
        send(("reading", ""))
