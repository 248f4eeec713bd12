"""Training a head on the pixels of some images and comparing its maps of others with the truth.

The functions are those of `tubelet.tasks`: an evaluation fits, predicts and scores in the same way.

H x W pixels of an image, S side of a window in pixels, N = h·w tokens of a window, D width, K outputs, n held-out
images.
"""

import heapq
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.config import EvaluateConfig
from tubelet.errors import BadFile, DataError
from tubelet.fitting.label_task import FitContext
from tubelet.fitting.pixel_inputs import PixelInputs, placed_features
from tubelet.fitting.pixel_objective import Map, PixelObjective
from tubelet.tasks.common.dense_heads import TrainedHead
from tubelet.tasks.common.extract import TokenFeatures
from tubelet.tasks.common.pixel_features import test_source
from tubelet.tasks.common.task import EvaluationContext
from tubelet.tasks.common.test_set import iter_test_set
from tubelet.tasks.segmentation import PROTOCOL, sliding_windows

MIN_STEPS = 300
"""Steps that heads are trained for at least: the epochs of the published protocols are few on small sets."""
FIGURES = 12
"""Held-out images that a report shows, the worst first."""


@dataclass(frozen=True, kw_only=True)
class PixelScores:
    """Statistics of held-out images, and the head of the last split.

    Attributes:
        statistics: (n, C) float64, of the images with pixels that count.
        rows: (n,) their rows in the table.
        worst: (row, predicted map, true map, data set) of the worst images, worst first.
        head: the head of the last split.
        dataset: the data set of the last split.
        without_truth: number of held-out images without a pixel that counts.
        bad_files: files that could not be read.
    """

    statistics: Tensor
    rows: NDArray[np.int64]
    worst: list[tuple[int, Map, Map, Any]]
    head: TrainedHead
    dataset: Any
    without_truth: int
    bad_files: list[BadFile]


def evaluation_context(
    context: FitContext, objective: PixelObjective, features: TokenFeatures | None = None
) -> EvaluationContext:
    """The fit as an evaluation, whose functions train and predict."""
    config, batch_size = context.config, context.config.batch_size or objective.protocol.batch_size
    images = min(len(train) for train, _ in context.splits)
    epochs = config.epochs
    if epochs is None and objective.protocol.schedule(images).steps < MIN_STEPS:
        epochs = math.ceil(MIN_STEPS * batch_size / images)
    return EvaluationContext(
        task=f"fit {context.task}",
        model=context.model,
        source=context.source,
        data=context.table.path,
        config=EvaluateConfig(
            epochs=epochs,
            batch_size=config.batch_size,
            learning_rates=config.learning_rates,
            weight_decays=config.weight_decays,
            seed=config.seed,
            workers=config.workers,
            prefetch_mb=config.prefetch_mb,
            max_failed_fraction=config.max_failed_fraction,
        ),
        cache=context.cache,
        progress=context.progress,
        features=features or placed_features(context.model, context.head_input.levels),
    )


def score_splits(
    context: FitContext, objective: PixelObjective, inputs: PixelInputs, features: TokenFeatures | None = None
) -> PixelScores:
    """Train a head on the training images of each split, and compare its maps of the held-out ones with the truth.

    Raises:
        TubeletError: if files cannot be read, or no held-out image has a pixel that counts.
    """
    scores: list[Tensor] = []
    rows: list[int] = []
    worst: list[tuple[float, int, Map, Map, Any]] = []
    bad: dict[str, BadFile] = {}
    without_truth = 0
    for number, (train, held_out) in enumerate(context.splits):
        evaluation = evaluation_context(context.in_fold(number), objective, features)
        samples, size = inputs.samples, inputs.size
        dataset = objective.dataset(context.table, samples, train)
        units = inputs.units[train]
        crops, head = objective.train(
            evaluation,
            dataset,
            [samples[row] for row in train],
            partial(select_units, units),
            size,
        )
        windows = evaluation.extract(
            [test_source(samples[row]) for row in held_out],
            {"transform": "segmentation windows", "size": size, "stride": PROTOCOL.stride},
            partial(sliding_windows, size=size),
        )
        bad |= {file.path: file for file in (*crops.features.bad_files, *windows.bad_files)}
        selected = [int(held_out[index]) for index in windows.indices]
        tests = iter_test_set(
            windows.paths, [samples[row] for row in selected], dataset.load_target, context.config.workers
        )
        for done, (row, (tokens, truth)) in enumerate(zip(selected, tests, strict=True), 1):
            shape = (truth.shape[0], truth.shape[1])
            predicted = objective.predict(tokens.to(context.model.device), head.head, dataset, size, shape)
            statistics = objective.statistics(predicted, truth, dataset)
            evaluation.progress("testing", done, len(selected))
            if statistics is None:
                without_truth += 1
                continue
            scores.append(statistics)
            rows.append(row)
            heapq.heappush(worst, (objective.severity(statistics), -row, predicted, truth, dataset))
            if len(worst) > FIGURES:
                heapq.heappop(worst)
    if not scores:
        raise DataError(
            f"{context.table.path}: no held-out image has a pixel that counts; check the masks or depth maps"
        )
    return PixelScores(
        statistics=torch.stack(scores),
        rows=np.array(rows, np.int64),
        worst=[(-row, *rest) for _, row, *rest in sorted(worst, key=lambda item: (-item[0], -item[1]))],
        head=head,
        dataset=dataset,
        without_truth=without_truth,
        bad_files=list(bad.values()),
    )


def select_units(units: NDArray[np.int64], selected: list[int]) -> list[int]:
    """The units of some images, for `PixelObjective.train` with the units of all of them bound."""
    return [int(units[index]) for index in selected]
