"""Time and memory of one training step and of the executable specification's, and what it is spent on.

    python -m benchmarks.train_step --model vit-s --image-size 128 --frames 16 --batch-size 8

The package's step is the one that `tubelet train` takes; the other side is `tests/numerics/reference.py`, with the same
pixels, masks and precision. Each side lives in a process of its own, which tells its peak memory; they step in turn, so
that whatever else the machine does falls on both. The split is read off by hooks on the real modules.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it

import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from json import dumps
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import matrix_rate, run_in_turn, synchronize
from tubelet.config import DataConfig, Precision, TrainConfig, model_preset
from tubelet.data.batch import Batch, StepData
from tubelet.data.clips import normalize
from tubelet.data.masks import sample_mask
from tubelet.device import pick_device, training_dtype
from tubelet.grid import Modality
from tubelet.train.compilation import prepare_model, should_compile
from tubelet.train.distributed import DistContext
from tubelet.train.optim import build_optimizer
from tubelet.train.step import autocast, backpropagate, train_step
from tubelet.train.step_cost import step_cost
from tubelet.vjepa import VJEPA

PARTS = ("teacher", "student", "predictor", "loss", "backward", "optimizer")
SIDES = ("tubelet", "reference")
LATE_STEP = 200_000  # λ is at its full value, so that the context loss is part of what is timed


class Stopwatch:
    """Seconds spent in each part of a step, by hooks on the real modules and optimizer."""

    def __init__(self, model: VJEPA, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.mark = 0.0
        for name in ("teacher", "student", "predictor"):
            part = getattr(model, name)
            part.register_forward_pre_hook(
                lambda *_, name=name: self.lap("loss" if name == "predictor" else "backward")
            )
            part.register_forward_hook(lambda *_, name=name: self.lap(name))
        model.register_forward_pre_hook(lambda *_: self.lap("backward"))
        model.register_forward_hook(lambda *_: self.lap("loss"))
        optimizer.register_step_pre_hook(lambda *_: self.lap("backward"))

    def lap(self, name: str) -> None:
        """Book the time since the last lap under `name`."""
        synchronize(self.device)
        now = time.perf_counter()
        self.seconds[name] += now - self.mark
        self.mark = now


def step_data(config: TrainConfig, step: int) -> Batch:
    """Random pixels and real masks; the same on both sides."""
    rng = np.random.default_rng(step)
    size, frames = config.data.image_size, config.data.frames
    pixels = torch.from_numpy(rng.integers(0, 256, (config.batch_size, 3, frames, size, size), dtype=np.uint8))
    grid = config.model.grid(frames, size, size)
    masks = [sample_mask(spec, grid, config.batch_size, rng) for spec in config.masks.video]
    return Batch(Modality.VIDEO, pixels, masks, 1.0)


def package_side(config: TrainConfig, device: torch.device) -> tuple[Callable[[Batch], None], dict[str, float]]:
    """The package's training step, and the split that it fills."""
    model = VJEPA(config.model).to(device)
    optimizer = build_optimizer(model, config.optim)
    cost = step_cost(model, config, {Modality.VIDEO: config.batch_size})
    prepare_model(model, config, device, should_compile(config, cost, device))
    watch = Stopwatch(model, optimizer, device)

    def step(batch: Batch) -> None:
        watch.seconds.clear()
        watch.mark = time.perf_counter()
        train_step(model, optimizer, StepData([batch], []), config, LATE_STEP, DistContext(device))
        watch.lap("optimizer")

    return step, watch.seconds


