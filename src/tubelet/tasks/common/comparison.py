"""What the suite came to: one row a task, one column a kind of features."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tubelet.console import print_wrapped
from tubelet.errors import TubeletError
from tubelet.io.files import atomic_write
from tubelet.io.overwrite import check_output
from tubelet.io.text import file_error, read_json

_EVALUATE_AGAIN = "delete it and run `tubelet evaluate` again"


@dataclass(frozen=True)
class Task:
    """What one task came to.

    Attributes:
        name: segmentation, depth, camera motion or tracking.
        metric: what the values are.
        higher_is_better: which way the metric goes.
        values: kind of feature -> metric; None for all where the set has nothing to measure it on.
        details: more figures, ready for JSON.
    """

    name: str
    metric: str
    higher_is_better: bool
    values: dict[str, float | None]
    details: dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """The content of evaluation.json.

    Attributes:
        checkpoint: the file that was evaluated, or the id of a model that is not of a run.
        step: optimiser steps that it has seen; None for a model that does not say.
        data: the sample set.
        seed: of the random encoder and of all choices of clips and tokens.
        clips: split -> how many were used.
        features: the kinds of features, the trained one first.
        tasks: the results.
    """

    checkpoint: str
    step: int | None
    data: str
    seed: int
    clips: dict[str, int]
    features: list[str]
    tasks: list[Task]


class _Task(TypedDict):
    """A task in evaluation.json."""

    name: str
    metric: str
    higher_is_better: bool
    values: dict[str, float | None]
    details: NotRequired[dict[str, Any]]


class _Evaluation(TypedDict):
    """The content of evaluation.json."""

    checkpoint: str
    step: int | None
    data: str
    seed: int
    clips: dict[str, int]
    features: list[str]
    tasks: list[_Task]


def read_evaluation(path: Path) -> dict[str, Any] | None:
    """What `write_evaluation` wrote; None where there is no such file.

    Raises:
        TubeletError: it is damaged, or something else.
    """
    if not path.is_file():
        return None
    content: dict[str, Any] = read_json(path, _Evaluation, _EVALUATE_AGAIN)
    if missing := [split for split in ("train", "val") if split not in content["clips"]]:
        raise file_error(path, f"clips.{missing[0]} is missing, expected a whole number", _EVALUATE_AGAIN)
    return content


def write_evaluation(evaluation: Evaluation, path: Path) -> None:
    """Write an evaluation as JSON, beside and renamed.

    Raises:
        TubeletError: if it cannot be written.
    """
    check_output(path, "evaluation")
    try:
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(asdict(evaluation), indent=1, allow_nan=False) + "\n")
    except ValueError as error:  # JSON has no word for NaN
        raise TubeletError(f"{path}: the evaluation has values that are not finite, and is not written") from error


def print_table(evaluation: Evaluation, console: Console) -> None:
    """One row a task, one column a kind of feature, the best of each row in bold."""
    what = f"{evaluation.checkpoint} on {evaluation.data}"
    print_wrapped(console, what, "italic")
    table = Table(caption=f"{evaluation.clips['train']} train and {evaluation.clips['val']} val clips")
    table.add_column("task")
    table.add_column("metric")
    for kind in evaluation.features:
        table.add_column(kind, justify="right")
    for task in evaluation.tasks:
        known = [value for value in task.values.values() if value is not None]
        best = (max if task.higher_is_better else min)(known, default=None)
        cells = [
            Text("–" if value is None else f"{value:.3f}", style="bold" if value is not None and value == best else "")
            for value in (task.values[kind] for kind in evaluation.features)
        ]
        table.add_row(task.name, f"{task.metric} {'↑' if task.higher_is_better else '↓'}", *cells)
    console.print(table)
