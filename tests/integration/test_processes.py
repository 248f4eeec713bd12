"""One run on several processes: the same losses on any number of them, through failures, signals and resumption."""

import dataclasses
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from tests.helpers.launcher import start_torchrun
from tests.helpers.media import write_text, write_video
from tests.helpers.training import (
    ONE_BLOCK,
    rows,
    start_together,
    tiny_config,
    train_quietly,
    train_together,
    wait_for_all,
)
from tubelet.checkpoint.run import list_checkpoints, load_vjepa, read_checkpoint, step_from_name
from tubelet.config import OptimConfig
from tubelet.data.loader import StepDataset
from tubelet.data.sources import list_media
from tubelet.errors import TubeletError
from tubelet.pretrained.load import load
from tubelet.train import gradient_sum, trainer

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"
LOSSES = ("loss", "prediction_loss", "context_loss")
STEPS = 10


def small_config(media, **changes):
    """A run of few steps of one block."""
    changes = {"steps": STEPS, "batch_size": 8, "checkpoint_every": 3} | changes
    return dataclasses.replace(tiny_config(media, **changes), model=ONE_BLOCK)


@pytest.fixture(scope="module")
def alone(media, tmp_path_factory):
    """What one process makes of `STEPS` steps of 8 samples."""
    run = tmp_path_factory.mktemp("runs") / "alone"
    train_quietly(small_config(media), run)
    return run


def assert_same_losses(run, other, steps=STEPS):
    assert [row["step"] for row in rows(run)] == list(range(1, steps + 1))
    for ours, theirs in zip(rows(run), rows(other), strict=True):
        for name in LOSSES:
            assert ours[name] == pytest.approx(theirs[name], abs=1e-4)
        # The gradient of |x| jumps where x changes its sign, so that rounding grows in it over the steps.
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=3e-5 if ours["step"] < 4 else 1e-2)


def slow_down():
    """Leave the test time to act between two steps."""
    real = trainer.train_step

    def train_step(*arguments):
        time.sleep(0.3)
        return real(*arguments)

    trainer.train_step = train_step


def wait_for(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("changes", "processes"), [({}, 4), ({"grad_accum_steps": 2, "data": {"clips_per_video": 3}}, 3)]
)
def test_processes_share_each_step_without_overlap_and_their_data_are_those_of_one(media, changes, processes):
    config = tiny_config(media, batch_size=14, **changes)
    files = list_media(config.data.sources)
    whole = StepDataset(config, files)[3]
    shares = [StepDataset(config, files, rank, processes)[3] for rank in range(processes)]
    assert sum(batch.weight for share in shares for batch in share.batches) == pytest.approx(1)
    for i, batch in enumerate(whole.batches):
        parts = [share.batches[i] for share in shares]
        assert {part.modality for part in parts} == {batch.modality}
        assert torch.equal(torch.cat([part.pixels for part in parts]), batch.pixels)
        for j, mask in enumerate(batch.masks):
            assert torch.equal(torch.cat([part.masks[j].context for part in parts]), mask.context)
            assert torch.equal(torch.cat([part.masks[j].target for part in parts]), mask.target)


def test_a_batch_too_small_for_its_processes_is_refused(media):
    config = tiny_config(media, batch_size=7)
    with pytest.raises(TubeletError, match="3 videos in 1 micro-batches, too few for 4 processes"):
        StepDataset(config, list_media(config.data.sources), 0, 4)


def test_four_processes_have_the_losses_and_weights_of_one(media, alone, tmp_path):
    run, config = tmp_path / "run", small_config(media)
    codes, stderr = train_together(4, config, run)
    assert (codes, stderr) == ([0, 0, 0, 0], "")
    assert_same_losses(run, alone)
    mine, theirs = (read_checkpoint(list_checkpoints(folder)[-1])[0] for folder in (run, alone))
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, atol=5e-4, rtol=1e-3)


def sum_during_the_last_pass():
    gradient_sum.BUCKET_BYTES = 4096


def sum_at_the_end():
    sum_during_the_last_pass()
    gradient_sum.GradientSum.arm = lambda *_: None


def test_sums_during_the_last_backward_pass_have_the_losses_of_sums_at_the_end(media, tmp_path):
    config = small_config(media, batch_size=12, steps=4)
    for prepare in (sum_during_the_last_pass, sum_at_the_end):
        run = tmp_path / prepare.__name__
        assert wait_for_all(start_together(3, config, run, prepare=prepare), run) == ([0, 0, 0], "")
    both = (rows(tmp_path / prepare.__name__) for prepare in (sum_during_the_last_pass, sum_at_the_end))
    for ours, theirs in zip(*both, strict=True):
        for name in (*LOSSES, "grad_norm"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-6)


