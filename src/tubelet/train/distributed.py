"""The processes of a run: rendezvous, collectives, exchange of signals and bad files, and shutdown.

Each process holds the whole model (unless it is sharded) and takes its share of every step's samples. Gradients are
summed once a step, during the last backward pass (`tubelet.train.gradient_sum`).

Bad files, signals and errors are exchanged between hosts by gloo, so that devices never wait for them.
"""

import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from signal import Signals
from threading import Thread
from typing import Any, TypeVar
from uuid import uuid4

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tubelet.data.batch import Batch, StepData
from tubelet.device import peak_flops, pick_device
from tubelet.errors import ConfigError, TrainingError, TubeletError, first_line
from tubelet.launch import read_launch
from tubelet.train.gradient_sum import GradientSum
from tubelet.train.signals import STOP_SIGNALS

# How long a process that exits waits for others that are exiting too.
SHUTDOWN_GRACE = timedelta(seconds=5)

T = TypeVar("T")


class DistContext:
    """The distributed context of one process. With a single process, collectives return at once."""

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1, local_size: int | None = None) -> None:
        """Describe this process.

        Args:
            device: device of this process.
            rank: rank of this process, from 0.
            size: number of processes (world size).
            local_size: number of processes on this machine; None for all.
        """
        self.device = device
        self.rank = rank
        self.world_size = size
        self.local_world_size = size if local_size is None else local_size
        self.current_op = "the step's own work"  # named in the error message after a timeout
        self.gradient_replicas = size  # processes that hold the same element of the gradient, after it is summed
        self.gradient_sum: GradientSum | None = None  # created in the first step
        self.upload_stream: torch.cuda.Stream | None = None  # created in the first step, on CUDA
        self.sharded = False  # whether the model is sharded by FSDP, which reduces gradients itself

    def peak_flops(self) -> float | None:
        """Peak FLOP/s of all devices together; None if unknown."""
        flops = peak_flops(self.device)
        return flops and flops * self.world_size

    @property
    def is_rank0(self) -> bool:
        """Whether this process is rank 0, which writes files and logs to the console."""
        return self.rank == 0

    def upload(self, batches: Sequence[Batch]) -> list[Batch]:
        """Copy batches to this process's device.

        On CUDA a separate stream copies them from pinned memory, so that the copies of a step overlap with the
        computation of the step before.
        """
        if self.device.type != "cuda":
            return [batch.to(self.device) for batch in batches]
        if self.upload_stream is None:
            self.upload_stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self.upload_stream):
            uploaded = [batch.to(self.device) for batch in batches]
        compute = torch.cuda.current_stream(self.device)
        compute.wait_stream(self.upload_stream)
        for batch in uploaded:
            for tensor in (batch.pixels, *(ids for mask in batch.masks for ids in (mask.context, mask.target))):
                tensor.record_stream(compute)  # its memory must not be used for the next copy before it is read
        return uploaded

    def all_reduce(self, values: Tensor) -> None:
        """Sum a tensor over all processes, in place."""
        self.current_op = "the all-reduce of the metrics"
        if self.world_size > 1:
            dist.all_reduce(values)

    def arm_gradient_sum(self, model: nn.Module, kind: Hashable) -> None:
        """Sum gradients during the next backward pass, the step's last; see `GradientSum.arm`."""
        self.current_op = "the all-reduce of the gradients"
        if self.world_size > 1 and not self.sharded:
            self._gradient_sum_of(model).arm(kind)

    def all_reduce_gradients(self, model: nn.Module) -> None:
        """Sum the gradients over all processes, in place; each process has the gradients of its own samples.

        Gradients of parameters that no sample used are None on all processes, since each has every modality.
        """
        self.current_op = "the all-reduce of the gradients"
        if self.world_size > 1 and not self.sharded:
            self._gradient_sum_of(model).finish()

    def _gradient_sum_of(self, model: nn.Module) -> GradientSum:
        if self.gradient_sum is None:
            self.gradient_sum = GradientSum(model.parameters())
        return self.gradient_sum

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of rank 0."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def all_gather_object(self, obj: T) -> list[T]:
        """Gather an object of every process on all processes, in the order of ranks, through the hosts."""
        self.current_op = "all_gather_object between the hosts"
        if self.world_size == 1:
            return [obj]
        objects: list[Any] = [None] * self.world_size
        dist.all_gather_object(objects, obj)
        return objects

    def run_on_rank0(self, work: Callable[[], T]) -> T:
        """Call a function on rank 0; all processes return its result or raise its error.

        Raises:
            TubeletError: raised by the function on rank 0.
        """
        self.current_op = "the work of rank 0"
        if self.world_size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.is_rank0:
            try:
                outcome[0] = work()
            except TubeletError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    def assert_equal_across_ranks(self, name: str, value: object) -> None:
        """Check that a value is the same on all processes.

        Raises:
            TubeletError: if it differs.
        """
        values = self.all_gather_object(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise TrainingError(
                    f"rank {rank} finds {name} {other}, rank 0 {values[0]}: all machines of a run need the same "
                    "command and must see the same files under the same paths"
                )

    def sync_step_status(
        self, data: StepData, known_bad: Container[str], stop: Signals | None, save: bool
    ) -> tuple[StepData, Signals | None, bool]:
        """Share the status of this process (bad files, signals, failures) with all others.

        Args:
            data: this process's share of a step.
            known_bad: files that all processes know to be bad.
            stop: the signal that this process received.
            save: whether this process finds a checkpoint overdue.

        Returns:
            the share, with the bad files, short clips and failure of all; a stop signal that any of them received; and
            whether any finds a checkpoint overdue.
        """
        self.current_op = "the exchange at the beginning of a step"
        if self.world_size == 1:
            return data, stop, save
        bad = [file for file in data.bad if file.path not in known_bad]
        signals = [int(stop == signal) for signal in STOP_SIGNALS]
        status = torch.tensor([len(bad) + (data.failure is not None), data.short_clips, int(save), *signals])
        dist.all_reduce(status)
        news, short, saves, *signals = status.tolist()
        data = replace(data, bad=bad, short_clips=short)
        if news:
            every = self.all_gather_object((bad, data.failure))
            files = {file.path: file for bad_of_rank, _ in every for file in bad_of_rank}
            failure = next((failure for _, failure in every if failure), None)
            data = replace(data, bad=list(files.values()), failure=failure)
        received = next((s for s, count in zip(STOP_SIGNALS, signals, strict=True) if count), None)
        return data, received, saves > 0


@contextmanager
def init_distributed(timeout_s: float) -> Iterator[DistContext]:
    """Join the process group, if a launcher such as torchrun started this process among several.

    An error in any process ends all of them, and one of them reports it.

    Args:
        timeout_s: seconds after which a process that waits for another one gives up.

    Raises:
        TubeletError: if there are more processes on this machine than devices, or if the launcher's environment
            variables are invalid or no other process can be reached.
    """
    launch = read_launch()
    if launch is None:
        yield DistContext(pick_device())
        return
    size = launch.size
    device = _local_device(launch.local_rank)
    timeout = timedelta(seconds=timeout_s)
    try:
        store, rank = _rendezvous(size, timeout)
    except TubeletError:
        raise
    except (RuntimeError, ValueError) as error:  # PyTorch's errors for an unreachable or invalid address
        raise TrainingError(
            f"process {launch.rank} of {size} cannot reach the others at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']} ({first_line(error)}); if nobody started others, a launcher's variables are "
            "left over: `unset RANK WORLD_SIZE LOCAL_RANK` to train in one process"
        ) from error
    ctx = DistContext(device, rank, size, launch.local_size)
    # With its device, NCCL connects at once: two processes on one device, or too little shared memory, are errors
    # before any data is read.
    backend, device_id = ("cpu:gloo,cuda:nccl", device) if device.type == "cuda" else ("gloo", None)
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout, device_id=device_id)
        yield ctx
    except BaseException as error:
        raise _report_once(error, store, ctx, timeout) from error
    dist.barrier()
    dist.destroy_process_group()


