"""How many worker processes a process starts where that is left to it."""

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Literal

from tubelet.launch import local_processes

# More decode less each: a disk, or the memory of their batches, is then what limits.
MAX_AUTO_WORKERS = 16
_CGROUPS = Path("/sys/fs/cgroup")


def resolve_workers(workers: int | Literal["auto"]) -> int:
    """A requested number of workers; "auto" is one for each core of this process's share, less one for itself.

    The cores that the process may use are divided by the number of processes of the run on this machine; there are at
    least one worker and at most `MAX_AUTO_WORKERS`.
    """
    if workers != "auto":
        return workers
    return max(1, min(available_cores() // local_processes() - 1, MAX_AUTO_WORKERS))


def available_cores() -> int:
    """Processor cores that this process may use: by its affinity, and by the limit of its container."""
    if hasattr(os, "process_cpu_count"):  # since Python 3.13
        cores = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    limit = cgroup_cores()
    return cores if limit is None else max(1, min(cores, math.floor(limit)))


def cgroup_cores(membership: Path = Path("/proc/self/cgroup"), root: Path = _CGROUPS) -> float | None:
    """Processor cores that the control groups of this process allow, the least of all levels; None without a limit."""
    limits = []
    with suppress(OSError, ValueError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:  # version 2
                folder, files = root / path.lstrip("/"), ["cpu.max"]
            elif "cpu" in controllers.split(","):
                folder, files = root / "cpu" / path.lstrip("/"), ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            else:
                continue
            # Inside a container the path may be that of the host: then only the root is there.
            for level in (folder, *folder.parents):
                if level.is_relative_to(root):
                    with suppress(OSError, ValueError):
                        quota, period = " ".join((level / name).read_text(encoding="utf-8") for name in files).split()
                        if quota not in ("max", "-1"):
                            limits.append(int(quota) / int(period))
    return min(limits, default=None)
