"""What an evaluation came to: figures for a table and for JSON, pictures for a page."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from tubelet.console import print_wrapped
from tubelet.errors import BadFile, TubeletError
from tubelet.io.files import atomic_write, file_errors
from tubelet.io.overwrite import check_new_directory, check_output
from tubelet.io.text import file_error, read_json


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A figure of merit.

    Attributes:
        value: in `unit`.
        unit: "%", "m", ...; empty for a plain number.
        higher_is_better: which way it goes; None for what another figure is to be compared with.
    """

    value: float
    unit: str = ""
    higher_is_better: bool | None = True

    @property
    def arrow(self) -> str:
        """Which way is better."""
        return {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]

    def __str__(self) -> str:
        digits = 1 if self.unit == "%" else 3
        return f"{self.value:.{digits}f}{' ' * bool(self.unit)}{self.unit}"


@dataclass(frozen=True, kw_only=True)
class Example:
    """One file or sequence: what was predicted, beside the truth.

    Attributes:
        name: which.
        score: the task's first metric on it alone; None where the truth is not known.
        pictures: label -> (H, W, 3) uint8; the input first, then truth and prediction.
        note: what else there is to say of it.
    """

    name: str
    score: float | None
    pictures: Mapping[str, NDArray[np.uint8]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one task came to on one benchmark.

    Attributes:
        task: its name on the command line.
        benchmark: the layout that was read, such as "NYUv2".
        data: the folder.
        model_id: of the encoder.
        protocol: in a sentence, with its source.
        metrics: by their published names, the most important first; none where the truth is not public.
        beside: what another model is called -> its metrics on the same.
        counts: how many files, samples, classes, ... the figures stand for.
        skipped: files that were left out, and why; never silently.
        details: more figures, ready for JSON: each class, each sequence, the whole sweep.
        examples: a choice, worst first.
        files: a name in the result's folder -> the folder that is copied there: predictions, for other evaluators.
        legend: what stands for a colour of their pictures -> red, green and blue.
    """

    task: str
    benchmark: str
    data: str
    model_id: str
    protocol: str
    metrics: Mapping[str, Metric]
    counts: Mapping[str, int]
    beside: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    skipped: list[BadFile] = field(default_factory=list)
    details: Mapping[str, Any] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    files: Mapping[str, Path] = field(default_factory=dict)
    legend: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


def require_writable(folder: Path) -> None:
    """See that a folder can be made and written to, before hours go into what is to lie there.

    Raises:
        TubeletError: if it cannot.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written to" if there.is_dir() else "is a file"
        raise TubeletError(f"{folder}: results cannot be put here: {there} {why}; name another --out")


def write_result(result: Result, path: Path) -> None:
    """Write all but the pictures as JSON, beside and renamed, and the result's files beside it.

    Raises:
        TubeletError: if it cannot be written.
    """
    stated = {
        "task": result.task,
        "benchmark": result.benchmark,
        "data": result.data,
        "model_id": result.model_id,
        "protocol": result.protocol,
        "metrics": {name: metric.value for name, metric in result.metrics.items()},
        "beside": {
            other: {name: metric.value for name, metric in metrics.items()} for other, metrics in result.beside.items()
        },
        "units": {name: metric.unit for name, metric in result.metrics.items()},
        "counts": dict(result.counts),
        "skipped": [{"path": file.path, "reason": file.reason} for file in result.skipped],
        "details": result.details,
        "examples": [{"name": example.name, "score": example.score} for example in result.examples],
    }
    check_output(path.parent, "results")
    try:
        for top in {Path(name).parts[0] for name in result.files}:
            check_new_directory(path.parent / top, path.name)
        with file_errors(path.parent):
            _copy_files(result.files, path.parent)
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(stated, indent=1, allow_nan=False) + "\n")
    except ValueError as error:  # JSON has no word for NaN
        wrong = [name for name, metric in result.metrics.items() if not isfinite(metric.value)]
        raise TubeletError(
            f"{path}: the result is not finite ({', '.join(wrong) or error}), and is not written"
        ) from error


class _Result(TypedDict):
    """The fields of result.json that reports show."""

    task: str
    benchmark: str
    model_id: str
    metrics: dict[str, float]
    beside: dict[str, dict[str, float]]
    units: dict[str, str]


def read_result(path: Path) -> dict[str, Any]:
    """What `write_result` wrote.

    Raises:
        TubeletError: it is damaged, or something else.
    """
    remedy = "delete it and run `tubelet evaluate` again"
    content: dict[str, Any] = read_json(path, _Result, remedy)
    for name in content["metrics"]:
        lacking = [other for other, metrics in content["beside"].items() if name not in metrics]
        if name not in content["units"] or lacking:
            where = f"beside.{lacking[0]}" if lacking else "units"
            raise file_error(path, f"{where} has no {name!r:.100}, which is one of the metrics", remedy)
    return content


def _copy_files(files: Mapping[str, Path], out: Path) -> None:
    """Copy folders, each beside its place and renamed; what an earlier evaluation left in the same top folder goes."""
    for top in {Path(name).parts[0] for name in files}:
        shutil.rmtree(out / top, ignore_errors=True)
    for name, source in files.items():
        target = out / name
        partial = target.with_name(target.name + ".partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, partial)
        partial.rename(target)


def print_result(result: Result, console: Console) -> None:
    """The metrics as a table, and what they stand for below it."""
    print_wrapped(console, f"{result.task} on {result.benchmark}, {result.model_id}", "italic")
    table = Table()
    table.add_column("metric")
    for column in ["this model", *result.beside] if result.beside else ["value"]:
        table.add_column(column, justify="right")
    for name, metric in result.metrics.items():
        table.add_row(f"{name}{metric.arrow}", str(metric), *(str(other[name]) for other in result.beside.values()))
    if result.metrics:
        console.print(table)
    print_wrapped(console, result.protocol, "dim")
    print_wrapped(console, ", ".join(f"{number} {what}" for what, number in result.counts.items()))
    if result.skipped:
        first, count = result.skipped[0], len(result.skipped)
        said = f"{count} files were left out, or a part of them; the first is {first.path}: {first.reason}"
        print_wrapped(console, said, "yellow")
