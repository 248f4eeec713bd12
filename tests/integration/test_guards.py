"""What a run does about trouble: alerts, skipped steps, hangs, a disk that is full."""

import dataclasses
import errno
import itertools
import json
import logging
import math
import os
import resource
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import psutil
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers.training import (
    ONE_BLOCK,
    rows,
    start_together,
    start_training,
    tiny_config,
    train_quietly,
    train_together,
    wait_for_all,
)
from tubelet.checkpoint import run as checkpoint
from tubelet.checkpoint.run import list_checkpoints, read_checkpoint, step_from_name
from tubelet.config import GuardConfig, OptimConfig
from tubelet.console import open_console
from tubelet.data.decode import Video
from tubelet.data.loader import StepDataset
from tubelet.data.sample_index import SampleIndex
from tubelet.errors import TubeletError
from tubelet.train import anomaly_guard, collapse, distributed, trainer
from tubelet.train import step as step_module


def alerts(run):
    return [json.loads(line) for line in (run / "alerts.jsonl").open()]


FIGURES = {
    f"{who}{figure}"
    for who in ("", "teacher_level_1_", "predictor_level_1_", "predictor_level_2_")
    for figure in ("effective_rank", "channel_std")
}


def figures(row):
    return {name: value for name, value in row.items() if name.endswith(("effective_rank", "channel_std"))}


@pytest.fixture(scope="module")
def watched(media, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "watched"
    train_quietly(tiny_config(media, batch_size=8, steps=5, monitor_every=3), run)
    return run


def test_every_level_of_teacher_and_predictor_is_in_the_metrics(watched):
    looks = [figures(row) for row in rows(watched)]
    assert [bool(look) for look in looks] == [True, False, False, True, True]
    assert set(looks[0]) == FIGURES


@pytest.mark.slow
@pytest.mark.distributed
def test_processes_look_at_the_same_features_as_one_does(media, watched, tmp_path):
    config = tiny_config(media, batch_size=8, steps=5, monitor_every=3, parallel="fsdp")
    assert train_together(2, config, tmp_path / "run") == ([0, 0], "")
    for ours, theirs in zip(rows(tmp_path / "run"), rows(watched), strict=True):
        assert figures(ours) == pytest.approx(figures(theirs), rel=1e-2)


def test_a_run_reports_once_what_its_workers_make_and_its_device_takes(media, tmp_path, caplog):
    caplog.set_level(logging.INFO, "tubelet")
    train_quietly(tiny_config(media, steps=32, checkpoint_every=100), tmp_path / "run")
    (message,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith("data: "))
    assert message.startswith("data: the training process (--workers 0) makes ")
    assert all(row["data_seconds"] > 0 for row in rows(tmp_path / "run"))


def test_alerts_are_kept_once_over_a_resumption(media, tmp_path, monkeypatch):
    monkeypatch.setattr(collapse, "MIN_CHANNEL_STD", 1e6)  # whatever a figure is, it is low
    config, run = tiny_config(media, steps=8, monitor_every=1, checkpoint_every=4), tmp_path / "run"
    train_quietly(config, run)
    before = alerts(run)
    assert {(alert["step"], alert["kind"]) for alert in before} >= {(1, "collapse")}
    assert "the teacher's features are collapsing: the spread of channels over tokens of level 1" in str(before[0])
    (run / "checkpoints" / "step-000000008.safetensors").unlink()
    train_quietly(config, run, resume=True)
    assert alerts(run) == before


def poison(monkeypatch, *steps):
    """Let the loss of some steps (counted from 1) be not a number, and so its gradient."""
    real = step_module.schedule_values

    def schedule_values(config, step):
        values = real(config, step)
        return values | {"context_weight": math.nan} if step + 1 in steps else values

    monkeypatch.setattr(step_module, "schedule_values", schedule_values)


def test_a_step_whose_loss_is_not_finite_changes_nothing_and_is_counted(media, tmp_path, monkeypatch):
    poison(monkeypatch, 3, 4, 6)
    config, run = tiny_config(media, steps=8, checkpoint_every=1, keep_checkpoints=9), tmp_path / "run"
    train_quietly(config, run)
    found = rows(run)
    assert [row["skipped_steps"] for row in found] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert [row["loss"] is None for row in found] == [False, False, True, True, False, True, False, False]
    states = [read_checkpoint(path)[0] for path in list_checkpoints(run)]
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(states)]
    assert same == [False, True, True, False, True, False, False]
    assert [(alert["step"], alert["kind"]) for alert in alerts(run)] == [(3, "skipped"), (6, "skipped")]
    for path in list_checkpoints(run)[3:]:  # in the middle of a row of them
        path.unlink()
    train_quietly(config, run, resume=True)
    assert [row["loss"] for row in rows(run)] == [row["loss"] for row in found]
    assert [row["skipped_steps"] for row in rows(run)] == [0, 0, 1, 2, 2, 3, 3, 3]
    assert len(alerts(run)) == 2


