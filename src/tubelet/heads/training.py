"""Heads of several learning rates and weight decays, trained side by side: features are read once for all of them.

An epoch's order is a function of the seed and its number, and the state after each epoch is kept beside the features:
a training that was stopped goes on with the next epoch and ends with the same weights.

P heads side by side, B samples, V views of a sample, K classes.
"""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler

from tubelet.data.worker_loader import WorkerLoader
from tubelet.device import pick_dtype
from tubelet.heads import state as training_state
from tubelet.schedules import learning_rate
from tubelet.tasks.common.extract import FeatureSet, Progress
from tubelet.tasks.metrics.ranking import UNKNOWN, best_answers, ranks

ANSWERS = 5
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What one of the heads is trained with.

    Attributes:
        lr: peak learning rate of AdamW.
        weight_decay: of all its parameters.
    """

    lr: float
    weight_decay: float


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How all of them are trained; the rate falls to 0 along a half cosine.

    Attributes:
        epochs: passes over the features.
        batch_size: samples of a step.
        warmup_epochs: in which the rate rises linearly from `start_lr`.
        start_lr: at the first step of the warm-up.
        seed: of initial weights and order.
    """

    epochs: int
    batch_size: int
    warmup_epochs: float = 0.0
    start_lr: float = 0.0
    seed: int = 0

    def lr(self, candidate: Candidate, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0 over all epochs; a lone step is taken at the peak."""
        warmup, total = int(self.warmup_epochs * steps_per_epoch), self.epochs * steps_per_epoch
        if total == 1:  # which is also the last, at whose rate of 0 nothing would be learnt
            return candidate.lr
        return learning_rate(step + 1, warmup, max(total, warmup + 1), self.start_lr, candidate.lr, 0.0)


def grid(learning_rates: Sequence[float], weight_decays: Sequence[float]) -> list[Candidate]:
    """Every learning rate with every weight decay."""
    return [Candidate(lr=lr, weight_decay=wd) for wd, lr in itertools.product(weight_decays, learning_rates)]


@dataclass(frozen=True)
class Tokens(Dataset[tuple[Tensor, Tensor]]):
    """The tokens of each source, the segments of a view one after the other, and its labels.

    Attributes:
        features: whose `tokens` are (V, S, N, D), the S segments of V views.
        labels: (n, heads) int64.
    """

    features: FeatureSet
    labels: Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """(V, S · N, D) float16 and (heads,)."""
        return self.features[index]["tokens"].flatten(1, 2), self.labels[index]


@dataclass(frozen=True)
class Pooled(Dataset[tuple[Tensor, Tensor]]):
    """Rows of a table of pooled vectors, and their labels.

    Attributes:
        table: (n, D), usually mapped from a file.
        labels: (n, heads) int64.
    """

    table: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """(1, D) and (heads,)."""
        return self.table[index : index + 1], self.labels[index]


Samples = Tokens | Pooled


@dataclass(frozen=True)
class Batch:
    """Views of B samples, each of which may have another number of views and of tokens.

    Attributes:
        groups: views (v, ...) of one shape.
        owner: (ΣV,) int64, the sample of each view, group after group.
        labels: (B, heads) int64.
    """

    groups: list[Tensor]
    owner: Tensor
    labels: Tensor

    def apply(self, head: nn.Module, device: torch.device) -> list[Tensor]:
        """The outputs of a head for all views, each (ΣV, K) float32 on the device."""
        with _autocast(device):
            parts = [head(views.to(device, non_blocking=True).float()) for views in self.groups]
        return [torch.cat(own).float() for own in zip(*parts, strict=True)]


def collate(samples: list[tuple[Tensor, Tensor]]) -> Batch:
    """Put samples together, by the shape of their views."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (views, _) in enumerate(samples):
        groups.setdefault(tuple(views.shape[1:]), []).append(i)
    owner = [torch.full((len(samples[i][0]),), i) for group in groups.values() for i in group]
    together = [torch.cat([samples[i][0] for i in group]) for group in groups.values()]
    return Batch(together, torch.cat(owner), torch.stack([labels for _, labels in samples]))


class _Shuffled(Sampler[int]):
    """All indices in an order that the seed and the epoch's number give."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return iter(torch.randperm(self.count, generator=generator).tolist())


def train_side_by_side(
    make: Callable[[], nn.Module],
    candidates: Sequence[Candidate],
    schedule: Schedule,
    samples: Samples,
    loss: Loss,
    state: Path,
    device: torch.device,
    *,
    workers: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> nn.ModuleList:
    """Train a head for each candidate, all from the same initial weights and on the same batches.

    Args:
        make: a head with random weights; called once a candidate, each time with the same seed.
        candidates: what sets them apart.
        schedule: what they share.
        samples: what they are trained on; a sample has one view.
        loss: of the logits (B, K) of an output and its labels (B,); the losses of several outputs are added up.
        state: file of the state after the last epoch that was finished.
        device: where they are trained.
        workers: processes that read features.
        progress: told how many steps are done.

    Returns:
        the trained heads, in eval mode.

    Raises:
        TubeletError: if the state cannot be written or read.
    """
    with torch.random.fork_rng(devices=[]):
        heads = nn.ModuleList()
        for _ in candidates:
            torch.manual_seed(schedule.seed)
            heads.append(make())
    heads.to(device).requires_grad_(True).train()
    groups = [
        {"params": list(head.parameters()), "lr": c.lr, "weight_decay": c.weight_decay}
        for head, c in zip(heads, candidates, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups)
    parts: training_state.Parts = {"heads": heads, "optimizer": optimizer}
    done = training_state.take_up(state, parts, "epochs", device)
    sampler = _Shuffled(len(samples), schedule.seed)
    loader: WorkerLoader[Any] = WorkerLoader(
        samples,
        workers,
        batch_size=schedule.batch_size,
        sampler=sampler,
        collate_fn=collate,
        persistent_workers=workers > 0,
    )
    for epoch in range(done, schedule.epochs):
        sampler.epoch = epoch
        for i, batch in enumerate(loader):
            step = epoch * len(loader) + i
            progress("training", step, schedule.epochs * len(loader))
            for group, candidate in zip(optimizer.param_groups, candidates, strict=True):
                group["lr"] = schedule.lr(candidate, step, len(loader))
            _step(heads, optimizer, batch, loss, device)
        if epoch + 1 == schedule.epochs:
            parts = {"heads": heads}  # a training that is finished needs its weights alone
        training_state.write_state(state, parts, "epochs", epoch + 1)
    progress("training", schedule.epochs * len(loader), schedule.epochs * len(loader))
    return heads.requires_grad_(False).eval()


def _step(
    heads: nn.ModuleList, optimizer: torch.optim.Optimizer, batch: Batch, loss: Loss, device: torch.device
) -> None:
    labels = batch.labels[batch.owner].to(device, non_blocking=True).unbind(1)
    for head in heads:  # one after the other: the activations of one are in memory at a time
        outputs = batch.apply(head, device)
        torch.stack([loss(x, y) for x, y in zip(outputs, labels, strict=True)]).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _autocast(device: torch.device) -> torch.autocast:
    dtype = pick_dtype("auto", device)
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


@dataclass(frozen=True)
class Scores:
    """What one output of one head says of n samples.

    Attributes:
        ranks: (n,) of the true class among all, see `ranking.ranks`; K for a class that the head does not know.
        ranks_among: (n,) the same among the classes that were allowed.
        answers: (n, up to 5) classes, the highest first.
        shares: (n, up to 5) their mean probabilities.
    """

    ranks: Tensor
    ranks_among: Tensor
    answers: Tensor
    shares: Tensor


@torch.no_grad()
def score(
    heads: nn.ModuleList,
    samples: Samples,
    probabilities: Callable[[Tensor], Tensor],
    device: torch.device,
    *,
    among: Sequence[Tensor] | None = None,
    batch_size: int = 16,
    workers: int = 0,
    progress: Progress = lambda what, done, total: None,
) -> list[list[Scores]]:
    """Score every head on all samples; probabilities are averaged over the views of a sample.

    Args:
        heads: the heads.
        samples: what they are scored on.
        probabilities: logits (B, K) to probabilities.
        device: where the heads are.
        among: for each output (K,) bool, the classes that the second ranks allow; all by default.
        batch_size: samples at a time.
        workers: processes that read features.
        progress: told how many samples are done.

    Returns:
        for each head, for each of its outputs, the scores.
    """
    loader: WorkerLoader[Any] = WorkerLoader(samples, workers, batch_size=batch_size, collate_fn=collate)
    parts: list[list[list[Scores]]] = [[] for _ in heads]
    for i, batch in enumerate(loader):
        progress("scoring", i * batch_size, len(samples))
        for head, own in zip(heads, parts, strict=True):
            means = [_mean_by_owner(probabilities(x).cpu(), batch.owner) for x in batch.apply(head, device)]
            own.append(
                [
                    _scores(mean, labels, among[h] if among else None)
                    for h, (mean, labels) in enumerate(zip(means, batch.labels.unbind(1), strict=True))
                ]
            )
    progress("scoring", len(samples), len(samples))
    return [[join(chunks) for chunks in zip(*own, strict=True)] for own in parts]


def _mean_by_owner(values: Tensor, owner: Tensor) -> Tensor:
    """(ΣV, K) -> (B, K)."""
    counts = torch.bincount(owner)
    return torch.zeros(len(counts), values.shape[1]).index_add_(0, owner, values) / counts.unsqueeze(1)


def _scores(mean: Tensor, labels: Tensor, allowed: Tensor | None) -> Scores:
    K = mean.shape[1]
    mean = mean.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)  # a diverged head knows nothing
    known = labels.clamp(max=K - 1)
    answers = best_answers(mean, ANSWERS)
    place = torch.where(labels < K, ranks(mean, known), UNKNOWN)
    narrowed = mean if allowed is None else mean.masked_fill(~allowed, -torch.inf)
    among = torch.where(labels < K, ranks(narrowed, known), UNKNOWN)
    return Scores(place, among, answers, mean.gather(1, answers))


def join(chunks: Sequence[Scores]) -> Scores:
    """The scores of parts of a set, as those of the set."""
    fields = dataclasses.fields(Scores)
    return Scores(*(torch.cat([getattr(chunk, field.name) for chunk in chunks]) for field in fields))


def state_path(folder: Path, recipe: dict[str, Any], candidates: Sequence[Candidate], schedule: Schedule) -> Path:
    """Where the state of a training lies: another file for anything that would change its outcome."""
    told = {"candidates": [dataclasses.asdict(c) for c in candidates], "schedule": dataclasses.asdict(schedule)}
    return training_state.state_path(folder / "heads", json.dumps(recipe | told, sort_keys=True))


def told_samples(features: FeatureSet, labels: Tensor) -> str:
    """What samples a training saw, in a line."""
    names = "".join(f"{place.parent.name}{place.stem}" for place in features.places)
    return hashlib.blake2b(names.encode() + labels.numpy().tobytes(), digest_size=16).hexdigest()
