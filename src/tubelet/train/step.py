"""One training step: forward and backward pass under each mask, optimizer step, teacher update."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tubelet import schedules
from tubelet.config import TrainConfig
from tubelet.data.batch import Batch, StepData
from tubelet.data.clips import normalize
from tubelet.device import training_dtype
from tubelet.grid import Modality
from tubelet.train.distributed import DistContext
from tubelet.train.optim import set_learning_rate, update_unless_skipped
from tubelet.train.sharding import local_norms
from tubelet.vjepa import VJEPA, MaskedBatch, local_shard


def train_step(
    model: VJEPA, optimizer: Optimizer, data: StepData, config: TrainConfig, step: int, ctx: DistContext
) -> dict[str, Any]:
    """One optimizer step over all micro-batches and processes, then the update of the EMA teacher.

    The host never waits for the device: decisions that depend on computed values are made on the device.

    Returns:
        Scalar tensors: the losses (each the mean over the samples of all processes), the L2 norm of the gradient of
        all parameters before clipping, and `skipped` (1 where the loss or the gradient is not finite, otherwise 0).
        Then the schedules' values.
    """
    device, values = ctx.device, schedule_values(config, step)
    set_learning_rate(optimizer, values["lr"])
    # A tensor, since torch.compile would recompile for every new Python number.
    context_weight = torch.full((), values["context_weight"], device=device)
    # Losses (total, prediction, context), processes whose gradient is not finite, the gradient's squared norm.
    sums = torch.zeros(5, device=device)
    groups = list(group_batches(data.batches, model.pack_masks))
    for number, batches in enumerate(groups, start=1):
        inputs = [replace(batch, pixels=normalize(batch.pixels, config.model.pixels)) for batch in ctx.upload(batches)]
        before_last = None
        if number == len(groups):
            before_last = partial(ctx.arm_gradient_sum, model, tuple(batch.modality for batch in batches))
        sums[:3] += backpropagate(
            model, inputs, context_weight, autocast(config, device), model.pack_masks, before_last
        )
    ctx.all_reduce_gradients(model)
    gradients = [local_shard(p.grad) for p in model.parameters() if p.grad is not None]
    norms = local_norms(gradients)
    sums[3] = ~norms.isfinite().all()
    sums[4] = norms.square().sum() / ctx.gradient_replicas
    ctx.all_reduce(sums)
    total, prediction, context, not_finite, squared_norm = sums
    grad_norm = squared_norm.sqrt()
    # Decided on the device, so that the host does not wait.
    skipped = ((not_finite > 0) | ~total.isfinite()).float()
    if config.optim.max_grad_norm:
        torch._foreach_mul_(gradients, (config.optim.max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0))
    update_unless_skipped(optimizer, skipped)
    optimizer.zero_grad()
    model.update_teacher(values["ema"], skipped)
    losses = {"loss": total, "prediction_loss": prediction, "context_loss": context}
    return losses | {"grad_norm": grad_norm, "skipped": skipped, **values}


def group_batches(batches: Sequence[Batch], packed: bool) -> Iterator[list[Batch]]:
    """Group the batches of a step: if packed, one batch of each modality per group, otherwise one batch per group.

    Unpacked, images come first: the all-reduce of the gradients overlaps with the last backward pass, and that of a
    video mask takes longest.
    """
    if not packed:
        yield from ([batch] for batch in sorted(batches, key=lambda batch: batch.modality == Modality.VIDEO))
        return
    by_modality = [[batch for batch in batches if batch.modality is modality] for modality in Modality]
    for group in zip_longest(*by_modality):
        yield [batch for batch in group if batch is not None]


def backpropagate(
    model: VJEPA,
    batches: Sequence[Batch],
    context_weight: float | Tensor,
    precision: torch.autocast,
    packed: bool = False,
    before_last: Callable[[], None] | None = None,
) -> Tensor:
    """Accumulate the gradients of the batches' losses, each averaged over its masks.

    Args:
        model: student, predictor and teacher.
        batches: with normalized pixels (B, C, T, H, W) and their weights.
        context_weight: λ of this step.
        precision: of the forward pass.
        packed: whether all masks of all batches share one forward and backward pass. Otherwise masks are processed one
            after the other, so that only the activations of one mask are in memory.
        before_last: called before the last backward pass of this call.

    Returns:
        (3,) the weighted sum of the batches' total, prediction and context losses, averaged over the masks.
    """
    with precision:
        targets = model.targets([batch.pixels for batch in batches])
    masked = [
        (MaskedBatch(batch.pixels, mask, target), batch.weight / len(batch.masks))
        for batch, target in zip(batches, targets, strict=True)
        for mask in batch.masks
    ]
    sums = torch.zeros(3, device=targets[0].device)
    passes = [masked] if packed else [[each] for each in masked]
    for number, group in enumerate(passes, start=1):
        inputs, weights = zip(*group, strict=True)
        with precision:
            losses = model(inputs, context_weight)
        weighted = [weight * torch.stack(loss) for weight, loss in zip(weights, losses, strict=True)]
        total = torch.stack(weighted).sum(0)
        if before_last is not None and number == len(passes):
            before_last()
        total[0].backward()
        sums += total.detach()
    return sums


def schedule_values(config: TrainConfig, step: int) -> dict[str, float]:
    """Learning rate, teacher momentum and λ of a step."""
    optim, steps = config.optim, config.steps
    warmup = optim.warmup_fraction * steps
    first, last = (fraction * steps for fraction in optim.context_warmup)
    ema = optim.ema if optim.ema is not None else default_ema_momentum(steps)
    final_ema = optim.final_ema if optim.final_ema is not None else ema
    start_lr = optim.start_lr if optim.start_lr is not None else optim.lr / 6
    final_lr = optim.final_lr if optim.final_lr is not None else optim.lr
    return {
        "lr": schedules.learning_rate(step + 1, warmup, steps, start_lr, optim.lr, final_lr, optim.decay),
        "ema": schedules.linear(step, steps, ema, final_ema),
        "context_weight": schedules.context_weight(step, first, last, optim.context_weight),
    }


def default_ema_momentum(steps: int) -> float:
    """The published 0.99925; for short runs less, so that the averaging window 1 / (1 - m) is an eighth of the run."""
    return min(0.99925, 1 - 1 / max(steps / 8, 1))


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Autocast to the precision of the run; operations that need it stay in fp32."""
    dtype = training_dtype(config, device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
