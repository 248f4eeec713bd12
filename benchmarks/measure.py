"""Shared code of the benchmarks: alternating implementations, a device's matrix-product rate, peak memory."""

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
    """Times of a round of training steps. The process of each implementation sends it to the parent process.

    Attributes:
        seconds: wall-clock seconds per step.
        cpu_seconds: processor seconds per step, summed over all cores.
        split: seconds of each part of a step; empty if unknown.
    """

    seconds: float
    cpu_seconds: float
    split: dict[str, float]


def log_to_file(path: Path) -> AbstractContextManager[None]:
    """Append the package's log messages, from level INFO on, to a file."""
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
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_gb(device: torch.device) -> float:
    """Peak memory in GB: of the device's allocator on CUDA, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "linux":  # getrusage includes the memory of the process before exec
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class CommandCost(NamedTuple):
    """Time and memory of a command and its child processes.

    Attributes:
        seconds: wall-clock seconds.
        cpu_seconds: processor seconds.
        peak_gb: peak memory in GB; a page shared by several processes is counted once.
    """

    seconds: float
    cpu_seconds: float
    peak_gb: float


def run_command(command: Sequence[object]) -> CommandCost:
    """Run a command until it connections; if it fails, exit with its exit code in the message."""
    words = [str(word) for word in command]
    start, before = time.perf_counter(), os.times()
    process = psutil.Popen(words, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident_bytes(process))
        time.sleep(0.1)
    if process.returncode:
        sys.exit(f"exit code {process.returncode}: {' '.join(words)}")
    after = os.times()
    cpu_seconds = after.children_user + after.children_system - before.children_user - before.children_system
    return CommandCost(time.perf_counter() - start, cpu_seconds, peak / 1e9)


def resident_bytes(process: psutil.Popen) -> int:
    """Resident bytes of a process and its children; a page shared by several processes is counted once."""
    total = 0
    try:
        for member in (process, *process.children(recursive=True)):
            total += member.memory_full_info().pss
    except psutil.Error:  # one of them has just ended
        pass
    return total


def seconds_per_call(work: Callable[[], object], device: torch.device, calls: int = 1) -> float:
    """Mean seconds of consecutive calls.

    On CUDA, measured by two events without synchronization between the calls: work is queued while earlier work runs,
    as in a training run. On a CPU, measured by the wall clock.
    """
    if device.type != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            work()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    synchronize(device)
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def product_shape(device: torch.device, width: int) -> tuple[int, int, int]:
    """Sizes of the matrix product for the device's rate: rows, inner size, columns.

    On a CPU, the product of an MLP over 2,048 tokens (width -> 4 x width). On CUDA, such a product takes less time than
    its launch, so its rate would not be an upper bound.
    """
    return (8192, 8192, 8192) if device.type == "cuda" else (2048, width, 4 * width)


def matrix_rate(device: torch.device, dtype: torch.dtype, width: int) -> float:
    """Floating-point operations per second of matrix products: the best of 20 on a CPU, of 3 x 50 on CUDA."""
    rows, inner, columns = product_shape(device, width)
    x = torch.randn(rows, inner, device=device, dtype=dtype)
    weight = torch.randn(inner, columns, device=device, dtype=dtype)
    out = x @ weight
    rounds, calls = (3, 50) if device.type == "cuda" else (20, 1)
    best = min(seconds_per_call(lambda: torch.mm(x, weight, out=out), device, calls) for _ in range(rounds))
    return 2 * rows * inner * columns / best


def run_in_turn(
    build: Callable[[str, Any], Timed], config: Any, implementations: Sequence[str], warmup: int, rounds: int
) -> tuple[dict[str, list[Any]], dict[str, float]]:
    """Time several implementations, each in its own process, which reports its peak memory.

    On a CPU, the implementations alternate after each round, so that other work on the machine affects all of them. On
    CUDA, they run one after the other, so that each has the whole memory of the device.

    Args:
        build: called with an implementation's name and the config in the process of the implementation; returns the
            function that runs round number n and returns its measurement. A module-level function, not a closure.
        config: passed to `build`.
        implementations: names of the implementations.
        warmup: number of rounds that are discarded.
        rounds: number of rounds that are returned.

    Returns:
        the measurements of each implementation, and the peak memory of each in GB.
    """
    kept: dict[str, list[Any]] = {}
    peak: dict[str, float] = {}
    for group in (
        [[implementation] for implementation in implementations] if pick_device().type == "cuda" else [implementations]
    ):
        _time_group(build, config, group, warmup, rounds, kept, peak)
    return kept, peak


def _time_group(
    build: Callable[[str, Any], Timed],
    config: Any,
    implementations: Sequence[str],
    warmup: int,
    rounds: int,
    kept: dict[str, list[Any]],
    peak: dict[str, float],
) -> None:
    context = get_context("spawn")
    processes, connections = {}, {}
    for implementation in implementations:
        connections[implementation], child_connection = context.Pipe()
        processes[implementation] = context.Process(
            target=_serve, args=(build, implementation, config, child_connection), daemon=True
        )
        processes[implementation].start()
        child_connection.close()
        kept[implementation] = []
    for number in range(warmup + rounds):
        for implementation in implementations:
            connections[implementation].send(number)
            result, peak[implementation] = connections[implementation].recv()
            if number >= warmup:
                kept[implementation].append(result)
    for implementation in implementations:
        connections[implementation].send(None)
        processes[implementation].join()


def _serve(build: Callable[[str, Any], Timed], implementation: str, config: Any, connection: Connection) -> None:
    run = build(implementation, config)
    device = pick_device()
    while (number := connection.recv()) is not None:
        connection.send((run(number), peak_gb(device)))
