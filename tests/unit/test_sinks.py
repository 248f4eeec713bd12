"""Metric sinks: each against a back end on this machine, resumed and rewound."""

import json
import math
import struct
import tempfile
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tubelet.config import TrainConfig
from tubelet.errors import TubeletError
from tubelet.train.run_directory import RunDirectory
from tubelet.train.sinks import MetricSink, SinkGroup, available_sinks, sink_class


def open_run(path):
    run = RunDirectory(path, TrainConfig(batch_size=6), resume=True)
    run.restore(9, lambda row: None)
    return run


@pytest.fixture
def run(tmp_path):
    return open_run(tmp_path / "mine")


def moved(run):
    """The run after its directory got another name."""
    return open_run(run.path.rename(run.path.with_name("renamed")))


def row(step, loss=None):
    return {"step": step, "loss": 1 / step if loss is None else loss, "lr": 1e-3}


def open_group(run, *names, more=(), step=0):
    alerts = []
    return SinkGroup(names, more, run, step, lambda *alert: alerts.append(alert)), alerts


def log(run, name, steps, start=0):
    """Log rows to one sink, in order, and close it; a step that is not larger than the one before is a rewind."""
    group, alerts = open_group(run, name, step=start)
    before = start
    for step in steps:
        if step <= before:
            group.rewind(step - 1)
        group.log(row(step))
        before = step
    group.close()
    assert not alerts


EXPECTED = {step: (1 / step, 1e-3) for step in (1, 2, 3, 4)}
"""Step -> loss and learning rate of the rows that the tests of back ends log: 1, 2, 3, then 3, 4 after a resume."""


def test_every_module_of_the_package_is_a_sink_and_others_are_refused():
    assert available_sinks() == ["jsonl", "mlflow", "tensorboard", "trackio", "wandb"]
    with pytest.raises(TubeletError, match=r"sinks: 'visdom' is unknown, expected some of jsonl, mlflow, tensorboard"):
        sink_class("visdom")


def test_a_row_of_json_has_null_for_what_is_not_finite(run):
    group, _ = open_group(run)
    group.log(row(1, math.nan))
    (logged,) = map(json.loads, (run.path / "metrics.jsonl").open())
    assert abs(time.time() - logged.pop("time")) < 60
    assert logged == {"step": 1, "loss": None, "lr": 1e-3}


def test_a_class_from_elsewhere_receives_rows_and_rewinds(run):
    calls = []

    class Recorder(MetricSink):
        def log(self, row):
            calls.append(row["step"])

        def rewind(self, step):
            calls.append(f"rewound to {step}")

    group, _ = open_group(run, more=(Recorder,))
    for step in (1, 2, 3):
        group.log(row(step))
    group.rewind(1)
    group.log(row(2))
    assert calls == [1, 2, 3, "rewound to 1", 2]


def test_a_sink_that_fails_ends_with_an_alert_and_the_others_continue(run):
    class Broken(MetricSink):
        def log(self, row):
            raise RuntimeError("no route to host")

    group, alerts = open_group(run, more=(Broken,))
    group.log(row(1))
    group.log(row(2))
    assert alerts == [(1, "sink", "Broken receives no more metrics: no route to host")]
    assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 2


def wandb_records(path):
    """The records of a file of W&B: LevelDB's log, in blocks of 32 KiB, after seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), 7, []
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # no room for a header at the end of a block
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack_from("<IHB", data, place)
        parts.append(data[place + 7 : place + 7 + size])
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(b"".join(parts))
            parts = []


def test_wandb_offline(run, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = pytest.importorskip("wandb")
    log(run, "wandb", steps=(1, 2, 3))
    run = moved(run)
    log(run, "wandb", steps=(3, 4), start=2)
    wandb.teardown()
    files = sorted(run.path.glob("wandb/offline-run-*/run-*.wandb"))
    records = [record for path in files for record in wandb_records(path)]
    assert len(files) == 2 and len({r.run.run_id for r in records if r.HasField("run")}) == 1
    config = next(r.run.config for r in records if r.HasField("run"))
    assert json.loads(next(item.value_json for item in config.update if item.key == "batch_size")) == 6
    rows = [{"".join(item.nested_key) or item.key: item.value_json for item in r.history.item} for r in records]
    points = {int(row["step"]): (float(row["loss"]), float(row["lr"])) for row in rows if row}
    assert points == EXPECTED


def test_mlflow_local(run, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log(run, "mlflow", steps=(1, 2, 3))
    run = moved(run)
    log(run, "mlflow", steps=(3, 4), start=2)
    client = mlflow.MlflowClient(f"sqlite:///{run.path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'tubelet'")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert (logged.info.run_name, logged.info.status, logged.data.params["batch_size"]) == ("mine", "FINISHED", "6")
    losses, rates = (
        {point.step: point.value for point in client.get_metric_history(logged.info.run_id, name)}
        for name in ("loss", "lr")
    )
    assert {step: (losses[step], rates[step]) for step in losses} == EXPECTED


def test_trackio_local(run, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    log(run, "trackio", steps=(1, 2, 3))
    log(moved(run), "trackio", steps=(3, 4), start=2)
    (name,) = trackio.SQLiteStorage.get_runs("tubelet")
    assert name.startswith("mine-") and trackio.SQLiteStorage.get_run_config("tubelet", name)["batch_size"] == 6
    logged = trackio.SQLiteStorage.get_logs("tubelet", name)
    assert {entry["step"]: (entry["loss"], entry["lr"]) for entry in logged if "loss" in entry} == EXPECTED


def test_tensorboard_hides_rows_that_are_logged_anew(run):
    log(run, "tensorboard", steps=(1, 2, 3, 2, 3))
    run = moved(run)
    log(run, "tensorboard", steps=(3, 4), start=2)
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    for column, name in enumerate(("loss", "lr")):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert found == [(step, pytest.approx(values[column])) for step, values in EXPECTED.items()]


def test_two_runs_of_one_name_are_two_runs(tmp_path):
    class Named(MetricSink):
        def log(self, row):
            raise NotImplementedError

    ids = [Named(open_run(tmp_path / folder / "mine"), 0).run_id(folder.lower) for folder in ("a", "b")]
    again = Named(open_run(tmp_path / "a" / "mine"), 0)
    assert ids == ["a", "b"] and again.run_id(lambda: "c") == "a"
    assert again.unique_name() != again.unique_name() and again.unique_name().startswith("mine-")
