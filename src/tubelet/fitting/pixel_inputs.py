"""The images of a label table, and the features of their patches that heads see."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tubelet.datasets import DenseSample
from tubelet.heads.positions import POSITION_CHANNELS, append_positions
from tubelet.labels.records import LabelError, LabelRow, LabelTable
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.extract import Encode, TokenFeatures, level_features

_PATCH_CELLS = 4  # along a side of a patch, of the baseline that sees colors


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
