"""The result of an evaluation: metrics for a table and for JSON, examples for a page."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tubelet.console import print_wrapped
from tubelet.errors import BadFile, DataError
from tubelet.io.files import atomic_write, file_errors
from tubelet.io.overwrite_checks import check_new_directory, check_output
from tubelet.io.text import file_error, read_json

VERSION = 2
"""Of result.json. Version 1 had `beside` for `baselines` and no `higher_is_better`; the suite wrote evaluation.json."""
RANDOM_WEIGHTS = "random weights"
_REMEDY = "delete it and run `tubelet evaluate` again"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """The value of a metric.

    Attributes:
        value: the value in `unit`.
        unit: "%", "m", ...; empty for a plain number.
        higher_is_better: the better direction; None for a value that is only a reference for another one.
        low: lower end of the 95 % interval; None if it was not estimated, or cannot be.
        high: upper end of the 95 % interval; None if it was not estimated, or cannot be.
    """

    value: float
    unit: str = ""
    higher_is_better: bool | None = True
    low: float | None = None
    high: float | None = None

    @property
    def arrow(self) -> str:
        """The better direction, as a suffix of the metric's name."""
        return {True: " ↑", False: " ↓", None: ""}[self.higher_is_better]

    def __str__(self) -> str:
        digits = 1 if self.unit == "%" else 3
        has_interval = self.low is not None and self.high is not None
        interval = f" [{self.low:.{digits}f}, {self.high:.{digits}f}]" if has_interval else ""
        return f"{self.value:.{digits}f}{interval}{' ' * bool(self.unit)}{self.unit}"


@dataclass(frozen=True, kw_only=True)
class Example:
    """A prediction and its ground truth, for one file or sequence.

    Attributes:
        name: the file or sequence.
        score: the task's first metric for it; None where the ground truth is not public.
        images: label -> (H, W, 3) uint8; the input first, then ground truth and prediction.
        note: a caption.
    """

    name: str
    score: float | None
    images: Mapping[str, NDArray[np.uint8]]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one task on one data set.

    Attributes:
        task: name of the task on the command line.
        benchmark: name of the data set, such as "NYUv2".
        data: its folder.
        model_id: id of the encoder.
        protocol: a description of the protocol in a few sentences, with its source.
        metrics: values by their published names, the most important first; none where the ground truth is not public.
        baselines: name of another model -> its values of the same metrics.
        counts: numbers of files, samples, classes, ... behind the metrics.
        skipped: files that were left out, with the reasons.
        details: further values, ready for JSON: by class, by sequence, the whole sweep.
        examples: some predictions, worst first.
        files: name in the result's folder -> a folder that is copied there: predictions for other evaluators.
        legend: label of a color in the examples' images -> red, green and blue.
    """

    task: str
    benchmark: str
    data: str
    model_id: str
    protocol: str
    metrics: Mapping[str, Metric]
    counts: Mapping[str, int]
    baselines: Mapping[str, Mapping[str, Metric]] = field(default_factory=dict)
    skipped: list[BadFile] = field(default_factory=list)
    details: Mapping[str, Any] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    files: Mapping[str, Path] = field(default_factory=dict)
    legend: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, Mapping[str, Metric]]:
        """The model's own metrics and those of the baselines, by the heading of their column."""
        return {_own_column(self.baselines): self.metrics, **self.baselines}

    def best(self, name: str) -> float | None:
        """The best value of a metric among the model and the baselines; None without baselines or a direction."""
        direction = self.metrics[name].higher_is_better
        if not self.baselines or direction is None:
            return None
        values = [metrics[name].value for metrics in self.columns.values() if name in metrics]
        return max(values) if direction else min(values)


def _own_column(baselines: Mapping[str, Any]) -> str:
    """The heading of the model's own column."""
    return "this model" if baselines else "value"


