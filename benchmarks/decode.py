"""Random clips a second, from source files and from shards, compared with another reader.

    python -m benchmarks.decode
    python -m benchmarks.decode --baseline torchcodec
    python -m benchmarks.decode --baseline decord --json

Which files each reader reads right is `benchmarks/decoders.py`'s to say.

Videos of moving texture are made at each height, and shards of them; then every side reads the same random clips, one
after the other in turn, each in a process of its own with one decoding thread. A file is opened for each clip, as in
training. From shards a clip has the same moments, at the shards' size.
"""

import statistics
import sys
import time
from collections.abc import Callable
from importlib import import_module
from json import dumps
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.measure import run_in_turn
from benchmarks.videos import make_videos
from tubelet.config import ShardConfig
from tubelet.data.decode import Video
from tubelet.data.shards.reader import open_shards
from tubelet.data.shards.writer import write_shards


class Work(NamedTuple):
    """What is read."""

    videos: list[Path]
    shards: Path
    frames: int
    stride: int


class Clip(NamedTuple):
    """A random clip: which file, and where in it from 0 to 1."""

    file: float
    place: float


def build(side: str, work: Work) -> Callable[[int], tuple[float, float]]:
    """A side's process: a function that reads a clip and returns its seconds, by the clock and of CPU time."""
    read = {
        "source": source_reader,
        "shards": shard_reader,
        "decord": decord_reader,
        "torchcodec": torchcodec_reader,
        "torchcodec-approximate": torchcodec_reader,
    }[side](work, *(["approximate"] if side.endswith("approximate") else []))

    def timed(number: int) -> tuple[float, float]:
        clip = Clip(*np.random.default_rng(number).random(2))
        began, began_cpu = time.perf_counter(), time.process_time()
        pixels = read(clip)
        seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        assert pixels.shape[0] == work.frames, pixels.shape
        return seconds, cpu

    return timed


def source_reader(work: Work) -> Callable[[Clip], Any]:
    """From the videos themselves."""

    def read(clip: Clip) -> Any:
        with Video(work.videos[int(clip.file * len(work.videos))]) as video:
            fps, times = video.info.fps, np.arange(work.frames) * work.stride / video.info.fps
            return video.clips([clip.place * (video.info.duration_s - times[-1] - 1 / fps) + times])[0].pixels

    return read


def shard_reader(work: Work) -> Callable[[Clip], Any]:
    """From members of shards: as many seconds as the videos' clips have, at their mean rate of 27 frames a second."""
    shards = open_shards(work.shards)
    times = np.arange(work.frames) * work.stride / 27.0

    def read(clip: Clip) -> Any:
        place = int(clip.file * len(shards.members))
        latest = float(shards.members["duration_s"][place]) - times[-1] - 1 / 27
        with Video(shards.read(place)) as video:
            return video.clips([clip.place * latest + times])[0].pixels

    return read


def decord_reader(work: Work) -> Callable[[Clip], Any]:
    """As decord's users do."""
    import decord

    def read(clip: Clip) -> Any:
        video = decord.VideoReader(str(work.videos[int(clip.file * len(work.videos))]), num_threads=1)
        steps = np.arange(work.frames) * work.stride
        return video.get_batch(int(clip.place * (len(video) - steps[-1])) + steps).asnumpy()

    return read


def torchcodec_reader(work: Work, seek_mode: Literal["exact", "approximate"] = "exact") -> Callable[[Clip], Any]:
    """As torchcodec's users do: frames by time. Exact seeking, the default, reads all of a file's packets first."""
    from torchcodec.decoders import VideoDecoder

    def read(clip: Clip) -> Any:
        path = work.videos[int(clip.file * len(work.videos))]
        decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode=seek_mode)
        about = decoder.metadata
        times = np.arange(work.frames) * work.stride / about.average_fps
        latest = about.end_stream_seconds - times[-1] - 1 / about.average_fps
        return decoder.get_frames_played_at((clip.place * latest + times).tolist()).data

    return read


def main(
    heights: tuple[int, ...] = (240, 720),
    videos: int = 2,
    seconds: float = 30.0,
    frames: int = 16,
    stride: int = 8,
    rounds: int = 30,
    warmup: int = 3,
    folder: Path = Path("runs/bench/videos"),
    baseline: Literal["decord", "torchcodec"] | None = None,
    json: bool = False,
) -> None:
    """Print the table.

    Args:
        heights: Lines of the videos; below 720 they are 4:3, else 16:9.
        videos: How many of each.
        seconds: How long each is.
        frames: Frames of a clip.
        stride: Frames of the video from one frame of a clip to the next.
        rounds: Clips that each side reads; the table holds their medians.
        warmup: Clips before them.
        folder: Where videos and shards are kept for the next time.
        baseline: Another reader; it must be installed.
        json: Print one JSON object as the last line.
    """
    if baseline:
        try:
            import_module(baseline)
        except (ImportError, OSError, RuntimeError) as error:
            sys.exit(f"{baseline} cannot be imported: {str(error).splitlines()[0]}; pip install {baseline}")
    others = {None: (), "decord": ("decord",), "torchcodec": ("torchcodec", "torchcodec-approximate")}[baseline]
    sides = ("source", "shards", *others)
    console = Console()
    result: dict[str, Any] = {"frames": frames, "stride": stride}
    for height in heights:
        paths = make_videos(folder, height, videos, seconds)
        shards = folder / f"shards-{height}p-{videos}x{seconds:g}s"
        write_shards([str(path) for path in paths], shards, ShardConfig(), workers=1)
        work = Work(paths, shards, frames, stride)
        timed, peak = run_in_turn(build, work, sides, warmup, rounds)
        title = f"{frames} frames, stride {stride}, {height} lines"
        result[f"{height}p"] = show(console, title, {side: timed[side] for side in sides}, peak)
    if json:
        print(dumps(result))


def show(
    console: Console, title: str, taken: dict[str, list[tuple[float, float]]], peak: dict[str, float]
) -> dict[str, Any]:
    """Print one height's table; its figures. Ratios are of CPU time, which other work on the machine touches least."""
    table = Table(title=title)
    for column in ("side", "ms/clip", "10-90 %", "clips/s", "CPU ms/clip", "x source", "peak GB"):
        table.add_column(column, justify="left" if column == "side" else "right")
    median = {side: statistics.median(seconds for seconds, _ in rounds) for side, rounds in taken.items()}
    cpu = {side: statistics.median(seconds for _, seconds in rounds) for side, rounds in taken.items()}
    for side, rounds in taken.items():
        low, high = np.quantile([seconds for seconds, _ in rounds], [0.1, 0.9]) * 1e3
        cells = (f"{1e3 * median[side]:.1f}", f"{low:.0f}-{high:.0f}", f"{1 / median[side]:.1f}")
        cells += (f"{1e3 * cpu[side]:.1f}", f"{cpu['source'] / cpu[side]:.2f}")
        table.add_row(side, *cells, f"{peak[side]:.2f}")
    console.print(table)
    return {
        side: {"clips_per_s": 1 / median[side], "cpu_s": cpu[side], "peak_gb": peak[side]}
        | {f"times_{other}": cpu[other] / cpu[side] for other in taken if other != side}
        for side in taken
    }


if __name__ == "__main__":
    tyro.cli(main)
