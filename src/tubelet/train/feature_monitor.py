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
    """A collapse detector for the feature metrics of a model."""
    return CollapseDetector(config.width, predicted_width(config))


class FeatureMonitor:
    """Measures every level of the teacher on a batch, and the predictions under its first mask.

    Predictions are captured by a hook in the forward pass of the step: a second pass would cost time, and would run
    compiled or sharded modules in another way than the step does.
    """

    def __init__(self, model: VJEPA, config: TrainConfig, ctx: DistContext) -> None:
        """Store what is monitored.

        Args:
            model: student, predictor and teacher.
            config: the run.
            ctx: the processes of the run; the metrics are over the tokens of all of them.
        """
        self.model, self.config, self.ctx = model, config, ctx
        self.predicted: Tensor | None = None
        self.hook: RemovableHandle | None = None
        self.executor = ThreadPoolExecutor(1, thread_name_prefix="features")  # starts its thread when it is needed

    def arm(self, modality: Modality) -> None:
        """Capture the next prediction for a modality; call this before a step."""
        self.modality = modality
        self.hook = self.model.predictor.register_forward_hook(self._capture)

    def _capture(self, module: nn.Module, inputs: Any, outputs: list[tuple[Tensor, Tensor]]) -> None:
        masked: list[MaskedGrid] = inputs[1]
        matching = (output for output, each in zip(outputs, masked, strict=True) if each.modality == self.modality)
        output = next(matching, None)
        if self.hook is not None and output is not None:
            self.hook.remove()
            self.hook = None
            self.predicted = subsample_tokens(output[0].detach(), self.ctx.world_size)

    def close(self) -> None:
        """Cancel pending computations, without waiting: after an error the device may never complete."""
        self.executor.shutdown(wait=False, cancel_futures=True)

    def compute(self, batch: Batch) -> dict[str, float | Callable[[], float]]:
        """Effective rank and channel spread of each level, all processes' tokens together; after the step.

        The device computes second moments, and the host their eigenvalues: on CUDA those would occupy the stream for
        longer than a step (they are computed in a thread), and MPS does not support them. Rank 0, which writes the
        metrics, computes them; on other ranks they are nan.

        Args:
            batch: a batch of the captured modality.

        Returns:
            metric name -> value, or a function that waits for the value.
        """
        moments, shapes = self.second_moments(batch)
        names = [
            level_prefix(network, level, shape[0]) + name
            for network, shape in zip(("teacher", "predictor"), shapes, strict=True)
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
        """Second moments of the features of all processes, on the device, without synchronization.

        Args:
            batch: a batch of the captured modality.

        Returns:
            a vector: the numbers of tokens of teacher and predictor, then for each level of both the (D, D) products
            of centered channels, summed over tokens; and the shapes (L, D) of teacher and predictor.
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
