"""AdamW with the published weight decay."""

from torch import Tensor, nn
from torch.optim import Optimizer

from tubelet.config import OptimConfig
from tubelet.model.optimizers import AdamW
from tubelet.vjepa import VJEPA

# Where the fused AdamW takes the flag and drops it (https://github.com/pytorch/pytorch/pull/186360), the host decides.
# It waits there for each step's metrics anyway.
IGNORES_FOUND_INF = ("mps",)


def build_optimizer(model: VJEPA, config: OptimConfig) -> AdamW:
    """AdamW over student and predictor, one fused kernel a step; biases and weights of norms are not decayed."""
    decayed: list[nn.Parameter] = []
    not_decayed: list[nn.Parameter] = []
    for part in (model.student, model.predictor):
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                (decayed if is_decayed(name, parameter) else not_decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": not_decayed, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter: not to biases and weights of norms."""
    # The release holds the embeddings of the modalities as (1, 1, D), and decays them with all that is not a vector.
    return parameter.dim() > 1 or name.endswith(("video_embedding", "image_embedding"))


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """The learning rate of the next step, for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def update_unless_skipped(optimizer: Optimizer, skipped: Tensor) -> None:
    """One step of a fused optimizer, which changes nothing where `skipped` is 1.

    Its kernel leaves everything as it is where it finds this flag; torch.amp.GradScaler passes it the same way.

    Args:
        optimizer: with gradients.
        skipped: a scalar on the device, 0 or 1.
    """
    if skipped.device.type in IGNORES_FOUND_INF and skipped.item():
        return
    optimizer.found_inf = skipped  # type: ignore[attr-defined]
    optimizer.step()
