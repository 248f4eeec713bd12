"""How much data to prefetch: as many steps, batches or sources as fit into a number of bytes."""

from typing import Any, Literal, NamedTuple

from torch.utils.data import IterableDataset

from tubelet.data.worker_count import resolve_workers
from tubelet.data.worker_loader import PREFETCH, WorkerLoader, free_shared_memory
from tubelet.data.worker_status import SHARED_MEMORY, WorkerStatus
from tubelet.user_warnings import warn_user

MB = 10**6


class Prefetch(NamedTuple):
    """Prefetching of a loader.

    Attributes:
        workers: number of processes to start.
        factor: items that each process prefetches; None without processes.
        note: message for the user if fewer processes start than requested, or an item exceeds the limit.
    """

    workers: int
    factor: int | None
    note: str | None

    @property
    def items(self) -> int:
        """Largest number of prefetched items, including unfinished ones."""
        return self.workers * (self.factor or 0)


def prefetch_within(
    limit_mb: int, item: str, item_bytes: int, workers: int, max_per_worker: int = PREFETCH
) -> Prefetch:
    """Choose how many processes prefetch items, so that these fit into a limit.

    With processes, at least one item is prefetched even if it is larger than the limit; the note says so.

    Args:
        limit_mb: megabytes (10^6 bytes) for all prefetched items.
        item: name of an item in the note, such as "a step's samples".
        item_bytes: bytes of an item.
        workers: requested number of processes.
        max_per_worker: largest number of items that each process prefetches.
    """
    if workers == 0:
        return Prefetch(0, None, None)
    room = max(limit_mb * MB // max(item_bytes, 1), 1)
    size = f"{item} are {item_bytes / MB:,.1f} MB"
    if room >= workers:  # of one worker, even where its item is too large
        note = f"{size}, more than --prefetch-mb {limit_mb}" if item_bytes > limit_mb * MB else None
        return Prefetch(workers, min(max_per_worker, room // workers), note)
    if item_bytes > limit_mb * MB:
        size += f", more than --prefetch-mb {limit_mb}, and one is prefetched at a time"
    else:
        size += f", and --prefetch-mb {limit_mb} has room for {room} of them"
    enough = -(-workers * item_bytes // MB)
    return Prefetch(room, 1, f"{size}: {room} of {workers} workers start; --prefetch-mb {enough} has room for all")


def prefetch_auto(limit_mb: int, item: str, item_bytes: int, workers: int | Literal["auto"]) -> Prefetch:
    """`prefetch_within` with a number of workers that may be "auto": then as many as shared memory has room for, too.

    Args:
        limit_mb: see `prefetch_within`.
        item: see `prefetch_within`.
        item_bytes: see `prefetch_within`.
        workers: requested number of processes, or "auto".
    """
    count, free = resolve_workers(workers), free_shared_memory()
    if workers != "auto" or free is None:
        return prefetch_within(limit_mb, item, item_bytes, count)
    room = max(free // max(item_bytes, 1) - 1, 1)  # one more is in the hands of the parent
    num_workers = min(count, room)
    prefetch = prefetch_within(
        limit_mb, item, item_bytes, num_workers, max_per_worker=min(PREFETCH, room // num_workers)
    )
    if room >= count:
        return prefetch
    enough = max(1, round(2 * (count + 1) * item_bytes / 1e9))
    note = (
        f"{SHARED_MEMORY} has {free / MB:,.0f} MB free, and {item} are {item_bytes / MB:,.1f} MB: {prefetch.workers} "
        f"of {count} workers start; docker run --shm-size {enough}g has room for all"
    )
    return prefetch._replace(note="; ".join(filter(None, (note, prefetch.note))))


def prefetching_loader(
    batches: IterableDataset[Any], status: WorkerStatus, limit_mb: int, item: str, item_bytes: int, workers: int
) -> WorkerLoader[Any]:
    """A loader of batches that a dataset makes itself, with as many workers as the limit of prefetched data allows.

    Args:
        batches: the dataset; each worker gives the batches of its share.
        status: what the workers read.
        limit_mb: see `prefetch_within`.
        item: see `prefetch_within`.
        item_bytes: bytes of a batch.
        workers: requested number of processes.

    Raises:
        TubeletError: shared memory is too small for the batches of the workers.
    """
    prefetch = prefetch_within(limit_mb, item, item_bytes, workers)
    if prefetch.note:
        warn_user(prefetch.note)
    return WorkerLoader(
        batches, prefetch.workers, status=status, item_bytes=item_bytes, prefetch=prefetch.factor, batch_size=None
    )