def test_too_many_skipped_steps_in_a_row_stop_the_run_and_keep_the_last_checkpoint(media, tmp_path, monkeypatch):
    poison(monkeypatch, 4, *range(7, 21))
    config, run = tiny_config(media, guards=GuardConfig(max_skipped=3)), tmp_path / "run"
    with pytest.raises(TubeletError, match=r"not finite in 3 steps in a row, the last being step 9, .*--max-skipped"):
        train_quietly(config, run)
    assert [path.stem for path in list_checkpoints(run)] == ["step-000000005"]
    read_checkpoint(list_checkpoints(run)[-1])


def test_a_gradient_that_is_not_finite_skips_the_step(media, tmp_path, monkeypatch):
    real = step_module.backpropagate

    def with_a_wrong_gradient(model, *inputs):
        losses = real(model, *inputs)
        model.student.blocks[0].attention.qkv.weight.grad[0, 0] = math.inf
        return losses

    monkeypatch.setattr(step_module, "backpropagate", with_a_wrong_gradient)
    run = tmp_path / "run"
    with pytest.raises(TubeletError, match="in 10 steps in a row, the last being step 10"):
        train_quietly(tiny_config(media), run)
    assert all(math.isfinite(row["loss"]) for row in rows(run))


def test_weights_that_are_not_finite_are_never_saved(media, tmp_path, monkeypatch):
    real = step_module.VJEPA.update_teacher

    def damaged(model, momentum, skipped):
        real(model, momentum, skipped)
        model.teacher.norms[0].bias[0] = math.nan

    monkeypatch.setattr(step_module.VJEPA, "update_teacher", torch.no_grad()(damaged))
    with pytest.raises(TubeletError, match="not finite after step 5, so that no checkpoint is written"):
        train_quietly(tiny_config(media), tmp_path / "run")
    assert list_checkpoints(tmp_path / "run") == []


def spiking(monkeypatch, *batches):
    """Let the loss be ten times as high whenever the data of some batches (counted from 1) are used."""
    real = step_module.train_step

    def train_step(model, optimizer, data, config, step, ctx):
        metrics = real(model, optimizer, data, config, step, ctx)
        used.append(data.number)
        return metrics | ({"loss": metrics["loss"] * 10} if data.number in batches else {})

    real_item, used = StepDataset.__getitem__, []

    def numbered(dataset, index):
        data = real_item(dataset, index)
        object.__setattr__(data, "number", index + 1)
        return data

    monkeypatch.setattr(StepDataset, "__getitem__", numbered)
    monkeypatch.setattr(trainer, "train_step", train_step)
    return used