def reference_side(config: TrainConfig, device: torch.device) -> tuple[Callable[[Batch], None], dict[str, float]]:
    """The specification's training step; it has no split."""
    from tests.numerics import reference

    model = reference.System(config.model).to(device)
    optimizer = reference.optimizer(model, lr=config.optim.lr)

    def step(batch: Batch) -> None:
        batch = batch.to(device)
        pixels = normalize(batch.pixels)
        with autocast(config, device):
            losses = model(pixels, batch.masks, config.optim.context_weight)
        losses[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(0.999)
        synchronize(device)

    return step, {}


def build(side: str, config: TrainConfig) -> Callable[[int], tuple[float, dict[str, float]]]:
    """A side's process: a function that takes step `number` and returns its seconds and their split."""
    torch.manual_seed(0)
    device = pick_device()
    step, split = (package_side if side == "tubelet" else reference_side)(config, device)

    def timed(number: int) -> tuple[float, dict[str, float]]:
        batch = step_data(config, number)
        began = time.perf_counter()
        step(batch)
        return time.perf_counter() - began, dict(split)

    return timed


def step_flops(config: TrainConfig) -> float:
    """Floating-point operations of the matrix products of one step, attention's included; nothing is computed."""
    nowhere = torch.device("meta")
    batch = step_data(config, 0).to(nowhere)
    model = VJEPA(config.model).to(nowhere)
    with FlopCounterMode(display=False) as counter:
        backpropagate(model, normalize(batch.pixels), batch.masks, 0.5, 1.0, torch.autocast("cpu", enabled=False))
    return float(counter.get_total_flops())


def main(
    model: str = "vit-s",
    image_size: int = 128,
    frames: int = 16,
    batch_size: int = 8,
    precision: Precision = "auto",
    steps: int = 5,
    warmup: int = 2,
    compile: bool | None = None,
    activation_checkpointing: bool = False,
    package_only: bool = False,
    json: bool = False,
) -> None:
    """Print the table.

    Args:
        model: Preset.
        image_size: Side of the clips in pixels.
        frames: Frames of a clip.
        batch_size: Clips of a step, all videos.
        precision: bf16, fp32, or what the device is fast at.
        steps: Steps that are timed on each side; the table holds their medians.
        warmup: Steps before them.
        compile: Compile the blocks; None does as a run of the published length would.
        activation_checkpointing: Recompute activations in the backward pass.
        package_only: Leave the reference out.
        json: Print one JSON object as the last line.
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
    dtype = training_dtype(config, device)
    flops, rate = step_flops(config), matrix_rate(device, dtype, config.model.width)
    sides = SIDES[:1] if package_only else SIDES
    timed, peak = run_in_turn(build, config, sides, warmup, steps)
    seconds = {side: statistics.median(t for t, _ in timed[side]) for side in sides}
    split = {part: statistics.median(laps.get(part, 0.0) for _, laps in timed["tubelet"]) for part in PARTS}
    bound = {side: flops / rate / seconds[side] for side in sides}
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    title = f"{model}, {image_size} px, {frames} frames, batch {batch_size}, {str(dtype)[6:]} on {name}"
    show(title, seconds, split, peak, bound, flops, rate)
    if json:
        result: dict[str, Any] = {"seconds": seconds["tubelet"], "peak_gb": peak["tubelet"], "split": split}
        result |= {"bound_share": bound["tubelet"], "dtype": str(dtype)[6:]}
        if not package_only:
            result |= {
                f"reference_{key}": value["reference"] for key, value in (("seconds", seconds), ("peak_gb", peak))
            }
            result["time_ratio"] = seconds["tubelet"] / seconds["reference"]
            result["memory_ratio"] = peak["tubelet"] / peak["reference"]
        print(dumps(result))


def show(
    title: str,
    seconds: dict[str, float],
    split: dict[str, float],
    peak: dict[str, float],
    bound: dict[str, float],
    flops: float,
    rate: float,
) -> None:
    """Print the tables."""
    console = Console()
    console.print(title)
    table = Table()
    for column in ("part", "seconds", "share"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, value in split.items():
        table.add_row(part, f"{value:.3f}", f"{100 * value / seconds['tubelet']:.0f} %")
    console = Console()
    console.print(table)
    table = Table()
    for column in ("side", "s/step", "peak GB", "share of bound"):
        table.add_column(column, justify="left" if column == "side" else "right")
    for side in seconds:
        table.add_row(side, f"{seconds[side]:.3f}", f"{peak[side]:.2f}", f"{bound[side]:.2f}")
    if "reference" in seconds:
        ratio = seconds["tubelet"] / seconds["reference"], peak["tubelet"] / peak["reference"]
        table.add_row("ratio", f"{ratio[0]:.2f}", f"{ratio[1]:.2f}", "")
    console.print(table)
    console.print(f"bound: {flops / 1e12:.2f} TFLOP of matrix products at the measured {rate / 1e9:.0f} GFLOP/s")


if __name__ == "__main__":
    tyro.cli(main)
