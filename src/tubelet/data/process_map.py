"""A parallel map over jobs in worker processes, which receive their jobs through pipes.

The workers need no semaphores or shared memory, which would have to be cleaned up, and do not import the calling
script: it may lack a `__main__` guard, or not be a file at all.
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

from tubelet.data.worker_status import POLL_S, StallDetector, WorkerCrashError, explain_exit, oom_kills, setup_worker
from tubelet.errors import TubeletError

EXIT_GRACE_S = 5.0
T = TypeVar("T")
J = TypeVar("J")


def process_map(
    work: Callable[[J], T],
    jobs: Sequence[J],
    workers: int,
    done: Callable[[J, T], None],
    resume_hint: str,
    timeout_s: float | None = None,
    isolated: bool = False,
) -> None:
    """Call a function for each job, in this process or in worker processes.

    Args:
        work: the function, of a module; it may record the file that it reads by `track_file`.
        jobs: its arguments, in the order in which they are started.
        workers: number of processes; 1 for this one.
        done: called in this process with each job and its result when it ends.
        resume_hint: how to continue after a crash, the end of the message.
        timeout_s: limit for all jobs, where there are worker processes.
        isolated: run no job in this process, which a job may crash.

    Raises:
        TimeoutError: the limit has passed.
        WorkerCrashError: a process died.
        TubeletError: a job raised it, or waits for a file whose disk or server does not respond.
    """
    workers = min(workers, len(jobs))
    if workers <= 1 and not isolated:
        for job in jobs:
            done(job, work(job))
        return
    start_time, stalls, before = time.monotonic(), StallDetector(), oom_kills()
    waiting: queue.SimpleQueue[tuple[int, J]] = queue.SimpleQueue()
    for pair in enumerate(jobs):
        waiting.put(pair)
    results: queue.SimpleQueue[tuple[_JobProcess, int, bool, Any]] = queue.SimpleQueue()
    processes: list[_JobProcess] = []
    try:
        for _ in range(workers):  # one by one, so that those started are stopped if the next cannot be
            processes.append(_JobProcess(work, waiting, results))
        left = len(jobs)
        while left:
            if timeout_s is not None and time.monotonic() - start_time > timeout_s:
                raise TimeoutError
            try:
                process, number, succeeded, result = results.get(timeout=POLL_S)
            except queue.Empty:
                stalls.check([p.reading for p in processes if p.reading is not None])
                continue
            if succeeded:
                done(jobs[number], result)
                left -= 1
            elif result is not None:
                raise result
            else:
                why = explain_exit(process.wait(), process.files, process.last_line(), before)
                raise WorkerCrashError(f"a worker process ended unexpectedly{why}; {resume_hint}")
    finally:
        for process in processes:
            process.stop()


_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from tubelet.data.process_map import _serve; _serve()"
)


class _JobProcess:
    """A process that runs jobs one after the other, and the thread that sends them to it.

    Attributes:
        reading: process, file, and seconds since the read began, while it reads a file.
    """

    def __init__(self, work: Callable, waiting: "queue.SimpleQueue", results: "queue.SimpleQueue") -> None:
        self.printed = tempfile.TemporaryFile()  # noqa: SIM115 - its standard error: shown when it ends, so that it can be quoted
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.printed
        )
        self.file, self.since, self.running = "", 0.0, True
        self.thread = threading.Thread(target=self._send_jobs, args=(work, waiting, results), daemon=True)
        self.thread.start()

    @property
    def reading(self) -> tuple[int, str, float] | None:
        return (self.process.pid, self.file, time.monotonic() - self.since) if self.file else None

    @property
    def files(self) -> list[str]:
        return [self.file] if self.file else []

    def _send_jobs(self, work: Callable, waiting: "queue.SimpleQueue", ended: "queue.SimpleQueue") -> None:
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
        except Exception as error:  # the process has ended, or a job or a result cannot be pickled
            if self.running:
                ended.put((self, number, False, None if self._has_ended() else error))

    def _has_ended(self) -> bool:
        """Whether the process has ended, which may be seen a moment after its pipes are closed."""
        try:
            self.process.wait(EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait(self) -> int:
        """Wait for the end of the process; returns its exit code."""
        return self.process.wait()

    def last_line(self) -> str:
        """The last line that it printed."""
        self.printed.seek(0)
        lines = self.printed.read().decode(errors="replace").split("\n")
        return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")

    def stop(self) -> None:
        """Stop the process, and print its standard error."""
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
            with suppress(OSError):  # what was not sent yet
                pipe.close()
        self.printed.seek(0)
        sys.stderr.write(self.printed.read().decode(errors="replace"))
        self.printed.close()


# In a process of `process_map`: the function that sends to its parent, and those to call when that has ended.
_send: Callable[[object], None] | None = None
_on_parent_exit: set[Callable[[], None]] = set()


def _serve() -> None:
    """Run jobs in a process of `process_map`."""
    global _send
    setup_worker(os.getppid())
    incoming, results = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a job prints is not a message to the parent
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
                try:
                    for clean in _on_parent_exit:
                        clean()
                finally:
                    os._exit(1)
            except Exception as error:
                send((False, RuntimeError(f"cannot receive a job: {error!r}")))

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
            send((False, RuntimeError(f"cannot send a result or an error: {message[1]!r}")))


def on_parent_exit(clean: Callable[[], None]) -> None:
    """In a process of `process_map`, call a function when the parent has ended, before the process ends too."""
    _on_parent_exit.add(clean)


def track_file(name: str) -> AbstractContextManager[None]:
    """Record that a job reads a file while the block runs, for the message about a process that dies of it."""
    return _tracked(name, _send) if _send else nullcontext()


@contextmanager
def _tracked(name: str, send: Callable[[object], None]) -> Iterator[None]:
    send(("reading", name))
    try:
        yield
    finally:
        send(("reading", ""))
