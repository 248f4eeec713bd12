"""The multi-block mask sampler (SYSTEM step 3; V-JEPA, arXiv 2404.08471, section 3.2)."""

import math

import numpy as np
import torch
from torch import Tensor

from tubelet.config import BlockMask
from tubelet.types import Grid, Mask, TubeletError

MAX_DRAWS = 1000


def block_shape(spec: BlockMask, grid: Grid, rng: np.random.Generator) -> tuple[int, int]:
    """Rows and columns of a rectangle of the mask's area and a random aspect ratio, at most the whole frame."""
    area = int(grid.h * grid.w * spec.area)
    aspect = rng.uniform(*spec.aspect)
    rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(max(rows, 1), grid.h), min(max(columns, 1), grid.w)


def hidden_positions(spec: BlockMask, shape: tuple[int, int], grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """(H', W') bool: the union of `spec.blocks` rectangles, drawn again until something is hidden and something is not.

    Raises:
        TubeletError: if the grid is too small to leave anything visible.
    """
    rows, columns = shape
    for _ in range(MAX_DRAWS):
        hidden = np.zeros((grid.h, grid.w), dtype=bool)
        tops = rng.integers(0, grid.h - rows + 1, spec.blocks)
        lefts = rng.integers(0, grid.w - columns + 1, spec.blocks)
        for top, left in zip(tops, lefts, strict=True):
            hidden[top : top + rows, left : left + columns] = True
        if not hidden.all():
            return hidden
    raise TubeletError(
        f"{spec.blocks} blocks of {rows}x{columns} patches leave nothing visible of a {grid.h}x{grid.w} grid: "
        "use a larger image size or a smaller patch size"
    )


def sample_mask(spec: BlockMask, grid: Grid, batch: int, rng: np.random.Generator) -> Mask:
    """Draw one mask for each sample of a batch.

    All samples share the rectangles' shape and differ in where they lie. Index lists must have one length in a batch:
    each is cut to the shortest by dropping tokens at random, so that no region or time step is favoured.

    Returns:
        context (B, Kc) and target (B, Kt) indices, sorted.
    """
    shape = block_shape(spec, grid, rng)
    hidden = np.stack([hidden_positions(spec, shape, grid, rng) for _ in range(batch)])  # (B, H', W')
    hidden = np.broadcast_to(hidden[:, None], (batch, *grid.shape)).reshape(batch, grid.tokens)
    return Mask(context=_indices(~hidden, rng), target=_indices(hidden, rng))


def _indices(chosen: np.ndarray, rng: np.random.Generator) -> Tensor:
    """(B, N) bool -> (B, K) sorted indices, K the smallest count of a row."""
    length = int(chosen.sum(axis=1).min())
    rows = [np.sort(rng.permutation(np.flatnonzero(row))[:length]) for row in chosen]
    return torch.from_numpy(np.stack(rows))