@pytest.mark.slow
def test_a_spike_sends_the_run_back_to_its_checkpoint_and_past_the_batches_and_so_does_a_resumption(
    media, tmp_path, monkeypatch
):
    used = spiking(monkeypatch, 23)
    guarded = GuardConfig(spike_factor=3.0, rewind_skip_batches=4)
    config, run = tiny_config(media, steps=28, guards=guarded, keep_checkpoints=9), tmp_path / "run"
    train_quietly(config, run)
    assert used == [*range(1, 24), *range(25, 33)]
    found = rows(run)
    assert [row["step"] for row in found] == list(range(1, 29))
    assert [row["rewinds"] for row in found] == [0] * 20 + [1] * 8
    curves = EventAccumulator(str(run / "tensorboard"))
    curves.Reload()
    assert [point.step for point in curves.Scalars("loss")] == list(range(1, 29))
    (alert,) = alerts(run)
    assert (alert["step"], alert["kind"], alert["batches"]) == (20, "spike", 4)
    assert (
        "loss spike at step 23: " in alert["message"]
        and "rewinding to step 20 and skipping the next 4" in alert["message"]
    )
    for step in (25, 15):  # after the batches that were left out, and before
        for path in list_checkpoints(run):
            if step_from_name(path) > step:
                path.unlink()
        train_quietly(config, run, resume=True)
        assert [(row["step"], row["loss"]) for row in rows(run)] == [(row["step"], row["loss"]) for row in found]
        assert alerts(run) == [alert]


def find_spikes_early():
    anomaly_guard.MIN_LOSSES = 6


@pytest.mark.slow
@pytest.mark.distributed
def test_a_sharded_run_goes_back_where_one_process_does(media, tmp_path, monkeypatch):
    monkeypatch.setattr(anomaly_guard, "MIN_LOSSES", anomaly_guard.MIN_LOSSES)
    find_spikes_early()
    flat = OptimConfig(lr=1e-6, start_lr=1e-6, final_lr=1e-6)  # so that losses differ by their data alone
    config = tiny_config(media, batch_size=8, steps=12, optim=flat, checkpoint_every=4)
    config = dataclasses.replace(config, model=ONE_BLOCK)
    train_quietly(config, tmp_path / "free")
    losses = [row["loss"] for row in rows(tmp_path / "free")]
    second, first = sorted(losses[i] / median(losses[:i]) for i in range(6, 12))[-2:]
    config = dataclasses.replace(config, guards=GuardConfig(spike_factor=(first + second) / 2, rewind_skip_batches=4))
    train_quietly(config, tmp_path / "one")
    sharded = dataclasses.replace(config, parallel="fsdp")
    started = start_together(2, sharded, tmp_path / "two", prepare=find_spikes_early)
    assert wait_for_all(started, tmp_path / "two") == ([0, 0], "")
    one, two = (rows(tmp_path / run) for run in ("one", "two"))
    assert one[-1]["rewinds"] >= 1
    for name in ("step", "rewinds", "loss"):
        assert [row[name] for row in two] == pytest.approx([row[name] for row in one], abs=1e-4)
    assert [alert["step"] for alert in alerts(tmp_path / "two")] == [a["step"] for a in alerts(tmp_path / "one")]


def test_a_loss_that_spikes_with_any_data_stops_the_run(media, tmp_path, monkeypatch):
    spiking(monkeypatch, *range(23, 100))
    config = tiny_config(media, steps=28, guards=GuardConfig(spike_factor=3.0, rewind_skip_batches=4))
    with pytest.raises(TubeletError, match=r"after 3 rewinds to .* with other data each: lower the learning rate"):
        train_quietly(config, tmp_path / "run")


def test_a_worker_that_hangs_ends_the_run_with_the_file_that_it_reads(media, tmp_path, monkeypatch):
    real = SampleIndex.read

    def hanging(index, sample):
        if index.name(sample).endswith("1.mp4"):
            time.sleep(1000)
        return real(index, sample)

    monkeypatch.setattr(SampleIndex, "read", hanging)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # for each worker that does not end
    config = tiny_config(media, data={"workers": 2}, guards=GuardConfig(data_timeout_s=1.5))
    began = time.monotonic()
    with pytest.raises(TubeletError, match=r"within 1.5 s .*: worker \d has been reading .*1\.mp4 for [1-9]\d* s"):
        train_quietly(config, tmp_path / "run")
    assert time.monotonic() - began < 300


