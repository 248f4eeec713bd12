"""Tiny training runs for the integration tests."""

import json
import multiprocessing
from pathlib import Path

from rich.console import Console

from tubelet.config import DataConfig, ModelConfig, OptimConfig, PredictorConfig, TrainConfig
from tubelet.train.loop import train

# A server that has imported everything forks a training process in milliseconds.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["tubelet.train.loop", "torch.utils.tensorboard"])


def tiny_config(source, steps=20, **changes):
    """A run that takes milliseconds a step: 32 px, 4 frames, 3 blocks."""
    model = ModelConfig(
        width=24,
        depth=3,
        heads=2,
        levels=(0, 1, 2),
        patch_size=8,
        predictor=PredictorConfig(width=24, depth=2, heads=2),
    )
    data = changes.pop("data", {})
    return TrainConfig(
        model=model,
        data=DataConfig(sources=(str(source),), **({"image_size": 32, "frames": 4, "workers": 0} | data)),
        optim=OptimConfig(lr=1e-3),
        **({"steps": steps, "batch_size": 4, "precision": "fp32", "checkpoint_every": 5, "monitor_every": 5} | changes),
    )


def train_quietly(config, out, resume=False):
    """`train` without its progress line."""
    with Path("/dev/null").open("w") as nowhere:
        return train(config, out, resume, Console(file=nowhere))


def start_training(config, out, resume=False):
    """`train` in a process of its own."""
    process = processes.Process(target=train_quietly, args=(config, str(out), resume))
    process.start()
    return process


def rows(run):
    """The complete rows of a run's metrics.jsonl."""
    path = Path(run) / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
