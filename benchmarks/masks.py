"""Processor time to sample the masks of a step, for one of many processes.

    python -m benchmarks.masks --videos 1536 --processes 64

Each process samples the masks of the groups that contain its samples. "all groups" is the time to sample the masks of
the whole step, as in a run of one process.
"""

import time
from typing import NamedTuple

import tyro
from rich.console import Console
from rich.table import Table

from tubelet.config import DataConfig, MaskConfig, TrainConfig
from tubelet.data.batch_partition import micro_batches
from tubelet.data.loader import group_masks
from tubelet.grid import Modality


class Clips(NamedTuple):
    """Sizes of the clips of a step."""

    frames: int
    size: int


CLIPS = (Clips(16, 256), Clips(64, 384))


def cpu_seconds(config: TrainConfig, videos: int, groups: list[int], steps: int) -> float:
    """Processor time of a step's masks in some groups, mean over steps."""
    grid = config.model.grid(config.data.frames, config.data.image_size, config.data.image_size)
    start_s = time.process_time()
    for step in range(steps):
        for group in groups:
            group_masks(config, Modality.VIDEO, grid, videos, step, group)
    return (time.process_time() - start_s) / steps


def main(videos: int = 1536, processes: int = 64, group: int = 24, steps: int = 10) -> None:
    """Print the table.

    Args:
        videos: Videos of a step.
        processes: Processes that share it; the first one is measured.
        group: Samples whose masks are drawn, and cut to one length, together.
        steps: Steps that are measured.
    """
    table = Table(title=f"masks of {videos} videos, {processes} processes, groups of {group}: CPU ms per step")
    for column in ("frames", "pixels", "tokens", "own groups", "own, ms", "all groups", "all, ms"):
        table.add_column(column, justify="right")
    for frames, size in CLIPS:
        data = DataConfig(frames=frames, image_size=size)
        config = TrainConfig(data=data, masks=MaskConfig(truncation_group_size=group), batch_size=videos)
        own = sorted(
            {micro_batch.samples.start // group for micro_batch in micro_batches(config, videos, 0, processes)}
        )
        every = list(range(-(-videos // group)))
        tokens = config.model.grid(frames, size, size).tokens
        own_ms, all_ms = (1000 * cpu_seconds(config, videos, groups, steps) for groups in (own, every))
        cells = (frames, size, tokens, len(own), f"{own_ms:.1f}", len(every), f"{all_ms:.1f}")
        table.add_row(*(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells))
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main)
