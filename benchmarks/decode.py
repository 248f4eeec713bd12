"""Random clips per second, from source files and from shards, compared with another reader.

    python -m benchmarks.decode
    python -m benchmarks.decode --baseline torchcodec
    python -m benchmarks.decode --baseline decord --json

`benchmarks/decoders.py` compares which files each reader decodes correctly.

The script writes videos of moving texture at each height, and shards of them. The readers then alternate over the same
random clips, each in its own process with one decoding thread. A file is opened for each clip, as in training. A clip
from shards has the same times, at the shards' size.
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


class ReadCase(NamedTuple):
    """Files and clip settings of a measurement."""

    videos: list[Path]
    shards: Path
    frames: int
    stride: int


class Clip(NamedTuple):
    """A random clip: which file, and where in it from 0 to 1."""

    file: float
    place: float


def build(reader: str, case: ReadCase) -> Callable[[int], tuple[float, float]]:
    """Return a function that reads a clip with a reader and returns its wall-clock and processor seconds."""
    read = {
        "source": source_reader,
        "shards": shard_reader,
        "decord": decord_reader,
        "torchcodec": torchcodec_reader,
        "torchcodec-approximate": torchcodec_reader,
    }[reader](case, *(["approximate"] if reader.endswith("approximate") else []))

    def timed(number: int) -> tuple[float, float]:
        clip = Clip(*np.random.default_rng(number).random(2))
        start, cpu_start = time.perf_counter(), time.process_time()
        pixels = read(clip)
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        assert pixels.shape[0] == case.frames, pixels.shape
        return seconds, cpu

    return timed


def source_reader(case: ReadCase) -> Callable[[Clip], Any]:
    """From the videos themselves."""

    def read(clip: Clip) -> Any:
        with Video(case.videos[int(clip.file * len(case.videos))]) as video:
            fps, times = video.info.fps, np.arange(case.frames) * case.stride / video.info.fps
            return video.clips([clip.place * (video.info.duration_s - times[-1] - 1 / fps) + times])[0].pixels

    return read


def shard_reader(case: ReadCase) -> Callable[[Clip], Any]:
    """From members of shards: as many seconds as the videos' clips have, at their mean rate of 27 frames a second."""
    shards = open_shards(case.shards)
    times = np.arange(case.frames) * case.stride / 27.0

    def read(clip: Clip) -> Any:
        place = int(clip.file * len(shards.members))
        latest = float(shards.members["duration_s"][place]) - times[-1] - 1 / 27
        with Video(shards.read(place)) as video:
            return video.clips([clip.place * latest + times])[0].pixels

    return read


def decord_reader(case: ReadCase) -> Callable[[Clip], Any]:
    """As decord's users do."""
    import decord

    def read(clip: Clip) -> Any:
        video = decord.VideoReader(str(case.videos[int(clip.file * len(case.videos))]), num_threads=1)
        steps = np.arange(case.frames) * case.stride
        return video.get_batch(int(clip.place * (len(video) - steps[-1])) + steps).asnumpy()

    return read


def torchcodec_reader(case: ReadCase, seek_mode: Literal["exact", "approximate"] = "exact") -> Callable[[Clip], Any]:
    """As torchcodec's users do: frames by time. Exact seeking, the default, reads all of a file's packets first."""
    from torchcodec.decoders import VideoDecoder

    def read(clip: Clip) -> Any:
        path = case.videos[int(clip.file * len(case.videos))]
        decoder = VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode=seek_mode)
        about = decoder.metadata
        times = np.arange(case.frames) * case.stride / about.average_fps
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
        videos: Number of videos of each height.
        seconds: Length of each.
        frames: Frames of a clip.
        stride: Frames of the video from one frame of a clip to the next.
        rounds: Number of clips per reader; the table has their medians.
        warmup: Number of clips before them.
        folder: Folder of the videos and shards, which are reused.
        baseline: Reader to compare with; it must be installed.
        json: Print one JSON object as the last line.
    """
    if baseline:
        try:
            import_module(baseline)
        except (ImportError, OSError, RuntimeError) as error:
            sys.exit(f"{baseline} cannot be imported: {str(error).splitlines()[0]}; pip install {baseline}")
    others = {None: (), "decord": ("decord",), "torchcodec": ("torchcodec", "torchcodec-approximate")}[baseline]
    readers = ("source", "shards", *others)
    console = Console()
    result: dict[str, Any] = {"frames": frames, "stride": stride}
    for height in heights:
        paths = make_videos(folder, height, videos, seconds)
        shards = folder / f"shards-{height}p-{videos}x{seconds:g}s"
        write_shards([str(path) for path in paths], shards, ShardConfig(), workers=1)
        case = ReadCase(paths, shards, frames, stride)
        timed, peak = run_in_turn(build, case, readers, warmup, rounds)
        title = f"{frames} frames, stride {stride}, {height} lines"
        result[f"{height}p"] = show(console, title, {reader: timed[reader] for reader in readers}, peak)
    if json:
        print(dumps(result))


def show(
    console: Console, title: str, timed: dict[str, list[tuple[float, float]]], peak: dict[str, float]
) -> dict[str, Any]:
    """Print the table of a height and return its values. Ratios are of CPU time, which other work affects least."""
    table = Table(title=title)
    for column in ("reader", "ms/clip", "10-90 %", "clips/s", "CPU ms/clip", "x source", "peak GB"):
        table.add_column(column, justify="left" if column == "reader" else "right")
    median = {reader: statistics.median(seconds for seconds, _ in rounds) for reader, rounds in timed.items()}
    cpu = {reader: statistics.median(seconds for _, seconds in rounds) for reader, rounds in timed.items()}
    for reader, rounds in timed.items():
        low, high = np.quantile([seconds for seconds, _ in rounds], [0.1, 0.9]) * 1e3
        cells = (f"{1e3 * median[reader]:.1f}", f"{low:.0f}-{high:.0f}", f"{1 / median[reader]:.1f}")
        cells += (f"{1e3 * cpu[reader]:.1f}", f"{cpu['source'] / cpu[reader]:.2f}")
        table.add_row(reader, *cells, f"{peak[reader]:.2f}")
    console.print(table)
    return {
        reader: {
            "clips_per_s": 1 / median[reader],
            "cpu_s": cpu[reader],
            "peak_gb": peak[reader],
        }
        | {f"times_{other}": cpu[other] / cpu[reader] for other in timed if other != reader}
        for reader in timed
    }


if __name__ == "__main__":
    tyro.cli(main)
