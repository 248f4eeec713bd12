"""Worker processes that load data: how they start and end, what each is reading, the sentence about one that died.

A worker ends when its parent does, and leaves nothing behind; every wait for one has an end and a cause.
"""

import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import os
import re
import secrets
import shutil
import signal
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.sharedctypes import RawArray
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psutil

from tubelet.errors import TubeletError, one_line
from tubelet.io.files import temporary_folder

if TYPE_CHECKING:  # processes that only render need not import torch
    from torch.utils.data import Dataset

T = TypeVar("T")
_TEXT_BYTES = 1024
SHARED_MEMORY = Path("/dev/shm")
POLL_S = 1.0  # how often a wait looks at whether workers live
IDLE_S = 300.0  # a worker that reads a file for so long without any work of the CPU waits for a disk or a network
UNGUARDED = 86  # exit code of a worker that runs the script of its parent anew
PREFETCH = 2  # batches that each worker makes ahead
_CRASHES = (signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


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
    """Which file each worker is reading, and its last words, in memory that its parent sees too.

    Attributes:
        processes: the workers, as far as this process started them.
    """

    def __init__(self, workers: int) -> None:
        """Args:
        workers: how many there are.
        """
        self.names = [RawArray("c", _TEXT_BYTES) for _ in range(workers)]
        self.words = [RawArray("c", _TEXT_BYTES) for _ in range(workers)]
        self.pids = RawArray("q", max(workers, 1))
        self.since = RawArray("d", max(workers, 1))
        self.processes: Sequence[BaseProcess] = ()
        self.oom_kills = oom_kills()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"processes": ()}

    @contextmanager
    def of(self, worker: int | None, name: str) -> Iterator[None]:
        """Say what a worker reads while it does; None is no worker."""
        if worker is None:
            yield
            return
        self.names[worker].value = name.encode(errors="replace")[-_TEXT_BYTES + 1 :]
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
        """How a worker ended, of what as far as that is known, and what to do: to go on a sentence with.

        Args:
            error: what PyTorch says of it, which names the process; "" for any.
        """
        dead = {process.pid: process.exitcode for process in self.processes if process.exitcode}
        pids = set(dead) or set(map(int, re.findall(r"\d+", error)))
        files = [reading.file for reading in self.all() if reading.pid in pids or not error]
        words = next((text.value.decode(errors="replace") for text in self.words if text.value), "")
        code = next(iter(dead.values()), None) or _code_in(error)
        return why_ended(code, files, words, self.oom_kills)


def _code_in(error: str) -> int | None:
    """The exit code in a sentence of PyTorch's."""
    if found := re.search(r"exit code (\d+)", error):
        return int(found[1])
    names = {signal.strsignal(number): number for number in signal.valid_signals()}
    found = re.search(r"by signal: (.+?)\.", error)
    return -names[found[1]] if found and found[1] in names else None


def why_ended(code: int | None, files: Sequence[str], words: str, oom_before: int | None) -> str:
    """How a worker ended and what to do, to go on "a worker ended unexpectedly" with.

    Args:
        code: its exit code, negative for a signal; None if it is not known.
        files: what it was reading.
        words: the last line that it printed.
        oom_before: `oom_kills` before.
    """
    if code == UNGUARDED:
        return f": {NO_GUARD}"
    how = f" ({describe_exit(code)})" if code else ""
    where = f" while {' or '.join(files)} was read" if files else ""
    cause = f": {words}" if words else ""
    if code is not None and -code in _CRASHES and files:
        cause += ": the file crashes its decoder (move it away)"
    elif code == -getattr(signal, "SIGBUS", 0):
        cause += f": {SHARED_MEMORY} is full, or a file was cut short while it was read"
    elif code == -getattr(signal, "SIGKILL", 0):
        now = oom_kills()
        if now is None or oom_before is None:
            cause += ": memory may have run out (lower --workers)"
        elif now > oom_before:
            cause += ": the kernel ended a process because memory had run out (lower --workers)"
        else:
            cause += ": it was ended from outside, and not because memory had run out"
    return how + where + cause


