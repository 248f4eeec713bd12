"""Metrics of predicted values.

n samples, K targets, B resamples, U units.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import ArrayLike

from tubelet.heads.head_file import MetricInterval
from tubelet.tasks.metrics.intervals import (
    Floats,
    bootstrap_interval,
    index_units,
    mean_defined,
    ratio,
    sum_by_unit,
)

_UP_TO_1 = (-np.inf, 1.0)


def value_metrics(
    predicted: ArrayLike, truth: ArrayLike, units: ArrayLike, targets: Sequence[str], seed: int = 0
) -> tuple[MetricInterval, ...]:
    """R², RMSE and correlation with intervals.

    Args:
        predicted: (n, K) in the units of the targets.
        truth: (n, K).
        units: (n,) file or group of each sample.
        targets: K names.
        seed: seed of the resamples.

    Returns:
        R² (with several targets their mean, and then that of each), RMSE of each target, Pearson's r of each target.
        What is not defined, such as the correlation of constant predictions, is left out.
    """
    index, count = index_units(units)
    moments = sum_by_unit(_moments(predicted, truth), index, count)
    single = len(targets) == 1
    found = [] if single else [_interval("R²", lambda sums: mean_defined(_r_squared(sums)), moments, seed, _UP_TO_1)]
    for title, of_sums, bounds in (
        ("R²", _r_squared, _UP_TO_1),
        ("RMSE", _rmse, (0.0, np.inf)),
        ("Pearson r", _pearson, (-1.0, 1.0)),
    ):
        for k, target in enumerate(targets):
            name = title if single else f"{title} {target}"
            found.append(_interval(name, partial(_column, of_sums, k), moments, seed, bounds))
    return tuple(metric for metric in found if metric is not None)


def _interval(
    name: str, of_sums: Callable[[Floats], Floats], moments: Floats, seed: int, bounds: tuple[float, float]
) -> MetricInterval | None:
    """A metric of sums of moments (B, 6, K), given the sums by unit (U, 6, K); None where it is not defined."""

    def statistic(weights: Floats) -> Floats:
        return of_sums(np.tensordot(weights, moments, 1))

    if not np.isfinite(statistic(np.ones((1, len(moments))))[0]):
        return None
    better = not name.startswith("RMSE")
    return bootstrap_interval(name, statistic, len(moments), bounds=bounds, higher_is_better=better, seed=seed)


def _column(of_sums: Callable[[Floats], Floats], k: int, sums: Floats) -> Floats:
    return of_sums(sums)[:, k]


def _moments(predicted: ArrayLike, truth: ArrayLike) -> Floats:
    """(n, 6, K): 1, y, y², t, t², y t, of predictions y and truth t less the mean of the truth."""
    y, t = (np.asarray(values, float) for values in (predicted, truth))
    y, t = (values.reshape(len(values), -1) for values in (y, t))
    center = t.mean(0)  # so that squares of large values do not cancel
    y, t = y - center, t - center
    return np.stack([np.ones_like(y), y, y**2, t, t**2, y * t], 1)


def _r_squared(sums: Floats) -> Floats:
    n, _, yy, t, tt, yt = (sums[:, i] for i in range(6))
    return 1 - ratio(yy - 2 * yt + tt, _variation(n, t, tt))


def _rmse(sums: Floats) -> Floats:
    n, _, yy, _, tt, yt = (sums[:, i] for i in range(6))
    return np.sqrt(ratio((yy - 2 * yt + tt).clip(0), n))


def _pearson(sums: Floats) -> Floats:
    n, y, yy, t, tt, yt = (sums[:, i] for i in range(6))
    return ratio(yt - ratio(y * t, n), np.sqrt(_variation(n, y, yy) * _variation(n, t, tt))).clip(-1, 1)


def _variation(n: Floats, total: Floats, squares: Floats) -> Floats:
    """Sum of squared differences from the mean; 0 where that is rounding."""
    spread = squares - ratio(total**2, n)
    return np.where(spread > 1e-12 * squares, spread, 0.0)