def wait_briefly_for_others():
    distributed.SHUTDOWN_GRACE = timedelta(seconds=0.5)


def test_a_process_that_hangs_ends_the_others_with_its_number(media, tmp_path):
    run, config = tmp_path / "run", tiny_config(media, steps=10**6, guards=GuardConfig(process_timeout_s=4.0))
    started = start_together(2, config, run, prepare=wait_briefly_for_others)
    deadline = time.monotonic() + 300
    while len(rows(run)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(started[1].pid, signal.SIGSTOP)
    try:
        started[0].join(300)
        assert started[0].exitcode == 1
    finally:
        started[1].kill()
    message = (tmp_path / "run.0.err").read_text()
    assert "error: rank 0 timed out after 4 s (--process-timeout-s) in " in message
    assert "missing ranks: 1" in message


@pytest.mark.parametrize(("full", "failed"), [((2, 3), 2), ((4,), None), ((1,), None)])
def test_a_full_disk_stops_the_run_only_where_nothing_was_saved_before_or_the_last_step_is_not(
    media, tmp_path, monkeypatch, full, failed
):
    real, calls = checkpoint.save_file, []

    def on_a_full_disk(tensors, path, metadata):
        calls.append(path)
        if len(calls) in full:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, metadata=metadata)

    monkeypatch.setattr(checkpoint, "save_file", on_a_full_disk)
    run = tmp_path / "run"
    if failed is None:
        with pytest.raises(TubeletError, match=r"cannot be written \(the disk is full"):
            train_quietly(tiny_config(media), run)
    else:
        train_quietly(tiny_config(media), run)
        assert 1 <= rows(run)[-1]["failed_saves"] <= failed  # what ends with the last step comes after its row
        first, second = ((alert["step"], alert["kind"]) for alert in alerts(run))
        assert (10, "save") <= first <= (15, "save") <= second <= (20, "save")
        assert "step-000000005.safetensors is the last checkpoint" in alerts(run)[1]["message"]
    files = {path.name for path in (run / "checkpoints").iterdir()}
    kept = {(2, 3): {5, 20}, (4,): {10, 15}, (1,): set()}[full]
    assert files == {f"step-{step:09d}.safetensors" for step in kept}
    for path in list_checkpoints(run):
        read_checkpoint(path)


@pytest.mark.slow
def test_a_run_outlives_a_time_without_room_on_the_disk_and_no_row_is_lost(media, tmp_path):
    """The system refuses to let any file grow: checkpoints, metrics and alerts alike."""
    run = tmp_path / "run"
    process = start_training(tiny_config(media, steps=10**6, checkpoint_every=10), run)

    def wait_for(condition):
        deadline = time.monotonic() + 300
        while not condition():
            assert process.is_alive() and time.monotonic() < deadline
            time.sleep(0.05)

    wait_for(lambda: list_checkpoints(run))
    limits = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
    before = sum(psutil.Process(process.pid).cpu_times()[:2])  # its own work, however busy the machine is
    wait_for(lambda: sum(psutil.Process(process.pid).cpu_times()[:2]) > before + 1.5)
    old = list_checkpoints(run)[-1]
    read_checkpoint(old)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, limits)
    wait_for(lambda: step_from_name(list_checkpoints(run)[-1]) > step_from_name(old) + 10)
    os.kill(process.pid, signal.SIGTERM)
    process.join(300)
    last = rows(run)[-1]
    assert [row["step"] for row in rows(run)] == list(range(1, last["step"] + 1))
    assert last["failed_saves"] == sum(alert["kind"] == "save" for alert in alerts(run)) > 0


