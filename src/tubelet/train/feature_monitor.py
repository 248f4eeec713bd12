"""Effective rank and channel spread of a step's features: each level of the teacher, and its predictions."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tubelet.config import ModelConfig, TrainConfig
from tubelet.data.batch import Batch
from tubelet.data.clips import normalize
from tubelet.grid import MaskedGrid, Modality
from tubelet.train.collapse import CollapseDetector, feature_metrics, level_prefix, subsample_tokens
from tubelet.train.distributed import DistContext
from tubelet.train.step import autocast
from tubelet.vjepa import VJEPA


def predicted_width(config: ModelConfig) -> int:
    """Channels of one predicted level; of another model's level, in a distillation."""
    return config.predictor.output_width or config.width


def collapse_detector(config: ModelConfig) -> CollapseDetector:
    """The watch over a model's figures."""
    return CollapseDetector(config.width, predicted_width(config))


class FeatureMonitor:
    """Measures every level of the teacher on a batch, and the predictions under its first mask.

    Predictions are captured in the step's own forward pass, which saves another one and calls nothing that is compiled
    or sharded in another way than in the step.
    """

    def __init__(self, model: VJEPA, config: TrainConfig, ctx: DistContext) -> None:
        """Store what is monitored.

        Args:
            model: whose features.
            config: the run.
            ctx: the run's processes, whose tokens are looked at together.
        """
        self.model, self.config, self.ctx = model, config, ctx
        self.predicted: Tensor | None = None
        self.hook: RemovableHandle | None = None

    def arm(self, modality: Modality) -> None:
        """Capture the next prediction of a modality; to be called before a step."""
        self.modality = modality
        self.hook = self.model.predictor.register_forward_hook(self._catch)

    def _catch(self, module: nn.Module, inputs: Any, outputs: list[tuple[Tensor, Tensor]]) -> None:
        masked: list[MaskedGrid] = inputs[1]
        found = (output for output, each in zip(outputs, masked, strict=True) if each.modality == self.modality)
        output = next(found, None)
        if self.hook is not None and output is not None:
            self.hook.remove()
            self.hook = None
            self.predicted = subsample_tokens(output[0].detach(), self.ctx.world_size)

    @torch.no_grad()
    def compute(self, batch: Batch) -> dict[str, float]:
        """Effective rank and channel spread of each level, all processes' tokens together; after the step.

        Args:
            batch: the step's first.
        """
        with autocast(self.config, self.ctx.device):
            levels = self.model.teacher(normalize(batch.pixels.to(self.ctx.device)))
        teacher_tokens = torch.cat([subsample_tokens(level, self.ctx.world_size).float() for level in levels], dim=-1)
        assert self.predicted is not None
        predicted, self.predicted = self.predicted.float(), None
        found: dict[str, float] = {}
        for who, tokens, width in (
            ("teacher", teacher_tokens, self.config.model.width),
            ("predictor", predicted, predicted_width(self.config.model)),
        ):
            parts = self.ctx.all_gather_cat(tokens).split(width, dim=-1)
            for level, part in enumerate(parts, start=1):
                prefix = level_prefix(who, level, len(parts))
                found |= {prefix + name: value for name, value in feature_metrics(part).items()}
        return found
