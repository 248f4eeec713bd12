"""`tubelet explain`: one video or image through the eight steps of the method, printed and drawn on a page."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from torch import nn

from tubelet.console import print_wrapped
from tubelet.grid import Modality
from tubelet.io.overwrite_checks import check_output
from tubelet.model.rope import axis_size
from tubelet.view.diagram import overview
from tubelet.view.input_trace import Trace, trace_input
from tubelet.view.page import json_block, write_page
from tubelet.view.scene import scene_data
from tubelet.view.step_facts import STEPS, describe_weights, head_cells


def explain(
    file: Path,
    model_name: str,
    out: Path,
    *,
    image_size: int | None,
    frames: int | None,
    fps: float | None,
    seed: int,
    console: Console,
) -> None:
    """Print the trace of one input and write it as a page.

    Args:
        file: a video or an image.
        model_name: a preset's name (random weights), a run directory, a checkpoint, or a released .pt file.
        out: the page, one file that needs no other.
        image_size: side of the center crop in pixels; None is the run's, or 224.
        frames: frames of the clip; None is the run's, or 16.
        fps: frames per second of the clip; None is the run's, or 4.
        seed: seed of the masks, and of random weights.
        console: console to print the steps to.

    Raises:
        TubeletError: if the file or the model cannot be read, sizes do not fit, or the page cannot be written.
    """
    check_output(out, "page", [file, model_name])
    with console.status("running the model", spinner="line"):
        trace = trace_input(file, model_name, image_size, frames, fps, seed)
    print_steps(trace, console)
    with console.status("drawing", spinner="line"):
        write_page("explain.html", out, page_values(trace))
    console.print()
    print_wrapped(console, f"page: {out}")


def print_steps(trace: Trace, console: Console) -> None:
    """Print the eight steps with this input's sizes, for a terminal of 80 columns."""
    print_wrapped(console, f"The life of {trace.source.path.name}", "bold")
    print_wrapped(console, describe_weights(trace), "" if trace.weights else "yellow")
    for step in STEPS:
        title = Text.assemble(
            "\n", (f"{step.number}", "bold cyan"), " ", (step.name, "bold"), "  ", (step.code[0].file, "dim")
        )
        console.print(title)
        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim", min_width=10)
        table.add_column()
        for name, value in step.facts(trace):
            table.add_row(name, Text(value))
        console.print(Padding(table, (0, 0, 0, 2)))


def page_values(trace: Trace) -> dict[str, Any]:
    """Values of the template."""
    config = trace.model.config
    return {
        "trace": trace,
        "config": config,
        "steps": STEPS,
        "video": trace.modality is Modality.VIDEO,
        "describe_weights": describe_weights(trace),
        "overview": overview(trace),
        "scene": json_block("scene", scene_data(trace)),
        "pairs": axis_size(config.width // config.heads) // 2,
        "impossible": [draw.name for draw in trace.draws if not draw.masks],
        "head_cells": head_cells(config.width // config.heads),
        "comparable": trace.losses is not None,
        "zero_error": float(trace.targets.abs().mean()),
        "levels": config.levels[-config.num_output_levels :],
        "fusion": [layer for layer in trace.model.predictor.fusion if isinstance(layer, nn.Linear)],
    }
