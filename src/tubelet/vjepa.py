"""The V-JEPA system: student, predictor and EMA teacher; from a batch to losses."""

import copy

import torch
from torch import Tensor, nn

from tubelet.config import ModelConfig
from tubelet.grid import Mask
from tubelet.model.encoder import Encoder
from tubelet.model.predictor import Predictor
from tubelet.model.tokenizer import modality_of
from tubelet.objective import Losses, dense_predictive_loss, normalize_targets


class VJEPA(nn.Module):
    """Student (X-encoder), predictor, and teacher (Y-encoder), which starts as a copy of the student."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.student = Encoder(config)
        self.predictor = Predictor(config)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.distance_weighting = True  # set by the run, see OptimConfig
        # Set by a distillation. In a tuple, so that nn.Module does not register it and no checkpoint contains it.
        self.frozen_teacher: tuple[Encoder, ...] = ()
        self.loss = dense_predictive_loss  # an attribute, so that it can be compiled with the blocks

    def forward(self, pixels: Tensor, mask: Mask, targets: Tensor, context_weight: float | Tensor) -> Losses:
        """The dense predictive loss of a batch under one mask.

        Args:
            pixels: (B, C, T, H, W) normalized pixels; T = 1 is an image batch.
            mask: the tokens that the student sees, and those that it must predict.
            targets: (B, N, L·D) from `targets`.
            context_weight: λ of this step.
        """
        grid, modality = self.student.tokenizer.grid(pixels), modality_of(pixels)
        levels = self.student(pixels, mask.context)  # steps 1-4: tokens, positions, mask, encoder
        target_pred, context_pred = self.predictor(levels, mask, grid, modality)  # steps 5-7: fusion, predictor, heads
        return self.loss(  # step 8
            target_pred, context_pred, targets, mask, grid, context_weight, distance_weighting=self.distance_weighting
        )

    @torch.no_grad()
    def targets(self, pixels: Tensor) -> Tensor:
        """(B, N, L·D) the teacher's normalized levels of the unmasked input, without gradient.

        In a distillation, the last level of the distilled model instead; the teacher is still the moving average of the
        student, and is the result of the run.
        """
        if self.frozen_teacher:
            return normalize_targets(self.frozen_teacher[0](pixels)[-1:])
        return normalize_targets(self.teacher(pixels))

    @torch.no_grad()
    def update_teacher(self, momentum: float, skipped: Tensor | None = None) -> None:
        """Teacher <- momentum · teacher + (1 - momentum) · student.

        Args:
            momentum: from 0 to 1.
            skipped: a scalar on the device, 1 where this step leaves the teacher as it is, otherwise 0.
        """
        teacher = [local_shard(parameter) for parameter in self.teacher.parameters()]
        student = [local_shard(parameter) for parameter in self.student.parameters()]
        share = torch.full((), 1 - momentum, device=teacher[0].device)
        torch._foreach_lerp_(teacher, student, [share if skipped is None else share * (1 - skipped)] * len(teacher))


def local_shard(tensor: Tensor) -> Tensor:
    """The part of a tensor on this rank: the whole tensor unless it is sharded."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
