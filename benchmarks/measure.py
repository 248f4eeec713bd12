"""What the benchmarks share: sides that run in turn, a device's matrix-product rate, peak memory."""

import argparse
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

Timed = Callable[[int], Any]


class Round(NamedTuple):
    """What a round of training steps took. Sides send it to their parent, which need not run the script that does.

    Attributes:
        seconds: of a step.
        cpu_seconds: processor seconds of a step, of all cores together.
        split: seconds of each part of a step; empty where it is not known.
    """

    seconds: float
    cpu_seconds: float
    split: dict[str, float]


def log_to_file(path: Path) -> AbstractContextManager[None]:
    """Append what the package logs, from the level INFO on, to a file."""
    handler = logging.FileHandler(path)
    handler.setLevel(logging.INFO)
    return log_to(handler)


def sample_set_parser(description: str | None, max_videos: int) -> argparse.ArgumentParser:
    """Parser of a benchmark of a model on a sample set: the set, --model, and --max-videos with its default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-videos", type=int, default=max_videos)
    return parser


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


def seconds_per_call(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Mean seconds of some calls in a row.

    On CUDA by two events, with no synchronization between the calls: work is queued while earlier work runs, as in a
    training run. On a CPU by the clock.
    """
    if device.type != "cuda":
        began = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - began) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    synchronize(device)
    start.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / calls


def product_shape(device: torch.device, width: int) -> tuple[int, int, int]:
    """Sizes of the matrix product that a device is rated by: rows, inner size, columns.

    On a CPU that of an MLP over 2,048 tokens (width -> 4 x width). On CUDA such a product takes less time than its
    launch, and a rate that was measured with it would be no bound at all.
    """
    return (8192, 8192, 8192) if device.type == "cuda" else (2048, width, 4 * width)


def matrix_rate(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Floating-point operations a second of matrix products at their best: of 20 on a CPU, of 3 x 50 on CUDA."""
    rows, inner, columns = product_shape(device, width)
    x = torch.randn(rows, inner, device=device, dtype=dtype)
    weight = torch.randn(inner, columns, device=device, dtype=dtype)
    out = x @ weight
    rounds, calls = (3, 50) if device.type == "cuda" else (20, 1)
    best = min(seconds_per_call(lambda: torch.mm(x, weight, out=out), device, calls) for _ in range(rounds))
    return 2 * rows * inner * columns / best


def run_in_turn(
    build: Callable[[str, Any], Timed], config: Any, sides: Sequence[str], warmup: int, rounds: int
) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Time several sides, each in a process of its own, which tells its peak memory.

    On a CPU one round of each after the other, so that whatever else the machine does falls on all. On CUDA one side
    after the other: the device does nothing else, and the memory of one side would be missing to the next.

    Args:
        build: given a side and the config, in that side's process, the function that does round number n and returns
            what it measured; a function of a module, not a closure.
        config: passed to `build`.
        sides: their names.
        warmup: rounds that are not kept.
        rounds: rounds that are.

    Returns:
        what the kept rounds of each side returned, and each side's peak memory in GB.
    """
    kept: dict[str, list[Any]] = {}
    peak: dict[str, float] = {}
    for group in [[side] for side in sides] if pick_device().type == "cuda" else [sides]:
        _time_group(build, config, group, warmup, rounds, kept, peak)
    return kept, peak


def _time_group(
    build: Callable[[str, Any], Timed],
    config: Any,
    sides: Sequence[str],
    warmup: int,
    rounds: int,
    kept: dict[str, list[Any]],
    peak: dict[str, float],
) -> None:
    context = get_context("spawn")
    processes, ends = {}, {}
    for side in sides:
        ends[side], theirs = context.Pipe()
        processes[side] = context.Process(target=_serve, args=(build, side, config, theirs), daemon=True)
        processes[side].start()
        theirs.close()
        kept[side] = []
    for number in range(warmup + rounds):
        for side in sides:
            ends[side].send(number)
            result, peak[side] = ends[side].recv()
            if number >= warmup:
                kept[side].append(result)
    for side in sides:
        ends[side].send(None)
        processes[side].join()


def _serve(build: Callable[[str, Any], Timed], side: str, config: Any, orders: Connection) -> None:
    run = build(side, config)
    device = pick_device()
    while (number := orders.recv()) is not None:
        orders.send((run(number), peak_gb(device)))
