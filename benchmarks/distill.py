"""Compare a distilled small model with one that is pre-trained from scratch for the same number of steps.

    make demo
    python -m benchmarks.distill runs/demo --data runs/sample --out runs/distill

The small model has half the teacher's width and heads, and is otherwise the same. Both methods use the teacher's own
settings: data, steps, batch size, learning rate, moving average. From scratch, it is pre-trained like the teacher;
distilled, it predicts the frozen teacher's last level, with the full weight of visible tokens from the first step.
Every run is a process with one thread, in a folder of --out. To resume, run the same command again.
"""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it
os.environ["OMP_NUM_THREADS"] = "1"

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.measure import log_to_file
from benchmarks.recipe_table import with_spread
from benchmarks.recipe_tasks import MEASURES, evaluated
from tubelet.checkpoint.run import load_vjepa
from tubelet.config import ModelConfig, TrainConfig
from tubelet.errors import TubeletError
from tubelet.model.encoder import Encoder, random_encoder
from tubelet.tasks.suite import MAX_TRAIN_CLIPS, MAX_VAL_CLIPS
from tubelet.train.initialization import distillation_config
from tubelet.train.run_directory import write_atomically
from tubelet.train.trainer import train

METHODS = {
    "random": "half the width, random weights",
    "scratch": "half the width, from scratch",
    "distilled": "half the width, distilled",
}


def settings(method: str, teacher: str, data: Path, steps: int | None, seed: int) -> TrainConfig:
    """The whole run of a small model."""
    large, run = load_vjepa(teacher)
    if run is None:
        raise TubeletError(f"{teacher}: expected a run, whose settings the small model takes over")
    small: ModelConfig = replace(large.config, width=large.config.width // 2, heads=large.config.heads // 2)
    run = replace(
        run,
        model=small,
        data=replace(run.data, sources=(str(data / "train"),), workers=0),
        steps=steps or run.steps,
        seed=seed,
        compile=False,
    )
    if method != "distilled":
        return run
    return replace(
        run,
        model=distillation_config(small, large.config),
        optim=replace(run.optim, context_warmup=(0.0, 0.0)),
        distill_from=teacher,
    )


def run_method(method: str, teacher: str, data: Path, steps: int | None, seed: int, folder: Path) -> dict[str, float]:
    """Train a small model to its end and evaluate its average; returns the value of each measure."""
    config, scores = settings(method, teacher, data, steps, seed), folder / "scores.json"
    if not scores.exists():
        folder.mkdir(parents=True, exist_ok=True)
        if method == "random":
            encoder = random_encoder(config.model, seed)
        else:
            with log_to_file(folder / "log.txt"), (folder / "log.txt").open("a") as log:
                train(config, folder, resume=True, console=Console(file=log, width=160))
            encoder = load_vjepa(folder)[0].teacher
        write_atomically(scores, json.dumps(score(encoder, config, data), indent=1) + "\n")
    found: dict[str, float] = json.loads(scores.read_text())
    return found


def score(encoder: Encoder, config: TrainConfig, data: Path) -> dict[str, float]:
    """An encoder's value of each measure, on the clips of the demo's evaluation."""
    found, _ = evaluated(
        encoder,
        data,
        clips=(MAX_TRAIN_CLIPS, MAX_VAL_CLIPS),
        image_size=config.data.image_size,
        frames=config.data.frames,
    )
    return found


def main(
    teacher: str,
    /,
    *,
    data: Path,
    out: Path = Path("runs/distill"),
    seeds: tuple[int, ...] = (0, 1, 2),
    steps: int | None = None,
    jobs: int = 2,
) -> None:
    """Train, evaluate and compare.

    Args:
        teacher: The run of the large model.
        data: The sample set that it was trained on.
        out: Folder of the runs.
        seeds: Of the small models' initial weights, data order, crops and masks.
        steps: Of each run; by default as many as the teacher's.
        jobs: Number of parallel runs.
    """
    started = {}
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for seed in seeds:
            for method in METHODS:
                folder = out / f"{method}-seed-{seed}"
                started[method, seed] = pool.submit(run_method, method, teacher, data, steps, seed, folder)
        console = Console(width=max(Console().width, 120))  # a table of numbers is worth a long line
        large, run = load_vjepa(teacher)
        assert run is not None  # or `settings` has refused it
        own = score(large.teacher, run, data)
        found = {key: future.result() for key, future in started.items()}
    table = Table(title=f"mean ± standard deviation over {len(seeds)} seeds, {steps or run.steps} steps")
    table.add_column("")
    for label, higher_is_better in MEASURES.items():
        table.add_column(f"{label} {'↑' if higher_is_better else '↓'}", justify="right")
    table.add_row("the teacher", *(f"{own[label]:.3f}" for label in MEASURES), end_section=True)
    for method, title in METHODS.items():
        table.add_row(title, *(with_spread([found[method, seed][label] for seed in seeds]) for label in MEASURES))
    console.print(table)


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except TubeletError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
