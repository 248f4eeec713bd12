"""A `DataLoader` whose workers end with their parent, leave nothing behind, and are never waited for without end."""

import multiprocessing
import multiprocessing.connection
import multiprocessing.queues
import os
import secrets
import shutil
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from tubelet.data.worker_status import (
    NO_MAIN_GUARD,
    POLL_S,
    SHARED_MEMORY,
    StallDetector,
    WorkerCrashError,
    WorkerStatus,
    setup_worker,
    shared_memory_full,
)
from tubelet.errors import ConfigError, FileError, TubeletError, first_line
from tubelet.io.files import temporary_directory

T = TypeVar("T")
PREFETCH = 2  # batches that each worker prepares ahead
EXIT_GRACE_S = 1.0  # between the last word of a worker and its end
# What the workers of the last loaders read, the newest first. A loader itself may be gone by the time that an error is
# explained: a `for` over it may be its only reference.
_recent: deque[WorkerStatus] = deque(maxlen=8)


@contextmanager
def translate_worker_crash(resume_hint: str) -> Iterator[None]:
    """Raise a TubeletError for a dead worker; for the whole time that a `WorkerLoader` is used.

    PyTorch may report a dead worker at any moment, not only while the next item is awaited.

    Args:
        resume_hint: how to continue, the end of the message.

    Raises:
        TubeletError: a worker died.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
            raise
        message = first_line(error)
        named = [status for status in _recent if status.named_in(message)]
        dead = [status for status in _recent if any(process.exitcode for process in status.processes)]
        why = (named or dead or [*_recent, WorkerStatus(0)])[0].explain(message)
        raise WorkerCrashError(f"a worker process ended unexpectedly{why}; {resume_hint}") from error


class WorkerLoader(Generic[T]):
    """A `DataLoader` that can be iterated repeatedly; a TubeletError of a worker is raised in the parent as it is.

    Attributes:
        status: what its workers read.
    """

    def __init__(
        self,
        dataset: "Dataset[Any]",
        workers: int,
        *,
        status: WorkerStatus | None = None,
        timeout_s: float | None = None,
        item_bytes: int = 0,
        prefetch: int | None = None,
        **options: Any,
    ) -> None:
        """Start nothing yet; workers start with an iteration.

        Args:
            dataset: what is read.
            workers: number of processes; 0 reads in this one.
            status: what they read, if the dataset records it.
            timeout_s: limit for an item; without it only a worker that does not use the CPU for `STALL_S` is given up.
            item_bytes: estimated bytes of tensors in an item.
            prefetch: items that each worker prepares ahead; None for two.
            options: of `DataLoader`.

        Raises:
            TubeletError: shared memory is too small for the items, or workers cannot be started from here.
        """
        require_main_guard()
        prefetch = prefetch or PREFETCH
        self.status = status or WorkerStatus(workers)
        self.timeout_s = timeout_s
        resources = ExitStack()
        if workers:
            require_shared_memory(item_bytes, workers, prefetch)
            folder, _ = resources.enter_context(temporary_directory("workers", _sweep_tensors))
            resources.callback(_sweep_tensors, folder)
            iterable = isinstance(dataset, IterableDataset)
            dataset = _IterableWithErrors(dataset) if iterable else _DatasetWithErrors(dataset)
            if options.get("batch_size", 1) is not None:
                options["collate_fn"] = partial(_collate_or_error, options.get("collate_fn") or default_collate)
            options |= {
                "multiprocessing_context": _start_method(),
                "prefetch_factor": prefetch,
                "worker_init_fn": partial(_start_loading, self.status, str(folder)),
                "timeout": min(POLL_S, timeout_s or POLL_S),
            }
        self.loader: DataLoader[T] = DataLoader(dataset, num_workers=workers, **options)
        _recent.appendleft(self.status)
        weakref.finalize(self, _close, os.getpid(), self.loader, resources)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[T]:
        """The items.

        Raises:
            TubeletError: a worker raised it, or none of them responds.
            RuntimeError: PyTorch's, if a worker died; see `translate_worker_crash`.
        """
        items: Any = iter(self.loader)
        self.status.processes = getattr(items, "_workers", ())
        if self.status.processes and not isinstance(items._data_queue, _ResultQueue):  # persistent workers keep theirs
            items._data_queue = _ResultQueue(items._data_queue, self.status.processes)
        while True:
            try:
                item = self._wait(items)
            except StopIteration:
                return
            if isinstance(item, TubeletError):
                del items  # ends the workers now; the traceback would keep them
                try:
                    raise item
                finally:
                    del item  # the error keeps this frame, and this frame would keep the error
            yield item

    def _wait(self, items: Iterator[T]) -> T:
        start_time, stalls = time.monotonic(), StallDetector()
        while True:
            try:
                return next(items)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader timed out"):
                    raise
            waited = time.monotonic() - start_time
            if self.timeout_s is not None and waited >= self.timeout_s:
                raise RuntimeError(f"DataLoader timed out after {self.timeout_s:g} seconds")
            if self.timeout_s is None:
                stalls.check([(r.pid, r.file, r.seconds) for r in self.status.active()])


class _ResultQueue:
    """The queue of a `DataLoader`'s items, which waits for a worker that is ending before it raises an error.

    PyTorch answers an error by checking that each worker is alive, and then that ten temporary files can be opened. A
    worker's connection closes a moment before the worker is dead, so that its SIGCHLD would interrupt that second check
    and leave a file.
    """

    def __init__(self, queue: Any, workers: Sequence[Any]) -> None:
        self.queue, self.workers = queue, workers

    def get(self, timeout: float) -> Any:
        """The next item, as `queue.Queue.get`."""
        try:
            return self.queue.get(timeout=timeout)
        except Empty:
            raise
        except Exception:
            exited = multiprocessing.connection.wait([worker.sentinel for worker in self.workers], EXIT_GRACE_S)
            for worker in self.workers:
                if worker.sentinel in exited:
                    worker.join()
            raise


class _DatasetWithErrors(Dataset[Any]):
    """A dataset in a worker whose item is a TubeletError where one was raised.

    PyTorch would raise it in the parent from nothing but its text, with the worker's traceback in it.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.dataset[index]
        except TubeletError as error:
            return error


