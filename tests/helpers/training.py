"""Tiny training runs for the integration tests."""

import json
import multiprocessing
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

from tubelet.config import DataConfig, ModelConfig, OptimConfig, PredictorConfig, TrainConfig, vit_pico
from tubelet.errors import TubeletError
from tubelet.train.trainer import train

processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tests.helpers.preloaded"])


# The smallest model, for runs of several compilations or many steps of shards.
ONE_BLOCK = ModelConfig(
    width=24, depth=1, heads=2, levels=(0,), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)

# In place of vit-pico, for commands whose results nobody reads: a third of its blocks and of its width.
NARROW_PICO = replace(
    vit_pico(), width=48, depth=2, levels=(0, 1), predictor=PredictorConfig(width=24, depth=1, heads=2)
)


def tiny_config(source, steps=20, **changes):
    """A run that takes milliseconds a step: 32 px, 4 frames, 2 blocks."""
    model = ModelConfig(
        width=24,
        depth=2,
        heads=2,
        levels=(0, 1),
        patch_size=8,
        predictor=PredictorConfig(width=24, depth=1, heads=2),
    )
    data = changes.pop("data", {})
    return TrainConfig(
        model=model,
        data=DataConfig(sources=(str(source),), **({"image_size": 32, "frames": 4, "workers": 0} | data)),
        **(
            {
                "optim": OptimConfig(lr=1e-3),
                "steps": steps,
                "batch_size": 4,
                "precision": "fp32",
                "checkpoint_every": 5,
                "monitor_every": 5,
            }
            | changes
        ),
    )


def train_quietly(config, out, resume=False):
    """`train` without a progress bar."""
    return train(config, out, resume)


def start_training(config, out, resume=False):
    """`train` in a process of its own."""
    process = processes.Process(target=_train_as_from_a_shell, args=(config, str(out), resume))
    process.start()
    return process


def _train_as_from_a_shell(config, out, resume):
    multiprocessing.set_start_method(None, force=True)  # what a fork server has set, a shell has not
    train_quietly(config, out, resume)


def start_together(count, config, out, resume=False, machines=1, prepare=None):
    """`train` in processes that form one run, as a launcher would start them; each writes its stderr to a file.

    `prepare` is called in each process first.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    started = []
    local = count // machines
    for rank in range(count):
        place = {"RANK": rank, "LOCAL_RANK": rank % local, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": local}
        place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        place = {name: str(value) for name, value in place.items()}
        stderr = Path(f"{out}.{rank}.err")
        arguments = (place, stderr, config, str(out), resume, prepare)
        started.append(processes.Process(target=_train_as_one_of, args=arguments))
        started[-1].start()
    return started


def train_together(count, config, out, resume=False):
    """`start_together`, to its end: the exit codes, and their stderr."""
    return wait_for_all(start_together(count, config, out, resume), out)


def wait_for_all(started, out):
    """The exit codes of processes, and their stderr."""
    for process in started:
        process.join(300)
    assert not any(process.is_alive() for process in started)
    logs = [Path(f"{out}.{rank}.err") for rank in range(len(started))]
    return [process.exitcode for process in started], "".join(path.read_text() for path in logs)


def _train_as_one_of(place, stderr, config, out, resume, prepare):
    os.environ.update(place)
    if prepare is not None:
        prepare()
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    try:
        train_quietly(config, out, resume)
    except TubeletError as error:  # what the command line does with it
        if not error.reported:
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(getattr(error, "exit_code", 1))


def rows(run):
    """The complete rows of a run's metrics.jsonl."""
    path = Path(run) / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
