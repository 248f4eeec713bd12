"""Fitting heads for the pixels of images and of video frames: what segmentation and depth share.

The functions are those of `tubelet.tasks`: an evaluation fits, predicts and scores in the same way.

H x W pixels of an image, S side of a window in pixels, N = h·w tokens of a window, D width, K outputs, n held-out
images.
"""

import heapq
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tubelet.config import EvaluateConfig
from tubelet.data.clips import resize_shape
from tubelet.datasets import DenseSample
from tubelet.datasets.records import DenseDataset
from tubelet.errors import BadFile, ConfigError, DataError
from tubelet.fitting.label_task import FitContext
from tubelet.fitting.result import FitResult, LearningCurvePoint
from tubelet.heads.head_file import Head, HeadInput, HeadSpec, MetricInterval, ModelMetrics
from tubelet.heads.positions import POSITION_CHANNELS, append_positions
from tubelet.labels.records import LabelError, LabelRow, LabelTable
from tubelet.labels.splits import row_units
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.load import random_init_like
from tubelet.tasks.common.cache import FeatureCache
from tubelet.tasks.common.dense_heads import HeadProtocol, TrainedHead
from tubelet.tasks.common.extract import Encode, TokenFeatures, level_features
from tubelet.tasks.common.pixel_features import PixelFeatureDataset, test_source
from tubelet.tasks.common.task import EvaluationContext
from tubelet.tasks.common.test_set import iter_test_set
from tubelet.tasks.segmentation import PROTOCOL, nearest_pixels, sliding_windows

OWN = "this head"
UNUSED = ("networks", "frames", "suggest", "causal")
"""Settings that have no meaning for pixels."""
MIN_STEPS = 300
"""Steps that heads are trained for at least: the epochs of the published protocols are few on small sets."""
CURVE_FRACTIONS = (1 / 8, 1 / 4, 1 / 2)
"""Parts of the training labels that the learning curve is measured at, besides all of them."""
FIGURES = 12
"""Held-out images that a report shows, the worst first."""
_FIGURE_SIDE = 320  # pixels
_PATCH_CELLS = 4  # along a side of a patch, of the baseline that sees colors

Map = NDArray[Any]
"""(H, W) classes or depths of an image."""
Progress = Callable[[str, int, int], None]


Rows = NDArray[np.int64]
"""(rows,) indices of rows of a table."""


_ROUNDS = ("part 1 of 3, head", "part 2 of 3, baseline", "part 3 of 3, learning curve")


@dataclass(frozen=True, kw_only=True)
class PixelObjective:
    """The differences between the tasks on pixels.

    Attributes:
        network: name of the network of the head file.
        protocol: how heads are trained.
        constant: name of the baseline that knows nothing but positions.
        dataset: a table, all samples and those to train on, to a data set that reads their targets.
        train: an evaluation, a data set, training samples, the unit of each readable one as a function of their
            indices, and S: trains a head.
        predict: tokens (V, N, D), head, data set, S and (H, W), to a map.
        statistics: a map, the true map and the data set, to (C,) float64 numbers that metrics are computed from; None
            for an image without a pixel that counts.
        measure: statistics (n, C) and units (n,) to metrics.
        severity: statistics (C,) of an image to a number, higher for a worse image.
        fit_constant: a data set and training samples to a function of (H, W) that gives the baseline's map.
        options: a data set to keyword arguments of the network.
        draw: maps of an image and the data set to colored images by name.
        legend: a data set to the color of each class in these images.
    """

    network: str
    protocol: HeadProtocol
    constant: str
    dataset: Callable[[LabelTable, Sequence[DenseSample], Rows], Any]
    train: Callable[[EvaluationContext, Any, list[DenseSample], Callable[[list[int]], list[int]], int], "Trained"]
    predict: Callable[[Tensor, nn.Module, Any, int, tuple[int, int]], Map]
    statistics: Callable[[Map, Map, Any], Tensor | None]
    measure: Callable[[Tensor, NDArray[np.int64]], tuple[MetricInterval, ...]]
    severity: Callable[[Tensor], float]
    fit_constant: Callable[[Any, Sequence[DenseSample], Progress], Callable[[tuple[int, int]], Map]]
    options: Callable[[Any], dict[str, Any]]
    draw: Callable[[Map, Map, Any], dict[str, NDArray[np.uint8]]]
    legend: Callable[[Any], dict[str, tuple[int, int, int]]] = lambda dataset: {}


