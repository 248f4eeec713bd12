"""What a run trained on: samples of one of its steps, as augmented, under their masks."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tubelet.config import TrainConfig
from tubelet.data.batch import Batch
from tubelet.data.loader import StepDataset
from tubelet.data.sources import list_media
from tubelet.errors import TubeletError
from tubelet.grid import Grid
from tubelet.view.feature_maps import Gallery
from tubelet.view.page import TARGET_RGBA, Cell, Row, Strip, boundary, columns, data_uri

SHOWN_SAMPLES = 2  # of each modality


def training_strips(config: TrainConfig, step: int, gallery: Gallery) -> dict[str, Any]:
    """The first samples of a step, of each modality, under each of their masks; a reason if they cannot be read.

    Data are a function of the run's settings and the step, so they are those that training saw.

    Args:
        config: the run.
        step: number of the step, from 0.
        gallery: where the frames go.
    """
    try:
        data = StepDataset(config, list_media(config.data.sources, config.data.allow_path))[step]
    except TubeletError as error:
        return {"training_strips": [], "training_problem": str(error)}
    if data.failure:
        return {"training_strips": [], "training_problem": data.failure}
    first: dict[str, Batch] = {}
    for batch in data.batches:
        first.setdefault(str(batch.modality), batch)
    strips = [
        _strip(config, batch, i, gallery)
        for batch in first.values()
        for i in range(min(SHOWN_SAMPLES, len(batch.pixels)))
    ]
    return {"training_strips": strips, "training_step": step + 1, "training_problem": ""}


def _strip(config: TrainConfig, batch: Batch, number: int, gallery: Gallery) -> Strip:
    pixels = batch.pixels[number]
    grid = config.model.grid(*pixels.shape[1:])
    steps = columns(grid.t)
    per = pixels.shape[1] // grid.t
    frames = [gallery.add(pixels[:, step * per]) for step in steps]
    rows = []
    for i, mask in enumerate(batch.masks, start=1):
        hidden = _hidden(grid, mask.target[number])
        cells = [
            Cell(frame, data_uri(_tint(hidden[step])), boundary(hidden[step]), (grid.w, grid.h))
            for frame, step in zip(frames, steps, strict=True)
        ]
        rows.append(Row(f"{batch.modality} {number + 1}, mask {i}", cells, f"{hidden.mean():.0%} hidden"))
    return Strip([""] * len(steps), rows)


def _hidden(grid: Grid, target: torch.Tensor) -> NDArray[np.bool_]:
    """(T', H', W') bool: the target tokens."""
    hidden = torch.zeros(grid.tokens, dtype=torch.bool)
    hidden[target] = True
    return hidden.view(grid.shape).numpy()


def _tint(hidden: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """(H', W') bool -> (H', W', 4): the color of target tokens, transparent elsewhere."""
    layer = np.zeros((*hidden.shape, 4), dtype=np.uint8)
    layer[hidden] = TARGET_RGBA
    return layer
