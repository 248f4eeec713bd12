"""Ablation of the 2.1 objective: add one part at a time, with the same data, steps, seeds and student.

    python -m benchmarks.recipe --out runs/recipe --data runs/sample --size home --jobs 2

Every (variant, seed) trains in a process with one thread, in a folder of --out, and its teacher's last level is
evaluated on the sample set. To resume, run the same command again: finished runs are kept, and stopped runs continue.
The result is a table, `results.json` and `page.html` in --out.

Variants differ only in the objective. For a given seed, the student starts from the same weights in all of them; the
random variant is these weights. A step has the same number of samples in all variants; if half of them are images, it
costs less, which the table of costs shows.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it

import dataclasses
import datetime
import json
import platform
import shlex
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure import log_to_file
from benchmarks.recipe_page import write_recipe_page
from benchmarks.recipe_table import gather, print_tables, spread, verdicts
from benchmarks.recipe_tasks import MEASURES, evaluated
from tubelet.checkpoint.run import list_checkpoints, load_vjepa
from tubelet.config import DataConfig, ModelConfig, OptimConfig, PredictorConfig, TrainConfig, model_preset
from tubelet.data.clips import normalize
from tubelet.data.loader import StepDataset
from tubelet.data.sources import list_media
from tubelet.device import pick_device
from tubelet.errors import TubeletError
from tubelet.model.encoder import Encoder, random_encoder
from tubelet.sample_data.truth import read_description
from tubelet.train.run_directory import RunDirectory, write_atomically
from tubelet.train.step import backpropagate
from tubelet.train.trainer import train
from tubelet.vjepa import VJEPA


@dataclass(frozen=True)
class Variant:
    """A row of the table: what it is called, and what it changes in V-JEPA 2.1's config, part by part."""

    title: str
    changes: Mapping[str, Mapping[str, Any]]
    trained: bool = True


