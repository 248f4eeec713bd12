"""The commands that look at a model, in figures and in pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from tubelet.cli.options import checked
from tubelet.config import EvaluateConfig
from tubelet.config.fields import Frames, Rate, Seed, Side
from tubelet.console import open_console, print_wrapped, stages_progress
from tubelet.errors import TubeletError
from tubelet.io.files import directory_lock
from tubelet.io.overwrite import check_output


@checked
def evaluate(
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    config: Annotated[EvaluateConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")],
    *,
    data: Path,
    task: str | None = None,
    baseline: str | None = None,
    out: Path | None = None,
    cache: Path | None = None,
) -> None:
    """Ask what a model's frozen features are worth, on a benchmark in its own layout or on a sample set.

    Without --task, segmentation, depth, camera motion and tracking on a sample set, beside a random encoder and raw
    patches.

    Args:
        model: A run folder, a .safetensors or released .pt file, a released name, or a Hub id.
        config: How.
        data: The benchmark's folder, or one that sample-data wrote.
        task: One of the tasks that docs/evaluate.md describes.
        baseline: With --task, another model, to compare with: anything that MODEL may be, or "random" for
            the same network with random weights.
        out: Folder of the results; by default the run, and with --task its folder evaluation/TASK-DATA, or here
            evaluation/ID by the model's id.
        cache: Folder of the features, which are computed once; by default in the user's cache.
    """
    from tubelet.tasks.common.result import print_result, require_writable, write_result

    if out is not None:
        require_writable(out)
    if task is None:
        if baseline is not None:
            raise TubeletError("--baseline goes with --task; without one, random weights are beside the model anyway")
        if cache is not None:
            raise TubeletError("--cache goes with --task; without one, no features are kept")
        from tubelet.tasks.common.comparison import print_table
        from tubelet.tasks.suite import evaluate_model

        print_table(evaluate_model(model, data, config, out), open_console())
        return
    from tubelet.pretrained.load import load, random_init_like
    from tubelet.tasks.common.cache import FeatureCache, default_folder
    from tubelet.tasks.common.task import WITH_PREDICTOR, run_task
    from tubelet.view.results import write_result_page

    console, encoder = open_console(), load(model, with_predictor=task in WITH_PREDICTOR)
    others = {}
    if baseline == "random":
        others["random weights"] = random_init_like(encoder, config.seed)
    elif baseline is not None:
        other = load(baseline, with_predictor=task in WITH_PREDICTOR)
        others[other.model_id] = other
    folder = Path(model) if Path(model).is_dir() else Path("evaluation") / encoder.model_id
    folder = out or folder / "evaluation" / f"{task}-{data.resolve().name}"
    check_output(folder, "results", [model, data, baseline])
    with directory_lock(folder, ".evaluation.lock"):  # the folder may be the run's, which is locked while it trains
        with stages_progress(console) as progress:
            result, *beside = (
                run_task(task, each, data, config, FeatureCache(cache or default_folder(), each), progress)
                for each in (encoder, *others.values())
            )
        result = replace(result, beside={name: other.metrics for name, other in zip(others, beside, strict=True)})
        earlier = (folder / "result.json").exists()
        write_result(result, folder / "result.json")
        write_result_page(result, folder / "page.html")
    print_result(result, console)
    print_wrapped(console, f"{folder / 'page.html'}" + " (in place of an earlier one)" * earlier)


@checked
def explain(
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    *,
    model: str = "vit-ti",
    out: Path = Path("explain.html"),
    image_size: Side | None = None,
    frames: Frames | None = None,
    fps: Rate | None = None,
    seed: Seed = 0,
) -> None:
    """Follow one video or image through the system: eight steps, printed and drawn on a page.

    Args:
        file: A video or an image.
        model: A preset (random weights), a run folder, a checkpoint, or a released .pt file.
        out: The page.
        image_size: Side of the centre crop in pixels; by default what the run was trained at, or 224.
        frames: Frames of the clip; by default what the run was trained at, or 16.
        fps: Frames per second of the clip; by default what the run was trained at, or 4.
        seed: Seed of the masks, and of random weights.
    """
    from tubelet.view.explain import explain as write_explanation

    write_explanation(
        file, model, out, image_size=image_size, frames=frames, fps=fps, seed=seed, console=open_console()
    )


@checked
def report(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    *,
    data: Path | None = None,
    out: Path | None = None,
) -> None:
    """Write a run's report: table, curves, and pictures of its features.

    Args:
        run: A run folder.
        data: What the pictures are taken from: a sample set, or a folder of films; by default the run's own sources.
        out: The page; RUN/report.html by default.
    """
    from tubelet.view.report import write_report

    page = out or run / "report.html"
    write_report(run, data, page)
    print_wrapped(open_console(), f"report: {page}")
