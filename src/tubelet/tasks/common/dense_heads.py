"""Heads of segmentation and depth: trained on points of images, chosen on images that they are not trained on.

R rows (points of images), D width, K outputs, S heads side by side.
"""

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor, nn

from tubelet.config import EvaluateConfig
from tubelet.data.worker_loader import WorkerLoader
from tubelet.errors import DataError
from tubelet.heads.linear import apply_heads, fit_whitening
from tubelet.heads.training import HeadSchedule, held_out_count, hparam_grid, init_heads, train_heads
from tubelet.heads.training_state import state_path
from tubelet.tasks.common.pixel_features import POINTS_PER_STEP, EpochSampler, PixelFeatureDataset
from tubelet.tasks.common.task import EvaluationContext

HELD_OUT_FRACTION, HELD_OUT_AT_MOST = 0.1, 500
_WHITENING_ROWS = 65_536


@dataclass(frozen=True, kw_only=True)
class HeadProtocol:
    """How heads are trained.

    Attributes:
        iterations: largest number of steps.
        epochs: largest number of passes over the images.
        batch_size: images of a step.
        learning_rates: peak learning rates; one head is trained at each.
        weight_decay: weight decay of AdamW.
        warmup_fraction: fraction of the steps over which learning rates rise linearly; then they fall to 0 along a
            cosine.
        dropout: fraction of channels that an image's rows miss in training.
        clip_norm: largest norm of each head's gradient.
    """

    iterations: int
    epochs: int
    batch_size: int = 16
    learning_rates: tuple[float, ...]
    weight_decay: float
    warmup_fraction: float = 1500 / 40_000
    dropout: float = 0.0
    clip_norm: float = 35.0

    def with_settings(self, config: EvaluateConfig) -> "HeadProtocol":
        """The protocol with the user's settings; epochs that are set are not limited by the number of iterations.

        Raises:
            TubeletError: for several weight decays: heads differ only in their learning rate.
        """
        if len(config.weight_decays) > 1:
            raise DataError(
                f"weight_decays are {config.weight_decays}: linear heads on dense features share one weight decay"
            )
        changed = replace(
            self,
            batch_size=config.batch_size or self.batch_size,
            learning_rates=config.learning_rates or self.learning_rates,
            weight_decay=config.weight_decays[0] if config.weight_decays else self.weight_decay,
        )
        return changed if config.epochs is None else replace(changed, epochs=config.epochs, iterations=sys.maxsize)

    def schedule(self, images: int) -> HeadSchedule:
        """The schedule over a number of images."""
        steps = max(1, min(self.iterations, math.ceil(self.epochs * images / self.batch_size)))
        return HeadSchedule(steps=steps, warmup_steps=max(1, round(self.warmup_fraction * steps)), hold_steps=1)


@dataclass(frozen=True)
class TrainedHead:
    """The head of the learning rate that did best on images that it was not trained on.

    Attributes:
        head: (..., D) features as they are to (..., K).
        learning_rate: its learning rate.
        sweep: learning rate -> score on the held-out images; None where the head diverged.
        steps: number of steps.
        images: numbers of images for training and for choosing.
    """

    head: nn.Module
    learning_rate: float
    sweep: dict[str, float | None]
    steps: int
    images: tuple[int, int]


