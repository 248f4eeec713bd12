"""How much of a training run is spent waiting for data: from source files, and from shards of them.

    python -m benchmarks.data_path --height 720 --image-size 64

Each side is `tubelet train` as a person runs it, in a process of its own with its workers, and the sides take turns;
the waiting is what the run itself writes to metrics.jsonl. A slow device waits for little: "reading only" reports how
many clips a second the workers make where nobody trains, and so how fast a device they could feed.
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
    """One training run's figures.

    Attributes:
        wait_share: of the time after the first steps, the share in which the device, or on a CPU the process, waited
            for data.
        clips_per_s: clips trained on a second, median of the steps.
        peak_gb: peak memory of the process and its workers together, pages that they share counted once.
    """

    wait_share: float
    clips_per_s: float
    peak_gb: float


def train(source: Path, out: Path, options: list[str], skip: int) -> Run:
    """Run `tubelet train` on a source; figures of all steps but the first `skip`."""
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
    began = time.perf_counter()
    for _ in range(2 * begin):
        assert next(loader).failure is None
    return 2 * begin * config.batch_size / (time.perf_counter() - began)


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
        frames: Frames of a clip, at 4 a second.
        batch_size: Clips of a step.
        steps: Steps of a run.
        skip: First steps of a run, in which all is set up, that are not counted.
        rounds: Runs of each side; the table holds their medians.
        workers: Decoding processes.
        height: Lines of the source videos.
        videos: How many.
        seconds: How long each is.
        precision: bf16, fp32, or what the device is fast at.
        folder: Where videos, shards and runs are kept.
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
    runs: dict[str, list[Run]] = {side: [] for side in sources}
    speed: dict[str, list[float]] = {side: [] for side in sources}
    data = DataConfig(image_size=image_size, frames=frames, workers=workers)
    config = TrainConfig(model=model_preset(model), data=data, batch_size=batch_size)
    for _ in range(rounds):
        for side, source in sources.items():
            runs[side].append(train(source, folder / f"data-path-{side}", [str(option) for option in options], skip))
            speed[side].append(reading(source, config, workers))
    table = Table(
        title=f"{model}, {image_size} px, {frames} frames, batch {batch_size}, {workers} workers, {height} lines"
    )
    for column in ("from", "waiting", "clips/s", "peak GB", "reading only, clips/s"):
        table.add_column(column, justify="left" if column == "from" else "right")
    result: dict[str, Any] = {}
    for side in sources:
        middle = Run(*(statistics.median(values) for values in zip(*runs[side], strict=True)))
        result[side] = {**middle._asdict(), "reading_clips_per_s": statistics.median(speed[side])}
        result[side]["max_wait_share"] = max(run.wait_share for run in runs[side])
        cells = (f"{100 * middle.wait_share:.1f} %", f"{middle.clips_per_s:.2f}", f"{middle.peak_gb:.2f}")
        table.add_row(side, *cells, f"{result[side]['reading_clips_per_s']:.1f}")
    Console().print(table)
    if json:
        print(dumps(result))


if __name__ == "__main__":
    tyro.cli(main)
