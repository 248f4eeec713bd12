"""A depth for each pixel of images and video frames, from depth maps.

Inside, depth is scaled so that the largest of the training maps is a little below `RANGE`: the bins, the loss and its
constants are those of `tubelet.tasks.depth`, in whatever unit the maps of a table are.

H x W pixels of an image, K bins, n held-out images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tubelet.datasets import DenseSample, DepthDataset
from tubelet.errors import DataError
from tubelet.fitting.label_task import FitContext, LabelTask
from tubelet.fitting.pixel_fit import fit_pixels
from tubelet.fitting.pixel_inputs import rows_by_name
from tubelet.fitting.pixel_objective import UNUSED, Map, PixelObjective, Progress, Rows, Trained
from tubelet.fitting.result import FitResult
from tubelet.heads.head_file import Head, MetricInterval
from tubelet.labels.depth_maps import read_depth
from tubelet.labels.records import LabelRow, LabelTable
from tubelet.tasks import depth, segmentation
from tubelet.tasks.common.colors import color_depth, color_depth_errors
from tubelet.tasks.common.pixel_features import extract_training_set
from tubelet.tasks.common.task import EvaluationContext
from tubelet.tasks.metrics.dense import depth_errors
from tubelet.tasks.metrics.intervals import bootstrap_interval, index_units, ratio, sum_by_unit

RANGE = 10.0
"""Largest depth of the bins inside, as of NYU Depth v2 in meters."""
_VALUES = 4096  # of each map, that quantiles are taken of
_HEADROOM = 1.05  # that the bins reach beyond the largest training depth
POSITIONS = 64
"""Side of the grid of positions of the baseline."""


@dataclass(frozen=True, kw_only=True)
class LabeledDepths(DepthDataset):
    """The depth maps of a label table; `units_per_meter` is the number of the table's units in a unit inside.

    Attributes:
        rows: Name of a sample -> its row.
        bins: (K,) Depth of each bin inside: quantiles of the training depths. Depths crowd near the camera, and with
            evenly spaced bins a head would start far behind them.
    """

    rows: Mapping[str, LabelRow]
    bins: tuple[float, ...]

    def load_target(self, sample: DenseSample) -> NDArray[np.float32]:
        """(H, W) float32 depth inside, 0 where it is unknown; a held-out map may be deeper than the bins."""
        return (read_depth(self.rows[sample.name]) / self.units_per_meter).astype(np.float32)


def labeled_depths(table: LabelTable, samples: Sequence[DenseSample], train: Rows) -> LabeledDepths:
    """The data set that reads the depth maps of all samples, on the scale of the training maps.

    Raises:
        DataError: if a map cannot be read, or no training map has a known depth.
    """
    values = np.concatenate([_sample_depths(table.rows[row]) for row in train])
    if not len(values):
        raise DataError(f"{table.path}: no training depth map has a value above 0")
    unit = _HEADROOM * float(values.max()) / RANGE
    bins = np.quantile(values / unit, np.linspace(0, 1, depth.PROTOCOL.bins))
    return LabeledDepths(
        name=table.path.name,
        train=[samples[row] for row in train],
        test=[],
        units_per_meter=unit,
        max_depth=RANGE,
        input_crop=None,
        eval_crop=(0, 0, 1, 1),
        input_height=None,
        train_crop=(1, 1),
        rows=rows_by_name(table, samples),
        bins=tuple(np.maximum(bins, depth.PROTOCOL.min_depth).tolist()),
    )


def _sample_depths(row: LabelRow) -> NDArray[np.float64]:
    """Known depths of a map, in their order by depth, the largest among them."""
    depths = read_depth(row)
    valid = np.sort(depths[depths > 0].astype(np.float64))[::-1]
    return valid[:: max(1, len(valid) // _VALUES)]


def _bins(depths: LabeledDepths, device: torch.device) -> Tensor:
    return torch.tensor(depths.bins, dtype=torch.float32, device=device)


def _train(
    evaluation: EvaluationContext,
    depths: LabeledDepths,
    samples: list[DenseSample],
    units: Callable[[list[int]], list[int]],
    size: int,
) -> Trained:
    recipe = {"transform": "depth squares", "size": size}
    # Crops of the short side: at another scale, depth would look different.
    choose = partial(segmentation.choose_crop, scale=(1.0, 1.0))
    scale = {"scale": depths.units_per_meter, "bins": "quantiles"}
    crops = extract_training_set(evaluation, samples, choose, (size, size), recipe, depths.load_target, 0, scale)
    return crops, depth.fit(evaluation, crops, _bins(depths, evaluation.model.device), units(crops.features.indices))


def _predict(tokens: Tensor, head: nn.Module, depths: LabeledDepths, size: int, shape: tuple[int, int]) -> Map:
    return depth.predict_windows(tokens, head, _bins(depths, tokens.device), size, shape)


def statistics(predicted: Map, truth: Map, depths: LabeledDepths) -> Tensor | None:
    """(3,) RMSE in the table's unit, AbsRel and δ1 of an image."""
    valid = truth > 0
    if not valid.any():
        return None
    errors = depth_errors(torch.from_numpy(predicted[valid]), torch.from_numpy(truth[valid]))
    return torch.tensor([errors.rmse * depths.units_per_meter, errors.abs_rel, errors.delta1], dtype=torch.float64)