def test_processes_move_the_data_on_by_what_the_first_one_knows(media, tmp_path):
    """A rewind that was recorded after the checkpoint which a run resumes from is none any more, for any process."""
    config = tiny_config(media, batch_size=8, steps=10, keep_checkpoints=9)
    train_quietly(config, tmp_path / "run")
    found = [row["loss"] for row in rows(tmp_path / "run")]
    (tmp_path / "run" / "checkpoints" / "step-000000010.safetensors").unlink()
    alert = {"step": 8, "kind": "spike", "message": "of a checkpoint that was taken away", "batches": 3}
    (tmp_path / "run" / "alerts.jsonl").write_text(json.dumps(alert) + "\n")
    assert train_together(2, config, tmp_path / "run", resume=True) == ([0, 0], "")
    assert [row["loss"] for row in rows(tmp_path / "run")] == pytest.approx(found, abs=1e-4)


def test_time_that_a_checkpoint_takes_is_not_counted_as_spent_waiting_for_data(media, tmp_path, monkeypatch):
    real = checkpoint.save_file

    def slow(tensors, path, metadata):
        time.sleep(1)
        real(tensors, path, metadata=metadata)

    monkeypatch.setattr(checkpoint, "save_file", slow)
    train_quietly(tiny_config(media, steps=6), tmp_path / "run")
    after = rows(tmp_path / "run")[5]
    assert after["clips_per_s"] < 4
    assert after["data_wait_fraction"] < 0.5


def test_a_run_that_is_stopped_before_its_first_step_does_not_name_a_checkpoint(media, tmp_path, monkeypatch):
    real = trainer.StopSignals.__enter__

    def entered(signals):
        real(signals)
        os.kill(os.getpid(), signal.SIGTERM)
        return signals

    monkeypatch.setattr(trainer.StopSignals, "__enter__", entered)
    with pytest.raises(TubeletError, match="stopped after step 0 of 20; no checkpoint is written, start again with"):
        train_quietly(tiny_config(media), tmp_path / "run")


def test_a_worker_that_is_killed_in_the_middle_of_a_step_is_reported_as_that(media, tmp_path, monkeypatch):
    before = set(psutil.Process().children())

    def train_step(*_):
        (worker, *_) = set(psutil.Process().children()) - before
        worker.kill()
        time.sleep(60)  # a step at work, which PyTorch interrupts

    monkeypatch.setattr(trainer, "train_step", train_step)
    with pytest.raises(TubeletError, match="a data worker ended unexpectedly before step 2"):
        train_quietly(tiny_config(media, data={"workers": 1}), tmp_path / "run")


def test_a_file_that_crashes_its_decoder_is_named(media, tmp_path, monkeypatch):
    class Crashing(Video):
        def __init__(self, media, **options):
            if Path(media).name == "1.mp4":
                signal.raise_signal(signal.SIGSEGV)
            super().__init__(media, **options)

    monkeypatch.setattr("tubelet.data.model_frames.Video", Crashing)
    with pytest.raises(
        TubeletError,
        match=r"before step \d \(ended by SIGSEGV\) while reading \S+1\.mp4: the decoder crashed on this file",
    ):
        train_quietly(tiny_config(media, data={"workers": 2}), tmp_path / "run")


def test_an_error_in_a_worker_is_reported_as_it_is_in_the_training_process(media, tmp_path, monkeypatch):
    too_small = tiny_config(media, data={"workers": 1, "image_size": 8})
    with pytest.raises(TubeletError, match=r"^8 blocks of 1x1 patches leave nothing visible .*patch size$"):
        train_quietly(too_small, tmp_path / "run")

    def broken(index, sample):
        raise RuntimeError("shape '[3, 4]' is invalid for input of size 7")

    monkeypatch.setattr(SampleIndex, "read", broken)
    with pytest.raises(RuntimeError, match=r"Caught RuntimeError in DataLoader worker process 0(.|\n)*is invalid for"):
        train_quietly(tiny_config(media, data={"workers": 1}), tmp_path / "other")


