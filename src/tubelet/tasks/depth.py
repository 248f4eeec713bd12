"""Depth by a linear head on the last level: NYU Depth v2, KITTI, the sample set.

H x W pixels of an image, N = h·w tokens of a view, D width, K bins of depth.
"""

import heapq
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from tubelet.datasets import DenseSample, DepthDataset
from tubelet.device import accumulation_dtype
from tubelet.errors import DataError, DecodeError
from tubelet.grid import round_to_patches
from tubelet.heads.linear import linear_head
from tubelet.heads.networks.depth_bins import depth_of_scores
from tubelet.tasks.common.colors import color_depth, color_depth_errors
from tubelet.tasks.common.dense_heads import HeadProtocol, TrainedHead, train_dense_heads
from tubelet.tasks.common.extract import FeatureSet, Source, subsample_evenly
from tubelet.tasks.common.pixel_features import (
    POINTS_PER_STEP,
    Crop,
    Draw,
    PixelFeatureDataset,
    crop_and_resize,
    extract_training_set,
    source_image,
    test_source,
)
from tubelet.tasks.common.result import Example, Metric, Result
from tubelet.tasks.common.task import EvaluationContext, Task
from tubelet.tasks.common.test_set import iter_test_set
from tubelet.tasks.metrics.dense import DepthErrors, depth_errors
from tubelet.tasks.segmentation import merge_windows

_EXAMPLES = 12


# DINOv3's release has 1e-4 by default, for 38,400 iterations. These reach as far in the few of small sets.
RATES = (1e-3, 1e-2, 1e-1)
HEAD = HeadProtocol(iterations=38_400, epochs=25, learning_rates=RATES, weight_decay=1e-2)


@dataclass(frozen=True, kw_only=True)
class DepthProtocol:
    """After DINOv3's linear protocol for depth (Siméoni et al. 2025), which builds on DINOv2's and AdaBins'.

    Bins, how they become depth, iterations, batch, weight decay and the loss are those of its release's code
    (dinov3/eval/depth). Its defaults are four levels and no batch norm; here it is the last level with decorrelated
    channels. Its files for single benchmarks were not at hand: crops are those of DINOv2's followers.

    Attributes:
        bins: K, evenly spaced from `min_depth` to the benchmark's largest depth.
        min_depth: meters.
        smoothing: what each bin's score has at least, before scores are divided by their sum.
        upsample: by which the head's scores are brought up before they become depth.
        head: how the head is trained.
    """

    bins: int = 256
    min_depth: float = 1e-3
    smoothing: float = 0.1
    upsample: int = 4
    head: HeadProtocol = HEAD


PROTOCOL = DepthProtocol()