def _rendezvous(size: int, timeout: timedelta) -> tuple[dist.Store, int]:
    """The rank of this process, and an empty store that all processes share.

    torchrun keeps its store over restarts, and its old content would send new processes to the addresses of old ones
    (https://github.com/pytorch/pytorch/issues/135712). So each process chooses a unique name and sends it to rank 0,
    whose own unique name, sent back to each, is the prefix under which all of them use the store.
    """
    store, rank, _ = next(dist.rendezvous("env://", timeout=timeout))
    name = uuid4().hex
    if rank:
        store.set(f"tubelet/rank {rank}", name)
        name = store.get(name).decode()
        store.add(f"{name}/met", 1)
        return dist.PrefixStore(name, store), rank
    answered: dict[str, str] = {}
    deadline = time.monotonic() + timeout.total_seconds()
    while (met := store.add(f"{name}/met", 0)) < size - 1:
        if time.monotonic() > deadline:
            raise TrainingError(f"{met + 1} of {size} processes joined within {timeout}: see the logs of the others")
        for key in (f"tubelet/rank {other}" for other in range(1, size)):
            peer_name = store.get(key).decode() if store.check([key]) else ""
            if peer_name != answered.get(key, ""):
                store.set(peer_name, name)
                answered[key] = peer_name
        time.sleep(0.01)
    return dist.PrefixStore(name, store), rank


