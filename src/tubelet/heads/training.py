"""The loop that trains heads: several side by side on the same batches, so that features are read once for all of them.

Batches are functions of the seed and the step, and the state is saved every minute: a training that was interrupted
resumes at the last saved step and ends with the same weights.
"""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tubelet.heads.training_state import StateDicts, load_state, write_state
from tubelet.model.optimizers import AdamW
from tubelet.schedules import learning_rate

SAVE_SECONDS = 60
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class HParams:
    """Hyper-parameters that differ between heads that are trained side by side.

    Attributes:
        lr: peak learning rate of AdamW.
        weight_decay: weight decay of all of the head's parameters.
    """

    lr: float
    weight_decay: float


def hparam_grid(learning_rates: Sequence[float], weight_decays: Sequence[float]) -> list[HParams]:
    """Every learning rate with every weight decay."""
    return [HParams(lr=lr, weight_decay=wd) for wd, lr in itertools.product(weight_decays, learning_rates)]


@dataclass(frozen=True, kw_only=True)
class HeadSchedule:
    """The learning rate: a linear warm-up, then half a cosine to 0.

    Attributes:
        steps: number of steps.
        warmup_steps: steps until the peak.
        start_lr: value that the warm-up starts from.
        hold_steps: steps at the peak after the one that ends the warm-up.
    """

    steps: int
    warmup_steps: int = 0
    start_lr: float = 0.0
    hold_steps: int = 0

    def lr(self, peak: float, step: int) -> float:
        """The learning rate of a step, counted from 0; that of a single step is the peak."""
        if self.steps == 1:  # which is also the last, whose rate of 0 would leave the head as it is
            return peak
        warmup, at = self.warmup_steps, step + 1
        if at > warmup:
            at = max(warmup, at - self.hold_steps)
        return learning_rate(at, warmup, max(self.steps, warmup + 1), self.start_lr, peak, 0.0)


class EpochBatches:
    """A batch sampler: indices in an order that the seed and the epoch's number give, from a step on.

    Args:
        samples: number of samples.
        batch_size: samples of a batch; the last batch of an epoch may be smaller.
        seed: seed of the order.
        epochs: number of epochs.
        start: the first step.
    """

    def __init__(self, samples: int, batch_size: int, seed: int, epochs: int, start: int = 0) -> None:
        self.samples, self.batch_size, self.seed, self.epochs, self.start = samples, batch_size, seed, epochs, start
        self.per_epoch = -(-samples // batch_size)

    def __len__(self) -> int:
        return self.epochs * self.per_epoch - self.start

    def __iter__(self) -> Iterator[list[int]]:
        first, skipped = divmod(self.start, self.per_epoch)
        for epoch in range(first, self.epochs):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(self.samples, generator=generator)
            for batch in order.split(self.batch_size)[skipped if epoch == first else 0 :]:
                yield batch.tolist()


def held_out_count(samples: int, fraction: float, at_most: int | None = None) -> int:
    """Number of samples that are held out to choose hyper-parameters by, at least one."""
    count = max(1, round(fraction * samples))
    return count if at_most is None else min(at_most, count)


def init_heads(make_head: Callable[[], nn.Module], count: int, seed: int) -> nn.ModuleList:
    """Heads of the same initial weights, which `seed` gives; no other generator is touched."""
    heads = nn.ModuleList()
    with torch.random.fork_rng(devices=[]):
        for _ in range(count):
            torch.manual_seed(seed)
            heads.append(make_head())
    return heads


def train_heads(
    make_head: Callable[[], nn.Module],
    hparams: Sequence[HParams],
    schedule: HeadSchedule,
    batches: Callable[[int], Iterable[Any]],
    backward: Callable[[nn.ModuleList, Any, int], None],
    state: Path,
    device: torch.device,
    *,
    seed: int,
    clip_norm: float | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> nn.ModuleList:
    """Train a head for each combination of hyper-parameters.

    Args:
        make_head: returns a head with random weights; called once for each head, each time with the same seed.
        hparams: hyper-parameters of each head.
        schedule: learning rates relative to the peaks.
        batches: the batches from a step on.
        backward: adds the gradients of a batch to all heads, given the heads, the batch and the number of the step.
        state: file of the training's state.
        device: device of the heads.
        seed: seed of the initial weights.
        clip_norm: largest norm of the gradient of each head; None does not clip.
        progress: called with "training", the number of steps done, and their total.

    Returns:
        the trained heads, in eval mode.
    """
    heads = init_heads(make_head, len(hparams), seed).to(device).requires_grad_(True).train()
    optimizer = AdamW(
        [
            {"params": list(head.parameters()), "lr": hparam.lr, "weight_decay": hparam.weight_decay}
            for head, hparam in zip(heads, hparams, strict=True)
        ]
    )
    parts: StateDicts = {"heads": heads, "optimizer": optimizer}
    start = load_state(state, parts, device)
    saved = time.monotonic()
    progress("training", start, schedule.steps)
    for step, batch in enumerate(batches(start) if start < schedule.steps else (), start):
        for group, hparam in zip(optimizer.param_groups, hparams, strict=True):
            group["lr"] = schedule.lr(hparam.lr, step)
        optimizer.zero_grad(set_to_none=True)
        backward(heads, batch, step)
        if clip_norm is not None:
            for head in heads:
                nn.utils.clip_grad_norm_(head.parameters(), clip_norm)
        optimizer.step()
        progress("training", step + 1, schedule.steps)
        last = step + 1 == schedule.steps
        if last or time.monotonic() - saved > SAVE_SECONDS:
            write_state(state, {"heads": heads} if last else parts, step + 1)
            saved = time.monotonic()
    return heads.requires_grad_(False).eval()
