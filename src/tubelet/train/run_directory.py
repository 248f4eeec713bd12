"""The run directory: config, metrics, alerts, list of bad files, and checks of a resumed run."""

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, NotRequired, TypedDict

from tubelet.checkpoint.run import list_checkpoints, step_from_name
from tubelet.config import TrainConfig, from_dict, to_dict
from tubelet.errors import BadFile, ConfigError, FileError, TubeletError
from tubelet.io.files import atomic_write, describe_os_error, file_errors
from tubelet.io.text import file_error, read_json, read_jsonl, read_text
from tubelet.value_checks import LARGEST_INT, Bounds

CONFIG, METRICS, BAD_FILES = "config.json", "metrics.jsonl", "bad_files.jsonl"
ALERTS, SOURCES, SOURCE_SAMPLE = "alerts.jsonl", "sources.txt", "source_sample.json"
ALARMS = "alarms.jsonl"  # alerts of runs that were started by version 0.1


_TAKE_OUT = "take this line out and continue with --resume"
_DELETE = "delete it and continue with --resume"
_Step = Annotated[int, Bounds(0, LARGEST_INT)]


class BadFileRow(TypedDict):
    """A row of bad_files.jsonl."""

    path: str
    reason: str


class AlertRow(TypedDict):
    """A row of alerts.jsonl."""

    step: _Step
    kind: str
    message: str
    batches: NotRequired[_Step]


class _AlarmRow(TypedDict):
    """A row of alarms.jsonl, as version 0.1 wrote it."""

    step: _Step
    kind: str
    said: str
    batches: NotRequired[_Step]