def _local_device(local_rank: int) -> torch.device:
    device = pick_device()
    if device.type != "cuda":
        return torch.device("cpu")  # Apple's MPS is one device, which processes cannot share
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine has no CUDA device of its own, there are "
            f"{torch.cuda.device_count()}: start as many processes (--nproc-per-node)"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _report_once(error: BaseException, store: dist.Store, ctx: DistContext, timeout: timedelta) -> TubeletError:
    """Let one of the failing processes report its error; the others wait for it, since their exit would end it first.

    A process that only lost its connection to another one, or timed out, does not silence the process that knows the
    cause: that one reports too.
    """
    rank, size = ctx.rank, ctx.world_size
    with suppress(RuntimeError):
        store.set(f"ends/{rank}", "")
    text = _one_line(error)
    timed_out = isinstance(error, RuntimeError) and "imed out" in text
    is_cause = isinstance(error, TubeletError) or not (timed_out or _is_lost_peer(error))
    if isinstance(error, TubeletError):
        reported_error = error
    elif is_cause:
        reported_error = TubeletError(text)
    elif timed_out:
        reported_error = TubeletError(f"{_timeout_message(store, ctx, timeout)} ({text})")
    else:
        reported_error = TubeletError(
            f"rank {rank} lost the connection to another process of the run; aborting ({text})"
        )
    try:
        first = store.add("failed", 1) == 1
        if (store.add("causes", 1) == 1) if is_cause else first:
            if is_cause and not isinstance(error, TubeletError):
                traceback.print_exception(error)
            print(f"error: {reported_error}", file=sys.stderr, flush=True)
            store.set("reported", "")
        else:
            store.wait(["reported"], SHUTDOWN_GRACE)
        reported_error.reported = True
        if ctx.device.type == "cuda":
            _abort_collectives()
        left = store.add("left", 1)
        deadline = time.monotonic() + SHUTDOWN_GRACE.total_seconds()
        # Where no agent of torchrun holds the store, the first process does, and leaves last.
        while rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and left < size:
            if time.monotonic() > deadline:
                break
            time.sleep(0.01)
            left = store.add("left", 0)
    except RuntimeError:
        pass  # the process that hosted the store has died
    return reported_error


def _abort_collectives() -> None:
    """Abort NCCL kernels that wait for other processes: a process that exits while they run may hang.

    In a thread, since the abort itself may hang after a device error.
    """

    def abort() -> None:
        with suppress(Exception):  # the original error is reported already
            dist.distributed_c10d._abort_process_group()

    thread = Thread(target=abort, daemon=True)
    thread.start()
    thread.join(SHUTDOWN_GRACE.total_seconds())


def _timeout_message(store: dist.Store, ctx: DistContext, timeout: timedelta) -> str:
    """The message of a timeout, with the ranks that did not join: those that do not exit within seconds."""
    others = [rank for rank in range(ctx.world_size) if rank != ctx.rank]
    deadline = time.monotonic() + SHUTDOWN_GRACE.total_seconds()
    try:
        while others and time.monotonic() < deadline:
            others = [rank for rank in others if not store.check([f"ends/{rank}"])]
            time.sleep(0.01)
    except RuntimeError:
        pass  # the process that hosted the store has died
    who = ", ".join(map(str, others)) or "none (the network between them may be down)"
    return (
        f"rank {ctx.rank} timed out after {timeout.total_seconds():g} s (--process-timeout-s) in {ctx.current_op}; "
        f"missing ranks: {who}"
    )


# Messages of gloo, NCCL and the store when another process is gone; the classes of these errors vary.
_LOST_PEER = re.compile(
    "Connection closed by (remote )?peer|Connection reset by peer|Connection was likely closed|Broken pipe"
    "|Connection refused|remote process exited|ncclRemoteError",
    re.IGNORECASE,
)


def _is_lost_peer(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone, according to the text of the error."""
    return isinstance(error, RuntimeError) and _LOST_PEER.search(_one_line(error)) is not None


def _one_line(error: BaseException) -> str:
    """An error's class and text without its C++ stack, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split('Exception raised from')[0].split())}"