def evaluate(context: EvaluationContext) -> Result:
    """Train a head on the features of the train split and score it on the test split at the images' own size.

    Raises:
        TubeletError: if a file of the data set is wrong.
    """
    depths: DepthDataset = context.dataset
    config, patch = context.config, context.model.patch_size
    test = subsample_evenly(depths.test, config.max_samples)
    shape = _first_shape(test)
    top, _, bottom, _ = depths.input_region(shape)
    view = input_size(depths, shape, context.dense_size(depths.input_height or bottom - top), patch)
    crop = tuple(round_to_patches(side * part, patch) for side, part in zip(view, depths.train_crop, strict=True))
    crops = training_set(context, depths, subsample_evenly(depths.train, config.max_samples), (crop[0], crop[1]))
    bins = torch.linspace(PROTOCOL.min_depth, depths.max_depth, PROTOCOL.bins, device=context.model.device)
    head = fit(context, crops, bins)
    recipe = {"transform": "depth views", "size": view, "seen": depths.input_crop}
    views = context.extract([test_source(p) for p in test], recipe, partial(mirrored_views, depths=depths, size=view))
    grid = (view[0] // patch, view[1] // patch)
    scores = score(context, depths, head, views, [test[number] for number in views.indices], grid, bins)
    return _result(context, depths, head, scores, crops, views, view)


def fit(
    context: EvaluationContext, crops: PixelFeatureDataset, bins: Tensor, units: Sequence[int] | None = None
) -> TrainedHead:
    """Train a head on points of the training images; see `train_dense_heads` for the units."""
    return train_dense_heads(
        context,
        crops,
        partial(linear_head, context.token_features.width, PROTOCOL.bins),
        PROTOCOL.head.with_settings(context.config),
        partial(sum_of_losses, bins=bins),
        partial(accumulate, bins=bins),
        held_out_scores,
        units,
    )


def training_set(
    context: EvaluationContext, depths: DepthDataset, samples: list[DenseSample], size: tuple[int, int]
) -> PixelFeatureDataset:
    """Features and depths of points of the training images, in crops of `size` pixels."""
    recipe = {"transform": "depth crops", "size": size, "seen": depths.input_crop, "crop": depths.train_crop}
    choose = partial(choose_crop, depths=depths)
    scale = {"scale": depths.units_per_meter, "max": depths.max_depth}
    return extract_training_set(context, samples, choose, size, recipe, depths.load_target, 0, scale)


def _first_shape(pairs: list[DenseSample]) -> tuple[int, int]:
    """(H, W) of the first image that can be read; the others are reported when their features are computed."""
    for pair in pairs[:-1]:
        with suppress(DecodeError):
            return pair.image_shape()
    return pairs[-1].image_shape()


def input_size(depths: DepthDataset, shape: tuple[int, int], height: int | None, patch: int) -> tuple[int, int]:
    """Rows and columns in pixels that an image is encoded at: whole patches, with the aspect ratio of its input region.

    Args:
        depths: the data set.
        shape: (H, W) of its images.
        height: pixels; None is the benchmark's.
        patch: pixels along a patch's side.
    """
    top, left, bottom, right = depths.input_region(shape)
    rows = height or depths.input_height or bottom - top
    return round_to_patches(rows, patch), round_to_patches(rows * (right - left) / (bottom - top), patch)


def choose_crop(shape: tuple[int, int], draw: Draw, first: bool, depths: DepthDataset) -> Crop:
    """A crop of `train_crop` of the input region of an image of (H, W) pixels; its scale is not changed."""
    top, left, bottom, right = depths.input_region(shape)
    height, width = (
        max(1, round(share * length))
        for share, length in zip(depths.train_crop, (bottom - top, right - left), strict=True)
    )
    down, across = round(draw.down * (bottom - top - height)), round(draw.across * (right - left - width))
    return Crop(top + down, left + across, height, width, draw.mirror < 0.5)


def mirrored_views(source: Source, depths: DepthDataset, size: tuple[int, int]) -> Tensor:
    """The input region of an image, and its mirror image: (2, 3, 1, *size) uint8.

    Raises:
        DecodeError: if the image cannot be read.
    """
    image = source_image(source)
    top, left, bottom, right = depths.input_region((image.shape[0], image.shape[1]))
    view = crop_and_resize(image, Crop(top, left, bottom - top, right - left, mirrored=False), size)
    return torch.stack([view, view.flip(-1)])


def depth_of(scores: Tensor, bins: Tensor) -> Tensor:
    """Meters (...) of scores (..., K): the mean of the bins, weighted by rectified scores plus a constant."""
    return depth_of_scores(scores, bins, PROTOCOL.smoothing)


def sum_of_losses(outputs: Tensor, values: Tensor, bins: Tensor) -> Tensor:
    """The scale-invariant logarithmic loss of AdaBins, summed over the heads: (R, S, K) and (R,) meters -> scalar.

    The root of variance + 0.15 mean² of the error g of the logarithm, over all of a batch's rows with a depth.
    """
    valid = values > 0
    count = valid.sum().clamp(min=1)
    g = depth_of(outputs, bins).add(1e-3).log() - values.clamp(min=1e-3).add(1e-3).log().unsqueeze(1)
    g = g * valid.unsqueeze(1)
    mean = g.sum(0) / count
    variance = g.square().sum(0) / count - mean.square()
    return (variance + 0.15 * mean.square()).clamp(min=1e-8).sqrt().sum()


def accumulate(outputs: Tensor, values: Tensor, bins: Tensor) -> Tensor:
    """(S, 2): each head's sum of squared errors in square meters, and the number of rows."""
    valid = values > 0
    wide = accumulation_dtype(outputs.device)
    squares = (depth_of(outputs[valid], bins) - values[valid].unsqueeze(1)).square().to(wide).sum(0)
    return torch.stack([squares, valid.sum().to(wide).expand_as(squares)], dim=1)


def held_out_scores(sums: Tensor) -> list[float]:
    """(S, 2) of `accumulate` -> the negative RMSE of each head."""
    if not int(sums[0, 1]):
        raise DataError("no held-out training image has a known depth; check the annotations")
    return (-(sums[:, 0] / sums[:, 1]).sqrt()).tolist()


@torch.inference_mode()
def predict(
    tokens: Tensor,
    head: nn.Module,
    grid: tuple[int, int],
    bins: Tensor,
    depths: DepthDataset,
    shape: tuple[int, int],
) -> NDArray[np.float32]:
    """Meters (H, W) of an image, the mean of it and its mirror image; 0 outside of the input region.

    Args:
        tokens: (2, N, D) of `mirrored_views`.
        head: (..., D) -> (..., K).
        grid: (h, w).
        bins: (K,) meters.
        depths: the data set.
        shape: (H, W) of the image.
    """
    scores = head(tokens.float()).mT.unflatten(2, grid)
    scores = F.interpolate(scores, scale_factor=PROTOCOL.upsample, mode="bilinear", align_corners=False)
    meters = depth_of(scores.movedim(1, -1), bins)
    meters = (meters[0] + meters[1].flip(-1)) / 2
    top, left, bottom, right = depths.input_region(shape)
    resized = F.interpolate(meters[None, None], (bottom - top, right - left), mode="bilinear", align_corners=False)
    whole = np.zeros(shape, np.float32)
    whole[top:bottom, left:right] = resized[0, 0].clamp(PROTOCOL.min_depth, depths.max_depth).cpu().numpy()
    return whole


@torch.inference_mode()
def predict_windows(
    tokens: Tensor, head: Callable[[Tensor], Tensor], bins: Tensor, size: int, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """The depth (H, W) of an image from its windows, averaged where they overlap, for images of any aspect ratio.

    Args:
        tokens: (V, N, D) of `tubelet.tasks.segmentation.sliding_windows`.
        head: (..., D) -> (..., K).
        bins: (K,) depth of each bin, ascending.
        size: side of the windows in pixels.
        shape: (H, W) of the image.
    """
    side = round(tokens.shape[1] ** 0.5)
    scores = head(tokens.float()).mT.unflatten(2, (side, side))
    scores = F.interpolate(scores, scale_factor=PROTOCOL.upsample, mode="bilinear", align_corners=False)
    depth = merge_windows(depth_of(scores.movedim(1, -1), bins).unsqueeze(1), size, shape)
    whole = F.interpolate(depth.unsqueeze(0), shape, mode="bilinear", align_corners=False)[0, 0]
    values: NDArray[np.float32] = whole.clamp(bins[0], bins[-1]).cpu().numpy()
    return values


@dataclass(frozen=True)
class DepthScores:
    """Predictions for the test split.

    Attributes:
        errors: the errors of each image.
        without_truth: names of images without a known depth where the benchmark scores.
        examples: the images of the largest RMSE.
    """

    errors: list[DepthErrors]
    without_truth: list[str]
    examples: list[Example]


def score(
    context: EvaluationContext,
    depths: DepthDataset,
    trained: TrainedHead,
    views: FeatureSet,
    samples: list[DenseSample],
    grid: tuple[int, int],
    bins: Tensor,
) -> DepthScores:
    """Predict the test split, and compare with the annotations.

    Raises:
        TubeletError: if an annotation cannot be read, or none has a known depth.
    """
    errors: list[DepthErrors] = []
    without_truth: list[str] = []
    worst: list[tuple[float, int, NDArray[np.float32], NDArray[Any], DepthErrors]] = []
    predictions = iter_predictions(context, depths, trained, views, samples, grid, bins)
    for number, (predicted, truth) in enumerate(predictions):
        scored = np.zeros(truth.shape, bool)
        top, left, bottom, right = depths.eval_region((truth.shape[0], truth.shape[1]))
        scored[top:bottom, left:right] = True
        valid = scored & (truth > PROTOCOL.min_depth) & (predicted > 0)
        if not valid.any():
            without_truth.append(samples[number].name)
            continue
        image_errors = depth_errors(torch.from_numpy(predicted[valid]), torch.from_numpy(truth[valid]))
        errors.append(image_errors)
        heapq.heappush(worst, (image_errors.rmse, number, predicted, np.where(scored, truth, 0), image_errors))
        if len(worst) > _EXAMPLES:
            heapq.heappop(worst)
    if not errors:
        raise DataError("no image of the test split has a known depth where it is scored; check the annotations")
    ranked = sorted(worst, key=lambda item: (-item[0], item[1]))
    examples = [_example(samples[n], predicted, truth, image_errors) for _, n, predicted, truth, image_errors in ranked]
    return DepthScores(errors, without_truth, examples)


def iter_predictions(
    context: EvaluationContext,
    depths: DepthDataset,
    trained: TrainedHead,
    views: FeatureSet,
    samples: list[DenseSample],
    grid: tuple[int, int],
    bins: Tensor,
) -> Iterator[tuple[NDArray[np.float32], NDArray[Any]]]:
    """The predicted and the true depth (H, W) of each pixel, of one image after the other.

    Raises:
        TubeletError: if an annotation cannot be read.
    """
    tests = iter_test_set(views.paths, samples, depths.load_target, context.config.workers)
    for number, (tokens, truth) in enumerate(tests):
        shape = (truth.shape[0], truth.shape[1])
        yield predict(tokens.to(bins.device), trained.head, grid, bins, depths, shape), truth
        context.progress("testing", number + 1, len(samples))


def _example(pair: DenseSample, predicted: NDArray[np.float32], truth: NDArray[Any], errors: DepthErrors) -> Example:
    valid = (truth > 0) & (predicted > 0)
    low, high = float(truth[valid].min()), float(truth[valid].max())
    ratio = predicted / np.where(valid, truth, 1)
    return Example(
        name=pair.name,
        score=errors.rmse,
        images={
            "image": pair.show_image(),
            f"truth, {low:.1f} to {high:.1f} m": color_depth(truth, low, max(high, 1.01 * low)),
            "prediction": color_depth(predicted, low, max(high, 1.01 * low)),
            "blue too near, red too far": color_depth_errors(ratio, valid),
        },
        note=f"AbsRel {errors.abs_rel:.3f}, δ1 {errors.delta1:.3f}",
    )


def _result(
    context: EvaluationContext,
    depths: DepthDataset,
    head: TrainedHead,
    scores: DepthScores,
    crops: PixelFeatureDataset,
    views: FeatureSet,
    view: tuple[int, int],
) -> Result:
    fitted, held_out = head.images
    fixed = "1 fixed crop" if crops.crops == 1 else f"{crops.crops} fixed crops"
    rows = [asdict(one) for one in scores.errors]
    mean = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    without_truth = scores.without_truth
    return context.result(
        benchmark=depths.name,
        protocol=(
            f"After DINOv3's linear protocol (Siméoni et al. 2025): a 1x1 convolution, last level, to "
            f"{PROTOCOL.bins} bins from {PROTOCOL.min_depth:g} to {depths.max_depth:g} m, scale-invariant logarithmic "
            f"loss, images at {view[1]} x {view[0]} px and mirrored at test time; errors at the images' full size, "
            "the mean of each image's. Other than there: channels are decorrelated, not batch-normed, which is as "
            "linear; features are kept, so that each training image is "
            f"seen in {fixed} without rotation or changes of color; the "
            f"loss is of {POINTS_PER_STEP} pixels of a crop, drawn anew each time, and has no term for gradients; the "
            f"head took {head.steps} iterations; the learning rate is chosen on {held_out} training images that no "
            f"head is trained on."
        ),
        metrics={
            "RMSE": Metric(value=mean["rmse"], unit="m", higher_is_better=False),
            "AbsRel": Metric(value=mean["abs_rel"], higher_is_better=False),
            "δ1": Metric(value=mean["delta1"]),
        },
        counts={"training images": fitted, "held-out images": held_out, "test images": len(scores.errors)}
        | dict(depths.excluded)
        | ({"test images without a known depth": len(without_truth)} if without_truth else {}),
        skipped=[*crops.features.bad_files, *views.bad_files],
        details={
            "more errors": {name: mean[name] for name in ("delta2", "delta3", "log10", "silog")},
            "learning rates": {
                "chosen": head.learning_rate,
                "RMSE on held-out images, m": {rate: value and -value for rate, value in head.sweep.items()},
            },
            "iterations": head.steps,
        }
        | ({"test images without a known depth": without_truth} if without_truth else {}),
        examples=scores.examples,
    )


TASK = Task(name="depth", evaluate=evaluate, dataset=DepthDataset, metric="RMSE", head=nn.Linear, unused=("frames",))
