"""Accuracy, time and memory of fitting heads to labels and of applying them.

    tubelet sample-data runs/sample --clips 1000 --long-videos 40
    python -m benchmarks.fit timeline runs/demo --data runs/sample
    python -m benchmarks.fit seconds --data runs/sample
    python -m benchmarks.fit throughput --data runs/sample
    python -m benchmarks.fit memory --data runs/sample

`timeline` measures heads of camera motion over time on held-out videos, for several seeds, compared with the baselines
of `tubelet fit`. The other commands run `tubelet` in separate processes: `seconds` times a fit to 300 labeled clips,
without and then with cached features; `throughput` times `predict` and `embed` on the same videos, in turn; `memory`
measures `predict` on a video of ten minutes and on one of two hours.
"""

import csv
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.measure import CommandCost, run_command
from tubelet.checkpoint.hub import save_encoder
from tubelet.config import FitConfig, model_preset
from tubelet.fitting.run import fit_head, read_label_table
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.load import load
from tubelet.sample_data import read_index

TUBELET = (sys.executable, "-m", "tubelet")
FPS = 7
FRAMES = 4


def timeline(
    model: str,
    /,
    *,
    data: Path,
    networks: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    cache: Path | None = None,
) -> None:
    """Metrics of a timeline head and of its baselines on held-out videos: mean and range over seeds.

    Args:
        model: Whatever tubelet.load takes.
        data: A sample set with long videos.
        networks: Networks of the heads that are trained in parallel; the task's by default.
        seeds: Seeds of initial weights, sampling, and the choice of videos that heads are chosen by.
        cache: Folder of cached features; by default in the user's cache.
    """
    found: dict[str, dict[str, list[float]]] = {}
    encoder = load(model)
    for seed in seeds:
        config = FitConfig(task="timeline", networks=networks, seed=seed)
        table, task = read_label_table(data / "labels" / "motion.csv", config)
        head, _ = fit_head(table, task, encoder, model, config, cache=cache)
        for scores in head.spec.scores:
            own = found.setdefault(scores.model, {})
            for metric in scores.metrics:
                name = f"{metric.name} ({metric.unit})" if metric.unit else metric.name
                own.setdefault(name, []).append(metric.value)
    names = list(dict.fromkeys(name for own in found.values() for name in own))
    rows = [(side, *(_spread(own.get(name, [])) for name in names)) for side, own in found.items()]
    _print(("", *names), rows)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    digits = 1 if max(map(abs, values)) >= 10 else 3
    low, high = (f"{value:.{digits}f}" for value in (min(values), max(values)))
    return f"{statistics.mean(values):.{digits}f} ({low} to {high})"


def seconds(*, data: Path, model: str = "vit-ti", clips: int = 300) -> None:
    """Seconds of `tubelet fit` on labeled clips, without and with cached features; then with other labels.

    Args:
        data: A sample set.
        model: Preset of the encoder, which has random weights here, or a file or directory of weights.
        clips: Labeled clips.
    """
    rows = []
    with _workplace(data, model) as (place, weights):
        motion = place / "motion.csv"
        entries = read_index(data, "train")[:clips]
        write_table(motion, [(entry.media.absolute(), entry.motion, entry.level) for entry in entries])
        turns = place / "turns.csv"
        side = {"turn_left": "turn", "turn_right": "turn"}
        write_table(turns, [(e.media.absolute(), side.get(e.motion, "no turn"), e.level) for e in entries])
        for what, table in (("no features cached", motion), ("features cached", motion), ("other labels", turns)):
            command = [*TUBELET, "fit", table, "--model", weights, "--out", place / f"{table.stem}.safetensors"]
            command += ["--task", "classification", "--cache", place / "features", *_clip_options()]
            rows.append((what, *_cells(run_command(command))))
    _print((f"fit of {clips} clips", "seconds", "CPU s", "peak GB"), rows)