def describe_exit(code: int) -> str:
    """An exit code in words; negative ones are signals."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"ended by signal {-code}"


def oom_kills() -> int | None:
    """How many processes the kernel has ended for lack of memory, here or in this container; None if nobody counts."""
    files = [Path("/proc/vmstat")]
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                files.append(Path(f"/sys/fs/cgroup{path}/memory.events"))
            elif "memory" in controllers.split(","):
                files.append(Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control"))
    counts = []
    for file in files:
        with suppress(OSError):
            counts += re.findall(r"^oom_kill (\d+)", file.read_text(), re.MULTILINE)
    return sum(map(int, counts)) if counts else None


@contextmanager
def deaths_in_words(after: str) -> Iterator[None]:
    """Around all that is done while a `WorkerLoader` is used: PyTorch says at any moment that a worker died.

    Args:
        after: how to go on.

    Raises:
        TubeletError: a process died.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        all_readings = [loader.readings for loader in _loaders]
        dead = [r for r in all_readings if any(process.exitcode for process in r.processes)]
        why = (dead or all_readings or [Readings(0)])[0].why(one_line(error))
        raise TubeletError(f"a worker process ended unexpectedly{why}; {after}") from error


class WorkerLoader(Generic[T]):
    """A `DataLoader` whose workers leave nothing behind and are never waited for in vain. Can be iterated repeatedly.

    Attributes:
        readings: what its workers read.
    """

    def __init__(
        self,
        dataset: "Dataset[Any]",
        workers: int,
        *,
        readings: Readings | None = None,
        timeout_s: float | None = None,
        item_bytes: int = 0,
        prefetch: int | None = None,
        **options: Any,
    ) -> None:
        """Args:
        dataset: what is read.
        workers: processes; 0 reads in this one.
        readings: what they read, if the data set says so.
        timeout_s: for an item; without it only a worker that does not use the CPU is given up, after `IDLE_S`.
        item_bytes: about how many bytes of tensors an item has, as far as that is known before.
        prefetch: items that each worker makes ahead; None is two.
        options: of `DataLoader`.

        Raises:
            TubeletError: the workers could not hand over what they make, or cannot be started from here.
        """
        from torch.utils.data import DataLoader

        refuse_unguarded()
        prefetch = prefetch or PREFETCH
        self.readings = readings or Readings(workers)
        self.timeout_s = timeout_s
        resources = ExitStack()
        if workers:
            require_shared_memory(item_bytes, workers, prefetch)
            folder, _ = resources.enter_context(temporary_folder("workers", _sweep_tensors))
            options |= {
                "multiprocessing_context": _start_method(),
                "prefetch_factor": prefetch,
                "worker_init_fn": partial(_start_loading, self.readings, str(folder)),
                "timeout": min(POLL_S, timeout_s or POLL_S),
            }
        self.loader: DataLoader[T] = DataLoader(dataset, num_workers=workers, **options)
        _loaders.add(self)
        weakref.finalize(self, _close, os.getpid(), self.loader, resources)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[T]:
        """The items.

        Raises:
            TubeletError: a worker raised it, or none of them answers.
            RuntimeError: PyTorch's, if a worker died; see `deaths_in_words`.
        """
        items = iter(self.loader)
        self.readings.processes = getattr(items, "_workers", ())
        while True:
            try:
                item = self._wait(items)
            except StopIteration:
                return
            except TubeletError as error:
                # PyTorch raises it anew with the worker's traceback for its text, of which the sentence is the end.
                name = f"{type(error).__module__}.{type(error).__qualname__}: "
                raise TubeletError(str(error).rpartition(name)[2].rstrip()) from error
            yield item

    def _wait(self, items: Iterator[T]) -> T:
        began, idle = time.monotonic(), Idle()
        while True:
            try:
                return next(items)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):
                    raise
            waited = time.monotonic() - began
            if self.timeout_s is not None and waited >= self.timeout_s:
                raise RuntimeError(f"DataLoader timed out after {self.timeout_s:g} seconds")
            if self.timeout_s is None:
                idle.check([(r.pid, r.file, r.seconds) for r in self.readings.all()])


_loaders: "weakref.WeakSet[WorkerLoader[Any]]" = weakref.WeakSet()


class Idle:
    """Finds workers that wait for a disk or a network that does not answer."""

    def __init__(self) -> None:
        self.seen: dict[tuple[int, str], tuple[float, float]] = {}

    def check(self, reading: Iterable[tuple[int, str, float]]) -> None:
        """Look at workers, given by process, file and seconds that it has been read for.

        Raises:
            TubeletError: one has not used the CPU for `IDLE_S`.
        """
        now, seen = time.monotonic(), {}
        for pid, file, seconds in reading:
            try:
                used = sum(psutil.Process(pid).cpu_times()[:2])
            except psutil.Error:
                continue
            since, before = self.seen.get((pid, file), (now, used))
            if used - before >= 0.05:
                since, before = now, used
            if now - since >= IDLE_S:
                raise TubeletError(
                    f"{file}: has been read for {seconds:.0f} s, and for the last {now - since:.0f} s nothing of it "
                    "came: see whether its disk or server answers"
                )
            seen[pid, file] = since, before
        self.seen = seen


