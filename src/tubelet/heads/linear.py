"""Linear heads on frozen features: a 1x1 convolution of decorrelated channels, at several learning rates side by side.

The published protocols have batch norm there. But channels of frozen features are alike: their variance along a few
directions is a thousand times that along most others, on which small things depend, and gradient descent learns from
those last. On small sets, with few iterations, that is never. So channels are brought to a variance of 1 along their
principal axes, which is as linear; docs/evaluate-dense.md has what it changes.

R rows (points of pictures), D width, K outputs, S heads.
"""

import json
import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.config import EvaluateConfig
from tubelet.data.worker_loader import WorkerLoader
from tubelet.errors import TubeletError
from tubelet.heads import state as training_state
from tubelet.schedules import learning_rate
from tubelet.tasks.common.extract import Progress
from tubelet.tasks.common.pixel_features import POINTS_SHOWN, Batches, Rows

SAVE_SECONDS = 60
HELD_OUT_SHARE, HELD_OUT_AT_MOST = 0.1, 500
_STD = 0.01  # of initial weights
_AXES_ROWS = 65_536  # that principal axes are estimated from
_LEAST_VARIANCE = 1e-6  # of the largest; along axes of less there is rounding, or nothing at all


@dataclass(frozen=True, kw_only=True)
class HeadProtocol:
    """How heads are trained.

    Attributes:
        iterations: at most.
        passes: over the pictures, at most.
        batch_size: pictures of a step.
        learning_rates: at their peak; one head is trained at each.
        weight_decay: of AdamW with betas 0.9 and 0.999.
        warmup_fraction: of the iterations, over which learning rates rise linearly; then they fall to 0 along a cosine.
        dropout: share of channels that a picture's rows miss in training.
        gradient_norm: of each head, at most.
    """

    iterations: int
    passes: int
    batch_size: int = 16
    learning_rates: tuple[float, ...]
    weight_decay: float
    warmup_fraction: float = 1500 / 40_000
    dropout: float = 0.0
    gradient_norm: float = 35.0

    def changed(self, config: EvaluateConfig) -> "HeadProtocol":
        """The protocol with what a user set; passes that were set are so many, whatever number of iterations they are.

        Raises:
            TubeletError: for several weight decays: heads differ in their learning rate alone.
        """
        if len(config.weight_decays) > 1:
            raise TubeletError(
                f"weight_decays are {config.weight_decays}: linear heads on dense features share one weight decay"
            )
        changed = replace(
            self,
            batch_size=config.batch_size or self.batch_size,
            learning_rates=config.learning_rates or self.learning_rates,
            weight_decay=config.weight_decays[0] if config.weight_decays else self.weight_decay,
        )
        return changed if config.epochs is None else replace(changed, passes=config.epochs, iterations=sys.maxsize)

    def steps(self, pictures: int) -> int:
        """Iterations over so many pictures."""
        return max(1, min(self.iterations, math.ceil(self.passes * pictures / self.batch_size)))

    def rate(self, step: int, steps: int) -> float:
        """What the learning rates are multiplied with at a step, counted from 0."""
        warmup = max(1, round(self.warmup_fraction * steps))
        # The step after the warm-up is taken at the peak too.
        return learning_rate(step + (step < warmup), warmup, max(steps, warmup + 1), 0.0, 1.0, 0.0)


@dataclass(frozen=True)
class Axes:
    """What brings rows to mean 0, and to variance 1 along axes that do not vary together.

    Attributes:
        mean: (D,).
        directions: (D, D), an axis a column; those along which rows do not vary are 0.
    """

    mean: Tensor
    directions: Tensor


def axes_of(batches: Iterable[Tensor]) -> Axes:
    """The principal axes of rows (R, D), which come in batches."""
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for rows in batches:
        x = rows.double()
        count, total, products = count + len(x), total + x.sum(0), products + x.mT @ x
    mean = total / count
    variance, directions = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    kept = variance > _LEAST_VARIANCE * variance[-1].clamp(min=1e-12)
    scale = torch.where(kept, variance, 1.0).rsqrt() * kept
    return Axes(mean.float(), (directions * scale).float())


class LinearHeads(nn.Module):
    """S heads on the same rows, along the same axes."""

    mean: Tensor
    directions: Tensor

    def __init__(self, axes: Axes, outputs: int, heads: int, dropout: float, seed: int) -> None:
        super().__init__()
        self.register_buffer("mean", axes.mean)
        self.register_buffer("directions", axes.directions)
        self.dropout = dropout
        generator = torch.Generator().manual_seed(seed)
        weight = torch.empty(outputs, len(axes.mean)).normal_(0, _STD, generator=generator)
        # A tensor for each head: each has its own learning rate.
        self.weight = nn.ParameterList(nn.Parameter(weight.clone()) for _ in range(heads))
        self.bias = nn.ParameterList(nn.Parameter(torch.zeros(outputs)) for _ in range(heads))

    def parameters_of(self, head: int) -> list[nn.Parameter]:
        """The parameters of one head."""
        return [self.weight[head], self.bias[head]]

    def forward(self, rows: Tensor, pictures: int, chance: torch.Generator | None = None) -> Tensor:
        """(R, D) -> (R, S, K); the rows are those of `pictures` pictures, one after the other, as many of each."""
        x = (rows - self.mean) @ self.directions
        if self.training and self.dropout:
            keep = torch.full((pictures, 1, x.shape[1]), 1 - self.dropout)
            keep = (torch.bernoulli(keep, generator=chance) / (1 - self.dropout)).to(x.device)
            x = (x.unflatten(0, (pictures, -1)) * keep).flatten(0, 1)
        out = F.linear(x, torch.cat(list(self.weight)), torch.cat(list(self.bias)))
        return out.unflatten(1, (len(self.weight), -1))

    @torch.no_grad()
    def frozen(self, head: int) -> tuple[Tensor, Tensor]:
        """One trained head, axes and all, as weight (K, D) and bias (K,) of rows as they are."""
        weight = self.weight[head] @ self.directions.mT
        return weight, self.bias[head] - weight @ self.mean


