"""The commands that make data."""

from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from tubelet.cli.options import checked
from tubelet.config import ShardConfig
from tubelet.config.fields import Seed, Share, Side
from tubelet.console import files_progress, open_console, print_wrapped, report_bad_file
from tubelet.validation import Bounds


@checked
def sample_data(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
    *,
    clips: Annotated[int, Bounds(0, 10**6)] = 1000,
    seed: Seed = 0,
    size: Side = 128,
    frames: Annotated[int, Bounds(2, 10_000, unit="frames")] = 16,
    workers: Annotated[int | None, Bounds(1, 1024)] = None,
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

    from tubelet.sample_data import write_sample_data
    from tubelet.sample_data.layouts import check_layouts, write_layout

    console, layouts = open_console(), check_layouts(layout)
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
    print_wrapped(console, f"{folder}{already}: {counts}")
    print_wrapped(console, f"views that were tried and dropped: {dropped or 'none'}")
    for name in layouts:
        written = ", ".join(f"{count} {what}" for what, count in write_layout(folder, name).items())
        print_wrapped(console, f"{folder / 'layouts' / name}: {written or 'was there already'}")


@checked
def shard(
    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE ...")],
    recipe: Annotated[ShardConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")],
    *,
    out: Path,
    workers: Annotated[int | None, Bounds(1, 1024)] = None,
    shard_mb: Annotated[float, Bounds(0, 1e9, exclusive=True)] = 1024,
    max_failed_fraction: Share = 0.05,
    allow_path: tuple[str, ...] = (),
) -> None:
    """Cut videos and images into shards that train faster: short clips at training size, in tar files with an index.

    Args:
        sources: Folders, media files, globs, and lists (CSV, TSV, TXT or JSONL); paths or URLs.
        recipe: How they are cut.
        out: Folder of the shards; what a stopped or killed command left there is continued.
        workers: Processes; all cores by default.
        shard_mb: Megabytes of source files that go into one shard.
        max_failed_fraction: Share of the files that may be unreadable before the command stops.
        allow_path: Folders and URLs that manifests may name files of, besides those below a manifest's own folder.
    """
    from tubelet.data.shards.writer import write_shards

    console = open_console()
    with files_progress(console) as progress:
        made = write_shards(
            sources,
            out,
            recipe,
            workers=workers,
            shard_mb=shard_mb,
            max_failed_fraction=max_failed_fraction,
            allow_path=allow_path,
            progress=progress,
            report=partial(report_bad_file, console),
            note=partial(print_wrapped, console),
        )
    already = " (it was there already)" if made.reused else ""
    print_wrapped(
        console,
        f"{out}{already}: {made.videos} video segments and {made.images} images in {made.shards} shards, "
        f"{made.size / 1e6:.1f} MB from {made.source_size / 1e6:.1f} MB of sources; {made.bad} bad files",
    )
