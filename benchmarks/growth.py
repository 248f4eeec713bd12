"""Growth of the time and memory of a training step with the number of tokens and the batch size.

    python -m benchmarks.growth

A small encoder (ViT-pico with patches of 16), so that 8,192 tokens fit on any machine. Every size has its own
process, which reports its peak memory, including the 0.35 GB of Python and PyTorch. Exponents are fitted to the larger
half of the sizes, where constant costs matter less.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it

import dataclasses
import statistics
from json import dumps

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Timed, run_in_turn
from benchmarks.train_step import StepCase
from benchmarks.train_step import build as build_step
from tubelet.config import DataConfig, Precision, TrainConfig, model_preset
from tubelet.device import pick_device
from tubelet.grid import Modality

# Frames and pixels of clips by their number of tokens, in a grid of 2x16x16 tubelets.
CLIPS = {256: (8, 128), 512: (16, 128), 1024: (32, 128), 2048: (64, 128), 4096: (32, 256), 8192: (64, 256)}
BATCHES = (1, 2, 4, 8, 16, 32)
WARMUP = 1


def build(case: str, options: tuple[Precision, int]) -> Timed:
    """The training step of a case, named "tokens,batch", for a precision and number of rounds."""
    precision, rounds = options
    tokens, batch = map(int, case.split(","))
    frames, size = CLIPS[tokens]
    config = TrainConfig(
        model=dataclasses.replace(model_preset("vit-pico"), patch_size=16),
        data=DataConfig(frames=frames, image_size=size),
        batch_size=batch,
        precision=precision,
        compile=False,
    )
    return build_step("tubelet", StepCase(config, {Modality.VIDEO: batch}, WARMUP, rounds))


def exponent(sizes: list[int], values: list[float]) -> float:
    """The slope of log(value) over log(size), over the larger half of the sizes."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0])


def main(precision: Precision = "fp32", rounds: int = 5, json: bool = False) -> None:
    """Print the tables.

    Args:
        precision: bf16 or fp32.
        rounds: Number of timed steps per size, after one warm-up step; the tables have their medians.
        json: Print one JSON object as the last line.
    """
    device, console = pick_device(), Console()
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    console.print(f"ViT-pico/16, {precision} on {name}")
    result = {}
    for what, cases in (
        ("tokens", [f"{tokens},1" for tokens in CLIPS]),
        ("batch", [f"512,{batch}" for batch in BATCHES]),
    ):
        timed, peak = run_in_turn(build, (precision, rounds), cases, WARMUP, rounds)
        sizes = [int(case.split(",")[what == "batch"]) for case in cases]
        seconds = [statistics.median(each.seconds for each in timed[case]) for case in cases]
        memory = [peak[case] for case in cases]
        table = Table()
        for column in (what, "s/step", "peak GB"):
            table.add_column(column, justify="right")
        for row in zip(sizes, seconds, memory, strict=True):
            table.add_row(f"{row[0]:,}", f"{row[1]:.3f}", f"{row[2]:.2f}")
        console.print(table)
        grows = exponent(sizes, seconds), exponent(sizes, memory)
        console.print(f"time ~ {what}^{grows[0]:.2f}, memory ~ {what}^{grows[1]:.2f}")
        result[what] = {"sizes": sizes, "seconds": seconds, "peak_gb": memory}
        result[what] |= dict(zip(("time_exponent", "memory_exponent"), grows, strict=True))
    if json:
        print(dumps(result))


if __name__ == "__main__":
    tyro.cli(main)
