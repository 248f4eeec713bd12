"""Masks of the classes of pixels.

H x W pixels of an image, V squares of an image, N tokens of a square, D channels, K classes.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tubelet.config import PredictConfig
from tubelet.heads.head_file import Head
from tubelet.heads.networks.pixels import TokenLinear
from tubelet.io.csv_tables import Kind
from tubelet.prediction.label_colors import label_colors, rgb
from tubelet.prediction.layout import WindowLayout
from tubelet.prediction.outputs.base import FileScores
from tubelet.prediction.pixel_output import PixelOutput
from tubelet.tasks import segmentation

TASKS = ("segmentation",)
LEGEND = "legend"
_BACKGROUND = "background"  # which is not painted
_OPACITY = 0.5
_SHOWN = 0.005  # fraction of pixels from which a class is named below an overlay


class MaskOutput(PixelOutput):
    """Masks as palette PNGs whose values are the indices of the legend, which is written as `legend.csv`."""

    kind = "mask"

    def __init__(self, head: Head, folder: Path, config: PredictConfig, layout: WindowLayout) -> None:
        """See `HeadOutput`."""
        super().__init__(head, folder, config, layout)
        assert isinstance(head.network, TokenLinear)
        self.network = head.network
        self.indices = np.array(head.network.indices, np.uint8)
        self.colors = np.array([rgb(color) for color in label_colors(len(self.indices))], np.uint8)

    @property
    def names(self) -> Sequence[str]:
        """The classes, of which the table has the fractions of pixels."""
        return self.head.spec.classes

    def predict(self, tokens: Tensor, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """(H, W) numbers of classes."""
        return segmentation.predict(tokens, self.network, self.layout.clips.image_size, shape)

    def encode(self, prediction: NDArray[Any]) -> Image.Image:
        """Indices of the legend, with a color for each class."""
        palette = np.zeros((256, 3), np.uint8)
        palette[self.indices] = self.colors
        image = Image.fromarray(self.indices[prediction])
        image.putpalette(palette.ravel().tolist())
        return image

    def paint(self, prediction: NDArray[Any], image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The colors of the classes over the image, without the background: that name, or value 0 without a name."""
        mixed = (1 - _OPACITY) * image + _OPACITY * self.colors[prediction]
        plain = [
            number
            for number, (index, name) in enumerate(zip(self.indices.tolist(), self.names, strict=True))
            if name.casefold() == _BACKGROUND or (index == 0 and name == "0" and len(self.names) > 1)
        ]
        return np.where(np.isin(prediction, plain)[..., None], image, mixed.round()).astype(np.uint8)

    def summarize(self, prediction: NDArray[Any]) -> NDArray[np.float32]:
        """(K,) fractions of pixels."""
        counts = np.bincount(prediction.ravel(), minlength=len(self.names))
        return (counts / prediction.size).astype(np.float32)

    def caption(self, summary: NDArray[np.float32]) -> str:
        """The classes that occur, the largest first."""
        order = np.argsort(-summary, kind="stable")
        return ", ".join(f"{self.names[k]} {100 * summary[k]:.0f} %" for k in order if summary[k] >= _SHOWN)

    def write(self, files: Iterable[FileScores]) -> None:
        """Write the tables and the legend."""
        columns: list[tuple[str, Kind]] = [("index", "count"), ("name", "text")]
        ascii_only = all(map(str.isascii, self.names))
        with self.table_writer(LEGEND, columns, ascii_only, parquet=False) as table:
            for index, name in zip(self.indices.tolist(), self.names, strict=True):
                table.add((index, name))
        super().write(files)


OUTPUT = MaskOutput
