"""AdamW as the recipe has it."""

from torch import nn
from torch.optim import AdamW, Optimizer

from tubelet.config import OptimConfig
from tubelet.vjepa import VJEPA


def build_optimizer(model: VJEPA, config: OptimConfig) -> AdamW:
    """AdamW over student and predictor, one fused kernel a step; biases and 1-d parameters are not decayed."""
    trained = [p for part in (model.student, model.predictor) for p in part.parameters() if p.requires_grad]
    decayed = [p for p in trained if _is_decayed(p)]
    kept = [p for p in trained if not _is_decayed(p)]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def _is_decayed(parameter: nn.Parameter) -> bool:
    return parameter.dim() > 1


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """The learning rate of the next step, for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr
