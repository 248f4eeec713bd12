"""Held-out rows of a label table: files and groups are never on both sides.

U units: sets of files that must stay together. C strata: classes, or quarters of the range of a number column.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tubelet.labels.records import EPISODES, LabelError, LabelRow, LabelTable

_QUANTILES = (0.25, 0.5, 0.75)


def split_rows(table: LabelTable, held_out_fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide the rows into those to train on and those to measure on.

    The column `split` decides where the table has one. Otherwise whole files and groups are held out, so that the
    classes have about the same fractions on both sides, and every class of several files is on both.

    Args:
        table: a checked table.
        held_out_fraction: fraction of the rows to hold out.
        seed: seed of the choice among files that are equally suitable.

    Returns:
        Indices into `table.rows` of the training rows and of the held-out rows, ascending.

    Raises:
        LabelError: if nothing can be held out.
    """
    if any(row.split for row in table.rows):
        return _given_split(table)
    units = row_units(table)
    _require_units(table, units, 2)
    fold = _distribute(table.rows, units, np.array([held_out_fraction, 1 - held_out_fraction]), seed)
    return np.flatnonzero(fold[units] == 1), np.flatnonzero(fold[units] == 0)


def fold_rows(table: LabelTable, folds: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Divide the rows for cross-validation: each row is held out once.

    The column `split` decides where the table has one; then there is a single fold.

    Args:
        table: a checked table.
        folds: number of folds.
        seed: seed of the choice among files that are equally suitable.

    Returns:
        For each fold, indices into `table.rows` of the training rows and of the held-out rows, ascending.

    Raises:
        LabelError: if there are fewer files or groups than folds.
    """
    if any(row.split for row in table.rows):
        return [_given_split(table)]
    units = row_units(table)
    _require_units(table, units, folds)
    fold = _distribute(table.rows, units, np.full(folds, 1 / folds), seed)
    return [(np.flatnonzero(fold[units] != k), np.flatnonzero(fold[units] == k)) for k in range(folds)]


def row_units(table: LabelTable) -> NDArray[np.int64]:
    """(rows,) number of the unit of each row, from 0: rows of one file, or of files of one group, are one unit.

    Episodes are units whatever file they are stored in.
    """
    if table.format == EPISODES:
        return np.unique([row.group for row in table.rows], return_inverse=True)[1].astype(np.int64)
    parents: dict[str, str] = {}

    def root(name: str) -> str:
        while parents.setdefault(name, name) != name:
            parents[name] = name = parents[parents[name]]
        return name

    files = [f"file {row.path}" for row in table.rows]
    for row, file in zip(table.rows, files, strict=True):
        parents[root(file)] = root(f"group {row.group}") if row.group else root(file)
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(root(file), len(numbers)) for file in files], np.int64)


def _given_split(table: LabelTable) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    trained = np.array([row.split == "train" for row in table.rows])
    if trained.all() or not trained.any():
        given_split = "train" if trained.all() else "val or test"
        raise LabelError(
            table.path,
            [f"all rows have the split {given_split}; mark some files as train and others as val, or remove it"],
        )
    return np.flatnonzero(trained), np.flatnonzero(~trained)


def _require_units(table: LabelTable, units: NDArray[np.int64], minimum: int) -> None:
    count = int(units.max()) + 1 if len(units) else 0
    if count >= minimum:
        return
    kind = "groups" if any(row.group for row in table.rows) else "files"
    if count > 1:
        fault = f"the labels are of {count} {kind}, fewer than the {minimum} folds; use --folds {count} or label more"
    elif kind == "groups":
        fault = (
            "all rows are of one group, so that none can be held out to measure on; label files of a second group, or "
            "remove the column group if the files are independent of each other"
        )
    else:
        fault = (
            "all rows are of one file, so that none can be held out to measure on; label a second file, or cut this "
            "one into several files"
        )
    raise LabelError(table.path, [fault])


def _strata(rows: Sequence[LabelRow]) -> NDArray[np.int64]:
    """(rows, C) whether a row is of a class, or of a quarter of the first number column."""
    if classes := sorted({label for row in rows for label in row.labels}):
        return np.array([[name in row.labels for name in classes] for row in rows], np.int64)
    if rows and rows[0].values:
        first = np.array([row.values[0] for row in rows])
        quarter = np.searchsorted(np.quantile(first, _QUANTILES), first)
        return np.eye(len(_QUANTILES) + 1, dtype=np.int64)[quarter]
    return np.ones((len(rows), 1), np.int64)


def _distribute(
    rows: Sequence[LabelRow], units: NDArray[np.int64], fractions: NDArray[np.float64], seed: int
) -> NDArray[np.int64]:
    """(U,) the fold of each unit, by iterative stratification.

    The rarest class that is left is distributed first: each of its units, the largest first, goes to the fold that
    lacks most of the class. (Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-Label Data, 2011.)
    """
    strata = _strata(rows)
    counts = np.zeros((int(units.max()) + 1, strata.shape[1]), np.int64)
    np.add.at(counts, units, strata)
    sizes = np.bincount(units)
    order = np.random.default_rng(seed).permutation(len(counts))
    demand = fractions[:, None] * counts.sum(0)
    # A class of few units is on both sides too, wherever it can be.
    several = (counts > 0).sum(0) > 1
    smallest = np.where(counts > 0, counts, counts.max() + 1).min(0)
    demand = np.where(several, np.maximum(demand, smallest), demand)
    room = fractions * sizes.sum()
    fold = np.full(len(counts), -1)
    while (free := order[fold[order] < 0]).size:
        left = (counts[free] > 0).sum(0)
        rarest = int(np.where(left > 0, left, len(counts) + 1).argmin())
        if left.any():
            free = free[counts[free, rarest] > 0]
            largest_first = free[np.argsort(-counts[free, rarest], kind="stable")]
            lacking = demand[:, rarest]
        else:
            largest_first = free[np.argsort(-sizes[free], kind="stable")]
            lacking = room
        for unit in largest_first.tolist():
            best = max(range(len(fractions)), key=lambda k: (lacking[k], room[k]))
            fold[unit] = best
            demand[best] -= counts[unit]
            room[best] -= sizes[unit]
    return _without_empty_folds(fold, sizes, len(fractions))


def _without_empty_folds(fold: NDArray[np.int64], sizes: NDArray[np.int64], folds: int) -> NDArray[np.int64]:
    """Give each empty fold the smallest unit of the fold with most units."""
    for empty in set(range(folds)) - set(fold.tolist()):
        donor = int(np.bincount(fold, minlength=folds).argmax())
        units = np.flatnonzero(fold == donor)
        fold[units[sizes[units].argmin()]] = empty
    return fold