def require_writable(folder: Path) -> None:
    """Check that a folder can be created and written to, before hours go into its contents.

    Raises:
        TubeletError: if it cannot.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "is not writable" if existing.is_dir() else "is a file"
        raise DataError(f"cannot write results to {folder}: {existing} {reason}; choose another --out")


def write_result(result: Result, path: Path) -> None:
    """Write all but the images as JSON, atomically, and the result's files next to it.

    Raises:
        TubeletError: if a metric is not finite, or the file cannot be written.
    """
    check_output(path.parent, "results")
    try:
        for top in {Path(name).parts[0] for name in result.files}:
            check_new_directory(path.parent / top, path.name)
        with file_errors(path.parent):
            _copy_files(result.files, path.parent)
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(_to_json(result), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    except ValueError as error:  # JSON has no NaN
        not_finite = [name for name, metric in result.metrics.items() if not isfinite(metric.value)]
        raise DataError(
            f"{path}: metric is not finite ({', '.join(not_finite) or error}); result not written"
        ) from error


def _to_json(result: Result) -> dict[str, Any]:
    return {
        "version": VERSION,
        "task": result.task,
        "benchmark": result.benchmark,
        "data": result.data,
        "model_id": result.model_id,
        "protocol": result.protocol,
        "metrics": _values(result.metrics),
        "baselines": {name: _values(metrics) for name, metrics in result.baselines.items()},
        "units": {name: metric.unit for name, metric in result.metrics.items()},
        "higher_is_better": {name: metric.higher_is_better for name, metric in result.metrics.items()},
        "intervals": {name: found for name, metrics in result.columns.items() if (found := _intervals(metrics))},
        "counts": dict(result.counts),
        "skipped": [{"path": file.path, "reason": file.reason} for file in result.skipped],
        "details": result.details,
        "examples": [{"name": example.name, "score": example.score} for example in result.examples],
    }


def _values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    return {name: metric.value for name, metric in metrics.items()}


def _intervals(metrics: Mapping[str, Metric]) -> dict[str, tuple[float | None, float | None]]:
    known = {name: (metric.low, metric.high) for name, metric in metrics.items()}
    return {name: ends for name, ends in known.items() if ends != (None, None)}


class _ResultJson(TypedDict):
    """result.json, as far as it is read."""

    version: NotRequired[int]
    task: str
    benchmark: str
    data: NotRequired[str]
    model_id: str
    protocol: NotRequired[str]
    metrics: dict[str, float]
    baselines: NotRequired[dict[str, dict[str, float]]]
    beside: NotRequired[dict[str, dict[str, float]]]
    units: dict[str, str]
    higher_is_better: NotRequired[dict[str, bool | None]]
    intervals: NotRequired[dict[str, dict[str, list[float | None]]]]
    counts: NotRequired[dict[str, int]]
    details: NotRequired[dict[str, Any]]


def read_result(path: Path) -> Result:
    """Read result.json of this version or of version 1, without skipped files, examples and files.

    Raises:
        TubeletError: if it is damaged, of a later version, or another kind of file.
    """
    content: dict[str, Any] = read_json(path, _ResultJson, _REMEDY)
    version = content.get("version", 1)
    if version > VERSION:
        raise file_error(path, f"version {version} of result.json, expected at most {VERSION}", "update tubelet")
    units, directions = content["units"], content.get("higher_is_better", {})
    intervals = content.get("intervals", {})
    baselines = content.get("baselines" if version > 1 else "beside", {})
    if any(len(ends) != 2 for column in intervals.values() for ends in column.values()):
        raise file_error(path, "an interval does not have two ends", _REMEDY)
    own = _own_column(baselines)
    for name in content["metrics"]:
        if name not in units:
            raise file_error(path, f"units has no {name!r:.100}, which is one of the metrics", _REMEDY)

    def metric(name: str, value: float, column: str) -> Metric:
        low, high = intervals.get(column, {}).get(name, [None, None])
        return Metric(value=value, unit=units[name], higher_is_better=directions.get(name), low=low, high=high)

    return Result(
        task=content["task"],
        benchmark=content["benchmark"],
        data=content.get("data", ""),
        model_id=content["model_id"],
        protocol=content.get("protocol", ""),
        metrics={name: metric(name, value, own) for name, value in content["metrics"].items()},
        baselines={
            other: {name: metric(name, value, other) for name, value in values.items() if name in content["metrics"]}
            for other, values in baselines.items()
        },
        counts=content.get("counts", {}),
        details=content.get("details", {}),
    )


class _SuiteTaskJson(TypedDict):
    """A task in evaluation.json."""

    name: str
    metric: str
    higher_is_better: bool
    values: dict[str, float | None]
    details: NotRequired[dict[str, Any]]


class _SuiteJson(TypedDict):
    """evaluation.json, which the suite wrote in version 1."""

    checkpoint: str
    step: int | None
    data: str
    seed: int
    clips: dict[str, int]
    features: list[str]
    tasks: list[_SuiteTaskJson]


def read_suite_v1(path: Path) -> Result:
    """Read evaluation.json, which the suite wrote in version 1.

    Raises:
        TubeletError: if it is damaged, or another kind of file.
    """
    content: dict[str, Any] = read_json(path, _SuiteJson, _REMEDY)
    columns: dict[str, dict[str, Metric]] = {}
    for task in content["tasks"]:
        for feature in content["features"]:
            value = task["values"].get(feature)
            column = columns.setdefault(RANDOM_WEIGHTS if feature == "random" else feature, {})
            if value is not None:
                name = f"{task['name']}, {task['metric']}"
                column[name] = Metric(value=value, higher_is_better=task["higher_is_better"])
    return Result(
        task="suite",
        benchmark="sample set",
        data=content["data"],
        model_id=content["checkpoint"],
        protocol="",
        metrics=columns.pop("trained", {}),
        baselines=columns,
        counts={f"{split} clips": count for split, count in content["clips"].items()},
        details={task["name"]: task.get("details", {}) for task in content["tasks"]}
        | {"step": content["step"], "seed": content["seed"]},
    )


def _copy_files(files: Mapping[str, Path], out: Path) -> None:
    """Copy folders, each renamed when complete; what an earlier evaluation left in the same top folder is deleted."""
    for top in {Path(name).parts[0] for name in files}:
        shutil.rmtree(out / top, ignore_errors=True)
    for name, source in files.items():
        target = out / name
        partial = target.with_name(target.name + ".partial")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, partial)
        partial.rename(target)


def print_result(result: Result, console: Console) -> None:
    """Print the metrics as a table, the best of each row in bold, with protocol and counts below it."""
    print_wrapped(console, f"{result.task} on {result.benchmark}, {result.model_id}", "italic")
    table = Table()
    table.add_column("metric")
    for column in result.columns:
        table.add_column(column, justify="right")
    for name, metric in result.metrics.items():
        best = result.best(name)
        cells = [
            Text(str(own[name]), style="bold" if own[name].value == best else "") if name in own else Text("–")
            for own in result.columns.values()
        ]
        table.add_row(f"{name}{metric.arrow}", *cells)
    if result.metrics:
        console.print(table)
    print_wrapped(console, result.protocol, "dim")
    print_wrapped(console, ", ".join(f"{number} {what}" for what, number in result.counts.items()))
    if result.skipped:
        first, count = result.skipped[0], len(result.skipped)
        message = f"{count} files skipped, at least in part; the first is {first.path}: {first.reason}"
        print_wrapped(console, message, "yellow")