class RunDirectory:
    """The files of one run except its checkpoints. Rows reach the disk as they are written."""

    def __init__(
        self,
        path: Path,
        config: TrainConfig,
        resume: bool,
        writes: bool = True,
        sources: str = "",
        sample: Mapping[str, int] | None = None,
    ) -> None:
        """Read a run directory; nothing is written before `restore`.

        Args:
            path: path of the directory.
            config: settings of the run.
            resume: whether to continue an existing run.
            writes: whether this process writes to the directory.
            sources: summary of the files of the sources, compared with that of the run; empty if they were not listed.
            sample: path -> checksum of the contents, for some files of the sources.

        Raises:
            TubeletError: if a run exists and is not to be resumed, has another model, or is beyond its last step.
        """
        self.path, self.resume = path, resume
        checkpoints = list_checkpoints(path)
        self.checkpoint = checkpoints[-1] if checkpoints else None
        self.changed: list[str] = []
        self.lost_steps = 0  # steps of an earlier start that wrote no checkpoint
        # A directory with only a config belongs to a run that failed before its first step.
        started = bool(checkpoints) or next(read_metrics(path), None) is not None
        if started and not resume:
            raise ConfigError(f"{path}: a run is here already; continue it with --resume, or choose another --out")
        if started and not checkpoints:
            with suppress(TubeletError):  # rows after a damaged one are dropped with it
                for row, _ in read_metrics(path):
                    self.lost_steps = row["step"]
        if started and (path / CONFIG).exists():
            self.changed = _changes(path / CONFIG, config)
        if checkpoints and step_from_name(checkpoints[-1]) > config.steps:
            raise ConfigError(
                f"{path}: {step_from_name(checkpoints[-1])} steps are done, and steps is {config.steps}: raise --steps "
                "or choose another --out"
            )
        before = read_text(path / SOURCES, _DELETE).strip() if (path / SOURCES).exists() else sources
        if sources and before != sources:
            self.changed.append(f"what the sources hold, so that data come in another order: {before} -> {sources}")
        self.changed += _changed_contents(path / SOURCE_SAMPLE, sample or {})
        self.config, self.sources, self.sample = config, sources, sample
        self.writes = writes
        self.bad: dict[str, str] = {row["path"]: row["reason"] for row in read_bad_files(path)}
        self.seen_bad: set[str] = set()  # since this process started: other files may have been repaired
        self.buffered_rows: dict[str, str] = {}  # file -> lines that are buffered since the disk is full
        self.write_error = ""
        self.alerts: list[dict[str, Any]] = read_alerts(path)

    def restore(self, step: int, on_row: Callable[[dict[str, Any]], None]) -> None:
        """Write the config, and truncate metrics and alerts to the first `step` steps; later steps are recomputed.

        Args:
            step: number of steps done.
            on_row: called with each row of metrics that is kept; there may be millions.

        Raises:
            TubeletError: if the metrics are damaged, or something cannot be written.
        """
        self.alerts = [row for row in self.alerts if row["step"] <= step]
        if not self.writes:
            return
        with file_errors(self.path, "choose another --out"):
            self.path.mkdir(parents=True, exist_ok=True)
        self.close()  # buffered rows may be of steps that are recomputed
        write_atomically(self.path / CONFIG, json.dumps(to_dict(self.config), indent=2) + "\n")
        write_atomically(self.path / SOURCES, self.sources + "\n")
        if self.sample is not None:
            write_atomically(self.path / SOURCE_SAMPLE, json.dumps(self.sample, indent=1) + "\n")
        self._cut_metrics(step, on_row)
        write_atomically(self.path / ALERTS, "".join(json.dumps(row) + "\n" for row in self.alerts))
        (self.path / ALARMS).unlink(missing_ok=True)
        bad = [_bad_line(path, reason) for path, reason in self.bad.items()]
        write_atomically(self.path / BAD_FILES, "".join(bad))

    def _cut_metrics(self, step: int, on_row: Callable[[dict[str, Any]], None]) -> None:
        """Truncate the file after its last row to keep: rewriting it could mean gigabytes. Steps ascend."""
        path, length = self.path / METRICS, 0
        for row, end in read_metrics(self.path):
            if row["step"] > step:
                break
            on_row(row)
            length = end
            if row["step"] == step:
                break  # ignore what a crash may have left after it
        with file_errors(path, "check its permissions"):
            path.touch()
            os.truncate(path, length)

    def add_bad(self, files: list[BadFile]) -> list[BadFile]:
        """Record files that could not be read; returns those that are new."""
        new = [file for file in files if file.path not in self.seen_bad]
        for file in new:
            self.seen_bad.add(file.path)
            if file.path not in self.bad:
                self.bad[file.path] = file.reason
                self.append(BAD_FILES, _bad_line(file.path, file.reason))
        return new

    def add_alert(self, step: int, kind: str, message: str, **more: Any) -> None:
        """Record an alert in alerts.jsonl.

        Args:
            step: number of steps done; a run that resumes from an earlier step drops the alert.
            kind: kind of the alert, such as "collapse" or "spike".
            message: text of the alert, as it is logged.
            more: further fields of the row.
        """
        row = {"step": step, "kind": kind, "message": message, **more}
        self.alerts.append(row)
        self.append(ALERTS, json.dumps(row) + "\n")

    def close(self) -> None:
        """Write the buffered lines.

        Raises:
            TubeletError: if the disk is still full.
        """
        for name in list(self.buffered_rows):
            self.append(name, "")
        if self.buffered_rows:
            raise FileError(self.write_error)

    def append(self, name: str, line: str) -> None:
        """Append a line to a file; while the disk is full, lines are buffered in memory."""
        if not self.writes:
            return
        path, lines = self.path / name, self.buffered_rows.pop(name, "") + line
        size = path.stat().st_size if path.exists() else 0
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(lines)
        except OSError as error:
            self.buffered_rows[name] = lines
            self.write_error = f"{path}: {describe_os_error(error)}"
            if path.exists():
                os.truncate(path, size)  # remove a partial line


def read_config(run: Path) -> TrainConfig:
    """The config that a run was started with.

    Raises:
        TubeletError: if it is damaged.
    """
    path = run / CONFIG
    values = read_json(path, dict[str, Any], "restore it, or start a new run in another --out")
    config: TrainConfig = from_dict(TrainConfig, values, str(path))
    return config


