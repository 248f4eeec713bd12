"""Semantic segmentation by a linear head on the last level: ADE20K, Pascal VOC, Cityscapes, the sample set.

H x W pixels of an image, S side of a window in pixels, N = h·w tokens of a window, D width, K classes.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tubelet.data.clips import resize, resize_shape
from tubelet.datasets import DenseSample, SegmentationDataset
from tubelet.datasets.annotations import IGNORED
from tubelet.device import accumulation_dtype
from tubelet.errors import ConfigError, DataError
from tubelet.heads.linear import linear_head
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.colors import color_classes, color_errors, legend
from tubelet.tasks.common.dense_heads import HeadProtocol, TrainedHead, train_dense_heads
from tubelet.tasks.common.extract import FeatureSet, Source, subsample_evenly
from tubelet.tasks.common.pixel_features import (
    POINTS_PER_STEP,
    Crop,
    Draw,
    PixelFeatureDataset,
    extract_training_set,
    source_image,
    test_source,
)
from tubelet.tasks.common.result import Example, Metric, Result
from tubelet.tasks.common.task import EvaluationContext, Task
from tubelet.tasks.common.test_set import iter_test_set
from tubelet.tasks.metrics.dense import accuracy, confusion, iou_by_class, mean_iou

_EXAMPLES = 12
_CLASSES_AT_ONCE = 16  # brought to an image's full size together


# The default of DINOv3's release is 1e-3. Higher ones are for small sets, on which there are fewer iterations.
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
HEAD = HeadProtocol(iterations=40_000, epochs=32, learning_rates=RATES, weight_decay=1e-3, dropout=0.1)


@dataclass(frozen=True, kw_only=True)
class SegmentationProtocol:
    """After DINOv3's linear protocol (Siméoni et al. 2025).

    Window, stride, iterations, batch, dropout and gradient norm are the defaults of its release's settings
    (dinov3/eval/segmentation/config.py). Its files for single benchmarks were not at hand: warm-up and weight decay
    (the default is 0.01) are those of others who follow them.

    Attributes:
        image_size: pixels that the short side of an image gets; also the side of windows and of training crops.
        stride: distance of windows at test time, as a fraction of their side.
        scale: range of the scale of training crops beyond each image's first.
        head: how the head is trained.
    """

    image_size: int = 512
    stride: float = 341 / 512
    scale: tuple[float, float] = (1.0, 2.0)
    head: HeadProtocol = HEAD


PROTOCOL = SegmentationProtocol()


def evaluate(context: EvaluationContext) -> Result:
    """Train a head on the features of the train split and score it on the test split at the images' own size.

    Raises:
        TubeletError: if the image size does not divide into patches, or a file of the data set is wrong.
    """
    labels: SegmentationDataset = context.dataset
    config = context.config
    size = _size(context.model, context.dense_size(labels.image_size or PROTOCOL.image_size))
    crops = training_set(context, labels, subsample_evenly(labels.train, config.max_samples), size)
    head = fit(context, labels, crops)
    test = subsample_evenly(labels.test, config.max_samples)
    recipe = {"transform": "segmentation windows", "size": size, "stride": PROTOCOL.stride}
    windows = context.extract([test_source(p) for p in test], recipe, partial(sliding_windows, size=size))
    predictions = score(context, labels, head, windows, [test[number] for number in windows.indices], size)
    return _result(context, labels, head, predictions, crops, windows, size)


def fit(
    context: EvaluationContext,
    labels: SegmentationDataset,
    crops: PixelFeatureDataset,
    units: Sequence[int] | None = None,
) -> TrainedHead:
    """Train a head on points of the training images; see `train_dense_heads` for the units."""
    return train_dense_heads(
        context,
        crops,
        partial(linear_head, context.token_features.width, len(labels.classes)),
        PROTOCOL.head.with_settings(context.config),
        sum_of_losses,
        accumulate,
        held_out_scores,
        units,
    )


def training_set(
    context: EvaluationContext, labels: SegmentationDataset, samples: list[DenseSample], size: int
) -> PixelFeatureDataset:
    """Features and classes of points of the training images, in crops of `size` pixels along a side."""
    recipe = {"transform": "segmentation crops", "size": size, "scale": PROTOCOL.scale}
    choose = partial(choose_crop, scale=PROTOCOL.scale)
    table = {"table": labels.class_of_label.tolist()}
    return extract_training_set(context, samples, choose, (size, size), recipe, labels.load_target, IGNORED, table)


def _size(model: Backbone, size: int) -> int:
    if size % model.patch_size:
        raise ConfigError(
            f"image_size is {size}, which does not divide into patches of {model.patch_size}; take "
            f"{size // model.patch_size * model.patch_size or model.patch_size}"
        )
    return size


def choose_crop(shape: tuple[int, int], draw: Draw, first: bool, scale: tuple[float, float]) -> Crop:
    """A square of an image of (H, W) pixels: as high as its short side, or smaller by a scale if not the first."""
    short = min(shape)
    side = short if first else max(1, round(short / (scale[0] + draw.scale * (scale[1] - scale[0]))))
    top, left = (round(u * (length - side)) for u, length in zip((draw.down, draw.across), shape, strict=True))
    return Crop(top, left, side, side, draw.mirror < 0.5)


def window_starts(length: int, size: int) -> list[int]:
    """First pixels of the windows along a side: every stride; the last window ends with the image."""
    stride = max(1, round(PROTOCOL.stride * size))
    return sorted({min(start, length - size) for start in range(0, max(1, length - size + stride), stride)})


def sliding_windows(source: Source, size: int) -> Tensor:
    """The windows of an image whose short side becomes `size`, row by row: (V, C, 1, size, size).

    Raises:
        DecodeError: if the image cannot be read.
    """
    return image_windows(torch.from_numpy(source_image(source)), size)


def image_windows(image: Tensor, size: int) -> Tensor:
    """The windows of an image (H, W, C) whose short side becomes `size`, row by row: (V, C, 1, size, size)."""
    height, width = resize_shape(image.shape[0], image.shape[1], size)
    resized = resize(image.unsqueeze(0), height, width)
    return torch.stack(
        [
            resized[:, :, top : top + size, left : left + size]
            for top in window_starts(height, size)
            for left in window_starts(width, size)
        ]
    )


def sum_of_losses(outputs: Tensor, values: Tensor) -> Tensor:
    """Mean cross-entropy over rows not ignored, summed over the heads: (R, S, K) and (R,) uint8 -> scalar."""
    R, S, K = outputs.shape
    valid = values != IGNORED
    targets = values.long().unsqueeze(1).expand(R, S).flatten()
    total = F.cross_entropy(outputs.view(R * S, K), targets, ignore_index=IGNORED, reduction="sum")
    return total / valid.sum().clamp(min=1)


def accumulate(outputs: Tensor, values: Tensor) -> Tensor:
    """(S, 2): each head's sum of cross-entropies, and the number of rows."""
    valid = values != IGNORED
    targets = values[valid].long()
    wide = accumulation_dtype(outputs.device)
    sums = [F.cross_entropy(outputs[valid, s].to(wide), targets, reduction="sum") for s in range(outputs.shape[1])]
    return torch.stack([torch.stack(sums), valid.sum().to(wide).expand(len(sums))], dim=1)


