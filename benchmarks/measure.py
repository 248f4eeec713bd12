"""What the benchmarks share: sides that run in turn, a device's matrix-product rate, peak memory."""

import logging
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from tubelet.console import log_to
from tubelet.device import pick_device

Timed = Callable[[int], tuple[float, Any]]


def log_to_file(path: Path) -> AbstractContextManager[None]:
    """Append what the package logs, from the level INFO on, to a file."""
    handler = logging.FileHandler(path)
    handler.setLevel(logging.INFO)
    return log_to(handler)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_gb(device: torch.device) -> float:
    """Peak memory in GB: of the device's allocator on CUDA, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "linux":  # where getrusage tells of what the process was before it became this program, too
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class CommandCost(NamedTuple):
    """What a command and its children took.

    Attributes:
        seconds: wall-clock seconds.
        cpu_seconds: processor seconds.
        peak_gb: peak memory in GB; a page that several processes share is counted once.
    """

    seconds: float
    cpu_seconds: float
    peak_gb: float


def run_command(command: Sequence[object]) -> CommandCost:
    """Run a command to its end; if it fails, this process ends, too."""
    words = [str(word) for word in command]
    began, before = time.perf_counter(), os.times()
    process = psutil.Popen(words, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident_bytes(process))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"it ended with {process.returncode}: {' '.join(words)}")
    after = os.times()
    worked = after.children_user + after.children_system - before.children_user - before.children_system
    return CommandCost(time.perf_counter() - began, worked, peak / 1e9)


def resident_bytes(process: psutil.Popen) -> int:
    """Bytes in memory of a process and its children; a page that several share is counted once."""
    total = 0
    try:
        for member in (process, *process.children(recursive=True)):
            total += member.memory_full_info().pss
    except psutil.Error:  # one of them has just ended
        pass
    return total


def matrix_rate(device: torch.device, dtype: torch.dtype, width: int, rounds: int = 20) -> float:
    """Floating-point operations a second of an MLP's matrix product (2,048 tokens, width -> 4 x width), at its best."""
    x = torch.randn(2048, width, device=device, dtype=dtype)
    weight = torch.randn(width, 4 * width, device=device, dtype=dtype)
    out = x @ weight
    seconds = []
    for _ in range(rounds):
        synchronize(device)
        began = time.perf_counter()
        torch.mm(x, weight, out=out)
        synchronize(device)
        seconds.append(time.perf_counter() - began)
    return 2 * x.numel() * 4 * width / min(seconds)


def run_in_turn(
    build: Callable[[str, Any], Timed], config: Any, sides: Sequence[str], warmup: int, rounds: int
) -> tuple[dict[str, list[tuple[float, Any]]], dict[str, float]]:
    """Time several sides, one round of each after the other, so that whatever else the machine does falls on all.

    Each side lives in a process of its own, which tells its peak memory.

    Args:
        build: given a side and the config, in that side's process, the function that does round number n and returns
            its seconds and anything else; a function of a module, not a closure.
        config: passed to `build`.
        sides: their names.
        warmup: rounds that are not kept.
        rounds: rounds that are.

    Returns:
        what the kept rounds of each side returned, and each side's peak memory in GB.
    """
    context = get_context("spawn")
    processes, ends = {}, {}
    for side in sides:
        ends[side], theirs = context.Pipe()
        processes[side] = context.Process(target=_serve, args=(build, side, config, theirs), daemon=True)
        processes[side].start()
        theirs.close()
    kept: dict[str, list[tuple[float, Any]]] = {side: [] for side in sides}
    peak: dict[str, float] = {}
    for number in range(warmup + rounds):
        for side in sides:
            ends[side].send(number)
            result, peak[side] = ends[side].recv()
            if number >= warmup:
                kept[side].append(result)
    for side in sides:
        ends[side].send(None)
        processes[side].join()
    return kept, peak


def _serve(build: Callable[[str, Any], Timed], side: str, config: Any, orders: Connection) -> None:
    run = build(side, config)
    device = pick_device()
    while (number := orders.recv()) is not None:
        orders.send((run(number), peak_gb(device)))
