"""The tables of `recipe.py`: a variant's results over its seeds, and whether one is better than another."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.recipe_tasks import MEASURES

CLAIM = ("e", "b")  # the first is expected to be better than the second


@dataclass(frozen=True)
class Row:
    """A variant's results over its seeds.

    Attributes:
        name, title: of the variant.
        seeds: of its runs.
        scores: measure -> value of each seed.
        training: statistic -> value of each seed; none for the random variant.
    """

    name: str
    title: str
    seeds: list[int]
    scores: dict[str, list[float]]
    training: dict[str, list[float]]


def gather(name: str, title: str, found: Mapping[int, dict[str, Any]]) -> Row:
    """The row of a variant from the results of its runs, by seed."""
    contents = list(found.values())
    training = [content["training"] for content in contents]
    return Row(
        name,
        title,
        list(found),
        {label: [content["scores"][label] for content in contents] for label in MEASURES},
        {key: [figures[key] for figures in training] for key in training[0]},
    )


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation over seeds (of a sample); unknown for one."""
    return statistics.stdev(values) if len(values) > 1 else None


def with_spread(values: Sequence[float]) -> str:
    """Mean and spread."""
    wide = spread(values)
    return f"{statistics.mean(values):.3f}" + (f" ± {wide:.3f}" if wide is not None else "")


def verdicts(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For every measure, how much better one variant is than the other, with the larger of their spreads."""
    by_name = {row.name: row for row in rows}
    if not set(CLAIM) <= by_name.keys():
        return []
    better, worse = (by_name[name] for name in CLAIM)
    found = []
    for label, higher_is_better in MEASURES.items():
        better_scores, worse_scores = better.scores[label], worse.scores[label]
        gain = statistics.mean(better_scores) - statistics.mean(worse_scores)
        gain = gain if higher_is_better else -gain
        spreads = [s for s in (spread(better_scores), spread(worse_scores)) if s is not None]
        word = "one seed: no spread to compare with"
        if spreads:
            word = "within the spread" if abs(gain) <= max(spreads) else "better" if gain > 0 else "worse"
        found.append({"measure": label, "gain": gain, "spread": max(spreads, default=None), "verdict": word})
    return found


def print_tables(rows: Sequence[Row], console: Console) -> None:
    """Scores, costs, and the claim."""
    scores = Table(title="frozen teacher, last level: mean ± standard deviation over seeds")
    scores.add_column("variant")
    for label, higher_is_better in MEASURES.items():
        scores.add_column(f"{label} {'↑' if higher_is_better else '↓'}", justify="right")
    for row in rows:
        scores.add_row(f"({row.name}) {row.title}", *(with_spread(values) for values in row.scores.values()))
    console.print(scores)
    trained = [row for row in rows if row.training]
    if trained:
        costs = Table(title="what a run cost: mean over seeds")
        costs.add_column("variant")
        for key in trained[0].training:
            costs.add_column(key, justify="right")
        for row in trained:
            costs.add_row(f"({row.name}) {row.title}", *(f"{statistics.mean(v):.3g}" for v in row.training.values()))
        console.print(costs)
        hours = sum(sum(row.training["hours"]) for row in trained)
        console.print(f"all runs together: {hours:.2f} hours of training steps", highlight=False)
    for claim in verdicts(rows):
        suffix = "" if claim["spread"] is None else f", spread {claim['spread']:.3f}"
        console.print(
            f"({CLAIM[0]}) over ({CLAIM[1]}), {claim['measure']}: {claim['gain']:+.3f}{suffix}: {claim['verdict']}",
            highlight=False,
        )
