"""Intervals of metrics on held-out files, by resampling files.

Rows of one file, and files of one group, resemble each other: an interval that resamples rows as if they were
independent is too narrow. Here whole units are resampled, a unit being a file, or all files of a group.

B resamples, U units. A statistic is a function of how often each unit occurs, weights (B, U), to values (B,), so that
most resamples are one product of matrices.
"""

from collections.abc import Callable
from math import isfinite

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tubelet.heads.head_file import MetricInterval

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]

RESAMPLES = 1000
FEW = 10
"""Units below which the interval is also at least as wide as that of Student's t."""
_T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306)  # 97.5 % quantiles of 1 to 8 degrees of freedom
_TAIL = 0.025
_MAX_WEIGHTS = 2_000_000  # of all resamples at a time


def bootstrap_interval(
    name: str,
    statistic: Statistic,
    units: int,
    *,
    bounds: tuple[float, float],
    unit: str | None = None,
    higher_is_better: bool = True,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> MetricInterval:
    """A metric with its 95 % interval.

    The percentile bootstrap over units (Efron and Tibshirani 1993, chapter 13). With fewer than `FEW` units, of which
    that is too narrow, the interval also covers value ± t · standard error by the jackknife. Where all units agree, as
    with 100 % on each of U files, both have no width. But files on which the metric is at its other bound may make up
    p = 1 - 0.025^(1/U) of all files and yet be missing among U with a chance of 2.5 %: the ends are moved towards the
    bounds by that fraction. One unit says nothing: the interval is everything that the bounds allow.

    Args:
        name: name of the metric.
        statistic: function of weights (B, U) to values (B,); NaN where it is not defined.
        units: U.
        bounds: lowest and highest possible value, or infinities.
        unit: unit of the value.
        higher_is_better: the better direction.
        seed: seed of the resamples.
        resamples: B.

    Returns:
        The metric; ends that cannot be estimated are None.

    Raises:
        ValueError: if the metric is not defined for all units together.
    """
    value = float(statistic(np.ones((1, units)))[0])
    if not isfinite(value):
        raise ValueError(f"{name} is {value} over all {units} files, expected a number")
    low, high = _ends(value, statistic, units, bounds, seed, resamples)
    return MetricInterval(
        name=name, value=value, low=low, high=high, unit=unit, higher_is_better=higher_is_better, files=units
    )


def _ends(
    value: float, statistic: Statistic, units: int, bounds: tuple[float, float], seed: int, resamples: int
) -> tuple[float | None, float | None]:
    lower, upper = bounds
    if units == 1:
        return (lower, upper) if isfinite(lower) and isfinite(upper) else (None, None)
    values = resample(statistic, units, seed, resamples)
    values = values[np.isfinite(values)]
    if 2 * len(values) < resamples:
        return None, None
    low, high = np.percentile(values, [100 * _TAIL, 100 * (1 - _TAIL)])
    if units < FEW:
        others = statistic(np.ones((units, units)) - np.eye(units))
        others = others[np.isfinite(others)]
        if len(others) == units:
            error = np.sqrt((units - 1) / units * np.square(others - others.mean()).sum())
            low, high = min(low, value - _T_975[units - 2] * error), max(high, value + _T_975[units - 2] * error)
    if high - low <= 1e-9 * max(1.0, abs(value)):
        if not (isfinite(lower) and isfinite(upper)):
            return None, None
        unseen = 1 - _TAIL ** (1 / units)
        low, high = value - unseen * (value - lower), value + unseen * (upper - value)
    return float(max(lower, min(low, value))), float(min(upper, max(high, value)))


def resample(statistic: Statistic, units: int, seed: int, resamples: int = RESAMPLES) -> Floats:
    """(B,) values of a statistic for B draws of U units with replacement, the same for the same seed."""
    rng = np.random.default_rng(seed)
    block = max(1, _MAX_WEIGHTS // units)
    counts = [min(block, resamples - start) for start in range(0, resamples, block)]
    chances = np.full(units, 1 / units)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.concatenate([statistic(rng.multinomial(units, chances, count).astype(float)) for count in counts])


def index_units(units: ArrayLike) -> tuple[NDArray[np.int64], int]:
    """Numbers of the units (n,) of rows as consecutive ones from 0, and how many there are."""
    names, index = np.unique(np.asarray(units), return_inverse=True)
    return index.astype(np.int64).reshape(-1), len(names)


def sum_by_unit(rows: ArrayLike, index: NDArray[np.int64], units: int) -> Floats:
    """Values of rows (n, ...) -> their sums by unit (U, ...)."""
    values = np.asarray(rows, float)
    total = np.zeros((units, *values.shape[1:]))
    np.add.at(total, index, values)
    return total


def ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient of two arrays, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator != 0)


def mean_defined(values: Floats) -> Floats:
    """Mean (B,) over the last axis of (B, K), ignoring NaN; NaN where all are."""
    defined = np.isfinite(values)
    return ratio(np.where(defined, values, 0.0).sum(-1), defined.sum(-1))
