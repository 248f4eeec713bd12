"""Fitting a head for the pixels of images and video frames, with its baselines and learning curve.

H x W pixels of an image, S side of a window in pixels, N = h·w tokens of a window, D width, K outputs, n held-out
images.
"""

from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tubelet.data.clips import resize_shape
from tubelet.datasets.records import DenseDataset
from tubelet.errors import ConfigError
from tubelet.fitting.label_task import FitContext
from tubelet.fitting.pixel_inputs import PixelInputs, patch_colors, placed_features, row_samples
from tubelet.fitting.pixel_objective import PixelObjective, Rows
from tubelet.fitting.pixel_scores import PixelScores, evaluation_context, score_splits, select_units
from tubelet.fitting.result import FitResult, LearningCurvePoint
from tubelet.heads.head_file import Head, HeadInput, HeadSpec, MetricInterval, ModelMetrics
from tubelet.labels.splits import row_units
from tubelet.pretrained.load import random_init_like
from tubelet.tasks.common.cache import FeatureCache
from tubelet.tasks.common.dense_heads import TrainedHead
from tubelet.tasks.common.extract import level_features
from tubelet.tasks.common.result import RANDOM_WEIGHTS
from tubelet.tasks.segmentation import nearest_pixels

OWN = "this head"
CURVE_FRACTIONS = (1 / 8, 1 / 4, 1 / 2)
"""Parts of the training labels that the learning curve is measured at, besides all of them."""
_FIGURE_SIDE = 320  # pixels
_ROUNDS = ("part 1 of 3, head", "part 2 of 3, baseline", "part 3 of 3, learning curve")


def fit_pixels(context: FitContext, objective: PixelObjective, classes: tuple[str, ...]) -> tuple[Head, FitResult]:
    """Fit a head, and measure it and its baselines on the same held-out images.

    Args:
        context: the fit.
        objective: the task.
        classes: names of the outputs.

    Raises:
        TubeletError: if files cannot be read, or there are too few of them.
    """
    if context.config.finetune != "none":
        raise ConfigError(
            f"finetune is {context.config.finetune!r}, but is not supported by {context.task}; remove it: the encoder "
            "stays as it is"
        )
    size = context.head_input.image_size
    if size % context.model.patch_size:
        raise ConfigError(
            f"image_size is {size}, which does not divide into patches of {context.model.patch_size}; take "
            f"{size // context.model.patch_size * context.model.patch_size or context.model.patch_size}"
        )
    inputs = PixelInputs(samples=row_samples(context.table), units=row_units(context.table), size=size)
    scores = score_splits(context.in_round(_ROUNDS[0]), objective, inputs)
    head_metrics = ModelMetrics(model=OWN, metrics=objective.measure(scores.statistics, inputs.units[scores.rows]))
    baselines = _baselines(context, objective, inputs)
    final, dataset = scores.head, scores.dataset
    if len(context.splits) > 1:  # measured by folds: the head in the file learns from all rows
        everything = np.arange(len(inputs.samples))
        dataset = objective.dataset(context.table, inputs.samples, everything)
        full_context = replace(context.in_round(f"{_ROUNDS[0]}, all images"), splits=[(everything, everything)])
        _, final = objective.train(
            evaluation_context(full_context, objective),
            dataset,
            inputs.samples,
            partial(select_units, inputs.units),
            size,
        )
    head = _head(context, objective, final, dataset, classes, (head_metrics, *baselines))
    result = FitResult(
        spec=head.spec,
        protocol=_protocol(context, scores, final, size),
        counts=_counts(context, scores, final),
        curve=_curve(context, objective, inputs, head_metrics),
        sweep=[
            {"network": objective.network, "lr": float(rate), "score": value} for rate, value in final.sweep.items()
        ],
        skipped=scores.bad_files,
        legend=objective.legend(dataset),
        figures={
            inputs.samples[row].name: {
                name: _shrink(image)
                for name, image in {
                    "image": inputs.samples[row].show_image(),
                    **objective.draw(predicted, truth, used),
                }.items()
            }
            for row, predicted, truth, used in scores.worst
        },
    )
    return head, result


def _baselines(context: FitContext, objective: PixelObjective, inputs: PixelInputs) -> list[ModelMetrics]:
    """The metrics of the baselines on the same held-out images."""
    baselines = [ModelMetrics(model=objective.constant, metrics=_measure_constant(context, objective, inputs))]
    random_model = random_init_like(context.model, context.config.seed)
    for name, model, features in (
        ("linear head on pixels", context.model, patch_colors(context.model.config.channels)),
        (RANDOM_WEIGHTS, random_model, placed_features(random_model, context.head_input.levels)),
    ):
        cache = context.cache if model is context.model else FeatureCache(context.cache.folder.parent, model)
        baseline = replace(context.in_round(f"{_ROUNDS[1]} {name}"), model=model, cache=cache)
        scores = score_splits(baseline, objective, inputs, features)
        metrics = objective.measure(scores.statistics, inputs.units[scores.rows])
        baselines.append(ModelMetrics(model=name, metrics=metrics))
    return baselines