def throughput(*, data: Path, model: str = "vit-ti", videos: int = 8, repeats: int = 10, rounds: int = 3) -> None:
    """Seconds of `tubelet embed` and of `tubelet predict` on the same videos, with the same clips, in turn.

    Args:
        data: A sample set with long videos.
        model: Preset of the encoder, which has random weights here, or a file or directory of weights.
        videos: Number of videos.
        repeats: How often a long video of the set is repeated in each.
        rounds: Rounds; the table has the medians.
    """
    clip = [*_clip_options(), "--stride-s", str(FRAMES / FPS)]
    costs_by_command: dict[str, list[CommandCost]] = {"embed": [], "predict": []}
    with _workplace(data, model) as (place, weights):
        head = _fit(place, weights, data, clip)
        sources = place / "videos"
        sources.mkdir()
        found = sorted((data / "labels").glob("*/*.mp4"))[:videos]
        for number, path in enumerate(found):
            repeat_video(path, sources / f"{number:04d}.mp4", repeats)
        for number in range(rounds):
            embed = [*TUBELET, "embed", sources, "--model", weights, "--out", place / f"embed{number}", *clip]
            predict = [*TUBELET, "predict", head, sources, "--out", place / f"predict{number}", "--model", weights]
            for side, command in (("embed", embed), ("predict", predict)):
                costs_by_command[side].append(run_command(command))
    medians = {side: statistics.median(cost.seconds for cost in costs) for side, costs in costs_by_command.items()}
    rows = [(side, *_cells(min(costs, key=lambda cost: cost.seconds))) for side, costs in costs_by_command.items()]
    _print(("fastest round", "seconds", "CPU s", "peak GB"), rows)
    Console().print(
        f"medians of {rounds}: {medians}; throughput of predict: {medians['embed'] / medians['predict']:.2f}"
    )


def memory(*, data: Path, model: str = "vit-pico", minutes: tuple[float, ...] = (10, 120)) -> None:
    """Peak memory of `tubelet predict` on videos of several lengths.

    Args:
        data: A sample set with long videos.
        model: Preset of the encoder, which has random weights here, or a file or directory of weights.
        minutes: Lengths of the videos in minutes.
    """
    rows = []
    with _workplace(data, model) as (place, weights):
        head = _fit(place, weights, data, _clip_options())
        source = sorted((data / "labels").glob("train/*.mp4"))[0]
        for length in minutes:
            video = place / f"{length:g}.mp4"
            repeat_video(source, video, max(1, round(60 * length / _duration_s(source))))
            command = [*TUBELET, "predict", head, video, "--out", place / f"{length:g}", "--model", weights]
            command += ["--prefetch-mb", "64"]  # less than the clips of any video here
            rows.append((f"{_duration_s(video) / 60:.1f} min", *_cells(run_command(command))))
    _print(("video", "seconds", "CPU s", "peak GB"), rows)


@contextmanager
def _workplace(data: Path, model: str) -> Iterator[tuple[Path, Path]]:
    """An empty folder, and the weights of a model: a file of random ones for the name of a preset."""
    with TemporaryDirectory() as folder:
        place = Path(folder)
        if Path(model).exists():
            yield place, Path(model)
            return
        torch.manual_seed(0)
        encoder, weights = Backbone(model_preset(model)), place / "encoder.safetensors"
        save_encoder(weights, encoder.state_dict(), encoder.config, model, "teacher", encoder.native_clip)
        yield place, weights


def _clip_options() -> list[str]:
    return ["--image-size", "64", "--frames", str(FRAMES), "--fps", str(FPS)]


def _fit(place: Path, weights: Path, data: Path, options: Sequence[str]) -> Path:
    """A timeline head, trained briefly: what it says does not matter here."""
    head = place / "head.safetensors"
    command = [*TUBELET, "fit", data / "labels" / "motion.csv", "--model", weights, "--out", head]
    run_command([*command, "--cache", place / "features", "--epochs", "1", *options])
    return head


def write_table(path: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    """Write a label table of whole files."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "group"), *rows])


def repeat_video(source: Path, target: Path, count: int) -> None:
    """Write a video several times in a row, without encoding it again."""
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        length = round(Fraction(len(packets)) / stream.average_rate / stream.time_base)
        with av.open(str(target), "w") as joined:
            out = joined.add_stream_from_template(stream)
            starts = [(packet.pts, packet.dts) for packet in packets]
            for number in range(count):
                for packet, (pts, dts) in zip(packets, starts, strict=True):
                    packet.pts, packet.dts, packet.stream = pts + number * length, dts + number * length, out
                    joined.mux(packet)


def _duration_s(path: Path) -> float:
    with av.open(str(path)) as container:
        return float(container.duration / av.time_base)


def _cells(cost: CommandCost) -> tuple[str, str, str]:
    return f"{cost.seconds:.1f}", f"{cost.cpu_seconds:.1f}", f"{cost.peak_gb:.2f}"


def _print(columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    table = Table()
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict(
        {"timeline": timeline, "seconds": seconds, "throughput": throughput, "memory": memory},
        description=__doc__,
    )
