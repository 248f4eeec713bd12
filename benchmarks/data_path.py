"""Fraction of a training run that waits for data, from source files and from shards of them.

    python -m benchmarks.data_path --height 720 --image-size 64

`tubelet train` runs on both in turn, each time in its own process with its workers; the waiting time is the value in
metrics.jsonl. A slow device hardly waits. "reading only" is the number of clips per second that the workers make
without training, an upper bound for the rate of a device.
"""

import statistics
import subprocess
import sys
import time
from json import dumps, loads
from pathlib import Path
from shutil import rmtree
from typing import Any, Literal, NamedTuple

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.videos import make_videos
from tubelet.config import DataConfig, ShardConfig, TrainConfig, model_preset
from tubelet.data.loader import step_loader
from tubelet.data.shards.writer import write_shards
from tubelet.data.sources import list_media


class Run(NamedTuple):
    """Measurements of one training run.

    Attributes:
        wait_share: fraction of the time after the first steps in which the device (on a CPU: the process) waited for
            data.
        clips_per_s: training clips per second, median of the steps.
        peak_gb: peak memory of the process and its workers, shared pages counted once.
    """

    wait_share: float
    clips_per_s: float
    peak_gb: float


def train(source: Path, out: Path, options: list[str], skip: int) -> Run:
    """Run `tubelet train` on a source and return the measurements of all steps after the first `skip`."""
    rmtree(out, ignore_errors=True)
    command = [sys.executable, "-m", "tubelet", "train", str(source), "--out", str(out), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory(process.pid))
        time.sleep(0.2)
    if process.returncode:
        sys.exit(process.stdout.read() if process.stdout else "the run failed")
    rows = [loads(line) for line in (out / "metrics.jsonl").open()][skip:]
    seconds = [1 / row["clips_per_s"] for row in rows]  # of a clip; all steps have as many
    # The device's where it is known: on CUDA the host may wait for data while the device still computes.
    fractions = [row.get("device_wait_fraction", row["data_wait_fraction"]) for row in rows]
    waited = sum(second * fraction for second, fraction in zip(seconds, fractions, strict=True))
    return Run(waited / sum(seconds), 1 / statistics.median(seconds), peak / 1e9)


def memory(pid: int) -> int:
    """Bytes of a process and its children."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            info = process.memory_full_info()
            total += getattr(info, "pss", info.rss)
    except psutil.Error:
        return 0  # it ended between one check and the next
    return total


def reading(source: Path, config: TrainConfig, workers: int) -> float:
    """Clips a second that the workers make where nobody trains.

    The first steps of all workers come at about the same time, and so do the next ones: so many are left out, and twice
    as many timed.
    """
    loader = iter(step_loader(config, list_media([str(source)]), 0, pin_memory=False))
    begin = 2 * workers
    for _ in range(begin):
        next(loader)
    start_s = time.perf_counter()
    for _ in range(2 * begin):
        assert next(loader).failure is None
    return 2 * begin * config.batch_size / (time.perf_counter() - start_s)


def main(
    model: str = "vit-ti",
    image_size: int = 64,
    frames: int = 16,
    batch_size: int = 8,
    steps: int = 20,
    skip: int = 3,
    rounds: int = 3,
    workers: int = 2,
    height: int = 720,
    videos: int = 2,
    seconds: float = 30.0,
    precision: Literal["auto", "bf16", "fp32"] = "auto",
    folder: Path = Path("runs/bench"),
    json: bool = False,
) -> None:
    """Print the table.

    Args:
        model: Preset.
        image_size: Side of the clips in pixels.
        frames: Frames of a clip, at 4 per second.
        batch_size: Clips of a step.
        steps: Steps of a run.
        skip: Number of first steps that are not counted.
        rounds: Number of runs of each source; the table has their medians.
        workers: Decoding processes.
        height: Lines of the source videos.
        videos: Number of videos.
        seconds: Length of each.
        precision: bf16, fp32, or what the device is fast at.
        folder: Folder of the videos, shards and runs.
        json: Print one JSON object as the last line.
    """
    paths = make_videos(folder / "videos", height, videos, seconds)
    sources = {
        "source": folder / "sources.csv",
        "shards": folder / "videos" / f"shards-{height}p-{videos}x{seconds:g}s",
    }
    sources["source"].write_text("path\n" + "".join(f"{path.resolve()}\n" for path in paths))
    write_shards([str(path) for path in paths], sources["shards"], ShardConfig(), workers=1)
    options = ["--model", model, "--image-size", image_size, "--frames", frames, "--batch-size", batch_size]
    options += ["--steps", steps, "--workers", workers, "--precision", precision]
    runs: dict[str, list[Run]] = {name: [] for name in sources}
    speed: dict[str, list[float]] = {name: [] for name in sources}
    data = DataConfig(image_size=image_size, frames=frames, workers=workers)
    config = TrainConfig(model=model_preset(model), data=data, batch_size=batch_size)
    for _ in range(rounds):
        for name, source in sources.items():
            runs[name].append(train(source, folder / f"data-path-{name}", [str(option) for option in options], skip))
            speed[name].append(reading(source, config, workers))
    table = Table(
        title=f"{model}, {image_size} px, {frames} frames, batch {batch_size}, {workers} workers, {height} lines"
    )
    for column in ("from", "waiting", "clips/s", "peak GB", "reading only, clips/s"):
        table.add_column(column, justify="left" if column == "from" else "right")
    result: dict[str, Any] = {}
    for name in sources:
        medians = Run(*(statistics.median(values) for values in zip(*runs[name], strict=True)))
        result[name] = {**medians._asdict(), "reading_clips_per_s": statistics.median(speed[name])}
        result[name]["max_wait_share"] = max(run.wait_share for run in runs[name])
        cells = (f"{100 * medians.wait_share:.1f} %", f"{medians.clips_per_s:.2f}", f"{medians.peak_gb:.2f}")
        table.add_row(name, *cells, f"{result[name]['reading_clips_per_s']:.1f}")
    Console().print(table)
    if json:
        print(dumps(result))


if __name__ == "__main__":
    tyro.cli(main)
