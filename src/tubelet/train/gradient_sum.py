"""All-reduce of gradients in buckets, overlapped with the last backward pass of a step.

A step may run several backward passes, and a gradient is final in the last one: `GradientSum.arm` is called before it.
From then on the all-reduce of a bucket starts as soon as all of its gradients are final, as in DistributedDataParallel,
which itself cannot be used here: it expects one forward and one backward pass per step, through its own `forward`.
"""

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 64 * 2**20
# Buckets in flight: with two, one is copied while the other one is summed.
MAX_IN_FLIGHT = 2


class GradientSum:
    """All-reduces the gradients of parameters, in place.

    All processes start buckets in the same order: parameters from the last to the first, which is about the order in
    which their gradients become final. The first step records which parameters the last pass uses (not the tokenizer
    of the other modality, for instance); in that step, all buckets start after the pass.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Register a hook with each parameter that is trained.

        Args:
            parameters: parameters in the same order on all processes; those that require no gradient are ignored.
        """
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self.buckets = list(_buckets(trained[::-1]))
        self.bucket_of = {parameter: i for i, bucket in enumerate(self.buckets) for parameter in bucket}
        self.reached: dict[Hashable, frozenset[nn.Parameter]] = {}  # by the kind of the last pass
        self.in_flight: deque[tuple[list[Tensor], Tensor, Any]] = deque()
        self._reset()
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(self._on_gradient)

    def _reset(self) -> None:
        self.armed = False
        self.kind: Hashable = None
        self.seen: set[nn.Parameter] = set()
        self.missing: list[int] | None = None  # number of pending gradients of each bucket; None in the first step
        self.started = 0

    def arm(self, kind: Hashable) -> None:
        """Start buckets from now on: the next backward pass is the step's last.

        Args:
            kind: identifies the pass; passes of the same kind use the same parameters.
        """
        self.armed, self.kind = True, kind
        if (reached := self.reached.get(kind)) is not None:
            self.missing = [sum(parameter in reached for parameter in bucket) for bucket in self.buckets]
            self._start_complete()

    def finish(self) -> None:
        """Sum the remaining buckets, and wait; afterward every gradient is the sum over all processes."""
        while self.started < len(self.buckets):
            self._start()
        while self.in_flight:
            self._finish_oldest()
        if self.armed:
            self.reached[self.kind] = frozenset(self.seen)
        self._reset()

    def _on_gradient(self, parameter: nn.Parameter) -> None:
        if not self.armed:
            return
        self.seen.add(parameter)
        if self.missing is None:
            return
        bucket = self.bucket_of[parameter]
        if bucket < self.started:
            raise RuntimeError(f"the gradient of a parameter {tuple(parameter.shape)} came after its bucket was summed")
        if parameter in self.reached[self.kind]:
            self.missing[bucket] -= 1
            self._start_complete()

    def _start_complete(self) -> None:
        assert self.missing is not None
        while self.started < len(self.buckets) and not self.missing[self.started]:
            self._start()

    def _start(self) -> None:
        gradients = [parameter.grad for parameter in self.buckets[self.started] if parameter.grad is not None]
        self.started += 1
        if not gradients:
            return
        if len(self.in_flight) == MAX_IN_FLIGHT:
            self._finish_oldest()
        together = torch.cat([gradient.flatten() for gradient in gradients])
        self.in_flight.append((gradients, together, dist.all_reduce(together, async_op=True)))

    def _finish_oldest(self) -> None:
        gradients, together, work = self.in_flight.popleft()
        work.wait()
        parts = together.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(g) for part, g in zip(parts, gradients, strict=True)])


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Split parameters into buckets of about `BUCKET_BYTES` each."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        bucket.append(parameter)
        size += parameter.nbytes
        if size >= BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
