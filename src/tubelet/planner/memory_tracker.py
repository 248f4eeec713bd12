"""The memory of a step's tensors over time, on real tensors or on fake ones, which need no memory.

PyTorch's own `MemTracker` and `FSDPMemTracker` (2.13) cannot take this step: the first raises on modules whose
parameters require no gradient, as the teacher's, the second on a model of several FSDP roots. Neither records
collectives.
"""

import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop, sdpa_flop

_ops = torch.ops.aten
# The fused attention of CPUs has formulas of no registry: they are those of the other fused kernels.
_FLOPS = flop_registry | {
    _ops._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    _ops._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}
# The process group's own operations that move tensors, and the name they are booked under.
_COLLECTIVES = {
    "allreduce_": "all-reduce",
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
}


@dataclass
class StorageLifetime:
    """The lifetime of one storage, in operations since the log began.

    Attributes:
        size: bytes.
        kind: What it is used for.
        born: Operation that allocated it.
        died: Operation that freed it; None while it is alive.
    """

    size: int
    kind: str
    born: int
    died: int | None = None


@dataclass(frozen=True)
class Transfer:
    """One collective operation.

    Attributes:
        kind: all-reduce, all-gather or reduce-scatter.
        size: bytes of the whole tensor: of what each has before a reduction, of what each has after a gathering.
        members: processes that take part.
    """

    kind: str
    size: int
    members: int


@dataclass
class StepLog:
    """The record of a step.

    Attributes:
        storages: every storage's life.
        transfers: every collective operation, in order.
        flops: floating-point operations of matrix products, by phase.
        marks: when something began: (operation, name).
    """

    storages: list[StorageLifetime] = field(default_factory=list)
    transfers: list[Transfer] = field(default_factory=list)
    flops: Counter[str] = field(default_factory=Counter)
    marks: list[tuple[int, str]] = field(default_factory=list)
    clock: int = 0

    def live_bytes(self, when: int) -> Counter[str]:
        """Live bytes at one time, by kind."""
        live: Counter[str] = Counter()
        for storage in self.storages:
            if storage.born <= when and (storage.died is None or storage.died > when):
                live[storage.kind] += storage.size
        return live

    def peak(self, start: int = 0, stop: int | None = None) -> int:
        """The time between two others at which most bytes are live."""
        change = [0] * (self.clock + 2)
        for storage in self.storages:
            change[storage.born] += storage.size
            if storage.died is not None:
                change[storage.died] -= storage.size
        total, best, when = 0, -1, start
        for time, difference in enumerate(change):
            total += difference
            if start <= time < (len(change) if stop is None else stop) and total > best:
                best, when = total, time
        return when


class StorageLog(TorchDispatchMode):
    """Records storages, matrix products and collectives of every operation below autograd.

    Memory that kernels allocate and free before they return is not recorded.
    """

    def __init__(self) -> None:
        from torch.distributed.tensor import DTensor  # slow to import

        super().__init__()
        self.log, self._sharded = StepLog(), DTensor
        self.phase = "other"
        self._live: dict[int, StorageLifetime] = {}

    def enter(self, phase: str, mark: str | None = None) -> None:
        """Attribute what is allocated from now on to `phase`."""
        self.phase = phase
        if mark is not None:
            self.log.marks.append((self.log.clock, mark))

    def name(self, tensors: Iterable[Tensor], kind: str) -> None:
        """Set the kind of tensors, also of those that are new to the log."""
        for tensor in tensors:
            local = tensor.to_local() if isinstance(tensor, self._sharded) else tensor
            self._record(local.untyped_storage(), kind).kind = kind

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, self._sharded) for kind in types):
            return NotImplemented  # its shard's operations come here by themselves
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim" or func.namespace == "profiler":
            return out
        self.log.clock += 1
        if func.namespace == "c10d":
            self._book_transfer(func, args)
        packet = func._overloadpacket
        if packet in _FLOPS:
            self.log.flops[self.phase] += _FLOPS[packet](*args, **(kwargs or {}), out_val=out)
        kind = self.phase
        if packet is _ops._to_copy and self._kind_of(args[0]) == "parameters":
            kind = "weights in low precision"
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._record(tensor.untyped_storage(), kind)
        return out

    def _kind_of(self, tensor: Tensor) -> str | None:
        storage = self._live.get(tensor.untyped_storage()._cdata)
        return storage.kind if storage else None

    def _record(self, storage: torch.UntypedStorage, kind: str) -> StorageLifetime:
        key = storage._cdata
        if key not in self._live:
            self._begin(key, storage.nbytes(), kind)
            weakref.finalize(storage, self._end, key).atexit = False
        return self._live[key]

    def _begin(self, key: int, size: int, kind: str) -> None:
        self._live[key] = StorageLifetime(size, kind, self.log.clock)
        self.log.storages.append(self._live[key])

    def _end(self, key: int) -> None:
        self._live.pop(key).died = self.log.clock

    def resized(self, storage: torch.UntypedStorage) -> None:
        """Record a new size of a known storage: FSDP frees gathered weights so."""
        key = storage._cdata
        if key in self._live:
            self._end(key)
            self._begin(key, storage.nbytes(), "gathered weights")

    def _book_transfer(self, func: Any, args: Any) -> None:
        kind = _COLLECTIVES.get(func._schema.name.removeprefix("c10d::"))
        if kind is None:
            return
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        group = next(a for a in args if isinstance(a, torch.ScriptObject) and "ProcessGroup" in str(a._type()))
        size = max(tensor.nbytes for tensor in tensors)
        for tensor in tensors:
            storage = self._live.get(tensor.untyped_storage()._cdata)
            if storage is not None and storage.kind == self.phase:  # what was made for it
                storage.kind = "communication buffers"
        self.log.transfers.append(Transfer(kind, size, dist.ProcessGroup.unbox(group).size()))


@contextmanager
def track_storage() -> Iterator[StorageLog]:
    """Record all operations, and all storages that change their size, until the end of the block."""
    storage_log, resize = StorageLog(), torch.UntypedStorage.resize_

    def resize_and_record(storage: torch.UntypedStorage, size: int) -> Any:
        result = resize(storage, size)
        storage_log.resized(storage)
        return result

    torch.UntypedStorage.resize_ = resize_and_record  # type: ignore[method-assign, assignment]
    try:
        with storage_log:
            yield storage_log
    finally:
        torch.UntypedStorage.resize_ = resize  # type: ignore[method-assign]
