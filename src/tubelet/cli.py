"""V-JEPA 2.1: pre-train it on videos and images, and use its dense features.

tubelet COMMAND --help says what a command takes.
"""

import dataclasses
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

# Data workers share the cores with the training process. OpenMP's threads spin while they wait for each other, which
# on busy cores holds up the very thread they wait for: steps were seen to take ten times as long. Not spinning at all
# costs a third on quiet cores; a short spin is close to the better of the two on both. To be said before torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

import tyro
from rich.console import Console
from rich.markup import escape

from tubelet.config import EmbedConfig, EvaluateConfig, PlanConfig, Recipe, TrainConfig, model_preset, recipes, resized
from tubelet.console import files_progress, say_bad, stages_progress
from tubelet.types import TubeletError

# Commands import what they run when they run: `tubelet --help` answers without loading torch's training code.
Run = Annotated[TrainConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")]
Planned = Annotated[PlanConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")]


def train(
    config: Run,
    planned: Planned = PlanConfig(),  # noqa: B008 - frozen
    *,
    out: Path | None = None,
    model: str | None = None,
    patch_size: int | None = None,
    tubelet_size: int | None = None,
    output_levels: int | None = None,
    resume: bool = False,
) -> None:
    """Pre-train V-JEPA 2.1 on videos and images.

    Args:
        config: The run.
        planned: A dry run of it.
        out: Folder of the run: checkpoints, metrics, list of bad files; --plan alone needs none.
        model: vit-pico, vit-ti, vit-s, vit-b, vit-l, vit-g or vit-G; by default vit-ti, or what --init-from holds.
        patch_size: Pixels along a patch's side, instead of the model's own.
        tubelet_size: Frames of a video token, instead of the model's own.
        output_levels: How many levels, the last ones, are predicted from and predicted; 1 is V-JEPA 2.0's way.
        resume: Continue the run in --out from its newest checkpoint.
    """
    from tubelet.train.initial import continued_sizes
    from tubelet.train.loop import train as run_training
    from tubelet.train.plan_table import print_plan_of
    from tubelet.train.state import CONFIG, read_config

    if resume and model is None and out and (out / CONFIG).is_file():
        preset = read_config(out).model  # where the run's first weights came from may be gone by now
    elif config.init_from and model is None:
        preset = continued_sizes(config.init_from)
    else:
        preset = model_preset(model or "vit-ti")
    sizes = resized(preset, patch_size, tubelet_size)
    if output_levels is not None:
        sizes = dataclasses.replace(sizes, output_levels=output_levels)
    config = dataclasses.replace(config, model=sizes)
    if planned.plan:
        return print_plan_of(config, planned, Console())
    if out is None:
        raise TubeletError("out is not given: say which folder the run is written to")
    run_training(config, out, resume, Console())


def cooldown(config: Run = recipes.cooldown(), *, out: Path, resume: bool = False) -> None:  # noqa: B008 - frozen
    """Cool a pre-trained model down: longer clips, and a learning rate that falls to nothing.

    Args:
        config: The run; --init-from names what is cooled down.
        out: Folder of the run.
        resume: Continue the run in --out from its newest checkpoint.
    """
    if config.init_from is None:
        raise TubeletError("init_from is not given: say which run, checkpoint or released .pt file goes on")
    train(config, out=out, resume=resume)


def high_resolution(config: Run = recipes.high_resolution(), *, out: Path, resume: bool = False) -> None:  # noqa: B008
    """Cool a pre-trained model down at 384 px.

    Args:
        config: The run; --init-from names what is adapted.
        out: Folder of the run.
        resume: Continue the run in --out from its newest checkpoint.
    """
    cooldown(config, out=out, resume=resume)


def distil(
    config: Run = recipes.distil(),  # noqa: B008
    *,
    teacher: str,
    out: Path,
    model: str = "vit-b",
    patch_size: int | None = None,
    tubelet_size: int | None = None,
    resume: bool = False,
) -> None:
    """Train a small student, and a predictor of its own, to predict a frozen larger model's last level.

    What is kept is the student's average, which `tubelet convert` writes under the released key `ema_encoder`.

    Args:
        config: The run.
        teacher: The frozen model: a run folder, a .safetensors or released .pt file, a released name, or a Hub id.
        out: Folder of the run.
        model: The student: vit-pico, vit-ti, vit-s, vit-b, vit-l, vit-g or vit-G.
        patch_size: Pixels along a patch's side, instead of the student's own; the teacher's must be the same.
        tubelet_size: Frames of a video token, instead of the student's own; the teacher's must be the same.
        resume: Continue the run in --out from its newest checkpoint.
    """
    from tubelet.pretrained.backbone import load
    from tubelet.train.initial import distilled_sizes
    from tubelet.train.loop import train as run_training

    student = resized(model_preset(model), patch_size, tubelet_size)
    sizes = distilled_sizes(student, load(teacher, device="cpu").config)
    run_training(dataclasses.replace(config, model=sizes, distil_from=teacher), out, resume, Console())


def sample_data(
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    clips: int = 1000,
    seed: int = 0,
    size: int = 128,
    frames: int = 16,
    workers: int | None = None,
    layout: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
) -> None:
    """Render first-person clips of textured 3-D levels, with depth, classes, instances, poses and tracks beside them.

    Args:
        folder: Where to write the set.
        clips: Video clips, train and val together; a quarter as many images come with them.
        seed: The same seed gives the same files.
        size: Side of the square frames in pixels.
        frames: Frames of a clip.
        workers: Rendering processes; all cores by default.
        layout: Also write the set as FOLDER/layouts/NAME in the layout of a public benchmark, which docs/evaluate.md
            lists; may be repeated, and "all" is every one.
    """
    from rich.progress import Progress

    from tubelet.data.sample import write_sample_data
    from tubelet.data.sample.layouts import check_layouts, write_layout

    console, layouts = Console(), check_layouts(layout)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("rendering", total=None)
        index = write_sample_data(
            folder,
            clips=clips,
            seed=seed,
            size=size,
            frames=frames,
            workers=workers,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    counts = ", ".join(f"{c['videos']} {split} clips and {c['images']} images" for split, c in index["counts"].items())
    dropped = ", ".join(f"{count} {reason}" for reason, count in index["dropped"].items())
    already = " (it was there already)" if index["reused"] else ""
    console.print(f"{folder}{already}: {counts}", highlight=False, soft_wrap=True)
    console.print(f"views that were tried and dropped: {dropped or 'none'}", highlight=False, soft_wrap=True)
    for name in layouts:
        written = ", ".join(f"{count} {what}" for what, count in write_layout(folder, name).items())
        console.print(f"{folder / 'layouts' / name}: {written or 'was there already'}", highlight=False, soft_wrap=True)


def shard(
    sources: Annotated[tuple[str, ...], tyro.conf.Positional],
    recipe: Annotated[Recipe, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")],
    *,
    out: Path,
    workers: int | None = None,
    shard_mb: float = 1024,
    max_bad_share: float = 0.05,
    allow_outside: tuple[str, ...] = (),
) -> None:
    """Cut videos and images into shards that train faster: short clips at training size, in tar files with an index.

    Args:
        sources: Folders, media files, globs, and CSV or JSONL manifests; paths or URLs.
        recipe: How they are cut.
        out: Folder of the shards; what a stopped or killed command left there is continued.
        workers: Processes; all cores by default.
        shard_mb: Megabytes of source files that go into one shard.
        max_bad_share: Share of the files that may be unreadable before the command stops.
        allow_outside: Folders and URLs that manifests may name files of, besides those below a manifest's own folder.
    """
    from tubelet.data.reshard import write_shards

    console = Console()
    with files_progress(console) as progress:
        made = write_shards(
            sources,
            out,
            recipe,
            workers=workers,
            shard_mb=shard_mb,
            max_bad_share=max_bad_share,
            allow_outside=allow_outside,
            progress=progress,
            report=partial(say_bad, console),
        )
    already = " (it was there already)" if made.reused else ""
    console.print(
        f"{out}{already}: {made.videos} video segments and {made.images} images in {made.shards} shards, "
        f"{made.size / 1e6:.1f} MB from {made.source_size / 1e6:.1f} MB of sources; {made.bad} bad files",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def embed(
    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE ...")],
    config: Annotated[EmbedConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")],
    *,
    model: str,
    out: Path,
) -> None:
    """Write the features of a collection's clips to a table of Parquet files.

    Args:
        sources: Folders, media files, globs, CSV or JSONL manifests, and folders of shards; paths or URLs.
        config: Which clips, and what is kept.
        model: A run folder, a .safetensors or released .pt file, a released name, or a Hub id.
        out: Folder of the table; what a stopped or killed command left there is continued.
    """
    from tubelet.embed.collection import embed_collection
    from tubelet.pretrained.backbone import load

    console = Console()
    with files_progress(console) as progress:
        made = embed_collection(
            load(model), sources, out, config, model, progress=progress, report=partial(say_bad, console)
        )
    before = f" ({made.before} files were done before)" if made.before else ""
    changed = f"; {made.changed} files changed since: their rows were made anew" if made.changed else ""
    broken = f" ({made.broken} of them break off on the way and have no rows either)" if made.broken else ""
    short = f"; {made.short} videos too short for --fps were read at a higher rate" if made.short else ""
    console.print(
        f"{out}: {made.rows} clips of {made.files} files{before}{changed}; {made.bad} bad files{broken}{short}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def search(
    index: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")],
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    *,
    top: int = 10,
    model: str | None = None,
) -> None:
    """Find the clips of a table that are nearest to an image or to the middle of a video.

    Args:
        index: A folder that embed wrote.
        file: The query; a path or a URL.
        top: How many clips to show.
        model: The model that made the table, if it no longer lies where it was.
    """
    from rich.table import Table

    from tubelet.embed.search import search as find_nearest
    from tubelet.pretrained.backbone import load

    table = Table()
    for column in ("similarity", "seconds"):
        table.add_column(column, justify="right")
    table.add_column("file", overflow="fold")
    for hit in find_nearest(index, file, top, load(model) if model else None):
        table.add_row(f"{hit.similarity:.3f}", f"{hit.start_s:.1f}-{hit.end_s:.1f}", escape(hit.path))
    Console().print(table)


def evaluate(
    model: Annotated[str, tyro.conf.Positional],
    config: Annotated[EvaluateConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")],
    *,
    data: Path,
    task: str | None = None,
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
        out: Folder of the results; by default the run, and with --task its folder evaluation/TASK-DATA, or here
            evaluation/ID by the model's id.
        cache: Folder of the features, which are computed once; by default in the user's cache.
    """
    if task is None:
        from tubelet.evaluate.suite.comparison import print_table
        from tubelet.evaluate.suite.run import evaluate_model

        print_table(evaluate_model(model, data, config, out), Console())
        return
    from tubelet.evaluate.cache import FeatureCache, default_folder
    from tubelet.evaluate.result import print_result, write_result
    from tubelet.evaluate.tasks import WITH_PREDICTOR, run_task
    from tubelet.pretrained.backbone import load
    from tubelet.view.results import write_result_page

    console, encoder = Console(), load(model, with_predictor=task in WITH_PREDICTOR)
    with stages_progress(console) as progress:
        result = run_task(task, encoder, data, config, FeatureCache(cache or default_folder(), encoder), progress)
    folder = Path(model) if Path(model).is_dir() else Path("evaluation") / encoder.model_id
    folder = out or folder / "evaluation" / f"{task}-{data.resolve().name}"
    write_result(result, folder / "result.json")
    write_result_page(result, folder / "page.html")
    print_result(result, console)
    console.print(f"{folder / 'page.html'}", markup=False, highlight=False, soft_wrap=True)


def explain(
    file: Annotated[Path, tyro.conf.Positional],
    *,
    model: str = "vit-ti",
    out: Path = Path("explain.html"),
    image_size: int | None = None,
    frames: int | None = None,
    fps: float | None = None,
    seed: int = 0,
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

    write_explanation(file, model, out, image_size=image_size, frames=frames, fps=fps, seed=seed, console=Console())


def report(run: Annotated[Path, tyro.conf.Positional], *, data: Path | None = None, out: Path | None = None) -> None:
    """Write a run's report: table, curves, and pictures of its features.

    Args:
        run: A run folder.
        data: The sample data set that the pictures are taken from.
        out: The page; RUN/report.html by default.
    """
    from tubelet.view.report import write_report

    page = out or run / "report.html"
    write_report(run, data, page)
    Console().print(f"report: {page}", highlight=False, soft_wrap=True)


def convert(
    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")],
    *,
    part: Literal["teacher", "student"] | None = None,
    with_predictor: bool = False,
    heads: int | None = None,
    predictor_heads: int | None = None,
    levels: tuple[int, ...] | None = None,
    license: str = "unknown",
    images: bool = False,
) -> None:
    """Write a model in another layout: released .pt, .safetensors, a folder for the Hub, .pt2 or .onnx.

    Args:
        what: A run folder, a file, a released name or a Hub id.
        out: NAME.pt, NAME.safetensors, NAME.pt2, NAME.onnx, or a folder.
        part: Teacher or student; by default the teacher, or the one that the file holds. A .pt of a run holds both.
        with_predictor: The predictor too.
        heads: Attention heads, of a .pt file of a width outside the family.
        predictor_heads: Attention heads of the predictor, of a .pt file.
        levels: Tapped blocks, of a .pt file outside the family.
        license: Of the weights, for a folder's model card.
        images: Export the image tokenizer's path rather than the video's.
    """
    from tubelet.pretrained.weights import Wanted

    wanted = Wanted(part, with_predictor, heads, predictor_heads, levels)
    if out.suffix in (".pt2", ".onnx"):
        from tubelet.pretrained.export import export

        said = export(what, out, wanted, images)
    else:
        from tubelet.pretrained.convert import convert as write

        said = write(what, out, wanted, license)
    Console().print(said, highlight=False, soft_wrap=True)


COMMANDS: dict[str, Callable[..., None]] = {
    "train": train,
    "cooldown": cooldown,
    "high-resolution": high_resolution,
    "distil": distil,
    "sample-data": sample_data,
    "shard": shard,
    "evaluate": evaluate,
    "embed": embed,
    "search": search,
    "explain": explain,
    "report": report,
    "convert": convert,
}


def main() -> None:
    """Run a command; what a person can mend ends in one sentence and a non-zero exit code."""
    try:
        # Help shows `FLOAT` rather than `{None}|FLOAT`: what is None is so by leaving the option out.
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, prog="tubelet", description=__doc__, config=(tyro.conf.DisallowNone,)
        )
    except TubeletError as error:
        # What is wrong before the processes of a run have met is wrong for all of them: one on each machine says it.
        if not error.told and os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
