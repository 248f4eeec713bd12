"""What a task on the pixels of images and video frames defines: segmentation and depth.

H x W pixels of an image, S side of a window in pixels, N = h·w tokens of a window, D width, K outputs, n held-out
images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from tubelet.datasets import DenseSample
from tubelet.heads.head_file import MetricInterval
from tubelet.labels.records import LabelTable
from tubelet.tasks.common.dense_heads import HeadProtocol, TrainedHead
from tubelet.tasks.common.pixel_features import PixelFeatureDataset
from tubelet.tasks.common.task import EvaluationContext

UNUSED = ("networks", "frames", "suggest", "causal")
"""Settings that have no meaning for pixels."""

Map = NDArray[Any]
"""(H, W) classes or depths of an image."""
Progress = Callable[[str, int, int], None]

Rows = NDArray[np.int64]
"""(rows,) indices of rows of a table."""


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
