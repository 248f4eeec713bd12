"""Measured memory of training steps, compared with the plan of `tubelet train --dry-run`.

    python -m benchmarks.plan

Real steps run on 1, 2 and 4 CPU processes, by gloo. Each process reports its peak resident memory (VmHWM, reset before
the step) above its value before the model was created, which includes scratch memory of kernels and communication
buffers. A second count, of the step's tensors at each allocation, excludes these. The allocator is configured to map
every tensor of 64 kB or more separately and to return it when it is freed, because cached memory would be counted as
used.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it
os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # for the processes that are started below
os.environ["MALLOC_TRIM_THRESHOLD_"] = "65536"
os.environ["MALLOC_ARENA_MAX"] = "1"

import gc
from dataclasses import replace
from json import dumps
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
import tyro
from rich.console import Console
from rich.table import Table
from torch.optim import AdamW

from tubelet.config import DataConfig, PlanConfig, TrainConfig, model_preset
from tubelet.config.train import Parallel, Precision
from tubelet.data.batch import Batch, StepData
from tubelet.data.batch_partition import samples_per_step
from tubelet.data.masks import mean_mask_lengths, token_grid
from tubelet.data.sources import MediaList
from tubelet.grid import Mask, Modality
from tubelet.planner.memory_tracker import track_storage
from tubelet.planner.run_plan import CPU, plan_run
from tubelet.train.compilation import prepare_model
from tubelet.train.distributed import DistContext
from tubelet.train.optim import build_optimizer
from tubelet.train.sharding import to_device_or_shard
from tubelet.train.step import train_step
from tubelet.vjepa import VJEPA

CASES: tuple[tuple[str, int, int, int, Precision, tuple[tuple[int, Parallel], ...]], ...] = (
    # model, pixels, frames, samples a process, precision, processes and how they share the work
    ("vit-ti", 128, 8, 4, "fp32", ((1, "ddp"), (2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp"))),
    ("vit-ti", 128, 8, 4, "bf16", ((1, "ddp"), (4, "fsdp"))),
    ("vit-b", 96, 4, 2, "fp32", ((1, "ddp"), (2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp"))),
    ("vit-b", 96, 4, 2, "bf16", ((1, "ddp"), (2, "fsdp"))),
)
STEPS = 2  # the first step creates the moments


def resident(name: str) -> int:
    """Bytes of this process that are in memory: VmRSS, or VmHWM, the peak since the last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def reset_peak() -> None:
    """Reset VmHWM to the current resident memory."""
    Path("/proc/self/clear_refs").write_text("5")


def real_run(config: TrainConfig, parallel: Parallel, ctx: DistContext) -> tuple[VJEPA, AdamW, StepData]:
    """A real run with random pixels and the mask lengths of the plan."""
    counts = samples_per_step(config, MediaList(["video"], ["image"]))
    model = VJEPA(config.model)
    prepare_model(model, config, CPU, compiled=False, sharded=parallel != "ddp")
    to_device_or_shard(model, parallel, config, ctx)
    optimizer = build_optimizer(model, config.optim)
    batches = []
    for modality, lengths in mean_mask_lengths(config, counts).items():
        frames, size = 1 if modality is Modality.IMAGE else config.data.frames, config.data.image_size
        count, tokens = counts[modality] // ctx.world_size, token_grid(config, modality).tokens
        masks = [Mask(*(_some(tokens, length, count) for length in pair)) for pair in lengths]
        pixels = torch.randint(0, 256, (count, 3, frames, size, size), dtype=torch.uint8)
        batches.append(Batch(modality, pixels, masks, count / config.batch_size))
    return model, optimizer, StepData(batches, [])


def _some(tokens: int, length: int, count: int) -> torch.Tensor:
    return torch.stack([torch.randperm(tokens)[:length].sort().values for _ in range(count)])


def measure(config: TrainConfig, parallel: Parallel, rank: int, size: int, store: str, answer: Connection) -> None:
    """One process: sends its peak bytes in the last of `STEPS` steps, and those of its tensors."""
    torch.set_num_threads(1)
    ctx = DistContext(CPU, rank, size)
    if size > 1:
        dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    # Warm up: code and buffers that are loaded at first use are not part of a run's memory.
    small = replace(config, model=model_preset("vit-pico"), data=replace(config.data, image_size=64))
    train_step(*real_run(small, parallel, warmup_ctx := DistContext(CPU, rank, size)), small, 0, warmup_ctx)
    gc.collect()
    before = resident("VmRSS")
    run = real_run(config, parallel, ctx)
    for _ in range(STEPS):
        gc.collect()
        reset_peak()
        train_step(*run, config, config.steps - 1, ctx)
    taken = resident("VmHWM") - before
    model, optimizer, data = run
    moments = (value for state in optimizer.state.values() for value in state.values())
    with track_storage() as watch:
        watch.name([*model.parameters(), *moments, *(batch.pixels for batch in data.batches)], "there before")
        train_step(*run, config, config.steps - 1, ctx)
    answer.send((taken, watch.log.live_bytes(watch.log.peak()).total()))
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def measured(config: TrainConfig, parallel: Parallel, processes: int) -> list[tuple[int, int]]:
    """Peak bytes of each process, and of its tensors, in a step."""
    context = get_context("spawn")
    with TemporaryDirectory() as folder:
        started, receivers = [], []
        for rank in range(processes):
            receiver, sender = context.Pipe(duplex=False)
            work = (config, parallel, rank, processes, f"{folder}/store", sender)
            started.append(context.Process(target=measure, args=work))
            started[-1].start()
            sender.close()
            receivers.append(receiver)
        taken = [receiver.recv() for receiver in receivers]
        for process in started:
            process.join()
    return taken


def main(only: str = "", processes: int | None = None, json: bool = False) -> None:
    """Print the table.

    Args:
        only: Name of a model; by default, all models.
        processes: Number of processes; by default, all numbers.
        json: Print one JSON object as the last line.
    """
    table = Table()
    for column in (
        "model",
        "precision",
        "processes",
        "by",
        "planned MB",
        "measured MB",
        "planned / measured",
        "planned / tensors",
    ):
        table.add_column(column, justify="right")
    rows = []
    for name, image_size, frames, samples, precision, ways in CASES:
        if only not in ("", name):
            continue
        for size, parallel in ways:
            if processes not in (None, size):
                continue
            config = TrainConfig(
                model=model_preset(name),
                data=DataConfig(image_size=image_size, frames=frames),
                batch_size=samples * size,
                precision=precision,
                compile=False,
                parallel=parallel,
            )
            planned = plan_run(config, PlanConfig(devices=size, device_kind="cpu")).step.total
            taken, tensors = (max(each) for each in zip(*measured(config, parallel, size), strict=True))
            rows.append(
                (name, precision, size, parallel, planned / 1e6, taken / 1e6, planned / taken, planned / tensors)
            )
            table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in rows[-1]))
            print(dumps(rows[-1]), flush=True)
    Console().print(table)
    if json:
        print(dumps(rows))


if __name__ == "__main__":
    tyro.cli(main)