def train_dense_heads(
    context: EvaluationContext,
    data: PixelFeatureDataset,
    make_head: Callable[[], nn.Module],
    protocol: HeadProtocol,
    loss: Callable[[Tensor, Tensor], Tensor],
    accumulate: Callable[[Tensor, Tensor], Tensor],
    score: Callable[[Tensor], list[float]],
    units: Sequence[int] | None = None,
) -> TrainedHead:
    """Train a head at each learning rate, all on the same rows, and choose one.

    Args:
        context: the evaluation.
        data: features and values of points.
        make_head: returns a head with random weights, (R, D) whitened rows -> (R, K).
        protocol: how the heads are trained.
        loss: of outputs (R, S, K) and values (R,), the sum over the heads.
        accumulate: of outputs (R, S, K) and values (R,): what a score needs, to be added up over batches.
        score: of that sum: S numbers, of which the highest is best.
        units: the unit of each image, such as its video: where there are several, whole units are held out to choose
            by. None holds out single images.

    Raises:
        TubeletError: if there are too few images, all heads diverged, or the state cannot be written.
    """
    seed, device, batch_size = context.config.seed, context.model.device, protocol.batch_size
    fitted, held_out = _hold_out(len(data.features), seed, units)
    schedule = protocol.schedule(len(fitted))
    on_cuda = device.type == "cuda"
    sampler = EpochSampler(fitted, batch_size, seed, 0, max(1, _WHITENING_ROWS // (batch_size * POINTS_PER_STEP)))
    whitening = fit_whitening(data[batch][0] for batch in sampler).to(device)

    def batches(start: int) -> WorkerLoader[tuple[Tensor, Tensor]]:
        order = EpochSampler(fitted, batch_size, seed, start, schedule.steps)
        return WorkerLoader(data, context.config.workers, batch_size=None, sampler=order, pin_memory=on_cuda)

    def backward(heads: nn.ModuleList, batch: tuple[Tensor, Tensor], step: int) -> None:
        # A function of the step, so that dropout does not depend on where a training resumes.
        generator = torch.Generator(device).manual_seed(seed * schedule.steps + step)
        rows = whitening(batch[0].to(device, non_blocking=on_cuda))
        rows = _drop_channels(rows, batch_size, protocol.dropout, generator)
        loss(apply_heads(heads, rows), batch[1].to(device, non_blocking=on_cuda)).backward()

    kind = repr(init_heads(make_head, 1, seed))
    identity = [context.task, asdict(protocol), seed, kind, *map(str, (*data.features.paths, *data.points))]
    heads = train_heads(
        make_head,
        hparam_grid(protocol.learning_rates, (protocol.weight_decay,)),
        schedule,
        batches,
        backward,
        state_path(context.cache.folder / "heads", json.dumps(identity)),
        device,
        seed=seed,
        clip_norm=protocol.clip_norm,
        progress=context.progress,
    )
    scores = score(_accumulate_held_out(data, whitening, heads, held_out, batch_size, accumulate))
    best, sweep = _choose(scores, protocol.learning_rates)
    counts = (len(fitted), len(held_out))
    return TrainedHead(whitening.before(heads[best]), protocol.learning_rates[best], sweep, schedule.steps, counts)


def _choose(scores: list[float], learning_rates: tuple[float, ...]) -> tuple[int, dict[str, float | None]]:
    """The index of the best head, and learning rate -> score, None where the head diverged.

    Raises:
        DataError: if all heads diverged.
    """
    finite = {head: value for head, value in enumerate(scores) if math.isfinite(value)}
    if not finite:
        raise DataError(
            f"all heads diverged: learning_rates are {learning_rates}; lower them, or remove --learning-rates to use "
            "the protocol's"
        )
    sweep = {f"{rate:g}": finite.get(head) for head, rate in enumerate(learning_rates)}
    return max(finite, key=finite.__getitem__), sweep


def _drop_channels(rows: Tensor, images: int, dropout: float, generator: torch.Generator) -> Tensor:
    """Rows (R, D) of images, as many of each, without some of the channels of each image."""
    if not dropout:
        return rows
    keep = torch.full((images, 1, rows.shape[1]), 1 - dropout, device=rows.device)
    keep = torch.bernoulli(keep, generator=generator) / (1 - dropout)
    return (rows.unflatten(0, (images, -1)) * keep).flatten(0, 1)


def _hold_out(images: int, seed: int, units: Sequence[int] | None = None) -> tuple[list[int], list[int]]:
    """Images to train on, and images to choose by; see `train_dense_heads`."""
    if images < 2:
        raise DataError("the training split has fewer than 2 images: training a head and choosing it need one each")
    order = torch.randperm(images, generator=torch.Generator().manual_seed(seed)).tolist()
    count = held_out_count(images, HELD_OUT_FRACTION, HELD_OUT_AT_MOST)
    if units is not None and len(set(units)) > 1:
        chosen = _choose_units(Counter(units[image] for image in order), count)
        return (
            [image for image in range(images) if units[image] not in chosen],
            [image for image in range(images) if units[image] in chosen],
        )
    return sorted(order[count:]), sorted(order[:count])


def _choose_units(sizes: Counter[int], count: int) -> set[int]:
    """Some of several units, in their order, of about `count` images altogether, and never all; at least the smallest.

    Args:
        sizes: unit -> number of its images.
        count: number of images.
    """
    chosen: set[int] = set()
    total = 0
    for unit, size in sizes.items():
        if total < count and total + size <= 2 * count and len(chosen) < len(sizes) - 1:
            chosen.add(unit)
            total += size
    return chosen or {min(sizes, key=sizes.__getitem__)}


@torch.no_grad()
def _accumulate_held_out(
    data: PixelFeatureDataset,
    whitening: nn.Module,
    heads: nn.ModuleList,
    images: list[int],
    batch_size: int,
    accumulate: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    device = next(heads.parameters()).device
    parts = []
    for start in range(0, len(images), batch_size):
        rows, values = data[[(0, image) for image in images[start : start + batch_size]]]
        parts.append(accumulate(apply_heads(heads, whitening(rows.to(device))), values.to(device)))
    return torch.stack(parts).sum(0)
