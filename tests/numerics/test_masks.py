import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tubelet.config import BlockMask, MaskConfig
from tubelet.data.masks import block_shape, hidden_positions, sample_mask
from tubelet.errors import TubeletError
from tubelet.grid import Grid

STATISTICS = json.loads((Path(__file__).parent / "mask_statistics.json").read_text())
GRIDS = {
    "video_256px_16f": Grid(8, 16, 16),
    "video_384px_64f": Grid(32, 24, 24),
    "video_128px_16f": Grid(8, 8, 8),
    "image_256px": Grid(1, 16, 16),
}
CASES = [
    (name, i, spec)
    for name in STATISTICS
    for i, spec in enumerate(MaskConfig().image if name.startswith("image") else MaskConfig().video)
]


@pytest.mark.parametrize(("name", "index", "spec"), CASES)
def test_visible_share_matches_the_reference(name, index, spec):
    grid, recorded = GRIDS[name], STATISTICS[name][index]
    rng = np.random.default_rng(0)
    shares = [
        1 - hidden_positions(spec, block_shape(spec, grid, rng), grid, 1, rng).mean() for _ in range(1500)
    ]  # of positions, and so of tokens: a single sample keeps them all
    assert grid.tokens == recorded["tokens"]
    assert np.mean(shares) == pytest.approx(recorded["visible_mean"], abs=0.02)
    assert np.std(shares) == pytest.approx(recorded["visible_std"], abs=0.02)


def test_hidden_positions_are_the_union_of_the_rectangles_that_were_drawn():
    spec, grid, rows, columns = BlockMask(blocks=3, area=0.2), Grid(2, 7, 9), 3, 4
    hidden = hidden_positions(spec, (rows, columns), grid, 50, np.random.default_rng(4))
    rng = np.random.default_rng(4)
    tops, lefts = rng.integers(0, 7 - rows + 1, (50, 3)), rng.integers(0, 9 - columns + 1, (50, 3))
    expected = np.zeros((50, 7, 9), dtype=bool)
    for sample, top, left in zip(np.repeat(np.arange(50), 3), tops.flat, lefts.flat, strict=True):
        expected[sample, top : top + rows, left : left + columns] = True
    assert np.array_equal(hidden, expected)


def test_samples_that_rectangles_cover_wholly_are_drawn_again_and_no_others():
    spec, grid, shape = BlockMask(blocks=2, area=0.5), Grid(1, 2, 4), (2, 2)  # two squares side by side cover all
    hidden = hidden_positions(spec, shape, grid, 1000, np.random.default_rng(0))
    rng = np.random.default_rng(0)
    rng.integers(0, 1, (1000, 2))
    lefts = rng.integers(0, 3, (1000, 2))
    covered = np.abs(lefts[:, 0] - lefts[:, 1]) == 2
    assert 0 < covered.sum() < 1000 and not hidden.all(axis=(1, 2)).any()
    for own, pair in zip(hidden[~covered], lefts[~covered], strict=True):
        columns = {column for left in pair for column in (left, left + 1)}
        assert set(np.flatnonzero(own[0])) == columns


def test_each_block_spans_all_of_time():
    grid = Grid(4, 8, 8)
    mask = sample_mask(MaskConfig().video[0], grid, 1, np.random.default_rng(1))
    hidden = torch.zeros(grid.tokens, dtype=torch.bool)
    hidden[mask.target[0]] = True
    per_frame = hidden.view(grid.t, -1)
    assert (per_frame == per_frame[0]).all()


def test_context_and_target_of_a_single_sample_cover_the_grid_without_overlap():
    grid = Grid(2, 8, 8)
    mask = sample_mask(MaskConfig().video[1], grid, 1, np.random.default_rng(2))
    both = torch.cat([mask.context, mask.target], dim=1).sort(dim=1).values
    assert torch.equal(both[0], torch.arange(grid.tokens))


def test_a_batch_is_cut_to_one_length_without_favouring_a_time_step():
    grid = Grid(8, 8, 8)
    counts = torch.zeros(grid.t)
    rng = np.random.default_rng(3)
    for _ in range(50):
        mask = sample_mask(MaskConfig().video[0], grid, 8, rng)
        assert mask.context.shape[0] == mask.target.shape[0] == 8
        counts += torch.bincount((mask.context // (grid.h * grid.w)).flatten(), minlength=grid.t)
    assert counts.max() / counts.min() < 1.1


def test_masks_repeat_with_their_seed():
    draw = [sample_mask(MaskConfig().video[0], Grid(2, 8, 8), 4, np.random.default_rng(7)).context for _ in range(2)]
    assert torch.equal(*draw)


def test_a_grid_that_blocks_always_cover_is_refused():
    with pytest.raises(TubeletError, match="leave nothing visible"):
        sample_mask(BlockMask(blocks=2, area=1.0, aspect=(1.0, 1.0)), Grid(1, 4, 4), 1, np.random.default_rng(0))
