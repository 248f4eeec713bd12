"""The commands that make data."""

from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from tubelet.config import Recipe
from tubelet.console import files_progress, say, say_bad


def sample_data(
    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")],
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
    say(console, f"{folder}{already}: {counts}")
    say(console, f"views that were tried and dropped: {dropped or 'none'}")
    for name in layouts:
        written = ", ".join(f"{count} {what}" for what, count in write_layout(folder, name).items())
        say(console, f"{folder / 'layouts' / name}: {written or 'was there already'}")


def shard(
    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE ...")],
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
    from tubelet.data.make_shards import write_shards

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
            note=partial(say, console),
        )
    already = " (it was there already)" if made.reused else ""
    say(
        console,
        f"{out}{already}: {made.videos} video segments and {made.images} images in {made.shards} shards, "
        f"{made.size / 1e6:.1f} MB from {made.source_size / 1e6:.1f} MB of sources; {made.bad} bad files",
    )