def measure(values: Tensor, units: NDArray[np.int64]) -> tuple[MetricInterval, ...]:
    """The means over images of statistics (n, 3), given units (n,)."""
    index, count = index_units(units)
    sums, images = sum_by_unit(values.numpy(), index, count), np.bincount(index, minlength=count)

    def mean(weights: NDArray[np.float64], column: int) -> NDArray[np.float64]:
        return ratio(weights @ sums[:, column], weights @ images)

    return tuple(
        bootstrap_interval(name, partial(mean, column=column), count, bounds=(0.0, most), higher_is_better=name == "δ1")
        for column, (name, most) in enumerate((("RMSE", np.inf), ("AbsRel", np.inf), ("δ1", 1.0)))
    )


def fit_positions(
    depths: LabeledDepths, samples: Sequence[DenseSample], progress: Progress
) -> Callable[[tuple[int, int]], Map]:
    """The mean depth at each position of the training maps; that of all where none has a known depth."""
    total, count = np.zeros((POSITIONS, POSITIONS)), np.zeros((POSITIONS, POSITIONS))
    for done, sample in enumerate(samples, 1):
        values = depths.load_target(sample)
        cells = values[segmentation.nearest_pixels(values.shape, (POSITIONS, POSITIONS))]
        total += cells
        count += cells > 0
        progress("positions", done, len(samples))
    mean = np.where(count > 0, total / np.maximum(count, 1), total.sum() / max(1.0, count.sum()))
    mean = np.maximum(mean, depth.PROTOCOL.min_depth).astype(np.float32)
    return lambda shape: mean[segmentation.nearest_pixels((POSITIONS, POSITIONS), shape)]


def _draw(predicted: Map, truth: Map, depths: LabeledDepths) -> dict[str, NDArray[np.uint8]]:
    valid = truth > 0
    low, high = float(truth[valid].min()), float(truth[valid].max())
    high = max(high, 1.01 * low)
    unit = depths.units_per_meter
    return {
        f"truth, {low * unit:.4g} to {high * unit:.4g}": color_depth(truth, low, high),
        "answer": color_depth(predicted, low, high),
        "blue too near, red too far": color_depth_errors(predicted / np.where(valid, truth, 1), valid),
    }


def _options(depths: LabeledDepths) -> dict[str, Any]:
    unit = depths.units_per_meter
    return {"bins": [value * unit for value in depths.bins], "smoothing": depth.PROTOCOL.smoothing}


OBJECTIVE = PixelObjective(
    network="depth_bins",
    protocol=depth.HEAD,
    constant="mean depth by position",
    dataset=labeled_depths,
    train=_train,
    predict=_predict,
    statistics=statistics,
    measure=measure,
    severity=lambda values: float(values[0]),
    fit_constant=fit_positions,
    options=_options,
    draw=_draw,
)


def fit(context: FitContext) -> tuple[Head, FitResult]:
    """Fit a head for the depth of pixels, in the unit of the table's maps, and measure it.

    Raises:
        TubeletError: if files cannot be read, or there are too few of them.
    """
    return fit_pixels(context, OBJECTIVE, ("depth",))


LABEL_TASK = LabelTask(name="depth", fit=fit, networks=("depth_bins",), unused=UNUSED)
