"""Semantic segmentation by a linear head on the last level: ADE20K, Pascal VOC, Cityscapes, the sample set.

H x W pixels of a picture, S side of a window in pixels, N = h·w tokens of a window, D width, K classes.
"""

import heapq
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tubelet import datasets
from tubelet.config import EvaluateConfig
from tubelet.data.clips import resize, resize_shape
from tubelet.datasets import DenseSample, SegmentationDataset
from tubelet.datasets.annotations import IGNORED
from tubelet.errors import BadFile, TubeletError
from tubelet.heads.linear import HeadProtocol, TrainedHead, train_heads
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.cache import FeatureCache
from tubelet.tasks.common.colors import legend, paint_classes, paint_mistakes
from tubelet.tasks.common.extract import FeatureSet, Progress, Source, extract, reading_options, spread
from tubelet.tasks.common.pixel_features import (
    POINTS_SHOWN,
    Crop,
    Draw,
    PointReader,
    Rows,
    crops_of,
    cut_crops,
    draw_points,
    point_places,
    source_picture,
    test_source,
    training_source,
)
from tubelet.tasks.common.result import Example, Metric, Result
from tubelet.tasks.common.test_set import read_tests
from tubelet.tasks.metrics.dense import accuracy, confusion, iou_by_class, mean_iou

_EXAMPLES = 12
_CLASSES_AT_ONCE = 16  # brought to a picture's full size together


# The default of DINOv3's release is 1e-3. Higher ones are for small sets, on which there are fewer iterations.
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
HEAD = HeadProtocol(iterations=40_000, passes=32, learning_rates=RATES, weight_decay=1e-3, dropout=0.1)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """After DINOv3's linear protocol (Siméoni et al. 2025).

    Window, stride, iterations, batch, dropout and gradient norm are the defaults of its release's settings
    (dinov3/eval/segmentation/config.py). Its files for single benchmarks were not at hand: warm-up and weight decay
    (the default is 0.01) are those of others who follow them.

    Attributes:
        image_size: pixels that the short side of a picture gets; also the side of windows and of training crops.
        stride: from window to window at test time, as a share of their side.
        scale: range of the scale of training crops beyond each picture's first.
        head: how the head is trained.
    """

    image_size: int = 512
    stride: float = 341 / 512
    scale: tuple[float, float] = (1.0, 2.0)
    head: HeadProtocol = HEAD


PROTOCOL = Protocol()


def evaluate(model: Backbone, data: Path, config: EvaluateConfig, cache: FeatureCache, progress: Progress) -> Result:
    """Train the head on the training split's features and score it on the test split at the pictures' own size.

    Raises:
        TubeletError: if the folder has none of the layouts, or a file in it is wrong.
    """
    labels = datasets.find(data, SegmentationDataset)
    size = _size(model, config.image_size or labels.image_size or PROTOCOL.image_size)
    train, test = spread(labels.train, config.max_samples), spread(labels.test, config.max_samples)
    options = reading_options(config, progress)

    crops = crops_of(len(train))
    sources = [training_source(pair, crops, config.seed) for pair in train]
    choose = partial(choose_crop, scale=PROTOCOL.scale)
    recipe = {"cut": "segmentation crops", "size": size, "scale": PROTOCOL.scale}
    features = extract(model, cache, sources, recipe, partial(cut_crops, choose=choose, size=(size, size)), **options)
    pairs = [train[number] for number in features.numbers]
    stated = {"cut": recipe, "table": labels.class_of_label.tolist()}
    places = point_places(cache, pairs, features.sources, stated)
    reader = PointReader(pairs, features.sources, places, labels.load_target, IGNORED, choose)
    draw_points(reader, config.workers, progress)

    side = size // model.patch_size
    protocol = PROTOCOL.head.changed(config)
    K = len(labels.classes)
    head = train_heads(
        Rows(features, places, (side, side), config.seed, config.workers),
        K,
        protocol,
        loss_of_heads,
        _tally,
        _scores,
        folder=cache.folder / "heads",
        device=model.device,
        seed=config.seed,
        readers=config.workers,
        progress=progress,
    )

    recipe = {"cut": "segmentation windows", "size": size, "stride": PROTOCOL.stride}
    windows = extract(model, cache, [test_source(p) for p in test], recipe, partial(cut_windows, size=size), **options)
    tested = [test[number] for number in windows.numbers]
    counts, shown, examples = _test(windows, tested, labels, head, size, model, config.workers, progress)
    return _result(
        model, data, labels, head, counts, shown, examples, [*features.bad, *windows.bad], size, crops, len(tested)
    )