Trained = tuple[PixelFeatureDataset, TrainedHead]
"""Points of training images, and the head that was trained on them."""


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


@dataclass(frozen=True, kw_only=True)
class PixelInputs:
    """The images of a label table.

    Attributes:
        samples: the image or video frame of each row.
        units: (rows,) images of one unit are never on both sides of a split.
        size: S.
    """

    samples: list[DenseSample]
    units: NDArray[np.int64]
    size: int


def row_samples(table: LabelTable) -> list[DenseSample]:
    """The image or video frame of each row, under names that are unique.

    Raises:
        LabelError: if a row of a video has no time.
    """
    faults = [
        f"{table.row_kind} {row.line}: {row.path.name} is a video, but the row has no start_s; add the time of the "
        "frame that it is about"
        for row in table.rows
        if _is_video(row, table) and row.start_s is None
    ]
    if faults:
        raise LabelError(table.path, faults)
    names: Counter[str] = Counter()
    samples = []
    for row in table.rows:
        inside = row.path.is_relative_to(table.path.parent)
        name = row.path.relative_to(table.path.parent).as_posix() if inside else row.path.name
        time_s = row.start_s if _is_video(row, table) else None
        if row.page is not None:  # also where the rate of a stack is not known
            name = f"{name}, frame {row.page}"
        elif time_s is not None:
            name = f"{name} at {time_s:g} s"
        names[name] += 1
        name = name if names[name] == 1 else f"{name}, {table.row_kind} {row.line}"
        targets = [path for path in (row.mask, row.depth) if isinstance(path, Path)]
        target = targets[0] if targets else table.path  # where masks are shapes
        samples.append(DenseSample(name=name, image=row.path, target=target, time_s=time_s))
    return samples


def _is_video(row: LabelRow, table: LabelTable) -> bool:
    return table.durations_s.get(row.path, 0.0) > 0


def rows_by_name(table: LabelTable, samples: Sequence[DenseSample]) -> dict[str, LabelRow]:
    """Name of a sample -> its row."""
    return {sample.name: row for sample, row in zip(samples, table.rows, strict=True)}


def placed_features(model: Backbone, levels: Sequence[int]) -> TokenFeatures:
    """What heads see of a token: the levels of an encoder, and the position in the window."""
    features = level_features(model, levels)
    return TokenFeatures(
        width=features.width + POSITION_CHANNELS,
        encode=partial(_encode_placed, encode=features.encode),
        recipe={**features.recipe, "positions": True},
    )


def _encode_placed(model: Backbone, pixels: Tensor, encode: Encode) -> dict[str, Tensor]:
    return {"tokens": append_positions(encode(model, pixels)["tokens"])}


def patch_colors(channels: int) -> TokenFeatures:
    """What the baseline sees of a patch: its colors in 4 x 4 cells, and its position in the window."""
    return TokenFeatures(
        width=channels * _PATCH_CELLS**2 + POSITION_CHANNELS,
        encode=_encode_colors,
        recipe={"features": "patch colors"},
    )


def _encode_colors(model: Backbone, pixels: Tensor) -> dict[str, Tensor]:
    _, _, _, height, width = pixels.shape
    h, w = height // model.patch_size, width // model.patch_size
    cells = F.adaptive_avg_pool2d(pixels[:, :, 0].float(), (h * _PATCH_CELLS, w * _PATCH_CELLS))
    return {"tokens": append_positions(F.pixel_unshuffle(cells, _PATCH_CELLS).flatten(2).mT)}


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
            partial(_select, units),
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


def _select(units: NDArray[np.int64], selected: list[int]) -> list[int]:
    return [int(units[index]) for index in selected]


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
            partial(_select, inputs.units),
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
        ("random weights", random_model, placed_features(random_model, context.head_input.levels)),
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
