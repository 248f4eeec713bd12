"""Depth maps.

H x W pixels of an image, V squares of an image, N tokens of a square, D channels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tubelet.config import PredictConfig
from tubelet.heads.head_file import Head
from tubelet.heads.networks.depth_bins import DepthBins
from tubelet.prediction.layout import WindowLayout
from tubelet.prediction.pixel_output import PixelOutput
from tubelet.tasks import depth
from tubelet.tasks.common.colors import color_depth

TASKS = ("depth",)
_SHALLOWEST = 1 / 200  # of the largest depth, from where on colors differ at most
_COARSE = 255  # largest depth below which whole numbers are too coarse
_PNG16 = 65535


class DepthOutput(PixelOutput):
    """Depth maps as gray PNGs of 16 bits; a value divided by the column `per_unit` is in the unit of the labels.

    Attributes:
        bins: depth of each bin of the head.
        largest: largest depth that the head gives.
        per_unit: values of a PNG per unit.
    """

    kind = "depth"

    def __init__(self, head: Head, folder: Path, config: PredictConfig, layout: WindowLayout) -> None:
        """See `HeadOutput`."""
        super().__init__(head, folder, config, layout)
        assert isinstance(head.network, DepthBins)
        self.network = head.network
        self.bins = head.network.bins
        self.largest = float(self.bins[-1])
        self.per_unit = 1.0
        if self.largest < _COARSE:
            self.per_unit = float(10.0 ** np.floor(np.log10(_PNG16 / self.largest)))
        self.constants = {"per_unit": self.per_unit}

    @property
    def names(self) -> Sequence[str]:
        """What the table has about a map."""
        return ("mean_depth",)

    def predict(self, tokens: Tensor, shape: tuple[int, int]) -> NDArray[np.float32]:
        """(H, W) depth in the unit of the labels."""
        size = self.layout.clips.image_size
        return depth.predict_windows(tokens, self.network.bin_scores, self.bins, size, shape)

    def encode(self, prediction: NDArray[Any]) -> Image.Image:
        """Depth times `per_unit`, at least 1: 0 is an unknown depth in labels."""
        return Image.fromarray(np.clip(np.round(prediction * self.per_unit), 1, _PNG16).astype(np.uint16))

    def paint(self, prediction: NDArray[Any], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Near bright, far dark, on one scale for all files."""
        return color_depth(
            prediction, max(float(self.bins[len(self.bins) // 50]), _SHALLOWEST * self.largest), self.largest
        )

    def summarize(self, prediction: NDArray[Any]) -> NDArray[np.float32]:
        """(1,) mean depth."""
        return np.array([prediction.mean(dtype=np.float64)], np.float32)

    def caption(self, summary: NDArray[np.float32]) -> str:
        """The mean depth."""
        return f"mean depth {summary[0]:.4g}"


OUTPUT = DepthOutput