def write_atomically(path: Path, text: str) -> None:
    """Write a file under a temporary name and rename it, so that no reader or crash ever finds half of it.

    Raises:
        TubeletError: if it cannot be written.
    """
    with atomic_write(path, remedy="check its permissions") as partial:
        partial.write_text(text, encoding="utf-8")


def _bad_line(path: str, reason: str) -> str:
    return json.dumps({"path": path, "reason": reason}) + "\n"


def read_metrics(run: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Iterate over the metrics of a run; yields each row with the byte offset of its end.

    Raises:
        TubeletError: a row is damaged, or the file cannot be read.
    """
    path = run / METRICS
    for number, (row, end) in enumerate(read_jsonl(path, Any, _TAKE_OUT), start=1):
        if problem := _metrics_problem(row):  # there may be millions of rows: no need to look up types for each
            raise file_error(f"{path}, line {number}", problem, _TAKE_OUT)
        if "data_wait_share" in row:  # as version 0.1 wrote it
            row["data_wait_fraction"] = row.pop("data_wait_share")
        yield row, end


def _metrics_problem(row: Any) -> str:
    """The problem with a row of metrics.jsonl; empty if it is valid."""
    if not isinstance(row, dict) or "step" not in row or "loss" not in row:
        return f"is {row!r:.100}, expected an object with a step, a loss and other numbers"
    for name in ("step", "skipped_steps"):
        if type(row.get(name, 0)) is not int or row.get(name, 0) < 0:
            return f"{name} is {row[name]!r:.100}, expected a whole number of 0 or more"
    for name, value in row.items():
        if type(value) not in (int, float, NoneType):
            return f"{name!r:.100} is {value!r:.100}, expected a number or null"
    return ""


def read_bad_files(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's list of bad files.

    Raises:
        TubeletError: a row is damaged, or the file cannot be read.
    """
    return [row for row, _ in read_jsonl(run / BAD_FILES, BadFileRow, _TAKE_OUT)]


def read_alerts(run: Path) -> list[dict[str, Any]]:
    """A run's alerts.

    Raises:
        TubeletError: a row is damaged, or the file cannot be read.
    """
    old = (run / ALARMS).exists() and not (run / ALERTS).exists()
    path, kind = (run / ALARMS, _AlarmRow) if old else (run / ALERTS, AlertRow)
    alerts = [row for row, _ in read_jsonl(path, kind, _TAKE_OUT)]
    for number, row in enumerate(alerts, start=1):
        if row["kind"] == "spike" and "batches" not in row:
            raise file_error(f"{path}, line {number}", "'batches' is missing", _TAKE_OUT)
        if old:
            row["message"] = row.pop("said")
    return alerts


def _changed_contents(path: Path, sample: Mapping[str, int]) -> list[str]:
    """A message if sampled files of the sources changed since the run was started; empty if none did."""
    before = read_json(path, dict[str, int], _DELETE) if path.exists() else {}
    both = before.keys() & sample.keys()
    changed = sorted(name for name in both if before[name] != sample[name])
    if not changed:
        return []
    return [f"contents of {len(changed)} of {len(both)} sampled files, such as {changed[0]}: losses will be others"]


def _changes(path: Path, config: TrainConfig) -> list[str]:
    """The settings that differ from those of the run, as `name: before -> now`."""
    before = read_config(path.parent)
    if before.model != config.model:
        differing = ", ".join(each.partition(":")[0] for each in _differences(before.model, config.model))
        raise ConfigError(
            f"{path}: this run trains another model than the requested one, which has another {differing}; resume it "
            "with the same --model, sizes and --stats, or choose another --out"
        )
    return list(_differences(before, config))


def _differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    differences = []
    for field in dataclasses.fields(before):
        a, b = getattr(before, field.name), getattr(now, field.name)
        if dataclasses.is_dataclass(a):
            differences += _differences(a, b, f"{prefix}{field.name}.")
        elif a != b:
            differences.append(f"{prefix}{field.name}: {a} -> {b}")
    return differences
