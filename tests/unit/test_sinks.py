"""Metric sinks: each against a back end on this machine, resumed and rewound."""

import json
import math
import tempfile
from pathlib import Path

import pytest

from tubelet.config import TrainConfig
from tubelet.errors import TubeletError
from tubelet.train.run_directory import RunDirectory
from tubelet.train.sinks import MetricSink, SinkGroup, available_sinks, sink_class


@pytest.fixture
def run(tmp_path):
    run = RunDirectory(tmp_path / "mine", TrainConfig(), resume=True)
    run.begin(0, lambda row: None)
    return run


def row(step, loss=0.5):
    return {"step": step, "loss": loss, "lr": 1e-3}


def open_group(run, *names, more=(), step=0):
    alerts = []
    return SinkGroup(names, more, run, step, lambda *alert: alerts.append(alert)), alerts


def log(run, name, steps=(1, 2), start=0):
    """Log rows to one sink and close it."""
    group, alerts = open_group(run, name, step=start)
    for step in steps:
        group.log(row(step))
    group.close()
    assert not alerts


def test_every_module_of_the_package_is_a_sink_and_others_are_refused():
    assert available_sinks() == ["jsonl", "mlflow", "tensorboard", "trackio", "wandb"]
    with pytest.raises(TubeletError, match=r"sinks: 'visdom' is unknown, expected some of jsonl, mlflow, tensorboard"):
        sink_class("visdom")


def test_a_row_of_json_has_null_for_what_is_not_finite(run):
    group, _ = open_group(run)
    group.log(row(1, math.nan))
    assert json.loads((run.path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None, "lr": 1e-3}


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


def test_wandb_offline(run, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = pytest.importorskip("wandb")
    log(run, "wandb")
    log(run, "wandb", steps=(2, 3), start=1)
    wandb.teardown()
    written = sorted(run.path.glob("wandb/offline-run-*/run-*.wandb"))
    assert written and all(b"loss" in path.read_bytes() for path in written)


def test_mlflow_local(run, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log(run, "mlflow")
    log(run, "mlflow", steps=(2, 3), start=1)
    client = mlflow.MlflowClient(f"sqlite:///{run.path / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'tubelet'")
    (logged,) = client.search_runs([experiment.experiment_id])
    assert {point.step for point in client.get_metric_history(logged.info.run_id, "loss")} == {1, 2, 3}
    assert "batch_size" in logged.data.params


def test_trackio_local(run, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    log(run, "trackio")
    log(run, "trackio", steps=(3,), start=2)
    assert list(Path(tmp_path / "trackio").glob("tubelet*"))