def test_shards_and_groups_of_masks_whose_borders_cross_have_the_losses_of_one_process(media, tmp_path):
    masks = dataclasses.replace(tiny_config(media).masks, truncation_group_size=5)
    config = tiny_config(media, batch_size=20, steps=2, masks=masks)
    train_quietly(config, tmp_path / "alone")
    codes, stderr = train_together(3, dataclasses.replace(config, parallel="fsdp"), tmp_path / "shards")
    assert (codes, stderr) == ([0, 0, 0], "")
    for ours, theirs in zip(rows(tmp_path / "shards"), rows(tmp_path / "alone"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_a_run_continues_on_other_numbers_of_processes(media, alone, tmp_path):
    run, config = tmp_path / "run", small_config(media)
    started = start_together(4, config, run)
    wait_for(lambda: len(rows(run)) >= 4)
    for process in started:
        process.kill()  # it may be gone already, having lost the others
        process.join()
    started = start_together(2, config, run, resume=True, prepare=slow_down)
    wait_for(lambda: len(rows(run)) >= 6)
    os.kill(started[1].pid, signal.SIGUSR1)
    codes, stderr = wait_for_all(started, run)
    stopped = rows(run)[-1]["step"]
    assert stopped < STEPS
    assert codes == [128 + signal.SIGUSR1] * 2
    assert stderr.startswith(f"error: SIGUSR1: stopped after step {stopped} of {STEPS}; ")
    assert stderr.count("error") == 1
    train_quietly(config, run, resume=True)
    assert_same_losses(run, alone)


def test_a_sharded_run_has_the_losses_of_one_process_and_reshards_its_checkpoints(media, alone, tmp_path):
    run = tmp_path / "run"
    config = small_config(media, parallel="fsdp", activation_checkpointing=True, checkpoint_every=2)
    started = start_together(2, config, run)
    wait_for(lambda: len(rows(run)) >= 4)
    for process in started:
        process.kill()
        process.join()
    assert list_checkpoints(run)
    for path in list_checkpoints(run):  # whatever moment it died at
        assert path.is_dir()
        read_checkpoint(path)
    two_machines = dataclasses.replace(config, parallel="hsdp")
    started = start_together(4, two_machines, run, resume=True, machines=2, prepare=slow_down)
    wait_for(lambda: len(rows(run)) >= 6)
    os.kill(started[3].pid, signal.SIGTERM)
    codes, stderr = wait_for_all(started, run)
    assert codes == [128 + signal.SIGTERM] * 4
    assert len(stderr.splitlines()) == 1, stderr
    assert [step_from_name(path) for path in list_checkpoints(run)][-1] == rows(run)[-1]["step"]
    features = load(run, device="cpu", dtype=torch.float32)
    for name, value in read_checkpoint(list_checkpoints(run)[-1])[0].items():
        if name.startswith("teacher."):
            assert torch.equal(value, features.state_dict()[name.removeprefix("teacher.")])
    train_quietly(dataclasses.replace(config, parallel="auto"), run, resume=True)
    assert_same_losses(run, alone)
    assert [path.is_file() for path in list_checkpoints(run)] == [True, True]


def test_a_sharded_run_continues_from_a_single_file(media, alone, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(alone, run)
    list_checkpoints(run)[-1].unlink()
    config = small_config(media, parallel="fsdp")
    assert train_together(3, config, run, resume=True) == ([0, 0, 0], "")
    assert_same_losses(run, alone)
    mine, theirs = (load_vjepa(folder)[0].state_dict() for folder in (run, alone))
    for name, tensor in theirs.items():
        torch.testing.assert_close(mine[name], tensor, atol=5e-4, rtol=1e-3)
    part = next(list_checkpoints(run)[-1].glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(TubeletError, match="copy the whole checkpoint directory again"):
        load_vjepa(run)


def test_a_sharded_run_begins_with_another_runs_weights_and_moments_as_one_process_does(media, alone, tmp_path):
    optim = OptimConfig(lr=1e-3, warmup_fraction=0)
    config = small_config(media, steps=4, init_from=str(alone), optim=optim)
    train_quietly(config, tmp_path / "one")
    sharded = dataclasses.replace(config, parallel="fsdp")
    assert train_together(2, sharded, tmp_path / "two") == ([0, 0], "")
    assert_same_losses(tmp_path / "two", tmp_path / "one", steps=4)


def test_bad_files_that_any_process_meets_are_named_once_and_stop_the_run_once(tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i in range(6):
        write_video(folder / f"good{i}.mp4", frames=24)
    for i in range(3):
        write_text(folder / f"bad{i}.mp4")
    run, config = tmp_path / "run", tiny_config(folder, batch_size=6, steps=3, data={"max_failed_fraction": 0.5})
    assert train_together(2, config, run) == ([0, 0], "")
    named = [json.loads(line)["path"] for line in (run / "bad_files.jsonl").open()]
    assert sorted(path.rsplit("/", 1)[1] for path in named) == ["bad0.mp4", "bad1.mp4", "bad2.mp4"]
    assert [row["bad_files"] for row in rows(run)][-1] == 3
    strict = tiny_config(folder, batch_size=6, steps=3, data={"max_failed_fraction": 0.25})
    codes, stderr = train_together(2, strict, tmp_path / "strict")
    assert codes == [1, 1]
    assert stderr.startswith("error: 3 of 9 files (33 %) cannot be read")
    assert len(stderr.splitlines()) == 1


SLURM = {  # what its commands do to the script, on this machine alone; the test runs what `srun` would start
    "srun": 'echo "$@" > words.new; mv words.new words; until [ -e code ]; do sleep 0.1; done; exit "$(cat code)"',
    "scontrol": "case $1 in show) echo 127.0.0.1 ;; requeue) touch requeued ;; esac",
    "scancel": 'kill -USR1 "$(cat torchrun.pid)"',
}


def test_the_slurm_script_restarts_what_was_asked_to_stop_and_saves_and_queues_again_in_time(media, tmp_path):
    run, log = tmp_path / "run", tmp_path / "log"
    for name, body in SLURM.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"SLURM_JOB_ID": "1", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "here", "PROCESSES": "1", "PORT": port}
    options = "--model vit-pico --patch-size 8 --image-size 32 --frames 4 --batch-size 8 --precision fp32"
    script = subprocess.Popen(
        ["bash", SCRIPT, media, "--out", run, *options.split(), "--steps", "5000", "--checkpoint-every", "5000"],
        cwd=tmp_path,
        env=os.environ | job | {"PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    torchrun = None
    try:
        wait_for((tmp_path / "words").exists)
        python, option, module, *words = (tmp_path / "words").read_text().split()
        assert (python, option, module) == ("python", "-m", "torch.distributed.run")
        torchrun = start_torchrun(words, log)
        (tmp_path / "torchrun.pid").write_text(str(torchrun.pid))
        wait_for(lambda: len(rows(run)) >= 2)
        psutil.Process(torchrun.pid).children()[0].send_signal(signal.SIGTERM)
        wait_for(lambda: list_checkpoints(run))
        first = len(rows(run))
        wait_for(lambda: len(rows(run)) >= first + 2)
        script.send_signal(signal.SIGUSR1)
        torchrun.join(300)
        (tmp_path / "code").write_text(str(torchrun.exitcode))
        assert script.wait(300) == torchrun.exitcode != 0
    finally:
        if torchrun and torchrun.is_alive():
            family = [psutil.Process(torchrun.pid), *psutil.Process(torchrun.pid).children(recursive=True)]
            for process in filter(psutil.Process.is_running, family):
                process.kill()
        script.kill()
        script.wait()
    stderr = log.read_text()
    stops = re.findall(r"(SIG\w+): stopped after step (\d+) of 5000", stderr)
    assert stops == [("SIGTERM", str(first)), ("SIGUSR1", str(len(rows(run))))], stderr
    assert f"continuing after step {first}" in stderr
    assert [step_from_name(path) for path in list_checkpoints(run)] == [first, len(rows(run))]
    assert [row["step"] for row in rows(run)] == list(range(1, len(rows(run)) + 1))
    assert "DataLoader" not in stderr
    assert (tmp_path / "requeued").exists()


def test_torchrun_runs_the_command_in_interpreters_of_its_own(media, tmp_path):
    options = "--model vit-pico --patch-size 8 --image-size 32 --frames 4 --batch-size 2 --steps 1 --workers 0"
    words = ["--standalone", "--nproc-per-node=1", "-m", "tubelet", "train", media, "--out", "run", *options.split()]
    command = [sys.executable, "-m", "torch.distributed.run", *words]
    environment = os.environ | {"TMPDIR": str(tmp_path)}  # torchrun leaves a folder there
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert [row["step"] for row in rows(tmp_path / "run")] == [1]