def _close(owner: int, loader: Any, resources: ExitStack) -> None:
    if os.getpid() != owner:
        return
    if (items := getattr(loader, "_iterator", None)) is not None:  # of persistent workers
        items._shutdown_workers()
    resources.close()


def require_shared_memory(item_bytes: int, workers: int, prefetch: int = PREFETCH) -> None:
    """See that workers have room for what they hand over.

    Raises:
        TubeletError: there is less than they need.
    """
    if not SHARED_MEMORY.is_dir() or not hasattr(os, "statvfs"):
        return
    found = os.statvfs(SHARED_MEMORY)
    free, needed = found.f_bavail * found.f_frsize, item_bytes * (workers * prefetch + 1)
    if needed > free:
        raise TubeletError(
            f"{SHARED_MEMORY}: {free / 1e6:.0f} MB are free, and {workers} workers need {needed / 1e6:.0f} MB to hand "
            f"over {prefetch} batches each of {item_bytes / 1e6:.1f} MB: start the container with more (docker run "
            f"--shm-size {max(1, round(2 * needed / 1e9))}g), or use fewer --workers (0 needs none)"
        )


NO_GUARD = (
    'it ran the script that started it anew, which has no `if __name__ == "__main__":`; put what the script does below '
    "such a line, or use 0 workers"
)


def refuse_unguarded() -> None:
    """Call before a process starts workers: one that is itself being started as a worker ends.

    Unless processes are forked, a worker runs the main script of its parent anew; a script without a guard would have
    it do what its parent does. The exit code tells the parent, which has the sentence for it.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(UNGUARDED)


def _start_method() -> str | None:
    """Workers are forked on Linux unless the caller chose another way: then they need nothing of the main script.

    Raises:
        TubeletError: workers cannot be started as was chosen.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)
    if chosen is None and sys.platform == "linux":
        return "fork"
    script = getattr(sys.modules["__main__"], "__file__", None)
    if chosen != "fork" and script and not Path(script).exists():
        raise TubeletError(
            f"worker processes cannot be started by {chosen or 'spawn'} from a script that is no file ({script}): save "
            "it as one, or use 0 workers"
        )
    return chosen


def _start_loading(readings: Readings, folder: str, worker: int) -> None:
    """Call first in a worker of a `DataLoader`."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        _remove_tensors(os.getpid())
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    def lost(error: BaseException, item: object) -> None:
        # Raised while an item is handed over, by a thread: only this worker knows that it will never arrive.
        text = str(error)
        if "No space left" in text or "unable to allocate shared memory" in text or "unable to resize" in text:
            text = f"{SHARED_MEMORY} is full: start the container with a larger --shm-size, or use fewer --workers"
        readings.words[worker].value = text.encode(errors="replace")[: _TEXT_BYTES - 1]
        os._exit(1)

    Path(folder, str(os.getpid())).touch()
    # Tensors are passed by way of a socket. One that is a file in a folder of the worker's own would stay when it is
    # killed, and cannot be made where TMPDIR is long: Linux has sockets without files.
    multiprocessing.current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]
    if sys.platform == "linux":
        multiprocessing.connection.arbitrary_address = _abstract_address  # type: ignore[attr-defined]
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(lost)  # type: ignore[attr-defined]
    start_worker(parent.pid)
    threading.Thread(target=end, daemon=True).start()


def _abstract_address(family: str) -> str:
    assert family == "AF_UNIX"
    return f"\0tubelet-{os.getpid()}-{secrets.token_hex(8)}"


def _sweep_tensors(folder: Path) -> None:
    """Remove what the dead workers of a folder left in shared memory."""
    for file in folder.iterdir():
        if file.name.isdigit():
            _remove_tensors(int(file.name))


def _remove_tensors(pid: int) -> None:
    for file in SHARED_MEMORY.glob(f"torch_{pid}_*"):
        with suppress(OSError):
            file.unlink()


def start_worker(parent: int | None) -> None:
    """Call first in a worker.

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
        threading.Thread(target=_end_when_told_by, args=(parent,), daemon=True).start()


def _end_when_told_by(parent: int | None) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
