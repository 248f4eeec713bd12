"""A run whose processes are killed at random, again and again, ends as if nobody had touched it.

Every test run has two kills of it: one in the middle of training, one while a restarted run begins. Three minutes of
it, with four processes:

    TUBELET_CHAOS_SECONDS=180 python -m pytest -s tests/integration/test_chaos.py
"""

import dataclasses
import json
import os
import random
import socket
import time

import psutil
import pytest

from tests.helpers.launcher import start_torchrun
from tests.helpers.media import write_image, write_video
from tests.helpers.training import ONE_BLOCK, rows, tiny_config, train_together
from tubelet.checkpoint.run import list_checkpoints, read_checkpoint
from tubelet.config import TrainConfig, from_dict, to_dict
from tubelet.data.loader import build_samplers, samples_per_step
from tubelet.data.sources import list_media
from tubelet.train.run_directory import read_config

SECONDS = float(os.environ.get("TUBELET_CHAOS_SECONDS", "0"))
FIRST_STEPS = int(24 + 2 * SECONDS)  # more, if the run ends before the kills do
PROCESSES = 4 if SECONDS else 2


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    for i in range(12):
        write_video(folder / f"{i}.mp4", frames=24 + 3 * i)
        write_image(folder / f"{i}.png")
    return folder


class RunEndedError(Exception):
    """The run completed all its steps before the kills were done."""


def start(media, out, steps):
    """A run of several processes, started by torchrun."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    launcher = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--nproc-per-node", PROCESSES]
    settings = out.with_suffix(".json")
    config = dataclasses.replace(tiny_config(media, steps, batch_size=8), model=ONE_BLOCK)
    settings.write_text(json.dumps(to_dict(config)))
    training = ["tubelet", "train", "--config", settings, "--out", out, "--resume"]
    return start_torchrun([*launcher, "--max-restarts", 1000, "-m", *training], out.with_suffix(".log"))


def kill_twice(launcher, out, dice):
    """Kill a random one of the run's processes after a few steps, and a random one of the next as they begin."""
    wait_for(launcher, lambda: len(rows(out)) >= 7)
    first = psutil.Process(launcher.pid).children()
    kill(dice, first)
    wait_for(launcher, lambda: len(set(psutil.Process(launcher.pid).children()) - set(first)) == PROCESSES)
    second = dice.choice(list(set(psutil.Process(launcher.pid).children()) - set(first)))
    began = sum(second.cpu_times()[:2])
    pause = dice.uniform(0.1, 0.6)  # seconds of its own work, which are the same on a busy machine
    wait_for(launcher, lambda: not second.is_running() or sum(second.cpu_times()[:2]) - began > pause)
    kill(dice, [second])
    return 2


def kill(dice, processes):
    try:
        dice.choice(processes).kill()
    except (IndexError, psutil.NoSuchProcess) as error:
        raise RunEndedError from error


def wait_for(launcher, condition):
    deadline = time.monotonic() + 300
    while not condition():
        if launcher.exitcode == 0:
            raise RunEndedError
        assert launcher.exitcode is None and time.monotonic() < deadline
        time.sleep(0.02)


def kill_now_and_then(launcher, seconds, dice):
    """Kill a random one of the run's processes every few seconds, whatever it does; how many times."""
    killed, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(dice.uniform(0.5, 12))
        if launcher.exitcode == 0:
            raise RunEndedError
        assert launcher.exitcode is None
        if len(processes := psutil.Process(launcher.pid).children()) == PROCESSES:
            kill(dice, processes)
            killed += 1
    return killed


def finish(launcher, out, steps):
    """Wait for the end of a run that nobody disturbs any more."""
    try:
        launcher.join(300 + 2 * steps)
    finally:
        launcher.terminate()
    assert launcher.exitcode == 0, out.with_suffix(".log").read_text()[-3000:]


@pytest.mark.slow
@pytest.mark.distributed
def test_killing_a_random_process_every_few_seconds_changes_no_step_of_a_run(media, tmp_path):
    quiet, killed = tmp_path / "quiet", 0
    steps = FIRST_STEPS
    while not killed:  # a fast machine needs more steps to be killed among
        disturbed, dice = tmp_path / f"disturbed-{steps}", random.Random(0)
        launcher = start(media, disturbed, steps)
        try:
            killed = kill_now_and_then(launcher, SECONDS, dice) if SECONDS else kill_twice(launcher, disturbed, dice)
        except RunEndedError:
            steps *= 4
        finally:
            finish(launcher, disturbed, steps)
    assert train_together(PROCESSES, read_config(disturbed), quiet) == ([0] * PROCESSES, "")
    # Each step once, with the loss that tells its clips, crops and masks from any other step's.
    assert [row["step"] for row in rows(disturbed)] == list(range(1, steps + 1))
    apart = [abs(a["loss"] - b["loss"]) for a, b in zip(rows(disturbed), rows(quiet), strict=True)]
    assert max(apart) < 1e-4
    weights, header = read_checkpoint(list_checkpoints(disturbed)[-1])
    for name, value in read_checkpoint(list_checkpoints(quiet)[-1])[0].items():
        assert (weights[name] - value).abs().max() < 1e-4, name
    # And one epoch of those steps is every file once.
    config = from_dict(TrainConfig, json.loads(header["config"]), "the checkpoint")
    files = list_media(config.data.sources)
    for modality, sampler in build_samplers(config, files).items():
        visits = steps * samples_per_step(config, files)[modality]
        for first in range(0, visits - len(sampler) + 1, len(sampler)):
            assert {sampler.sample_at(visit)[1] for visit in range(first, first + len(sampler))} == set(
                range(len(sampler))
            )
    print(f"{killed} kills in {SECONDS:.0f} s; {steps} steps, losses at most {max(apart):.1e} apart")
