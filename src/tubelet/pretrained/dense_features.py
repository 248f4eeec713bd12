"""Dense features: one vector per patch and time step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from tubelet.errors import DataError
from tubelet.grid import Grid


@dataclass(frozen=True, repr=False)
class DenseFeatures:
    """The features of B clips or images.

    Attributes:
        levels: output levels, (B, N, D) each, shallow to deep, after their LayerNorm.
        grid: time steps, rows and columns (T', H', W'); N = T'·H'·W' tokens, in that order.
        times: (B, T') float64 seconds from the start of each video, averaged over the frames of a time step, or
            those of its last frame where features are causal; None if the frame rate is unknown.
    """

    levels: tuple[Tensor, ...]
    grid: Grid
    times: Tensor | None

    def __repr__(self) -> str:
        """Shapes without values."""
        B, _, D = self.tokens.shape
        kind = f"{str(self.tokens.dtype).removeprefix('torch.')} on {self.tokens.device}"
        return f"DenseFeatures({B} x {self.grid} tokens, {D} wide, {len(self.levels)} levels, {kind})"

    @property
    def tokens(self) -> Tensor:
        """(B, N, D), the deepest level."""
        return self.levels[-1]

    @property
    def map(self) -> Tensor:
        """(B, T', H', W', D), the deepest level on its grid."""
        return self.tokens.unflatten(1, self.grid.shape)

    @property
    def pooled(self) -> Tensor:
        """(B, D), the mean over all tokens of the deepest level."""
        return self.tokens.mean(dim=1)

    def upsample(self, size: int | tuple[int, int]) -> Tensor:
        """The map at another spatial resolution, by bilinear interpolation.

        Args:
            size: rows and columns, or the side of a square.

        Returns:
            (B, T', rows, columns, D).

        Raises:
            DataError: for a size below 1, or of another type.
        """
        sizes = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
        whole = all(isinstance(side, (int, np.integer)) and not isinstance(side, bool) for side in sizes)
        if len(sizes) != 2 or not whole or min(sizes) < 1:
            raise DataError(f"size is {size!r}, expected rows and columns of at least 1")
        images = self.map.flatten(0, 1).permute(0, 3, 1, 2)
        large = F.interpolate(images, tuple(map(int, sizes)), mode="bilinear", align_corners=False)
        return large.permute(0, 2, 3, 1).unflatten(0, (-1, self.grid.t))

    def to(self, device: torch.device | str) -> DenseFeatures:
        """The same features on another device; the times stay on the CPU."""
        return DenseFeatures(tuple(level.to(device) for level in self.levels), self.grid, self.times)

    def float(self) -> DenseFeatures:
        """The same features in float32."""
        return DenseFeatures(tuple(level.float() for level in self.levels), self.grid, self.times)

    def numpy(self) -> NDArray[np.float32]:
        """The map (B, T', H', W', D) of the deepest level as an array, from any device and data type."""
        return self.map.detach().float().cpu().numpy()

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """What `np.asarray(features)` gives: `numpy()`."""
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def last_step(self) -> DenseFeatures:
        """The features of the last time step only."""
        levels = tuple(level.unflatten(1, self.grid.shape)[:, -1].flatten(1, 2).clone() for level in self.levels)
        return DenseFeatures(levels, self.grid._replace(t=1), None if self.times is None else self.times[:, -1:])

    @classmethod
    def merge(cls, windows: Iterable[DenseFeatures]) -> DenseFeatures:
        """Merge the windows of one video; time steps in several windows are averaged.

        Raises:
            DataError: if there are none, or they are not windows of one video.
        """
        sums: dict[float, list[Tensor]] = {}
        counts: dict[float, int] = {}
        grids: set[tuple[int, int]] = set()
        for window in windows:
            if window.times is None or len(window.times) != 1:
                raise DataError("only windows of one video can be merged, with times and batch size 1")
            grids.add((window.grid.h, window.grid.w))
            maps = [level.unflatten(1, window.grid.shape) for level in window.levels]
            for i, time in enumerate(window.times[0].tolist()):
                step = [level[:, i].clone() for level in maps]
                if time in sums:
                    step = [a + b for a, b in zip(sums[time], step, strict=True)]
                sums[time], counts[time] = step, counts.get(time, 0) + 1
        if not grids:
            raise DataError("there are no windows to merge; an iterator of them can be merged once")
        if len(grids) != 1:
            raise DataError(f"windows of one video must have the same size, found (rows, columns) {sorted(grids)}")
        times = sorted(sums)
        levels = zip(*([x / counts[time] for x in sums[time]] for time in times), strict=True)
        return cls(
            tuple(torch.stack(level, dim=1).flatten(1, 3) for level in levels),
            Grid(len(times), *grids.pop()),
            torch.tensor([times], dtype=torch.float64),
        )