_LAST_LEVEL, _VIDEOS_ALONE = {"output_levels": 1}, {"image_fraction": 0.0}
VARIANTS = {
    "a": Variant("random weights", {}, trained=False),
    "b": Variant(
        "2.0: last level, masked tokens",
        {"model": _LAST_LEVEL, "data": _VIDEOS_ALONE, "optim": {"context_weight": 0.0}},
    ),
    "c": Variant("b + context loss", {"model": _LAST_LEVEL, "data": _VIDEOS_ALONE}),
    "d": Variant("c + deep self-supervision", {"data": _VIDEOS_ALONE}),
    "e": Variant("d + images, image tokenizer = 2.1", {}),
    "f": Variant("e without distance weighting", {"optim": {"distance_weighting": False}}),
    "g": Variant("e without λ warm-up", {"optim": {"context_warmup": (0.0, 0.0)}}),
}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large the experiment is.

    Attributes:
        model: the student's and predictor's sizes.
        image_size, frames, fps: of a clip.
        batch_size: samples of a step.
        steps: of a run.
        optim: learning rate and teacher, the same for all variants.
        precision: of training.
        workers: decoding processes of a run; 0 decodes in its own.
        clips: of the sample set that is rendered where --data holds none.
        train_clips, val_clips: at most so many are evaluated on.
    """

    model: ModelConfig
    image_size: int
    frames: int
    fps: float = 7.0
    batch_size: int
    steps: int
    optim: OptimConfig
    precision: Literal["auto", "fp32"] = "fp32"
    workers: int = 0
    clips: int = 1000
    train_clips: int = 400
    val_clips: int = 200


# A learning rate and a teacher that suit short runs: higher rates, or a teacher that follows faster, collapse.
_SHORT = OptimConfig(lr=5e-4, start_lr=5e-5, final_lr=1e-4, warmup_fraction=0.1, ema=0.99, final_ema=0.998)
_SMALL = ModelConfig(
    width=384,
    depth=12,
    heads=6,
    levels=(2, 5, 8, 11),
    patch_size=8,
    predictor=PredictorConfig(width=192, depth=6, heads=6),
)
# "gpu" is chosen by counting operations: 18 runs of 3,000 steps, four of them (--jobs 4) side by side.
SIZES = {
    "home": Size(model=model_preset("vit-pico"), image_size=64, frames=4, batch_size=8, steps=3000, optim=_SHORT),
    "gpu": Size(
        model=_SMALL,
        image_size=128,
        frames=8,
        batch_size=24,
        steps=3000,
        optim=_SHORT,
        precision="auto",
        workers=3,
        clips=4000,
        train_clips=800,
        val_clips=400,
    ),
    "toy": Size(
        model=model_preset("vit-pico"),
        image_size=32,
        frames=4,
        batch_size=2,
        steps=2,
        optim=_SHORT,
        clips=24,
        train_clips=12,
        val_clips=4,
    ),
}


@dataclass(frozen=True)
class Run:
    """One variant with one seed.

    Attributes:
        name: of the variant.
        seed: of initial weights, data order, crops and masks.
        steps: of training.
        size: of the experiment.
        data: the sample set.
        folder: of the run.
    """

    name: str
    seed: int
    steps: int
    size: Size
    data: Path
    folder: Path

    @property
    def scores(self) -> Path:
        """The file of results, which exists when the run is finished."""
        return self.folder / "scores.json"

    def config(self) -> TrainConfig:
        """V-JEPA 2.1 at this size, with the variant's changes."""
        size = self.size
        base = TrainConfig(
            model=size.model,
            data=DataConfig(
                sources=(str(self.data / "train"),),
                image_size=size.image_size,
                frames=size.frames,
                fps=size.fps,
                workers=size.workers,
            ),
            optim=size.optim,
            steps=self.steps,
            batch_size=size.batch_size,
            precision=size.precision,
            seed=self.seed,
            compile=False,  # the default would compile only the dearer variants
            checkpoint_every=250,
            keep_checkpoints=1,
            monitor_every=max(1, min(100, self.steps // 10)),
        )
        parts = {
            part: dataclasses.replace(getattr(base, part), **changes)
            for part, changes in VARIANTS[self.name].changes.items()
        }
        return dataclasses.replace(base, **parts)

    def requested(self) -> dict[str, Any]:
        """Settings that the scores depend on, besides training; if they change, the run is evaluated again."""
        size = self.size
        return {
            "data": str(self.data),
            "clips": [size.train_clips, size.val_clips],
            "view": [size.image_size, size.frames],
            "steps": self.steps if VARIANTS[self.name].trained else 0,
            "measures": list(MEASURES),
        }

    def finished(self) -> dict[str, Any] | None:
        """Results of the run, or None if it is not finished.

        Raises:
            TubeletError: if it was started with other settings.
        """
        if VARIANTS[self.name].trained:
            changed = RunDirectory(self.folder, self.config(), resume=True).changed
            if changed:
                raise TubeletError(
                    f"{self.folder}: this run was started with other settings ({'; '.join(changed)}); "
                    "ask for the same ones, or choose another --out"
                )
        if not self.scores.exists():
            return None
        found: dict[str, Any] = json.loads(self.scores.read_text())
        return found if found["asked"] == self.requested() else None


def run_variant(run: Run, evaluate_only: bool) -> None:
    """Train a run to its end and evaluate its teacher, in a separate process, which logs to log.txt."""
    os.setpgrp()  # Ctrl-C reaches only the parent, which then asks all runs once to save and stop
    torch.set_num_threads(1)
    run.folder.mkdir(parents=True, exist_ok=True)
    with log_to_file(run.folder / "log.txt"), (run.folder / "log.txt").open("a") as log:
        console = Console(file=log, width=160)
        try:
            encoder = trained_teacher(run, evaluate_only, console) if VARIANTS[run.name].trained else None
            encoder = encoder or random_encoder(run.config().model, run.seed)
            size = run.size
            scores, details = evaluated(
                encoder.to(pick_device()),
                run.data,
                clips=(size.train_clips, size.val_clips),
                image_size=size.image_size,
                frames=size.frames,
            )
        except TubeletError as error:
            console.print(f"error: {error}", markup=False, highlight=False)
            print(f"error: {run.folder.name}: {error}", file=sys.stderr)
            sys.exit(getattr(error, "exit_code", 1))
    content = {
        "asked": run.requested(),
        "scores": {label: scores[label] for label in MEASURES},
        "training": training_statistics(run) if VARIANTS[run.name].trained else {},
        "details": details,
    }
    write_atomically(run.scores, json.dumps(content, indent=1, allow_nan=False) + "\n")


def trained_teacher(run: Run, evaluate_only: bool, console: Console) -> Encoder:
    """The teacher after all steps; trains the run if it is not finished and training is allowed."""
    last = f"step-{run.steps:09d}"
    if not any(path.stem == last for path in list_checkpoints(run.folder)):
        if evaluate_only:
            raise TubeletError(f"{run.folder}: not trained to step {run.steps}; leave --evaluate-only out")
        train(run.config(), run.folder, resume=True, console=console)
    return load_vjepa(run.folder)[0].teacher


def rows_of(run: Run) -> list[dict[str, Any]]:
    """The metrics of a run's steps."""
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


def training_statistics(run: Run) -> dict[str, float]:
    """Cost of a run, and final statistics of its teacher.

    Seconds include data loading, and depend on the load of the machine; the number of operations does not.
    """
    config, rows = run.config(), rows_of(run)
    seconds = [config.batch_size / row["clips_per_s"] for row in rows]
    return {
        "GFLOP/step": step_flops(config) / 1e9,
        "s/step": statistics.median(seconds),
        "samples/s": config.batch_size / statistics.median(seconds),
        "hours": sum(seconds) / 3600,
        "effective rank": next(row["effective_rank"] for row in reversed(rows) if "effective_rank" in row),
    }


def step_flops(config: TrainConfig) -> float:
    """Floating-point operations of the matrix products of the first step, attention's included; none is computed."""
    nowhere = torch.device("meta")
    batches = StepDataset(config, list_media(config.data.sources))[0].batches
    model = VJEPA(config.model).to(nowhere)
    with FlopCounterMode(display=False) as counter:
        for batch in (batch.to(nowhere) for batch in batches):
            batch = dataclasses.replace(batch, pixels=normalize(batch.pixels))
            backpropagate(model, [batch], 0.5, torch.autocast("cpu", enabled=False))
    return float(counter.get_total_flops())


def run_parallel(runs: Sequence[Run], jobs: int, evaluate_only: bool, console: Console) -> None:
    """Run several processes at a time; if one fails or this process is stopped, the others save and stop.

    Raises:
        TubeletError: if a run fails.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # processes read it when they start
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    context = get_context("spawn")
    waiting, running = list(runs), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                process = context.Process(target=run_variant, args=(run, evaluate_only), name=run.folder.name)
                process.start()
                running[process] = run
            connection.wait([process.sentinel for process in running])
            for process in [process for process in running if not process.is_alive()]:
                run = running.pop(process)
                if process.exitcode:
                    raise TubeletError(f"{run.folder}: ended with exit code {process.exitcode}; see its log.txt")
                scores = ", ".join(f"{k} {v:.3f}" for k, v in json.loads(run.scores.read_text())["scores"].items())
                console.print(f"{run.folder.name}: {scores}", highlight=False, soft_wrap=True)
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.join()
        signal.signal(signal.SIGTERM, before)


def hardware() -> str:
    """Name of the GPU, or name and number of cores of the processor."""
    device = pick_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {os.cpu_count()} cores"


def main(
    out: Path,
    data: Path = Path("runs/sample"),
    size: Literal["home", "gpu", "toy"] = "home",
    variants: tuple[str, ...] = tuple(VARIANTS),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int | None = None,
    jobs: int = 2,
    evaluate_only: bool = False,
) -> None:
    """Train, evaluate and compare the variants.

    Args:
        out: Folder of the experiment; what was done there is continued.
        data: A folder that sample-data wrote; rendered where there is none.
        size: home takes hours on two cores, toy seconds; gpu is sized for half an hour on one H100.
        variants: Letters of the variants: a random, b 2.0, c + context loss, d + levels, e 2.1, f and g without a part.
        seeds: Of initial weights, data order, crops and masks.
        steps: Of each run, instead of the size's own.
        jobs: Number of parallel runs, each with one thread.
        evaluate_only: Train nothing; evaluate all runs again, which must be trained.
    """
    unknown = [name for name in variants if name not in VARIANTS]
    if unknown:
        raise TubeletError(f"variants has {unknown[0]!r}, expected letters of {', '.join(VARIANTS)}")
    if not variants or not seeds or jobs < 1:
        raise TubeletError("variants, seeds and jobs: expected at least one of each")
    chosen = SIZES[size]
    console = Console(width=max(Console().width, 140))  # a table of numbers is worth a long line
    if not data.exists():
        from tubelet.sample_data import write_sample_data

        console.print(f"rendering {chosen.clips} clips into {data}", highlight=False)
        write_sample_data(data, clips=chosen.clips)
    description = read_description(data)
    runs = [
        Run(name, seed, steps or chosen.steps, chosen, data, out / f"{name}-seed-{seed}")
        for seed in seeds
        for name in VARIANTS
        if name in variants
    ]
    pending = [run for run in runs if run.finished() is None or evaluate_only]
    console.print(f"{len(runs)} runs, {len(runs) - len(pending)} of them done before", highlight=False)
    run_parallel(pending, jobs, evaluate_only, console)
    found = {(run.name, run.seed): json.loads(run.scores.read_text()) for run in runs}
    names = [name for name in VARIANTS if name in variants]
    rows = [gather(name, VARIANTS[name].title, {seed: found[name, seed] for seed in seeds}) for name in names]
    results = {
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "hardware": hardware(),
        "torch": torch.__version__,
        "size": size,
        "steps": steps or chosen.steps,
        "setting": dataclasses.asdict(chosen),
        "data": description["parameters"],
        "measures": [{"label": label, "higher_is_better": higher} for label, higher in MEASURES.items()],
        "variants": [
            dataclasses.asdict(row)
            | {"changes": VARIANTS[row.name].changes}
            | {"mean": {label: statistics.mean(values) for label, values in row.scores.items()}}
            | {"spread": {label: spread(values) for label, values in row.scores.items()}}
            for row in rows
        ],
        "claim": verdicts(rows),
    }
    write_atomically(out / "results.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    curves = {name: [rows_of(run) for run in runs if run.name == name] for name in names if VARIANTS[name].trained}
    write_recipe_page(out / "page.html", results, curves)
    print_tables(rows, console)
    console.print(f"{out / 'results.json'}, {out / 'page.html'}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except TubeletError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
