"""Time, memory and metrics of evaluating one model on every task of a sample set.

    tubelet sample-data runs/sample --clips 1000 --layout ade20k --layout nyuv2 --layout davis --layout kinetics \
        --layout imagenet --layout epic
    python -m benchmarks.evaluate runs/demo --data runs/sample

Each task runs `tubelet evaluate` in a separate process, with an empty feature cache. Probes that read all tokens are
trained with two learning rates for five epochs, not with the whole sweep of the published protocol.
"""

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.measure import run_command

PROBE = "--epochs 5 --learning-rates 1e-3 3e-4 --weight-decays 0.1"
TASKS = (  # task, its folder in the sample set, options
    ("suite", ".", ""),
    ("tracking", ".", ""),
    ("segmentation", "layouts/ade20k", ""),
    ("depth", "layouts/nyuv2", ""),
    ("vos", "layouts/davis", ""),
    ("knn", "layouts/imagenet", ""),
    ("linear", "layouts/imagenet", ""),
    ("classification", "layouts/kinetics", PROBE),
    ("anticipation", "layouts/epic", PROBE),
)
IMAGES = ("segmentation", "depth", "vos", "knn", "linear")  # tasks, or data, of images


def figures(out: Path) -> str:
    """The first metric of a result, and of its baselines in brackets."""
    result = json.loads((out / "result.json").read_text())
    name, unit = next(iter(result["units"].items()))
    others = "".join(f" ({metrics[name]:.3f})" for metrics in result["baselines"].values())
    return f"{name} {result['metrics'][name]:.3f}{others} {unit}"


def main(model: str, /, *, data: Path, image_size: int = 64, frames: int = 4, baseline: str | None = None) -> None:
    """Print the table.

    Args:
        model: Whatever tubelet.load takes.
        data: The sample set, with the layouts named above.
        image_size: Pixels along the side of a view, on every task.
        frames: Frames of a clip, on every task that takes clips.
        baseline: Another model on the same tasks, or "random", which takes as long again.
    """
    console, table = Console(), Table()
    for column in ("task", "on", "seconds", "CPU s", "peak GB", "figures"):
        table.add_column(column, justify="right" if column in ("seconds", "CPU s", "peak GB") else "left")
    total = 0.0
    with TemporaryDirectory() as scratch:
        for task, folder, options in TASKS:
            out = Path(scratch) / task
            command = [
                sys.executable,
                "-m",
                "tubelet",
                "evaluate",
                model,
                "--data",
                str(data / folder),
                "--out",
                str(out),
            ]
            command += ["--cache", str(Path(scratch) / "features"), "--image-size", str(image_size), *options.split()]
            command += ["--task", task, *(["--baseline", baseline] if baseline else [])]
            command += ["--frames", str(frames)] if task not in IMAGES else []
            cost = run_command(command)
            total += cost.seconds
            table.add_row(
                task, folder, f"{cost.seconds:.0f}", f"{cost.cpu_seconds:.0f}", f"{cost.peak_gb:.2f}", figures(out)
            )
    table.add_section()
    table.add_row("all", "", f"{total:.0f}")
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main)
