"""The whole system: student, predictor and EMA teacher; a batch goes in, losses come out."""

import copy

import torch
from torch import Tensor, nn

from tubelet.config import ModelConfig
from tubelet.model.encoder import Encoder
from tubelet.model.predictor import Predictor
from tubelet.model.tokenizer import modality_of
from tubelet.objective import Losses, dense_predictive_loss, normalised_targets
from tubelet.types import Mask


class VJEPA(nn.Module):
    """Student (X-encoder), predictor, and teacher (Y-encoder), which starts as a copy of the student."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.student = Encoder(config)
        self.predictor = Predictor(config)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def forward(self, pixels: Tensor, masks: list[Mask], context_weight: float | Tensor) -> Losses:
        """The dense predictive loss of a batch, averaged over its masks.

        Args:
            pixels: (B, C, T, H, W) normalised pixels; T = 1 is an image batch.
            masks: the masks drawn for it.
            context_weight: λ of this step.
        """
        grid, modality = self.student.tokenizer.grid(pixels), modality_of(pixels)
        targets = self.targets(pixels)
        losses = []
        for mask in masks:
            levels = self.student(pixels, mask.context)
            predicted, reconstructed = self.predictor(levels, mask, grid, modality)
            losses.append(dense_predictive_loss(predicted, reconstructed, targets, mask, grid, context_weight))
        return Losses(*(torch.stack(parts).mean() for parts in zip(*losses, strict=True)))

    @torch.no_grad()
    def targets(self, pixels: Tensor) -> Tensor:
        """(B, N, L·D) the teacher's normalised view of the clean input, without gradient."""
        return normalised_targets(self.teacher(pixels))

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Teacher <- momentum · teacher + (1 - momentum) · student, in one fused pass over all parameters."""
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.student.parameters())
        torch._foreach_lerp_(teacher, student, 1 - momentum)
