"""Checkpoints are written while training goes on."""

import json
import logging
import threading
import time
from itertools import pairwise

import pytest
import torch

from tests.helpers.training import rows, tiny_config, train_quietly
from tubelet.checkpoint import run as checkpoint
from tubelet.checkpoint.run import copy_to_host, list_checkpoints, read_checkpoint, step_from_name
from tubelet.errors import DataError, TubeletError
from tubelet.train import checkpointer as saving
from tubelet.train import progress, trainer
from tubelet.train.progress import StageNotice


def alerts(run):
    return [json.loads(line) for line in (run / "alerts.jsonl").open()]


@pytest.fixture
def written(monkeypatch):
    """What to do at the n-th write of a checkpoint, beginning with 1, and when each began and ended."""
    hooks, times, real = {}, [], checkpoint.save_file

    def save_file(tensors, path, metadata):
        times.append([time.monotonic()])
        hooks.get(len(times), lambda: None)()
        real(tensors, path, metadata=metadata)
        times[-1].append(time.monotonic())

    monkeypatch.setattr(checkpoint, "save_file", save_file)
    return hooks, times


def test_checkpoints_of_every_so_many_steps_are_kept_and_a_first_one_comes_after_some_minutes(
    media, tmp_path, monkeypatch
):
    config = tiny_config(media, steps=7, checkpoint_every=5, keep_every=3, keep_checkpoints=1)
    train_quietly(config, tmp_path / "run")
    assert [step_from_name(path) for path in list_checkpoints(tmp_path / "run")] == [3, 6, 7]
    monkeypatch.setattr(saving, "FIRST_CHECKPOINT_S", 0.0)
    train_quietly(tiny_config(media, steps=3, checkpoint_every=100), tmp_path / "slow")
    assert [step_from_name(path) for path in list_checkpoints(tmp_path / "slow")] == [1, 3]


def test_what_takes_long_besides_the_steps_is_logged(media, tmp_path, monkeypatch, caplog):
    stages = []

    class Recorder(StageNotice):
        def begin(self, stage):
            stages.append(stage)
            super().begin(stage)

    monkeypatch.setattr(trainer, "StageNotice", Recorder)
    train_quietly(tiny_config(media, steps=2, checkpoint_every=2), tmp_path / "run")
    words = ["listing the files", "preparing the model", "waiting for the first batch", "taking the first step"]
    words += ["saving the checkpoint of step 2", "waiting for the checkpoint", "closing the metric sinks"]
    assert [stage for stage, start in zip(stages, words, strict=True) if stage.startswith(start)] == stages
    monkeypatch.setattr(progress, "_SILENT_SECONDS", 0.0)
    monkeypatch.setattr(progress, "_REPEAT_SECONDS", 0.01)
    notice = StageNotice()
    with caplog.at_level(logging.INFO, "tubelet"):
        notice.begin("counting")
        while len(caplog.messages) < 2:
            time.sleep(0.01)
        notice.end()
        monkeypatch.setattr(progress, "_SILENT_SECONDS", 60.0)
        notice.begin("a quick stage")
        notice.end()
    assert caplog.messages[:2] == ["counting ...", "counting ... (0 s so far)"]
    assert not any("quick" in message for message in caplog.messages)


def test_training_continues_while_a_checkpoint_is_written_which_holds_the_state_of_its_step(media, tmp_path, written):
    config = tiny_config(media, steps=10, checkpoint_every=4, keep_checkpoints=9)
    train_quietly(config, tmp_path / "quiet")
    hooks, times = written
    times.clear()
    steps_at_write: list[int] = []

    def until_training_is_ahead():
        deadline = time.monotonic() + 60
        while len(rows(tmp_path / "slow")) < 9 and time.monotonic() < deadline:
            time.sleep(0.02)
        steps_at_write.append(len(rows(tmp_path / "slow")))

    hooks[2] = until_training_is_ahead  # of step 8
    train_quietly(config, tmp_path / "slow")
    assert steps_at_write == [9]
    names = [path.name for path in list_checkpoints(tmp_path / "slow")]
    assert names == [f"step-{step:09d}.safetensors" for step in (4, 8, 10)]
    assert all(end <= begin for (_, end), (begin, _) in pairwise(times))  # one at a time
    for name in names:
        slow, quiet = (read_checkpoint(tmp_path / run / "checkpoints" / name)[0] for run in ("slow", "quiet"))
        assert slow.keys() == quiet.keys() and all(torch.equal(slow[key], quiet[key]) for key in quiet)