def test_a_checkpoint_that_cannot_be_removed_yet_is_removed_later(media, tmp_path, monkeypatch):
    real, refused = checkpoint.remove_checkpoint, []

    def busy(path):
        if step_from_name(path) == 2 and len(refused) < 2:
            refused.append(path)
            raise OSError(errno.EBUSY, "Device or resource busy")
        real(path)

    monkeypatch.setattr(checkpoint, "remove_checkpoint", busy)
    train_quietly(tiny_config(media, steps=10, checkpoint_every=2), tmp_path / "run")
    assert len(refused) == 2
    assert [step_from_name(path) for path in list_checkpoints(tmp_path / "run")] == [8, 10]


def test_curves_that_cannot_be_finished_do_not_spoil_a_run_that_is_done(media, tmp_path, monkeypatch):
    def full(writer):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.close", full)
    train_quietly(tiny_config(media, steps=5), tmp_path / "run")
    alert = alerts(tmp_path / "run")[-1]
    assert (alert["step"], alert["kind"]) == (5, "sink")
    assert alert["message"] == "TensorBoardSink receives no more metrics: the disk is full: free some space"


def test_a_run_that_skipped_most_of_its_steps_fails_and_keeps_its_checkpoint(media, tmp_path, monkeypatch):
    poison(monkeypatch, 1, 3, 4, 6)
    config, run = tiny_config(media, steps=6), tmp_path / "run"
    words = r"^4 of the last 6 steps were skipped, .*allowed: 50 %.* model is in \S+step-000000006.safetensors: lower"
    for resume in (False, True):  # asking again does not make it better
        with pytest.raises(TubeletError, match=words):
            train_quietly(config, run, resume=resume)
    assert rows(run)[-1]["skipped_steps"] == 4
    read_checkpoint(list_checkpoints(run)[-1])
    train_quietly(dataclasses.replace(config, steps=8), run, resume=True)  # what comes after is judged by itself
    assert rows(run)[-1]["skipped_steps"] == 4


def test_skipped_steps_stop_a_run_where_they_are_many_and_never_in_a_row(media, tmp_path, monkeypatch):
    monkeypatch.setattr("tubelet.train.anomaly_guard.SKIP_WINDOW", 6)
    poison(monkeypatch, *(step for step in range(5, 99) if step % 3))
    with pytest.raises(TubeletError, match=r"^4 of the last 6 steps .*, and the run stops after step 10; the last"):
        train_quietly(tiny_config(media), tmp_path / "run")
    assert [step_from_name(path) for path in list_checkpoints(tmp_path / "run")] == [5]


def test_the_last_line_of_a_run_has_the_number_of_skipped_steps(media, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "tubelet")
    poison(monkeypatch, 2)
    trainer.train(tiny_config(media, steps=3), tmp_path / "run")
    assert "3 steps done, 1 of them skipped; the model is in" in caplog.text


def test_a_run_whose_log_cannot_be_written_trains_to_its_end_and_records_why(media, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")  # of a terminal that was closed

    with (tmp_path / "log").open("w") as log:
        monkeypatch.setattr(
            sys, "stdout", SimpleNamespace(write=fail, flush=fail, isatty=lambda: True, encoding="utf-8")
        )
        trainer.train(tiny_config(media, steps=3), tmp_path / "run", console=open_console())
        monkeypatch.setattr(sys, "stdout", log)
    assert [step_from_name(path) for path in list_checkpoints(tmp_path / "run")] == [3]
    (lost,) = (alert for alert in alerts(tmp_path / "run") if alert["kind"] == "output")
    assert lost["step"] == 1 and "Input/output error" in lost["message"]


def test_curves_end_whatever_their_library_raises(media, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("the writer's own error")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", fail)
    train_quietly(tiny_config(media, steps=2), tmp_path / "run")
    assert [alert["message"] for alert in alerts(tmp_path / "run") if alert["kind"] == "sink"] == [
        "TensorBoardSink receives no more metrics: the writer's own error"
    ]
