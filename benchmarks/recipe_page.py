"""The page of `recipe.py`: its tables, its scores as points and its training curves."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tubelet.view.page import Line, chart, significant, write_page

POINTS = 60  # of a curve
# What the curves show: name in the metrics, unit, what to expect.
CURVES = (
    (
        "prediction_loss",
        "L1",
        "Error at hidden tokens: of one level's targets in (b) and (c), of four levels' elsewhere.",
    ),
    ("context_loss", "L1", "Error at visible tokens, weighted as each variant weights it; (b) does not train on it."),
    ("effective_rank", "effective rank", "Directions that the teacher's last level uses: falling to 1 is a collapse."),
    ("channel_std", "channel std", "Spread of a channel over tokens, averaged over channels; near 0 all are alike."),
)


@dataclass(frozen=True)
class Dots:
    """The scores of a variant in one measure, as shares of the axis' width.

    Attributes:
        name: of the variant.
        seeds: where each seed's value lies.
        mean, low, high: where the mean lies, and mean minus and plus spread.
        text: the mean in figures.
    """

    name: str
    seeds: list[float]
    mean: float
    low: float
    high: float
    text: str


@dataclass(frozen=True)
class Panel:
    """One measure: its dots, and the values at both ends of its axis."""

    label: str
    higher_is_better: bool
    rows: list[Dots]
    ends: tuple[str, str]


def write_recipe_page(
    out: Path, results: Mapping[str, Any], curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
) -> None:
    """Write the page.

    Args:
        out: the page.
        results: the content of results.json.
        curves: variant -> for each seed the metrics of its steps.

    Raises:
        TubeletError: if it cannot be written.
    """
    values = {
        "results": results,
        "panels": [panel(measure, results["variants"]) for measure in results["measures"]],
        "curves": [(curve(curves, name, unit), words) for name, unit, words in CURVES] if curves else [],
        "cells": {
            row["name"]: {label: cell(row["mean"][label], row["spread"][label]) for label in row["mean"]}
            for row in results["variants"]
        },
        "training": {
            row["name"]: {key: significant(statistics.mean(values)) for key, values in row["training"].items()}
            for row in results["variants"]
            if row["training"]
        },
        "hours": significant(sum(sum(row["training"].get("hours", [])) for row in results["variants"])),
    }
    write_page("recipe.html", out, values, folder=Path(__file__).parent)


def cell(mean: float, spread: float | None) -> str:
    """Mean and spread in figures."""
    return f"{mean:.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def panel(measure: Mapping[str, Any], variants: Sequence[Mapping[str, Any]]) -> Panel:
    """The dots of one measure."""
    label = measure["label"]
    reach = [value for row in variants for value in row["scores"][label]]
    for row in variants:
        wide = row["spread"][label] or 0.0
        reach += [row["mean"][label] - wide, row["mean"][label] + wide]
    low, high = min(reach), max(reach)
    if low == high:  # all alike: in the middle of an axis that has some width
        low, high = low - 0.01, high + 0.01

    def place(value: float) -> float:
        return (value - low) / (high - low)

    rows = []
    for row in variants:
        mean, wide = row["mean"][label], row["spread"][label] or 0.0
        seeds = [place(value) for value in row["scores"][label]]
        rows.append(Dots(row["name"], seeds, place(mean), place(mean - wide), place(mean + wide), f"{mean:.3f}"))
    return Panel(label, measure["higher_is_better"], rows, (significant(low), significant(high)))


def curve(curves: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], name: str, unit: str) -> Any:
    """One figure of all variants by step, averaged over seeds and over neighboring steps."""
    lines = []
    for number, (variant, runs) in enumerate(curves.items()):
        points = np.array([(row["step"], row[name]) for rows in runs for row in rows if name in row])
        points = points[np.argsort(points[:, 0], kind="stable")]
        size = max(1, len(points) // len(runs) // POINTS) * len(runs)
        bins = [points[i : i + size].mean(0) for i in range(0, len(points), size)]
        # A chart has four colors; further variants take them again, dashed.
        style = {"linestyle": (0, (4, 2))} if number >= 4 else {}
        lines.append(Line(f"({variant})", [x for x, _ in bins], [y for _, y in bins], style=style))
    return chart(lines, y=unit, size=(5.4, 2.8))
