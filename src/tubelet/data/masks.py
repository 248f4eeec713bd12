"""The multi-block mask sampler (docs/system.md, step 3; V-JEPA, arXiv 2404.08471, section 3.2)."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tubelet.config import BlockMask, TrainConfig
from tubelet.data.batch_partition import mask_groups
from tubelet.errors import ConfigError
from tubelet.grid import Grid, Mask, Modality

MAX_DRAWS = 1000
_SHAPES, _DRAWS = 16, 16  # `covering_masks` chooses among so many block shapes, and draws of each


def block_shape(spec: BlockMask, grid: Grid, rng: np.random.Generator) -> tuple[int, int]:
    """Rows and columns of a rectangle with the mask's area and a random aspect ratio, clipped to the grid."""
    area = int(grid.h * grid.w * spec.area)
    aspect = rng.uniform(*spec.aspect)
    rows, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
    return min(max(rows, 1), grid.h), min(max(columns, 1), grid.w)


def hidden_positions(
    spec: BlockMask, shape: tuple[int, int], grid: Grid, batch: int, rng: np.random.Generator
) -> np.ndarray:
    """The union of `spec.blocks` rectangles for each sample; samples that it would cover completely are redrawn.

    Returns:
        (B, H', W') bool.

    Raises:
        ConfigError: the grid is too small to leave anything visible.
    """
    rows, columns = shape
    hidden = np.empty((batch, grid.h, grid.w), dtype=bool)
    pending = np.arange(batch)
    for _ in range(MAX_DRAWS):
        size = (len(pending), spec.blocks)
        tops = rng.integers(0, grid.h - rows + 1, size)
        lefts = rng.integers(0, grid.w - columns + 1, size)
        # Summed over the blocks: for every position, the number of blocks that cover it.
        counts = _covered(tops, rows, grid.h).transpose(0, 2, 1) @ _covered(lefts, columns, grid.w)
        hidden[pending] = counts > 0
        pending = pending[hidden[pending].all(axis=(1, 2))]
        if not len(pending):
            return hidden
    raise ConfigError(
        f"{spec.blocks} blocks of {rows}x{columns} patches leave nothing visible of a {grid.h}x{grid.w} grid; "
        "use a larger image size or a smaller patch size"
    )


def _covered(first: np.ndarray, length: int, size: int) -> np.ndarray:
    """(..., size) float32: 1 at `length` positions from each of `first` (...) on, else 0."""
    offset = np.arange(size) - first[..., np.newaxis]
    return ((offset >= 0) & (offset < length)).astype(np.float32)


def sample_mask(spec: BlockMask, grid: Grid, batch: int, rng: np.random.Generator) -> Mask:
    """Draw one mask for each sample of a batch.

    All samples share the shape of the rectangles and differ in their positions. Indices of a batch have one length:
    each is truncated to the shortest by dropping random tokens, so that no region or time step is preferred.

    Returns:
        context (B, Kc) and target (B, Kt) indices, sorted.
    """
    hidden = hidden_positions(spec, block_shape(spec, grid, rng), grid, batch, rng)
    return Mask(context=_indices(~hidden, grid, rng), target=_indices(hidden, grid, rng))


def covering_masks(specs: Sequence[BlockMask], grid: Grid, rng: np.random.Generator) -> list[Mask]:
    """A few masks of one sample that together hide each token at least once.

    Greedy: the kinds of masks take turns, and of many draws of a kind the one is taken that hides the most tokens that
    are still visible. The masks are those of training, without truncation.

    Returns:
        The masks; tokens that no draw hides, as in the corners of large grids under small blocks, stay visible.
    """
    draws = [
        np.concatenate(
            [hidden_positions(spec, block_shape(spec, grid, rng), grid, _DRAWS, rng) for _ in range(_SHAPES)]
        )
        for spec in specs
    ]
    visible, masks, kind, misses = np.ones((grid.h, grid.w), bool), list[Mask](), 0, 0
    while visible.any() and misses < len(specs):
        gains = (draws[kind] & visible).sum(axis=(1, 2))
        best = draws[kind][[int(gains.argmax())]]
        kind = (kind + 1) % len(specs)
        misses = 0 if gains.max() else misses + 1
        if gains.max():
            visible &= ~best[0]
            masks.append(Mask(context=_indices(~best, grid, rng), target=_indices(best, grid, rng)))
    return masks


def _indices(positions: np.ndarray, grid: Grid, rng: np.random.Generator) -> Tensor:
    """(B, H', W') bool, the same at every time step -> (B, K) sorted token indices, K the smallest count of a row."""
    batch, tokens = len(positions), grid.tokens
    flat = positions.reshape(batch, -1)
    counts = flat.sum(axis=1)
    shortest = int(counts.min())
    selected = np.repeat(flat[:, np.newaxis], grid.t, axis=1).reshape(batch, tokens)
    for row, sample, count in zip(selected, flat, counts, strict=True):
        if count > shortest:
            excess = rng.choice(count * grid.t, (count - shortest) * grid.t, replace=False, shuffle=False)
            times = excess // count  # faster than divmod: SIMD
            row[times * flat.shape[1] + np.flatnonzero(sample)[excess - times * count]] = False
    starts = np.arange(0, batch * tokens, tokens)[:, np.newaxis]
    return torch.from_numpy(np.flatnonzero(selected).reshape(batch, -1) - starts)


def mean_mask_lengths(config: TrainConfig, counts: dict[Modality, int]) -> dict[Modality, list[tuple[int, int]]]:
    """Mean numbers of context and target tokens of each mask, truncated to the shortest of a group."""
    lengths = {}
    for modality, count in counts.items():
        rng = np.random.default_rng(config.seed)
        grid = token_grid(config, modality)
        lengths[modality] = [
            _mean_lengths(spec, grid, len(mask_groups(config, count)[0]), rng)
            for spec in config.masks.specs_for(modality)
        ]
    return lengths


def _mean_lengths(spec: BlockMask, grid: Grid, batch: int, rng: np.random.Generator) -> tuple[int, int]:
    shortest = []
    for _ in range(max(4, min(64, 4096 // batch))):
        shape = block_shape(spec, grid, rng)
        hidden = hidden_positions(spec, shape, grid, batch, rng).sum(axis=(1, 2))
        shortest.append((grid.h * grid.w - hidden.max(), hidden.min()))
    context, target = np.mean(shortest, axis=0) * grid.t
    return round(context), round(target)


def token_grid(config: TrainConfig, modality: Modality) -> Grid:
    """The token grid of a sample of this modality."""
    size = config.data.image_size
    return config.model.grid(config.data.frames_for(modality), size, size)