class _IterableWithErrors(IterableDataset[Any]):
    """See `_DatasetWithErrors`; the error is the last item."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self.dataset
        except TubeletError as error:
            yield error


def _collate_or_error(collate: Callable[[Any], Any], items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, TubeletError)), None) or collate(items)


def _close(owner: int, loader: Any, resources: ExitStack) -> None:
    if os.getpid() != owner:
        return
    if (items := getattr(loader, "_iterator", None)) is not None:  # of persistent workers
        items._shutdown_workers()
    resources.close()


def require_shared_memory(item_bytes: int, workers: int, prefetch: int = PREFETCH) -> None:
    """Check that shared memory has room for the items that workers pass to their parent.

    Raises:
        TubeletError: there is less than they need.
    """
    free, needed = free_shared_memory(), item_bytes * (workers * prefetch + 1)
    if free is not None and needed > free:
        problem = (
            f"{free / 1e6:.0f} MB are free, but {workers} workers need {needed / 1e6:.0f} MB for {prefetch} batches "
            f"each of {item_bytes / 1e6:.1f} MB"
        )
        raise FileError(shared_memory_full(problem, f" {max(1, round(2 * needed / 1e9))}g"))


def free_shared_memory() -> int | None:
    """Free bytes of the memory in which workers pass items to their parent; None on systems that have no such limit."""
    if not SHARED_MEMORY.is_dir() or not hasattr(os, "statvfs"):
        return None
    status = os.statvfs(SHARED_MEMORY)
    return status.f_bavail * status.f_frsize


def require_main_guard() -> None:
    """Call before a process starts workers: exit if it is itself being started as a worker.

    Unless processes are forked, a worker runs the main script of its parent again; without a guard the script would
    start workers in it. The exit code tells the parent, which explains it.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(NO_MAIN_GUARD)


def _start_method() -> str | None:
    """Workers are forked on Linux unless the caller chose another way: then they need nothing of the main script.

    Raises:
        TubeletError: workers cannot be started in the chosen way.
    """
    chosen = multiprocessing.get_start_method(allow_none=True)
    if chosen is None and sys.platform == "linux":
        return "fork"
    script = getattr(sys.modules["__main__"], "__file__", None)
    if chosen != "fork" and script and not Path(script).exists():
        raise ConfigError(
            f"worker processes cannot be started by {chosen or 'spawn'} from a script that is not a file ({script}); "
            "save it to a file, or use 0 workers"
        )
    return chosen


def _start_loading(status: WorkerStatus, folder: str, worker: int) -> None:
    """Called first in a worker of a `DataLoader`."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        _remove_tensors(os.getpid())
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)

    def exit_on_send_error(error: BaseException, item: object) -> None:
        # Raised by a thread that passes an item to the parent: only this worker knows that it will never arrive.
        text = str(error)
        if "No space left" in text or "unable to allocate shared memory" in text or "unable to resize" in text:
            text = shared_memory_full("it is full")
        status.set_message(worker, text)
        os._exit(1)

    Path(folder, str(os.getpid())).touch()
    # Tensors are passed by way of a socket. One that is a file in a folder of the worker's own would stay when it is
    # killed, and cannot be made where TMPDIR is long: Linux has sockets without files.
    multiprocessing.current_process()._config["tempdir"] = folder  # type: ignore[attr-defined]
    if sys.platform == "linux":
        multiprocessing.connection.arbitrary_address = _abstract_address  # type: ignore[attr-defined]
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(exit_on_send_error)  # type: ignore[attr-defined]
    setup_worker(parent.pid)
    threading.Thread(target=end_with_parent, daemon=True).start()


def _abstract_address(family: str) -> str:
    assert family == "AF_UNIX"
    return f"\0tubelet-{os.getpid()}-{secrets.token_hex(8)}"


def _sweep_tensors(folder: Path) -> None:
    """Remove what the workers of a folder, which have ended, left in shared memory."""
    for file in folder.glob("*"):  # none where the folder is gone
        if file.name.isdigit():
            _remove_tensors(int(file.name))


def _remove_tensors(pid: int) -> None:
    for file in SHARED_MEMORY.glob(f"torch_{pid}_*"):
        with suppress(OSError):
            file.unlink()