@dataclass(frozen=True)
class TrainedHead:
    """The head of the learning rate that did best on pictures that it was not trained on.

    Attributes:
        weight: (K, D) float32.
        bias: (K,) float32.
        learning_rate: its own.
        sweep: learning rate -> score on the pictures that were held out; None where the head diverged.
        steps: iterations.
        pictures: how many heads were trained on, and how many were held out.
    """

    weight: Tensor
    bias: Tensor
    learning_rate: float
    sweep: dict[str, float | None]
    steps: int
    pictures: tuple[int, int]


def train_heads(
    rows: Rows,
    outputs: int,
    protocol: HeadProtocol,
    loss: Callable[[Tensor, Tensor], Tensor],
    tally: Callable[[Tensor, Tensor], Tensor],
    score: Callable[[Tensor], list[float]],
    *,
    folder: Path,
    device: torch.device,
    seed: int,
    readers: int,
    progress: Progress,
) -> TrainedHead:
    """Train a head at each learning rate, all on the same rows, and choose one.

    Args:
        rows: what they are trained on.
        outputs: K.
        protocol: how.
        loss: of outputs (R, S, K) and values (R,), the sum over the heads.
        tally: of outputs (R, S, K) and values (R,): what a score needs, to be added up over batches.
        score: of that sum: S numbers, of which the highest is best.
        folder: where the state of a training is kept, so that one that was stopped goes on.
        device: where to train.
        seed: of initial weights and of the order.
        readers: reading processes.
        progress: told of the iterations.

    Raises:
        TubeletError: if there are too few pictures, all heads diverged, or the state cannot be written.
    """
    fitted, held_out = _hold_out(len(rows.features), seed)
    steps = protocol.steps(len(fitted))
    some = Batches(fitted, protocol.batch_size, seed, 0, max(1, _AXES_ROWS // (protocol.batch_size * POINTS_SHOWN)))
    axes = axes_of(rows[batch][0] for batch in some)
    heads = LinearHeads(axes, outputs, len(protocol.learning_rates), protocol.dropout, seed).to(device)
    groups = [
        {"params": heads.parameters_of(head), "lr": rate, "peak": rate}
        for head, rate in enumerate(protocol.learning_rates)
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=protocol.weight_decay, foreach=True)
    stated = [asdict(protocol), seed, outputs, [str(path) for path in (*rows.features.places, *rows.points)]]
    state = training_state.state_path(folder, json.dumps(stated))
    parts: training_state.Parts = {"heads": heads, "optimiser": optimiser}
    start = training_state.take_up(state, parts, "step", device)
    loader: WorkerLoader[tuple[Tensor, Tensor]] = WorkerLoader(
        rows, readers, batch_size=None, sampler=Batches(fitted, protocol.batch_size, seed, start, steps)
    )
    saved, chance = time.monotonic(), torch.Generator()
    heads.train()
    for step, (x, values) in enumerate(loader, start):
        chance.manual_seed(seed * steps + step)  # so that dropout does not depend on where a training goes on
        for group in optimiser.param_groups:
            group["lr"] = group["peak"] * protocol.rate(step, steps)
        optimiser.zero_grad()
        loss(heads(x.to(device), protocol.batch_size, chance), values.to(device)).backward()
        for head in range(len(groups)):
            nn.utils.clip_grad_norm_(heads.parameters_of(head), protocol.gradient_norm)
        optimiser.step()
        if step % 20 == 0 or step + 1 == steps:
            progress("training the head", step + 1, steps)
        if step + 1 == steps or time.monotonic() - saved > SAVE_SECONDS:
            training_state.write_state(state, parts, "step", step + 1)
            saved = time.monotonic()
    heads.eval()
    scores = score(_tally_held_out(rows, heads, held_out, protocol.batch_size, tally, device))
    learnt = {head: value for head, value in enumerate(scores) if math.isfinite(value)}
    if not learnt:
        raise TubeletError(
            f"all heads diverged: learning_rates are {protocol.learning_rates}; lower them, or leave --learning-rates "
            "out to use the protocol's"
        )
    best = max(learnt, key=learnt.__getitem__)
    weight, bias = heads.frozen(best)
    rates = [f"{rate:g}" for rate in protocol.learning_rates]
    return TrainedHead(
        weight,
        bias,
        protocol.learning_rates[best],
        {rate: learnt.get(head) for head, rate in enumerate(rates)},
        steps,
        (len(fitted), len(held_out)),
    )


def _hold_out(pictures: int, seed: int) -> tuple[list[int], list[int]]:
    """Pictures to train on, and pictures to choose by."""
    if pictures < 2:
        raise TubeletError(
            "the training split has fewer than 2 pictures: a head needs one to train on, one to choose by"
        )
    order = torch.randperm(pictures, generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, min(HELD_OUT_AT_MOST, round(HELD_OUT_SHARE * pictures)))
    return sorted(order[count:]), sorted(order[:count])


@torch.no_grad()
def _tally_held_out(
    rows: Rows,
    heads: LinearHeads,
    pictures: list[int],
    batch: int,
    tally: Callable[[Tensor, Tensor], Tensor],
    device: torch.device,
) -> Tensor:
    parts = []
    for start in range(0, len(pictures), batch):
        chosen = [(0, picture) for picture in pictures[start : start + batch]]
        x, values = rows[chosen]
        parts.append(tally(heads(x.to(device), len(chosen)), values.to(device)))
    return torch.stack(parts).sum(0)
