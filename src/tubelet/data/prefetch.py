"""How much data is made ahead of need: as many steps, batches or sources as a number of bytes holds."""

from typing import NamedTuple

from tubelet.data.worker_loader import PREFETCH

MB = 10**6


class Prefetch(NamedTuple):
    """How a loader works ahead.

    Attributes:
        workers: processes that are started.
        factor: items that each makes ahead; None where there are no processes.
        note: what a person should know: that fewer processes work than were asked for, and why; None if all do.
    """

    workers: int
    factor: int | None
    note: str | None

    @property
    def items(self) -> int:
        """How many are made ahead at most, those in the making included."""
        return self.workers * (self.factor or 0)


def prefetch_within(limit_mb: int, item: str, item_bytes: int, workers: int, most: int = PREFETCH) -> Prefetch:
    """Choose how many processes make items ahead, so that what they make fits into a limit.

    Where there is a process, one item is made ahead even if it alone is larger than the limit; the note says so.

    Args:
        limit_mb: megabytes (10^6 bytes) for all items that are made ahead.
        item: what one is, for the note: "a step's samples".
        item_bytes: bytes of one.
        workers: processes that were asked for.
        most: items that each makes ahead at most.
    """
    if workers == 0:
        return Prefetch(0, None, None)
    room = max(limit_mb * MB // max(item_bytes, 1), 1)
    size = f"{item} are {item_bytes / MB:,.1f} MB"
    if room >= workers:  # of one worker, even where its item is too large
        note = f"{size}, more than --prefetch-mb {limit_mb}" if item_bytes > limit_mb * MB else None
        return Prefetch(workers, min(most, room // workers), note)
    if item_bytes > limit_mb * MB:
        size += f", more than --prefetch-mb {limit_mb}, and one is made at a time"
    else:
        size += f", and --prefetch-mb {limit_mb} has room for {room} of them"
    enough = -(-workers * item_bytes // MB)
    return Prefetch(room, 1, f"{size}: {room} of {workers} workers start; --prefetch-mb {enough} would let all work")
