"""Diverse clips of a collection, to label first."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tubelet.embed.clip_vectors import ClipVectors
from tubelet.io.csv_tables import CLIP_COLUMNS, CsvDialect, write_csv


def farthest_first(rows: NDArray[np.floating], count: int, first: int = 0) -> list[int]:
    """Rows that differ from each other: each is the farthest from those before it.

    Farthest-first traversal, the greedy k-center of Sener and Savarese (2018, arXiv 1708.00489).

    Args:
        rows: (n, D).
        count: number of rows to choose, at most n.
        first: the row to begin with.
    """
    chosen, distance = [first], np.square(rows - rows[first]).sum(1)
    while len(chosen) < min(count, len(rows)):
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.square(rows - rows[chosen[-1]]).sum(1))
    return chosen


def pick_clips(clips: ClipVectors, count: int) -> list[int]:
    """Indices of diverse clips, in the order in which they were chosen; the first is the most central one."""
    return farthest_first(clips.vectors, count, int((clips.vectors @ clips.vectors.mean(0)).argmax()))


def write_picks(clips: ClipVectors, chosen: Sequence[int], path: Path, dialect: CsvDialect = "comma") -> None:
    """Write clips as a label table to be filled in; an image has no times.

    Raises:
        FileError: if it cannot be written.
    """
    rows = [
        (
            clips.paths[clips.file[i]],
            *((clips.start_s[i], clips.end_s[i]) if clips.end_s[i] else (None, None)),
            None,
        )
        for i in chosen
    ]
    write_csv(path, [*CLIP_COLUMNS, ("label", "text")], rows, dialect)
