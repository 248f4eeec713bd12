"""The clips of a table as vectors that can be compared: whitened, reduced and of length 1."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from tubelet.data.part_table import parts
from tubelet.data.stacks.reader import DEFAULT_FPS
from tubelet.embed.table import pooled_rows, read_settings
from tubelet.errors import DataError
from tubelet.user_warnings import warn_user

DIMENSIONS, ROWS_EACH = 128, 4
"""Largest width of the vectors, and clips for each dimension: with fewer, whitened clips would be equally far apart."""
_SHRINKAGE = 1e-4  # variance added in all directions, as a fraction of the mean variance
_BLOCK_VALUES = 2**25  # similarities that are computed at once


@dataclass(frozen=True)
class ClipVectors:
    """The clips of a table, by file and time. n clips.

    Attributes:
        paths: the files, in alphabetical order.
        file: (n,) index of the clip's file.
        start_s: (n,) timestamp of the first frame, in seconds.
        end_s: (n,) timestamp of the last frame, in seconds; equal to the start for an image.
        vectors: (n, d) float32 of length 1.
        fps: frames per second of the clips, at which stacks without a rate are shown.
    """

    paths: list[str]
    file: NDArray[np.int64]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    vectors: NDArray[np.float32]
    fps: float = DEFAULT_FPS


def read_clip_vectors(table: Path) -> ClipVectors:
    """Read the pooled features of a table and whiten them.

    Raises:
        TubeletError: if the table is missing, empty or damaged.

    Warns:
        UserWarning: if rows are left out because their features are not finite or all zero.
    """
    fps = read_settings(table)["fps"]
    if not parts(table):
        raise DataError(f"{table}: has no rows yet; wait for `tubelet embed` to finish")
    names: list[str] = []
    starts, ends, features = [], [], []
    for columns, pooled in pooled_rows(table, ["path", "start_s", "end_s"]):
        names += columns["path"].to_pylist()
        starts.append(columns["start_s"].to_numpy())
        ends.append(columns["end_s"].to_numpy())
        features.append(pooled)
    start_s, end_s = np.concatenate(starts), np.concatenate(ends)
    if len({each.shape[1] for each in features}) > 1:
        raise DataError(f"{table}: has vectors of several widths; embed the collection again into another folder")
    x = np.concatenate(features)
    lengths = np.linalg.norm(x, axis=1)
    healthy = np.isfinite(lengths) & (lengths > 0)
    if not healthy.all():
        warn_user(
            f"{table}: {np.sum(~healthy)} of {len(x)} rows have features without a direction (NaN, infinity or zero) "
            f"and are left out, the first of {names[int(np.argmin(healthy))]}"
        )
    if not healthy.any():
        raise DataError(f"{table}: no row has features that can be compared; embed the collection with another model")
    paths, file = np.unique(np.array(names, object), return_inverse=True)
    order = np.lexsort((start_s, file))
    order = order[healthy[order]]
    return ClipVectors(list(paths), file[order], start_s[order], end_s[order], whiten(x[order]), fps)


def whiten(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, D) features -> (n, d) of length 1: directions of the collection weigh equally, noise is left out.

    Principal components beyond the first `DIMENSIONS` (of few clips, `ROWS_EACH` clips for each) are left out, and
    those that the collection has hardly any of are not raised to the size of the others (shrinkage).
    """
    centered = x - x.mean(0, dtype=np.float64).astype(np.float32)
    covariance = (centered.T @ centered).astype(np.float64) / max(1, len(x) - 1)
    variances, directions = np.linalg.eigh(covariance)
    selection = slice(None, -min(DIMENSIONS, len(variances), max(2, len(x) // ROWS_EACH)) - 1, -1)
    variances, directions = np.maximum(variances[selection], 0), directions[:, selection]
    directions *= np.where(directions[np.abs(directions).argmax(0), range(directions.shape[1])] < 0, -1, 1)
    scale = 1 / np.sqrt(variances + max(_SHRINKAGE * float(covariance.trace()) / len(covariance), 1e-12))
    white = centered @ (directions * scale).astype(np.float32)
    return np.asarray(white / np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-12), np.float32)


def nearest_clips(
    vectors: NDArray[np.float32], count: int, groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The nearest other clips of each clip, exactly: all similarities are computed, block by block.

    Args:
        vectors: (n, d) of length 1.
        count: number of neighbors; fewer if there are fewer others.
        groups: (n,) in ascending order, such as the file of each clip; clips of the same group are left out.

    Returns:
        (n, count) indices and cosines, the nearest first; of a clip without so many others, the last have the
        similarity -inf.
    """
    n = len(vectors)
    count = min(count, n)
    every = torch.from_numpy(vectors)
    labels = np.arange(n) if groups is None else groups
    begins, ends = np.searchsorted(labels, labels, "left"), np.searchsorted(labels, labels, "right")
    rows = max(1, _BLOCK_VALUES // n)
    indices, values = [], []
    for begin in range(0, n, rows):
        similarity = every[begin : begin + rows] @ every.T
        for row in range(len(similarity)):
            similarity[row, begins[begin + row] : ends[begin + row]] = -torch.inf
        best = similarity.topk(count, dim=1)
        indices.append(best.indices)
        values.append(best.values)
    return torch.cat(indices).numpy(), torch.cat(values).numpy()
