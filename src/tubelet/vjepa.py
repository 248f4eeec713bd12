"""V-JEPA: student, predictor and EMA teacher; maps a batch to its losses."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tubelet.config import ModelConfig
from tubelet.grid import Mask, MaskedGrid
from tubelet.model.encoder import Encoder
from tubelet.model.packing import unpack
from tubelet.model.predictor import Predictor
from tubelet.model.tokenizer import modality_of
from tubelet.objective import Losses, dense_predictive_loss, normalize_targets


class MaskedBatch(NamedTuple):
    """A batch under one mask.

    Attributes:
        pixels: (B, C, T, H, W) normalized pixels; T = 1 is an image batch.
        mask: context tokens, which the student encodes, and target tokens, which the predictor predicts.
        targets: (B, N, L·D) from `VJEPA.targets`.
    """

    pixels: Tensor
    mask: Mask
    targets: Tensor


class VJEPA(nn.Module):
    """Student (X-encoder), predictor, and teacher (Y-encoder), which starts as a copy of the student."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.student = Encoder(config)
        self.predictor = Predictor(config)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.distance_weighting = True  # set from OptimConfig
        self.pack_masks = False  # set from TrainConfig
        # Set for distillation. A tuple, so that nn.Module does not register it and no checkpoint contains it.
        self.frozen_teacher: tuple[Encoder, ...] = ()
        self.loss = dense_predictive_loss  # an attribute, so that it can be compiled with the blocks

    def forward(self, batches: Sequence[MaskedBatch], context_weight: float | Tensor) -> list[Losses]:
        """Dense predictive losses of several batches, each under one mask, in one pass through the model.

        Args:
            batches: images or videos; several may share pixels under different masks.
            context_weight: λ of this step.
        """
        tokenizer = self.student.tokenizer
        masked = [MaskedGrid(batch.mask, tokenizer.grid(batch.pixels), modality_of(batch.pixels)) for batch in batches]
        # Steps 1 to 4: tokens, positions, mask, encoder.
        levels = self.student([batch.pixels for batch in batches], [batch.mask.context for batch in batches])
        predictions = self.predictor(levels, masked)  # steps 5-7: fusion, predictor, heads
        return [  # step 8
            self.loss(
                target_pred,
                context_pred,
                batch.targets,
                batch.mask,
                batch_mask.grid,
                context_weight,
                distance_weighting=self.distance_weighting,
            )
            for (target_pred, context_pred), batch, batch_mask in zip(predictions, batches, masked, strict=True)
        ]

    @torch.no_grad()
    def targets(self, pixels: Sequence[Tensor]) -> list[Tensor]:
        """Targets (B, N, L·D) of each unmasked batch: the teacher's levels, normalized, without gradient.

        In a distillation, the last level of the frozen teacher instead. The EMA teacher is still updated: it is the
        result of the run.

        Args:
            pixels: (B, C, T, H, W) of each batch.
        """
        levels = self.frozen_teacher[0](pixels)[-1:] if self.frozen_teacher else self.teacher(pixels)
        grid = self.student.tokenizer.grid
        return unpack(normalize_targets(levels), tuple((len(each), grid(each).tokens) for each in pixels))

    @torch.no_grad()
    def update_teacher(self, momentum: float, skipped: Tensor | None = None) -> None:
        """Teacher <- momentum · teacher + (1 - momentum) · student.

        Args:
            momentum: from 0 to 1.
            skipped: scalar tensor on the device; 1 leaves the teacher unchanged, 0 updates it.
        """
        teacher = [local_shard(parameter) for parameter in self.teacher.parameters()]
        student = [local_shard(parameter) for parameter in self.student.parameters()]
        weight = torch.full((), 1 - momentum, device=teacher[0].device)
        # Not _foreach_lerp_: with a weight on the device it launches one kernel per tensor.
        difference = torch._foreach_sub(student, teacher)
        torch._foreach_mul_(difference, weight if skipped is None else weight * (1 - skipped))
        torch._foreach_add_(teacher, difference)


def local_shard(tensor: Tensor) -> Tensor:
    """The part of a tensor on this rank: the whole tensor unless it is sharded."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