def _size(model: Backbone, size: int) -> int:
    if size % model.patch_size:
        raise TubeletError(
            f"image_size is {size}, which does not divide into patches of {model.patch_size}; take "
            f"{size // model.patch_size * model.patch_size or model.patch_size}"
        )
    return size


def choose_crop(shape: tuple[int, int], draw: Draw, first: bool, scale: tuple[float, float]) -> Crop:
    """A square of a picture of (H, W) pixels: as high as its short side, or smaller by a scale if not the first."""
    short = min(shape)
    side = short if first else max(1, round(short / (scale[0] + draw.scale * (scale[1] - scale[0]))))
    top, left = (round(u * (length - side)) for u, length in zip((draw.down, draw.across), shape, strict=True))
    return Crop(top, left, side, side, draw.mirror < 0.5)


def window_places(length: int, size: int) -> list[int]:
    """Where windows begin along a side: every stride, the last one with its end at the picture's end."""
    stride = max(1, round(PROTOCOL.stride * size))
    return sorted({min(start, length - size) for start in range(0, max(1, length - size + stride), stride)})


def cut_windows(source: Source, size: int) -> Tensor:
    """The windows of a picture whose short side becomes `size`, row by row: (V, 3, 1, size, size) uint8.

    Raises:
        DecodeError: if the picture cannot be read.
    """
    picture = torch.from_numpy(source_picture(source)).unsqueeze(0)
    height, width = resize_shape(picture.shape[1], picture.shape[2], size)
    resized = resize(picture, height, width)
    return torch.stack(
        [
            resized[:, :, top : top + size, left : left + size]
            for top in window_places(height, size)
            for left in window_places(width, size)
        ]
    )


def loss_of_heads(outputs: Tensor, values: Tensor) -> Tensor:
    """Mean cross-entropy over rows not ignored, summed over the heads: (R, S, K) and (R,) uint8 -> scalar."""
    R, S, K = outputs.shape
    known = values != IGNORED
    targets = values.long().unsqueeze(1).expand(R, S).flatten()
    total = F.cross_entropy(outputs.view(R * S, K), targets, ignore_index=IGNORED, reduction="sum")
    return total / known.sum().clamp(min=1)


def _tally(outputs: Tensor, values: Tensor) -> Tensor:
    """(S, 2): each head's sum of cross-entropies, and of how many rows."""
    known = values != IGNORED
    targets = values[known].long()
    sums = [F.cross_entropy(outputs[known, s].double(), targets, reduction="sum") for s in range(outputs.shape[1])]
    return torch.stack([torch.stack(sums), known.sum().double().expand(len(sums))], dim=1)


def _scores(sums: Tensor) -> list[float]:
    if not int(sums[0, 1]):
        raise TubeletError("no training picture that was held out has a labelled pixel; are the annotations right?")
    return (-sums[:, 0] / sums[:, 1]).tolist()