def _measure_constant(
    context: FitContext, objective: PixelObjective, inputs: PixelInputs
) -> tuple[MetricInterval, ...]:
    """The metrics of the baseline that knows nothing but positions."""
    scores, rows = [], []
    for train, held_out in context.splits:
        dataset: DenseDataset = objective.dataset(context.table, inputs.samples, train)
        constant = objective.fit_constant(dataset, [inputs.samples[row] for row in train], context.progress)
        for row in held_out:
            truth = dataset.load_target(inputs.samples[row])  # type: ignore[attr-defined]
            statistics = objective.statistics(constant((truth.shape[0], truth.shape[1])), truth, dataset)
            if statistics is not None:
                scores.append(statistics)
                rows.append(row)
    return objective.measure(torch.stack(scores), inputs.units[np.array(rows)])


def _curve(
    context: FitContext, objective: PixelObjective, inputs: PixelInputs, full: ModelMetrics
) -> list[LearningCurvePoint]:
    """The first metric with a part of the training images, whole units of them."""
    points: list[LearningCurvePoint] = []
    trained = round(float(np.mean([len(train) for train, _ in context.splits])))
    for fraction in CURVE_FRACTIONS:
        splits = [(_part(train, inputs.units, fraction, context.config.seed), held) for train, held in context.splits]
        labels = round(float(np.mean([len(train) for train, _ in splits])))
        if min(len(train) for train, _ in splits) < 2 or labels in (trained, *(point.labels for point in points)):
            continue
        curve = replace(context, splits=splits).in_round(f"{_ROUNDS[2]} {fraction:.0%}")
        scores = score_splits(curve, objective, inputs)
        metric = objective.measure(scores.statistics, inputs.units[scores.rows])[0]
        points.append(LearningCurvePoint(labels=labels, metric=metric))
    return [*points, LearningCurvePoint(labels=trained, metric=full.metrics[0])]


def _part(train: Rows, units: NDArray[np.int64], fraction: float, seed: int) -> Rows:
    """About a fraction of the training rows: whole units in an order that the seed gives."""
    order = np.random.default_rng(seed).permutation(np.unique(units[train]))
    sizes = np.array([np.count_nonzero(units[train] == unit) for unit in order])
    count = int(np.searchsorted(np.cumsum(sizes), fraction * len(train))) + 1
    return train[np.isin(units[train], order[:count])]


def _head(
    context: FitContext,
    objective: PixelObjective,
    trained: TrainedHead,
    dataset: Any,
    classes: tuple[str, ...],
    scores: tuple[ModelMetrics, ...],
) -> Head:
    spec = HeadSpec(
        task=context.task,
        network=objective.network,
        options=objective.options(dataset),
        width=level_features(context.model, context.head_input.levels).width,
        classes=classes,
        input=pixel_input(context),
        encoder=context.encoder,
        labels_file=context.table.path.name,
        labels_digest=context.table.digest,
        labels_rows=len(context.table.rows),
        scores=scores,
        version=version("tubelet"),
    )
    head = Head(spec)
    assert isinstance(head.network.linear, nn.Linear) and isinstance(trained.head, nn.Linear)
    head.network.linear.load_state_dict(trained.head.cpu().state_dict())
    return head.requires_grad_(False).eval()


def pixel_input(context: FitContext) -> HeadInput:
    """The input of a head on pixels: single frames, one in each time step of a video, and all of their tokens."""
    head_input = context.head_input
    stride_s = context.config.stride_s or context.model.config.tubelet_size / head_input.fps
    return replace(head_input, frames=1, stride_s=stride_s, cells=0)


def _protocol(context: FitContext, scores: PixelScores, head: TrainedHead, size: int) -> str:
    folds = len(context.splits)
    fitted, choosing = head.images
    measured = (
        f"Measured by cross-validation in {folds} folds of whole files and groups; the head in the file is trained on "
        "all rows"
        if folds > 1
        else "Measured on files and groups that neither the training nor any choice has seen"
    )
    return (
        f"A linear head on each token of a frozen encoder, levels {', '.join(map(str, context.head_input.levels))}, "
        f"trained for {head.steps} steps on points of {fitted} images; the learning rate of {len(head.sweep)} is "
        f"chosen on {choosing} other training images. Images are seen in windows of {size} px, their short side at "
        f"{size} px, and compared at their own size. {measured}."
    )


def _counts(context: FitContext, scores: PixelScores, head: TrainedHead) -> dict[str, int]:
    counts = {
        "labeled rows": len(context.table.rows),
        "files": len({row.path for row in context.table.rows}),
        "held-out images": len(scores.statistics),
        "folds": len(context.splits),
        "steps": head.steps,
    }
    return counts | (
        {"held-out images without a pixel that counts": scores.without_truth} if scores.without_truth else {}
    )


def _shrink(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image (H, W, 3) with a long side of at most 320 pixels, every pixel one of the original's."""
    height, width = image.shape[:2]
    if max(height, width) <= _FIGURE_SIDE:
        return image
    short = round(min(height, width) * _FIGURE_SIDE / max(height, width))
    return image[nearest_pixels((height, width), resize_shape(height, width, max(1, short)))]
