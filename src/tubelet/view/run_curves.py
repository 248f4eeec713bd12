"""Curves of a run by step, as data for the plots of a page."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

POINTS = 1000  # maximum points of a curve, of which a page shows parts enlarged
Row = dict[str, Any]
# Plot: its unit, and the name and label of each curve; noisy ones are drawn with their running mean.
_NOISY = {
    "loss": (
        "loss (L1)",
        {"loss": "total", "prediction_loss": "prediction", "context_loss": "context (unweighted by λ)"},
    ),
    "grad_norm": ("gradient norm", {"grad_norm": "gradient norm"}),
    "speed": ("clips / s", {"clips_per_s": "clips / s"}),
    "wait": ("fraction of time", {"data_wait_fraction": "waiting for data"}),
}
_EXACT = {
    "lr": ("learning rate", {"lr": "learning rate"}),
    "ema": ("momentum", {"ema": "momentum"}),
    "weight": ("λ", {"context_weight": "λ"}),
}
_MONITORED = {"rank": ("effective rank", "effective_rank"), "std": ("channel std", "channel_std")}
_EVALUATION = "eval_"


def run_curves(rows: Sequence[Row]) -> dict[str, Row]:
    """Plots of what a run logged, by name: {unit, x, series}, NaN as None; those that it did not log are left out.

    Args:
        rows: metrics of the steps, in order.
    """
    plots = {}
    for key, (unit, names) in (_NOISY | _EXACT).items():
        logged = {name: label for name, label in names.items() if any(name in row for row in rows)}
        plots[key] = _plot(rows, unit, logged, smooth=key in _NOISY)
    for key, (unit, figure) in _MONITORED.items():
        for who in ("teacher", "predictor"):
            names = _levels(rows, who, figure)
            plots[f"{who}_{key}"] = _plot([row for row in rows if names.keys() & row.keys()], unit, names)
    evaluated = [row for row in rows if any(name.startswith(_EVALUATION) for name in row)]
    for name in sorted({name for row in evaluated for name in row if name.startswith(_EVALUATION)}):
        plots[name] = _plot(evaluated, name.removeprefix(_EVALUATION), {name: name.removeprefix(_EVALUATION)})
    return {key: plot for key, plot in plots.items() if plot["series"]}


def _levels(rows: Sequence[Row], who: str, figure: str) -> dict[str, str]:
    """Names of a figure, by level, shallow to deep; the teacher's last level has no prefix."""
    names = sorted({name for row in rows for name in row if name.startswith(who) and name.endswith("_" + figure)})
    if who == "teacher" and any(figure in row for row in rows):
        names.append(figure)
    return {name: f"level {level}" for level, name in enumerate(names, start=1)}


def _plot(rows: Sequence[Row], unit: str, names: dict[str, str], smooth: bool = False) -> Row:
    """A plot; longer curves than `POINTS` are averaged in groups, so that no spike is left out."""
    size = math.ceil(len(rows) / POINTS)
    series: list[Row] = []
    for name, label in names.items():
        # null in the file, a value that was not finite, becomes nan: a gap in the curve.
        values = np.array([row.get(name) for row in rows], dtype=float)
        y = np.array([_mean(values[i : i + size]) for i in range(0, len(rows), size)])
        if smooth:
            series.append({"label": label, "faint": True, "y": _finite(y)})
        series.append({"label": label, "faint": False, "y": _finite(_running_mean(y) if smooth else y)})
    middles = (rows[min(i + size // 2, len(rows) - 1)]["step"] for i in range(0, len(rows), max(size, 1)))
    return {"unit": unit, "x": list(middles), "series": series}


def _running_mean(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over 1/25 of a curve around each point."""
    width = max(1, len(y) // 50)
    kernel = np.ones(2 * width + 1) / (2 * width + 1)
    return np.convolve(np.pad(y, width, mode="edge"), kernel, mode="valid")


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of finite values; nan if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _finite(values: NDArray[np.float64]) -> list[float | None]:
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in values]
