"""A run's folder over months: what a resumed run reads of it and keeps."""

import json
import shutil
import tracemalloc
from pathlib import Path

import pytest

from tubelet.config import TrainConfig
from tubelet.errors import TubeletError
from tubelet.train.anomaly_guard import AnomalyGuard, LossHistory
from tubelet.train.run_directory import RunDirectory, read_alerts, read_metrics


def folder(path, rows, tail=b""):
    path.mkdir()
    lines = (json.dumps({"step": step, "loss": 0.5, "skipped_steps": 0}) + "\n" for step in range(1, rows + 1))
    (path / "metrics.jsonl").write_bytes("".join(lines).encode() + tail)
    return RunDirectory(path, TrainConfig(), resume=True)


def test_a_long_run_resumes_without_holding_its_metrics_and_keeps_those_before_its_step(tmp_path):
    run = folder(tmp_path / "run", rows=20_000, tail=b'{"step": 20001, "lo')
    before = (run.path / "metrics.jsonl").read_bytes()
    steps = LossHistory()
    tracemalloc.start()
    run.restore(19_990, steps.add)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < len(before) / 4
    after = (run.path / "metrics.jsonl").read_bytes()
    assert before.startswith(after)
    assert [json.loads(line)["step"] for line in after.splitlines()] == list(range(1, 19_991))
    assert len(steps.losses) == 100


def test_a_damaged_line_among_the_metrics_that_are_kept_is_named_and_one_after_them_is_dropped(tmp_path):
    damaged = b"\0\0\0{\n" + json.dumps({"step": 6, "loss": 0.5}).encode() + b"\n"
    run = folder(tmp_path / "run", rows=5, tail=damaged)
    with pytest.raises(TubeletError, match=r"metrics\.jsonl, line 6: .*NUL.*; take this line out"):
        run.restore(6, LossHistory().add)
    run.restore(5, LossHistory().add)
    assert (run.path / "metrics.jsonl").read_bytes().count(b"\n") == 5


def test_what_a_row_of_metrics_takes_does_not_grow_with_the_alerts(tmp_path):
    run = folder(tmp_path / "run", rows=0)
    run.restore(0, LossHistory().add)
    guards = AnomalyGuard(TrainConfig(), run)
    guards.alert(1, "save", "the disk is full")
    guards.alert(2, "spike", "a spike", batches=3)
    run.alerts = []  # nobody goes through them again
    row = {"step": 3, "loss": 0.5, "skipped": 0}
    guards.observe(row)
    assert (row["failed_saves"], row["rewinds"]) == (1, 1)


def test_metrics_and_alerts_of_version_0_1_are_read_and_written_anew_in_todays_form(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(Path(__file__).parents[1] / "data" / "format-1" / "run", run)
    rows, alerts = [row for row, _ in read_metrics(run)], read_alerts(run)
    assert [row["data_wait_fraction"] for row in rows] == pytest.approx([0.019, 0.026, 0.023], abs=1e-3)
    assert [(alert["step"], alert["kind"]) for alert in alerts] == [(1, "collapse"), (2, "spike")]
    assert alerts[1]["message"].startswith("the loss of step 3 is 12") and alerts[1]["batches"] == 5
    RunDirectory(run, TrainConfig(), resume=True).restore(3, LossHistory().add)
    assert read_alerts(run) == alerts and sorted(path.name for path in run.glob("a*")) == ["alerts.jsonl"]
