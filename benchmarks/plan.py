"""Memory that steps really take beside what `tubelet train --plan` says they will.

    python benchmarks/plan.py

Real steps on 1, 2 and 4 processes of a CPU, by gloo. Each process tells the kernel's own count of its resident memory
(VmHWM, reset before the step) above what it held before the model was made: kernels' scratch, communication buffers and
all. The allocator is told to map every tensor of 64 kB or more by itself and give it back when it is let go, since
memory that it keeps for later would be counted as taken.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it
os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # of the processes that are started below
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

from tubelet.config import DataConfig, PlanConfig, TrainConfig, model_preset
from tubelet.config.train import Parallel, Precision
from tubelet.data.clips import normalise
from tubelet.train.optim import build_optimizer
from tubelet.train.parallel import World
from tubelet.train.plan import CPU, make_plan
from tubelet.train.sharding import place
from tubelet.train.step import prepare, train_step
from tubelet.types import Batch, Mask, Modality, StepData
from tubelet.vjepa import VJEPA

CASES: tuple[tuple[str, int, int, int, Precision, tuple[tuple[int, Parallel], ...]], ...] = (
    # model, pixels, frames, samples a process, precision, processes and how they share the work
    ("vit-ti", 128, 8, 4, "fp32", ((1, "ddp"), (2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp"))),
    ("vit-ti", 128, 8, 4, "bf16", ((1, "ddp"), (4, "fsdp"))),
    ("vit-b", 96, 4, 2, "fp32", ((1, "ddp"), (2, "ddp"), (2, "fsdp"), (4, "fsdp"))),
    ("vit-b", 96, 4, 2, "bf16", ((1, "ddp"), (2, "fsdp"))),
)
STEPS = 2  # the first makes the moments


def resident(name: str) -> int:
    """Bytes of this process that are in memory: VmRSS, or VmHWM, the most since the last reset."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def reset_peak() -> None:
    """Let VmHWM begin again at what is held now."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(
    config: TrainConfig, parallel: str, rank: int, size: int, lengths: list, store: str, answer: Connection
) -> None:
    """One process: its bytes at the peak of the last of `STEPS` steps."""
    torch.set_num_threads(1)
    world = World(CPU, rank, size)
    if size > 1:
        dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
    # Whatever is loaded or set up at first use: kernels, sharding, rendezvous.
    step_of(replace(config, model=model_preset("vit-pico")), parallel, world, small=True)()
    gc.collect()
    before = resident("VmRSS")
    step = step_of(config, parallel, world, lengths=lengths)
    for _ in range(STEPS):
        gc.collect()
        if size > 1:
            dist.barrier()
        reset_peak()
        step()
    answer.send(resident("VmHWM") - before)
    if size > 1:
        dist.barrier()
        dist.destroy_process_group()


def step_of(config: TrainConfig, parallel: str, world: World, lengths: list | None = None, small: bool = False):  # noqa: ANN201
    raise NotImplementedError