def predict(tokens: Tensor, weight: Tensor, bias: Tensor, size: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """The class of each pixel: windows' scores are averaged where they overlap, then brought to the picture's size.

    Args:
        tokens: (V, N, D) of `cut_windows`.
        weight: (K, D).
        bias: (K,).
        size: S.
        shape: (H, W) of the picture.
    """
    height, width = resize_shape(*shape, size)
    side = round(tokens.shape[1] ** 0.5)
    scores = F.linear(tokens.float(), weight, bias).mT.unflatten(2, (side, side))
    total = torch.zeros(len(weight), height, width, device=tokens.device)
    count = torch.zeros(height, width, device=tokens.device)
    places = [(top, left) for top in window_places(height, size) for left in window_places(width, size)]
    for (top, left), window in zip(places, scores, strict=True):
        rows, columns = slice(top, top + size), slice(left, left + size)
        total[:, rows, columns] += _to_size(window, (size, size))
        count[rows, columns] += 1
    total /= count
    best = torch.full(shape, -torch.inf, device=tokens.device)
    classes = torch.zeros(shape, dtype=torch.uint8, device=tokens.device)
    # Some classes at a time: all of them at the full size of a large picture take gigabytes.
    for first in range(0, len(weight), _CLASSES_AT_ONCE):
        value, index = _to_size(total[first : first + _CLASSES_AT_ONCE], shape).max(0)
        better = value > best
        best[better], classes[better] = value[better], (index[better] + first).to(torch.uint8)
    return classes.cpu().numpy()


def _to_size(scores: Tensor, shape: tuple[int, int]) -> Tensor:
    return F.interpolate(scores.unsqueeze(0), shape, mode="bilinear", align_corners=False)[0]


def _test(
    windows: FeatureSet,
    pairs: list[DenseSample],
    labels: SegmentationDataset,
    head: TrainedHead,
    size: int,
    model: Backbone,
    workers: int,
    progress: Progress,
) -> tuple[Tensor, tuple[int, ...], list[Example]]:
    """Counts (K, K) of all pixels of the test split, the classes that examples show, and the examples."""
    K = len(labels.classes)
    counts = torch.zeros(K, K, dtype=torch.int64)
    tests = read_tests(windows.places, pairs, labels.load_target, workers)
    worst: list[tuple[float, int, NDArray[np.uint8], NDArray[Any]]] = []
    for number, (tokens, truth) in enumerate(tests):
        predicted = predict(tokens.to(model.device), head.weight, head.bias, size, (truth.shape[0], truth.shape[1]))
        known = truth != IGNORED
        own = confusion(_indices(predicted[known]), _indices(truth[known]), K)
        counts += own
        if known.any():
            heapq.heappush(worst, (-mean_iou(own), number, predicted, truth))
            if len(worst) > _EXAMPLES:
                heapq.heappop(worst)
        progress("testing", number + 1, len(pairs))
    if not int(counts.sum()):
        raise TubeletError("no pixel of the test split is labelled; are the annotations right?")
    ranked = sorted(worst, key=lambda item: (-item[0], item[1]))
    shown = tuple(sorted({int(k) for _, _, *maps in ranked for one in maps for k in np.unique(one)} - {IGNORED}))
    return (
        counts,
        shown,
        [
            _example(pairs[number], -score, predicted, truth, labels, shown)
            for score, number, predicted, truth in ranked
        ],
    )


def _indices(classes: NDArray[Any]) -> Tensor:
    return torch.from_numpy(classes.astype(np.int64))


def _example(
    pair: DenseSample,
    score: float,
    predicted: NDArray[np.uint8],
    truth: NDArray[Any],
    labels: SegmentationDataset,
    shown: tuple[int, ...],
) -> Example:
    present = [labels.classes[k] for k in np.unique(truth[truth != IGNORED])]
    return Example(
        name=pair.name,
        score=100 * score,
        pictures={
            "picture": pair.load_image(),
            "truth": paint_classes(truth, shown),
            "prediction": paint_classes(predicted, shown),
            "wrong in red": paint_mistakes(predicted, truth, IGNORED),
        },
        note=f"holds {', '.join(present[:6])}" + (f" and {len(present) - 6} more" if len(present) > 6 else ""),
    )


def _result(
    model: Backbone,
    data: Path,
    labels: SegmentationDataset,
    head: TrainedHead,
    counts: Tensor,
    shown: tuple[int, ...],
    examples: list[Example],
    bad: list[BadFile],
    size: int,
    crops: int,
    tested: int,
) -> Result:
    by_class, truth = iou_by_class(counts), counts.sum(1)
    if len(by_class) < 2:
        raise TubeletError(
            f"{data}: all pixels of the test split that are not ignored are of one class, so that no figure says "
            f"anything; check what its numbers mean in the layout of {labels.name}"
        )
    fitted, held_out = head.pictures
    return Result(
        task="segmentation",
        benchmark=labels.name,
        data=str(data),
        model_id=model.model_id,
        protocol=(
            f"After DINOv3's linear protocol (Siméoni et al. 2025): a 1x1 convolution, last level, "
            f"pictures at {size} px, windows of {size} px at test time, scores at the pictures' full size. "
            "Other than there: channels are decorrelated, not batch-normed, which is as linear; "
            f"features are kept, so that each training picture is seen in {crops} fixed "
            f"{'crop' if crops == 1 else 'crops'} instead of ever new ones and without changes of colour; the loss is "
            f"of {POINTS_SHOWN} pixels of a crop, drawn anew each time; the head took {head.steps} iterations; the "
            f"learning rate is chosen on {held_out} training pictures that no head is trained on."
        ),
        metrics={
            "mIoU": Metric(value=100 * mean_iou(counts), unit="%"),
            "pixel accuracy": Metric(value=100 * accuracy(counts), unit="%"),
        },
        counts={
            "training pictures": fitted,
            "held-out pictures": held_out,
            "test pictures": tested,
            "classes in the test split": len(by_class),
        }
        | dict(labels.excluded),
        skipped=bad,
        details={
            "IoU by class": {labels.classes[k]: 100 * value for k, value in by_class.items()},
            "share of the test split's pixels": {labels.classes[k]: int(truth[k]) / int(truth.sum()) for k in by_class},
            "learning rates": {
                "chosen": head.learning_rate,
                "cross-entropy on held-out pictures": {rate: value and -value for rate, value in head.sweep.items()},
            },
            "iterations": head.steps,
        },
        examples=examples,
        legend=legend(labels.classes, shown),
    )
