"""Time and memory of one training step, split by what it is spent on.

    python benchmarks/train_step.py --model vit-s --image-size 128 --frames 16 --batch-size 8 --precision bf16

The step is the one that `tubelet train` takes, on random pixels; the split is read off by hooks on its parts.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it

import json
import resource
import statistics
import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from tubelet.config import DataConfig, Precision, TrainConfig, model_preset
from tubelet.data.masks import sample_mask
from tubelet.train.device import pick_device, pick_dtype
from tubelet.train.loop import prepare, train_step
from tubelet.train.optim import build_optimizer
from tubelet.types import Batch, Modality, StepData
from tubelet.vjepa import VJEPA

PARTS = ("teacher", "student", "predictor", "loss", "backward", "optimiser")


class Stopwatch:
    """Seconds spent in each part of a step, by hooks on the real modules and optimiser."""

    def __init__(self, model: VJEPA, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.mark = 0.0
        for name in ("teacher", "student", "predictor"):
            part = getattr(model, name)
            part.register_forward_pre_hook(lambda *_: self.lap("loss"))
            part.register_forward_hook(lambda *_, name=name: self.lap(name))
        model.register_forward_pre_hook(lambda *_: self.lap("start"))
        model.register_forward_hook(lambda *_: self.lap("loss"))
        optimizer.register_step_pre_hook(lambda *_: self.lap("backward"))

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        self.seconds[name] += now - self.mark
        self.mark = now


def peak_gb(device: torch.device) -> float:
    """Peak memory in GB: of the device's allocator on CUDA, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main(
    model: str = "vit-s",
    image_size: int = 128,
    frames: int = 16,
    batch_size: int = 8,
    precision: Precision = "auto",
    steps: int = 5,
    warmup: int = 2,
    compile: bool = False,
    activation_checkpointing: bool = False,
    json_line: bool = False,
) -> None:
    """Print the table.

    Args:
        model: Preset.
        image_size: Side of the clips in pixels.
        frames: Frames of a clip.
        batch_size: Clips of a step, all videos.
        precision: bf16, fp32, or what the device is fast at.
        steps: Steps that are timed; the table holds their medians.
        warmup: Steps before them.
        compile: Compile the blocks.
        activation_checkpointing: Recompute activations in the backward pass.
        json_line: Print one JSON object as the last line.
    """
    device = pick_device()
    config = TrainConfig(
        model=model_preset(model),
        data=DataConfig(image_size=image_size, frames=frames),
        batch_size=batch_size,
        precision=precision,
        compile=compile,
        activation_checkpointing=activation_checkpointing,
    )
    torch.manual_seed(0)
    network = VJEPA(config.model).to(device)
    optimizer = build_optimizer(network, config.optim)
    prepare(network, config)
    watch = Stopwatch(network, optimizer, device)
    grid = config.model.grid(frames, image_size, image_size)
    laps: list[dict[str, float]] = []
    for step in range(warmup + steps):
        rng = np.random.default_rng(step)
        pixels = torch.from_numpy(rng.integers(0, 256, (batch_size, 3, frames, image_size, image_size), dtype=np.uint8))
        masks = [sample_mask(spec, grid, batch_size, rng) for spec in config.masks.video]
        watch.seconds.clear()
        watch.lap("start")
        # λ is at its full value, so that the context loss is part of what is timed.
        train_step(
            network, optimizer, StepData([Batch(Modality.VIDEO, pixels, masks, 1.0)], []), config, 100_000, device
        )
        watch.lap("optimiser")
        if step >= warmup:
            laps.append(dict(watch.seconds))
    medians = {part: statistics.median(lap[part] for lap in laps) for part in PARTS}
    total = statistics.median(sum(lap.values()) for lap in laps)
    show(
        medians,
        total,
        peak_gb(device),
        f"{model}, {image_size} px, {frames} frames, batch {batch_size}",
        config,
        device,
    )
    if json_line:
        result: dict[str, Any] = {"seconds": total, "peak_gb": peak_gb(device), "split": medians}
        print(json.dumps(result))


def show(
    medians: dict[str, float], total: float, peak: float, what: str, config: TrainConfig, device: torch.device
) -> None:
    """Print the table of one configuration."""
    dtype = str(pick_dtype(config.precision, device)).removeprefix("torch.")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    table = Table(title=f"{what}, {dtype} on {name}")
    table.add_column("part")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for part, seconds in medians.items():
        table.add_row(part, f"{seconds:.3f}", f"{100 * seconds / total:.0f} %")
    table.add_row("step", f"{total:.3f}", "", end_section=True)
    table.add_row("peak memory", f"{peak:.2f} GB", "")
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
