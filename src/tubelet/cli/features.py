"""The commands that take a model to a collection, or to another layout."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tubelet.cli.options import checked
from tubelet.config import EmbedConfig
from tubelet.config.fields import Count
from tubelet.config.model import MAX_DEPTH, Width
from tubelet.console import files_progress, open_console, print_wrapped, report_bad_file
from tubelet.errors import TubeletError
from tubelet.io.overwrite import check_output
from tubelet.validation import Bounds


@checked
def embed(
    sources: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE ...")],
    config: Annotated[EmbedConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")],
    *,
    model: str,
    out: Path,
) -> None:
    """Write the features of a collection's clips to a table of Parquet files.

    Args:
        sources: Folders, media files, globs, lists (CSV, TSV, TXT or JSONL), and folders of shards; paths or URLs.
        config: Which clips, and what is kept.
        model: A run folder, a .safetensors or released .pt file, a released name, or a Hub id.
        out: Folder of the table; what a stopped or killed command left there is continued.
    """
    from tubelet.embed.collection import embed_collection
    from tubelet.pretrained.load import load

    console = open_console()
    with files_progress(console) as progress:
        made = embed_collection(
            load(model),
            sources,
            out,
            config,
            model,
            progress=progress,
            report=partial(report_bad_file, console),
            note=partial(print_wrapped, console),
        )
    before = f" ({made.before} files were done before)" if made.before else ""
    changed = f"; {made.changed} files changed since: their rows were made anew" if made.changed else ""
    broken = f" ({made.broken} of them break off on the way and have no rows either)" if made.broken else ""
    short = f"; {made.short} videos too short for --fps were read at a higher rate" if made.short else ""
    print_wrapped(
        console,
        f"{out}: {made.rows} clips of {made.files} files{before}{changed}; {made.bad} bad files{broken}{short}",
    )


@checked
def search(
    index: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")],
    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")],
    *,
    top: Count = 10,
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
    from tubelet.pretrained.load import load

    table = Table()
    for column in ("similarity", "seconds"):
        table.add_column(column, justify="right")
    table.add_column("file", overflow="fold")
    for hit in find_nearest(index, file, top, load(model) if model else None):
        table.add_row(f"{hit.similarity:.3f}", f"{hit.start_s:.1f}-{hit.end_s:.1f}", hit.path)
    open_console().print(table)


@checked
def convert(
    what: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")],
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")],
    *,
    encoder: Literal["teacher", "student"] | None = None,
    with_predictor: bool = False,
    heads: Width | None = None,
    predictor_heads: Width | None = None,
    levels: tuple[Annotated[int, Bounds(0, MAX_DEPTH)], ...] | None = None,
    license: str | None = None,
    images: bool = False,
) -> None:
    """Write a model in another layout: released .pt, .safetensors, a folder for the Hub, .pt2 or .onnx.

    Args:
        what: A run folder, a file, a released name or a Hub id.
        out: NAME.pt, NAME.safetensors, NAME.pt2, NAME.onnx, or a folder.
        encoder: Teacher or student; by default the teacher, or the one that the file holds. A .pt of a run holds both.
        with_predictor: Include the predictor.
        heads: Attention heads, of a .pt file of a width outside the family.
        predictor_heads: Attention heads of the predictor, of a .pt file.
        levels: Tapped blocks, of a .pt file outside the family.
        license: Licence of the weights, for a folder's model card; by default "unknown".
        images: Export the image tokenizer's path rather than the video's.
    """
    from tubelet.checkpoint.weights import LoadSpec

    exported, folder = out.suffix in (".pt2", ".onnx"), out.suffix not in (".pt", ".safetensors", ".pt2", ".onnx")
    for option, given, fits in (
        ("--with-predictor", with_predictor, not exported),
        ("--images", images, exported),
        ("--license", license is not None, folder),
    ):
        if given and not fits:
            raise TubeletError(f"{option} says nothing about {out}: leave it out")
    spec = LoadSpec(encoder, with_predictor, heads, predictor_heads, levels)
    if exported:
        from tubelet.checkpoint.export import export, output_kind
        from tubelet.pretrained.load import load_unplaced

        check_output(out, output_kind(out), [what])  # before minutes of work
        said = export(load_unplaced(what, spec), out, images)
    else:
        from tubelet.pretrained.convert import convert as write

        said = write(what, out, spec, license or "unknown")
    print_wrapped(open_console(), said)
