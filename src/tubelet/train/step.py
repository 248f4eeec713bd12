"""One training step: forward and backward under each mask, the optimizer, then the teacher."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tubelet import schedules
from tubelet.config import TrainConfig
from tubelet.data.batch import StepData
from tubelet.data.clips import normalize
from tubelet.device import training_dtype
from tubelet.grid import Mask
from tubelet.train.distributed import DistContext
from tubelet.train.optim import set_learning_rate
from tubelet.train.sharding import local_norms
from tubelet.vjepa import VJEPA, local_shard


def train_step(
    model: VJEPA, optimizer: Optimizer, data: StepData, config: TrainConfig, step: int, ctx: DistContext
) -> dict[str, Any]:
    """One optimizer step over all of its micro-batches, on all processes, then the teacher's.

    Nothing here waits for the device: what depends on its numbers is decided there.

    Returns:
        Scalar tensors: the losses (each the mean over the samples of all processes), the L2 norm of the gradient of
        all parameters before clipping, and `skipped` (1 where the loss or the gradient is not finite, otherwise 0).
        Then the schedules' values.
    """
    device, values = ctx.device, schedule_values(config, step)
    set_learning_rate(optimizer, values["lr"])
    # As a tensor: each new number would be a new constant, and another compilation.
    context_weight = torch.full((), values["context_weight"], device=device)
    # Losses (total, prediction, context), processes whose gradient is not finite, the gradient's squared norm.
    sums = torch.zeros(5, device=device)
    for batch in data.batches:
        batch = batch.to(device)
        pixels = normalize(batch.pixels)
        sums[:3] += batch.weight * backpropagate(
            model, pixels, batch.masks, context_weight, batch.weight, autocast(config, device)
        )
    ctx.all_reduce_gradients(model)
    gradients = [local_shard(p.grad) for p in model.parameters() if p.grad is not None]
    norms = local_norms(gradients)
    sums[3] = ~norms.isfinite().all()
    sums[4] = norms.square().sum() / ctx.gradient_replicas
    ctx.all_reduce(sums)
    total, prediction, context, not_finite, squared_norm = sums
    grad_norm = squared_norm.sqrt()
    # Decided on the device, so that the host need not wait for it: the optimizer's kernel leaves everything as it is
    # where it finds this flag (torch.amp.GradScaler passes it the same way), and so does the teacher.
    skipped = ((not_finite > 0) | ~total.isfinite()).float()
    if config.optim.max_grad_norm:
        torch._foreach_mul_(gradients, (config.optim.max_grad_norm / (grad_norm + 1e-6)).clamp(max=1.0))
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad()
    model.update_teacher(values["ema"], skipped)
    losses = {"loss": total, "prediction_loss": prediction, "context_loss": context}
    return losses | {"grad_norm": grad_norm, "skipped": skipped, **values}


def backpropagate(
    model: VJEPA,
    pixels: Tensor,
    masks: list[Mask],
    context_weight: float | Tensor,
    weight: float,
    precision: torch.autocast,
) -> Tensor:
    """Add `weight` times the gradient of a batch's loss, averaged over its masks, to the parameters' gradients.

    One mask after the other goes forward and backward, so that only one mask's activations are in memory.

    Args:
        model: student, predictor and teacher.
        pixels: (B, C, T, H, W) normalized pixels.
        masks: the masks drawn for them.
        context_weight: λ of this step.
        weight: the batch's share of the step.
        precision: of the forward pass.

    Returns:
        (3,) total, prediction and context loss, averaged over the masks, without the weight.
    """
    losses = torch.zeros(3, device=pixels.device)
    with precision:
        targets = model.targets(pixels)
    for mask in masks:
        with precision:
            parts = model(pixels, mask, targets, context_weight)
        (weight / len(masks) * parts.total).backward()
        losses += torch.stack(parts).detach() / len(masks)
    return losses


def schedule_values(config: TrainConfig, step: int) -> dict[str, float]:
    """Learning rate, teacher momentum and λ of a step."""
    optim, steps = config.optim, config.steps
    warmup = optim.warmup_fraction * steps
    first, last = (share * steps for share in optim.context_warmup)
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
    """The published 0.99925, or less where its memory of 1,333 steps would be more than an eighth of the run."""
    return min(0.99925, 1 - 1 / max(steps / 8, 1))


def autocast(config: TrainConfig, device: torch.device) -> torch.autocast:
    """Matrix products in the run's precision; everything that must not round stays in fp32."""
    dtype = training_dtype(config, device)
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)
