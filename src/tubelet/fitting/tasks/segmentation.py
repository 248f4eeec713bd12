"""A class for each pixel of images and video frames, from masks.

H x W pixels of an image, K classes, n held-out images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tubelet.datasets import DenseSample, SegmentationDataset
from tubelet.datasets.annotations import IGNORED
from tubelet.errors import DataError
from tubelet.fitting.label_task import FitContext, LabelTask
from tubelet.fitting.pixel_fit import fit_pixels
from tubelet.fitting.pixel_inputs import rows_by_name
from tubelet.fitting.pixel_objective import UNUSED, Map, PixelObjective, Progress, Rows, Trained
from tubelet.fitting.result import FitResult
from tubelet.heads.head_file import Head, MetricInterval
from tubelet.labels.masks import read_mask
from tubelet.labels.records import LabelRow, LabelTable
from tubelet.tasks import segmentation
from tubelet.tasks.common.colors import color_classes, color_errors, legend
from tubelet.tasks.common.task import EvaluationContext
from tubelet.tasks.metrics.intervals import bootstrap_interval, index_units, mean_defined, ratio, sum_by_unit

POSITIONS = 64
"""Side of the grid of positions of the baseline."""


@dataclass(frozen=True, kw_only=True)
class LabeledMasks(SegmentationDataset):
    """The masks of a label table.

    Attributes:
        rows: Name of a sample -> its row.
    """

    rows: Mapping[str, LabelRow]

    def read_values(self, sample: DenseSample) -> NDArray[np.uint8]:
        """(H, W) indices of a mask."""
        return read_mask(self.rows[sample.name])


def mask_classes(table: LabelTable) -> dict[int, str]:
    """Index in masks -> name of the class, ascending.

    Raises:
        DataError: if the table has fewer than two classes, or more than masks can have.
    """
    classes = {index: name for index, name in sorted(table.legend.items()) if index != IGNORED}
    if not 2 <= len(classes) < IGNORED:
        raise DataError(
            f"{table.path}: masks have {len(classes)} classes, expected from 2 to {IGNORED - 1}; list them in the "
            "legend"
        )
    return classes


def labeled_masks(table: LabelTable, samples: Sequence[DenseSample], train: Rows) -> LabeledMasks:
    """The data set that reads the masks of all samples."""
    classes = mask_classes(table)
    class_of_label = np.full(256, IGNORED, np.uint8)
    class_of_label[list(classes)] = np.arange(len(classes))
    valid = np.zeros(256, bool)
    valid[[*classes, IGNORED]] = True
    return LabeledMasks(
        name=table.path.name,
        train=[samples[row] for row in train],
        test=[],
        classes=tuple(classes.values()),
        class_of_label=class_of_label,
        known_labels=valid,
        rows=rows_by_name(table, samples),
    )


def _train(
    evaluation: EvaluationContext,
    masks: LabeledMasks,
    samples: list[DenseSample],
    units: Callable[[list[int]], list[int]],
    size: int,
) -> Trained:
    crops = segmentation.training_set(evaluation, masks, samples, size)
    return crops, segmentation.fit(evaluation, masks, crops, units(crops.features.indices))


def _predict(tokens: Tensor, head: nn.Module, masks: LabeledMasks, size: int, shape: tuple[int, int]) -> Map:
    return segmentation.predict(tokens, head, size, shape)


def statistics(predicted: Map, truth: Map, masks: LabeledMasks) -> Tensor | None:
    """(3·K,) pixels of each class that are right, that it has in truth, and that are predicted as it."""
    counts = segmentation.image_confusion(predicted, truth, len(masks.classes))
    if not int(counts.sum()):
        return None
    return torch.stack([counts.diagonal(), counts.sum(1), counts.sum(0)]).double().flatten()


def measure(values: Tensor, units: NDArray[np.int64]) -> tuple[MetricInterval, ...]:
    """The mIoU over the classes that occur, and pixel accuracy, of statistics (n, 3·K) and units (n,)."""
    index, count = index_units(units)
    sums = sum_by_unit(values.numpy(), index, count)

    def parts(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        return (weights @ sums).reshape(len(weights), 3, -1).swapaxes(0, 1)

    def mean_iou(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        hits, truth, predicted = parts(weights)
        # A class that does not occur is ignored, though predicting it costs those that do.
        return 100 * mean_defined(np.where(truth > 0, ratio(hits, truth + predicted - hits), np.nan))

    def accuracy(weights: NDArray[np.float64]) -> NDArray[np.float64]:
        hits, truth, _ = parts(weights)
        return 100 * ratio(hits.sum(-1), truth.sum(-1))

    return tuple(
        bootstrap_interval(name, statistic, count, bounds=(0.0, 100.0), unit="%")
        for name, statistic in (("mIoU", mean_iou), ("pixel accuracy", accuracy))
    )


def _severity(values: Tensor) -> float:
    hits, truth, predicted = values.view(3, -1)
    present = truth > 0
    return -float((hits[present] / (truth + predicted - hits)[present]).mean())


def fit_positions(
    masks: LabeledMasks, samples: Sequence[DenseSample], progress: Progress
) -> Callable[[tuple[int, int]], Map]:
    """The most frequent class at each position of the training masks; between equals, that of the whole set."""
    K = len(masks.classes)
    counts = np.zeros((K + 1, POSITIONS, POSITIONS))
    down, across = np.mgrid[0:POSITIONS, 0:POSITIONS]
    for done, sample in enumerate(samples, 1):
        mask = masks.load_target(sample)
        classes = mask[segmentation.nearest_pixels(mask.shape, (POSITIONS, POSITIONS))]
        counts[np.minimum(classes, K), down, across] += 1
        progress("positions", done, len(samples))
    counts = counts[:K]
    counts += counts.sum((1, 2), keepdims=True) / max(1.0, counts.sum())
    best = counts.argmax(0).astype(np.uint8)
    return lambda shape: best[segmentation.nearest_pixels((POSITIONS, POSITIONS), shape)]


def _draw(predicted: Map, truth: Map, masks: LabeledMasks) -> dict[str, NDArray[np.uint8]]:
    class_indices = tuple(range(len(masks.classes)))
    return {
        "truth": color_classes(truth, class_indices),
        "answer": color_classes(predicted, class_indices),
        "wrong in red": color_errors(predicted, truth, IGNORED),
    }


def _legend(masks: LabeledMasks) -> dict[str, tuple[int, int, int]]:
    return legend(masks.classes, tuple(range(len(masks.classes))))


def _options(masks: LabeledMasks) -> dict[str, Any]:
    return {"indices": np.flatnonzero(masks.class_of_label != IGNORED).tolist()}


OBJECTIVE = PixelObjective(
    network="pixels",
    protocol=segmentation.HEAD,
    constant="majority class by position",
    dataset=labeled_masks,
    train=_train,
    predict=_predict,
    statistics=statistics,
    measure=measure,
    severity=_severity,
    fit_constant=fit_positions,
    options=_options,
    draw=_draw,
    legend=_legend,
)


def fit(context: FitContext) -> tuple[Head, FitResult]:
    """Fit a head for the classes of pixels, and measure it.

    Raises:
        TubeletError: if files cannot be read, or there are too few of them.
    """
    classes = tuple(mask_classes(context.table).values())
    head, result = fit_pixels(context, OBJECTIVE, classes)
    return head, replace(result, counts={**result.counts, "classes": len(classes)})


LABEL_TASK = LabelTask(name="segmentation", fit=fit, networks=("pixels",), unused=UNUSED)