def test_a_save_waits_for_the_one_before_it(media, tmp_path, written):
    hooks, times = written
    hooks[2] = lambda: time.sleep(2)  # longer than the next two steps
    train_quietly(tiny_config(media, steps=6, checkpoint_every=2), tmp_path / "run")
    assert len(times) == 3
    assert all(end <= begin for (_, end), (begin, _) in pairwise(times))
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == [
        "step-000000004.safetensors",
        "step-000000006.safetensors",
    ]


def test_a_run_that_fails_waits_for_the_checkpoint_that_is_being_written(media, tmp_path, monkeypatch, written):
    hooks, _ = written
    hooks[2] = lambda: time.sleep(1)
    real = trainer.train_step

    def failing(model, optimizer, data, config, step, ctx):
        if step == 4:
            raise TubeletError("the step fails")
        return real(model, optimizer, data, config, step, ctx)

    monkeypatch.setattr(trainer, "train_step", failing)
    with pytest.raises(TubeletError, match="the step fails"):
        train_quietly(tiny_config(media, checkpoint_every=2), tmp_path / "run")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000000002.safetensors", "step-000000004.safetensors"]
    assert not any(thread.name.startswith("checkpoint") for thread in threading.enumerate())


def test_a_failed_write_or_copy_is_reported_at_the_next_step_and_the_run_continues(
    media, tmp_path, monkeypatch, written
):
    hooks, _ = written
    ended = threading.Event()

    def fail():
        ended.set()
        raise OSError(5, "Input/output error")

    hooks[2] = fail  # of step 4
    real_step, real_copy, copies = trainer.train_step, saving.copy_to_host, []

    def after_the_failure(model, optimizer, data, config, step, ctx):
        if step == 4:
            assert ended.wait(60)
            time.sleep(0.3)
        return real_step(model, optimizer, data, config, step, ctx)

    def without_room(state):
        copies.append(1)
        return real_copy({"huge": torch.empty(1).expand(2**50)} if len(copies) == 3 else state)  # of step 6

    monkeypatch.setattr(trainer, "train_step", after_the_failure)
    monkeypatch.setattr(saving, "copy_to_host", without_room)
    train_quietly(tiny_config(media, steps=8, checkpoint_every=2, keep_checkpoints=9), tmp_path / "run")
    write, copy = alerts(tmp_path / "run")
    assert [(alert["step"], alert["kind"]) for alert in (write, copy)] == [(5, "save"), (7, "save")]
    assert "step-000000004.safetensors: cannot be written" in write["message"]
    assert "(Input/output error); older checkpoints are untouched; the run goes on" in write["message"]
    assert "no room for a copy of the state (4503599.6 GB) in host memory" in copy["message"]
    assert all("step-000000002.safetensors is the last checkpoint" in alert["message"] for alert in (write, copy))
    assert [row["failed_saves"] for row in rows(tmp_path / "run")] == [0, 0, 0, 0, 1, 1, 2, 2]
    assert [step_from_name(path) for path in list_checkpoints(tmp_path / "run")] == [2, 8]


def test_a_copy_is_contiguous_and_shares_nothing_with_the_state():
    state = {"a": torch.arange(6.0).view(2, 3).t(), "b": torch.ones(3, requires_grad=True)}
    copy = copy_to_host(state)
    with torch.no_grad():
        for value in state.values():
            value.zero_()
    assert copy["a"].is_contiguous() and copy["a"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert copy["b"].tolist() == [1, 1, 1] and not copy["b"].requires_grad


@pytest.mark.parametrize("error", [DataError("best.json: is not JSON; delete it"), KeyError("a tensor")])
def test_an_error_that_would_come_again_stops_the_run_in_one_sentence(error, media, tmp_path, monkeypatch, written):
    hooks, _ = written

    def fail():
        raise error

    hooks[2] = fail
    run = tmp_path / "run"
    with pytest.raises(
        TubeletError, match=r"^best\.json: is not JSON|step-000000004.*cannot be written \(KeyError"
    ) as raised:
        train_quietly(tiny_config(media, steps=10**4, checkpoint_every=2), run)
    assert "\n" not in str(raised.value)
    assert rows(run)[-1]["step"] < 10**4 and not alerts(run)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000000002.safetensors"]
