"""Effective rank and channel spread of a step's features: each level of the teacher, and its predictions."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from math import nan
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tubelet.config import ModelConfig, TrainConfig
from tubelet.data.batch import Batch
from tubelet.data.clips import normalize
from tubelet.grid import MaskedGrid, Modality
from tubelet.train.collapse import FEATURE_METRICS, CollapseDetector, feature_metrics, level_prefix, subsample_tokens
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
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="features")  # starts its thread when it is needed

    def arm(self, modality: Modality) -> None:
        """Capture the next prediction of a modality; to be called before a step."""
        self.modality = modality
        self.hook = self.model.predictor.register_forward_hook(self._catch)

    def _catch(self, module: nn.Module, inputs: Any, outputs: list[tuple[Tensor, Tensor]]) -> None:
        masked: list[MaskedGrid] = inputs[1]
        matching = (output for output, each in zip(outputs, masked, strict=True) if each.modality == self.modality)
        output = next(matching, None)
        if self.hook is not None and output is not None:
            self.hook.remove()
            self.hook = None
            self.predicted = subsample_tokens(output[0].detach(), self.ctx.world_size)

    def close(self) -> None:
        """Begin nothing more; without waiting, since after an error a device may never come to what is waited for."""
        self.executor.shutdown(wait=False, cancel_futures=True)

    def compute(self, batch: Batch) -> dict[str, float | Callable[[], float]]:
        """Effective rank and channel spread of each level, all processes' tokens together; after the step.

        The device only multiplies and adds. Eigenvalues are the host's work, in a thread where the device is a CUDA
        device: there they would take the stream longer than a step does, and on MPS they do not exist. The first
        process computes them, since it writes the metrics; on the others they are nan.

        Args:
            batch: of the modality that was captured.

        Returns:
            by the metrics' names, their values, or functions that wait for them.
        """
        moments, shapes = self.second_moments(batch)
        names = [
            level_prefix(who, level, shape[0]) + name
            for who, shape in zip(("teacher", "predictor"), shapes, strict=True)
            for level in range(1, shape[0] + 1)
            for name in FEATURE_METRICS
        ]
        if not self.ctx.is_rank0:
            return dict.fromkeys(names, nan)
        if self.ctx.device.type != "cuda":
            return dict(zip(names, _measure(moments.cpu(), shapes), strict=True))
        copy = torch.empty(moments.shape, pin_memory=True).copy_(moments, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        values = self.executor.submit(_measure, copy, shapes, copied)
        return {name: partial(_value, values, index) for index, name in enumerate(names)}

    @torch.no_grad()
    def second_moments(self, batch: Batch) -> tuple[Tensor, list[tuple[int, int]]]:
        """What the metrics are computed from, of all processes, on the device; nothing waits for it.

        Args:
            batch: of the modality that was captured.

        Returns:
            one vector: the numbers of the teacher's and the predictor's tokens, then of each level of both the (D, D)
            products of centered channels, summed over tokens. And (L, D) of both.
        """
        with autocast(self.config, self.ctx.device):
            pixels = batch.pixels.to(self.ctx.device, non_blocking=True)
            levels = self.model.teacher(normalize(pixels, self.config.model.pixels))
        teacher = torch.cat([subsample_tokens(level, self.ctx.world_size).float() for level in levels], dim=-1)
        assert self.predicted is not None
        predicted, self.predicted = self.predicted.float(), None
        widths = (self.config.model.width, predicted_width(self.config.model))
        shapes = [(x.shape[1] // width, width) for x, width in zip((teacher, predicted), widths, strict=True)]
        counts = torch.stack([torch.full((), float(len(x)), device=x.device) for x in (teacher, predicted)])
        sums = torch.cat([counts, teacher.sum(0), predicted.sum(0)])
        self.ctx.all_reduce(sums)
        counts, *totals = sums.split([2, teacher.shape[1], predicted.shape[1]])
        products = []
        for x, total, count, (levels_of, width) in zip((teacher, predicted), totals, counts, shapes, strict=True):
            centered = (x - total / count).view(-1, levels_of, width).transpose(0, 1)  # (L, K, D)
            products.append((centered.mT @ centered).flatten())
        flat = torch.cat(products)
        self.ctx.all_reduce(flat)
        return torch.cat([counts, flat]), shapes


def _measure(moments: Tensor, shapes: list[tuple[int, int]], copied: torch.cuda.Event | None = None) -> list[float]:
    """The metrics of each level of teacher and predictor, from `FeatureMonitor.second_moments` in host memory."""
    if copied is not None:
        copied.synchronize()
    counts, *products = moments.split([2, *(levels * width * width for levels, width in shapes)])
    return [
        value
        for count, product, (levels, width) in zip(counts.tolist(), products, shapes, strict=True)
        for level in product.view(levels, width, width)
        for value in feature_metrics(level, count)
    ]


def _value(values: Future[list[float]], index: int) -> float:
    return values.result()[index]