def held_out_scores(sums: Tensor) -> list[float]:
    """(S, 2) of `accumulate` -> the negative mean cross-entropy of each head."""
    if not int(sums[0, 1]):
        raise DataError("no held-out training image has a labeled pixel; check the annotations")
    return (-sums[:, 0] / sums[:, 1]).tolist()


@torch.no_grad()
def predict(tokens: Tensor, head: nn.Module, size: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The class of each pixel: windows' scores are averaged where they overlap, then brought to the image's size.

    Args:
        tokens: (V, N, D) of `sliding_windows`.
        head: (..., D) -> (..., K).
        size: S.
        shape: (H, W) of the image.
    """
    side = round(tokens.shape[1] ** 0.5)
    total = merge_windows(head(tokens.float()).mT.unflatten(2, (side, side)), size, shape)
    best = torch.full(shape, -torch.inf, device=tokens.device)
    classes = torch.zeros(shape, dtype=torch.uint8, device=tokens.device)
    # Some classes at a time: all of them at the full size of a large image take gigabytes.
    for first in range(0, len(total), _CLASSES_AT_ONCE):
        value, index = _to_size(total[first : first + _CLASSES_AT_ONCE], shape).max(0)
        better = value > best
        best = torch.where(better, value, best)
        classes = torch.where(better, (index + first).to(torch.uint8), classes)
    return classes.cpu().numpy()


def merge_windows(maps: Tensor, size: int, shape: tuple[int, int]) -> Tensor:
    """The maps of an image's windows as one map of the image, averaged where windows overlap.

    Args:
        maps: (V, C, h, w) of `sliding_windows`, at any resolution.
        size: S.
        shape: (H, W) of the image.

    Returns:
        (C, H', W'), of which the short side is `size`.
    """
    height, width = resize_shape(*shape, size)
    total = torch.zeros(maps.shape[1], height, width, device=maps.device)
    count = torch.zeros(height, width, device=maps.device)
    origins = [(top, left) for top in window_starts(height, size) for left in window_starts(width, size)]
    for (top, left), window in zip(origins, maps, strict=True):
        rows, columns = slice(top, top + size), slice(left, left + size)
        total[:, rows, columns] += _to_size(window, (size, size))
        count[rows, columns] += 1
    return total.div_(count)


def nearest_pixels(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices of the nearest pixels of a map of shape (H, W) for one of another size."""
    rows = ((np.arange(size[0]) + 0.5) * shape[0] / size[0]).astype(np.int64)
    columns = ((np.arange(size[1]) + 0.5) * shape[1] / size[1]).astype(np.int64)
    return rows[:, None], columns[None, :]


def _to_size(scores: Tensor, shape: tuple[int, int]) -> Tensor:
    return F.interpolate(scores.unsqueeze(0), shape, mode="bilinear", align_corners=False)[0]


@dataclass(frozen=True)
class SegmentationScores:
    """Predictions for the test split.

    Attributes:
        counts: (K, K) int64 pixels, truth by prediction.
        shown: the classes that the examples show.
        examples: the images of the lowest mIoU.
    """

    counts: Tensor
    shown: tuple[int, ...]
    examples: list[Example]


def score(
    context: EvaluationContext,
    labels: SegmentationDataset,
    trained: TrainedHead,
    windows: FeatureSet,
    samples: list[DenseSample],
    size: int,
) -> SegmentationScores:
    """Predict the test split, and compare with the annotations.

    Raises:
        TubeletError: if an annotation cannot be read, or none has a labeled pixel.
    """
    K = len(labels.classes)
    counts = torch.zeros(K, K, dtype=torch.int64)
    worst: list[tuple[float, int, NDArray[np.uint8], NDArray[Any]]] = []
    for number, (predicted, truth) in enumerate(iter_predictions(context, labels, trained, windows, samples, size)):
        confusion = image_confusion(predicted, truth, K)
        counts += confusion
        if int(confusion.sum()):
            heapq.heappush(worst, (-mean_iou(confusion), number, predicted, truth))
            if len(worst) > _EXAMPLES:
                heapq.heappop(worst)
    if not int(counts.sum()):
        raise DataError("no pixel of the test split is labeled; check the annotations")
    ranked = sorted(worst, key=lambda item: (-item[0], item[1]))
    class_indices = tuple(
        sorted({int(k) for _, _, *maps in ranked for one in maps for k in np.unique(one)} - {IGNORED})
    )
    examples = [
        _example(samples[n], -value, predicted, truth, labels, class_indices) for value, n, predicted, truth in ranked
    ]
    return SegmentationScores(counts, class_indices, examples)


def iter_predictions(
    context: EvaluationContext,
    labels: SegmentationDataset,
    trained: TrainedHead,
    windows: FeatureSet,
    samples: list[DenseSample],
    size: int,
) -> Iterator[tuple[NDArray[np.uint8], NDArray[Any]]]:
    """The predicted and the true class (H, W) of each pixel, of one image after the other.

    Raises:
        TubeletError: if an annotation cannot be read.
    """
    tests = iter_test_set(windows.paths, samples, labels.load_target, context.config.workers)
    for number, (tokens, truth) in enumerate(tests):
        shape = (truth.shape[0], truth.shape[1])
        yield predict(tokens.to(context.model.device), trained.head, size, shape), truth
        context.progress("testing", number + 1, len(samples))


def image_confusion(predicted: NDArray[np.uint8], truth: NDArray[Any], classes: int) -> Tensor:
    """(K, K) int64 pixels of an image, truth by prediction, without those that are ignored."""
    valid = truth != IGNORED
    return confusion(_indices(predicted[valid]), _indices(truth[valid]), classes)


def _indices(classes: NDArray[Any]) -> Tensor:
    return torch.from_numpy(classes.astype(np.int64))


def _example(
    pair: DenseSample,
    score: float,
    predicted: NDArray[np.uint8],
    truth: NDArray[Any],
    labels: SegmentationDataset,
    class_indices: tuple[int, ...],
) -> Example:
    present = [labels.classes[k] for k in np.unique(truth[truth != IGNORED])]
    return Example(
        name=pair.name,
        score=100 * score,
        images={
            "image": pair.show_image(),
            "truth": color_classes(truth, class_indices),
            "prediction": color_classes(predicted, class_indices),
            "wrong in red": color_errors(predicted, truth, IGNORED),
        },
        note=f"holds {', '.join(present[:6])}" + (f" and {len(present) - 6} more" if len(present) > 6 else ""),
    )


def _result(
    context: EvaluationContext,
    labels: SegmentationDataset,
    head: TrainedHead,
    scores: SegmentationScores,
    crops: PixelFeatureDataset,
    windows: FeatureSet,
    size: int,
) -> Result:
    by_class, truth = iou_by_class(scores.counts), scores.counts.sum(1)
    if len(by_class) < 2:
        raise DataError(
            f"{context.data}: all labeled pixels of the test split are of one class, which makes every metric "
            f"meaningless; check that the label values are those of {labels.name}"
        )
    fitted, held_out = head.images
    fixed = "1 fixed crop" if crops.crops == 1 else f"{crops.crops} fixed crops"
    return context.result(
        benchmark=labels.name,
        protocol=(
            f"After DINOv3's linear protocol (Siméoni et al. 2025): a 1x1 convolution, last level, "
            f"images at {size} px, windows of {size} px at test time, scores at the images' full size. "
            "Other than there: channels are decorrelated, not batch-normed, which is as linear; "
            f"features are kept, so that each training image is seen in {fixed} instead of ever new ones and without "
            f"changes of color; the loss is of {POINTS_PER_STEP} pixels of a crop, drawn anew each time; the head took "
            f"{head.steps} iterations; the learning rate is chosen on {held_out} training images that no head is "
            "trained on."
        ),
        metrics={
            "mIoU": Metric(value=100 * mean_iou(scores.counts), unit="%"),
            "pixel accuracy": Metric(value=100 * accuracy(scores.counts), unit="%"),
        },
        counts={
            "training images": fitted,
            "held-out images": held_out,
            "test images": len(windows),
            "classes in the test split": len(by_class),
        }
        | dict(labels.excluded),
        skipped=[*crops.features.bad_files, *windows.bad_files],
        details={
            "IoU by class": {labels.classes[k]: 100 * value for k, value in by_class.items()},
            "share of the test split's pixels": {labels.classes[k]: int(truth[k]) / int(truth.sum()) for k in by_class},
            "learning rates": {
                "chosen": head.learning_rate,
                "cross-entropy on held-out images": {rate: value and -value for rate, value in head.sweep.items()},
            },
            "iterations": head.steps,
        },
        examples=scores.examples,
        legend=legend(labels.classes, scores.shown),
    )


TASK = Task(
    name="segmentation",
    evaluate=evaluate,
    dataset=SegmentationDataset,
    metric="mIoU",
    head=nn.Linear,
    unused=("frames",),
)
