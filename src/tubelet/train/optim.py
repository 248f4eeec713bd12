"""AdamW with the published weight decay."""

from torch import nn
from torch.optim import AdamW, Optimizer

from tubelet.config import OptimConfig
from tubelet.vjepa import VJEPA


def build_optimizer(model: VJEPA, config: OptimConfig) -> AdamW:
    """AdamW over student and predictor, one fused kernel a step; biases and weights of norms are not decayed."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for part in (model.student, model.predictor):
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                (decayed if is_decayed(name, parameter) else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": kept, "weight_decay": 0.0},
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
