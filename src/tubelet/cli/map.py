"""`tubelet map`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import tyro

from tubelet.cli.command import Command
from tubelet.config.embed import DUPLICATE_MARGIN
from tubelet.config.fields import Count, Seed
from tubelet.console import open_console, print_wrapped
from tubelet.io.csv_tables import CsvDialect
from tubelet.value_checks import Bounds

if TYPE_CHECKING:
    from tubelet.embed.clip_vectors import ClipVectors
    from tubelet.view.map_page import Coloring


@dataclass(frozen=True, kw_only=True)
class Map(Command):
    """Show a collection as a map: which clips look alike, near-duplicates, outliers, and what to label first."""

    index: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """A folder that `tubelet embed` wrote."""
    out: Path = Path("map.html")
    """The page."""
    labels: tuple[Path, ...] = ()
    """Label tables, or predictions.csv of `tubelet predict`, to color the clips by."""
    clusters: Annotated[int, Bounds(1, 20)] = 12
    """Number of clusters."""
    pick: Count | None = None
    """Write so many clips that differ from each other to OUT.pick.csv, a label table to be filled in."""
    csv_dialect: CsvDialect = "comma"
    """CSV of --pick: comma has commas and decimal points; semicolon has semicolons and decimal commas, as spreadsheets
    expect where the decimal separator is a comma."""
    thumbnails: Annotated[int, Bounds(0, 20_000)] = 400
    """Largest number of clips with a thumbnail, of about 8 kB each."""
    duplicate_margin: Annotated[float, Bounds(0, 2)] = DUPLICATE_MARGIN
    """How much more similar near-duplicates must be to each other than to the rest of the collection."""
    seed: Seed = 0
    """Seed of the layout and the clusters."""

    def inputs(self) -> Iterable[str | Path]:
        """See `Command.inputs`."""
        return self.index, *self.labels

    def run(self) -> None:
        """Compute the map and write the page."""
        from tubelet.embed.clip_vectors import read_clip_vectors
        from tubelet.embed.duplicates import find_duplicates, group_duplicates
        from tubelet.embed.layout import cluster_clips, compute_layout
        from tubelet.embed.pick import pick_clips, write_picks
        from tubelet.fitting.suggest import check_suggestions
        from tubelet.io.overwrite_checks import check_output
        from tubelet.view.map_page import Coloring, MapContent, write_map_page

        check_output(self.out, "page", self.labels)
        picks_out = self.out.with_suffix(".pick.csv")
        if self.pick is not None:
            check_suggestions(picks_out)
        clips = read_clip_vectors(self.index)
        colorings = [coloring for path in self.labels for coloring in read_colorings(path, clips)]
        layout = compute_layout(clips.vectors, self.seed)
        clusters = cluster_clips(clips.vectors, self.clusters, self.seed)
        named = np.array([f"cluster {number + 1}" for number in clusters])
        about = "Clips of one cluster look alike to the model; nobody has named the clusters yet."
        folders = np.array([Path(clips.paths[file]).parent.name for file in clips.file])
        seconds = np.asarray(clips.start_s, np.float64)
        duplicates = find_duplicates(clips, self.duplicate_margin)
        picks = pick_clips(clips, self.pick) if self.pick is not None else []
        content = MapContent(
            table=self.index.name,
            clips=clips,
            layout=layout,
            colorings=[
                Coloring("cluster", about, named),
                *colorings,
                Coloring("folder", "The folder that a clip's file is in.", folders),
                Coloring("time", "Seconds from the start of the file.", seconds),
            ],
            duplicates=duplicates,
            picks=picks,
        )
        write_map_page(content, self.out, self.thumbnails)
        console = open_console()
        if self.pick is not None:
            write_picks(clips, picks, picks_out, self.csv_dialect)
            print_wrapped(console, f"{picks_out}: {len(picks)} clips to label first")
        groups = group_duplicates(duplicates)
        print_wrapped(
            console,
            f"{self.out}: {len(clips.file)} clips of {len(clips.paths)} files; {sum(map(len, groups))} files in "
            f"{len(groups)} groups of near-duplicates",
        )


def read_colorings(path: Path, clips: "ClipVectors") -> list["Coloring"]:
    """The labels or values of a label table at the clips: those of the span that covers most of a clip.

    Raises:
        TubeletError: if the table cannot be read, has neither, or has none for these clips.
    """
    from tubelet.errors import DataError, escape_filename
    from tubelet.labels.records import LabelError
    from tubelet.labels.table import read_labels
    from tubelet.view.map_page import Coloring

    table = read_labels(path)
    if table.faults:
        raise LabelError(path, [fault for _, fault in table.faults])
    rows_of: dict[str, list[int]] = {}
    for number, row in enumerate(table.rows):
        rows_of.setdefault(escape_filename(str(row.path.resolve())), []).append(number)
    chosen = np.full(len(clips.file), -1)
    for i, file in enumerate(clips.file):
        best = 0.0
        for number in rows_of.get(clips.paths[file], ()):
            row = table.rows[number]
            start, end = row.start_s, row.end_s
            whole = start is None or end is None or end <= start
            span = (0.0, np.inf) if whole else (start, end)
            shared = min(span[1], clips.end_s[i] + 1e-3) - max(span[0], clips.start_s[i])
            if shared > best:
                best, chosen[i] = float(shared), number
    if (chosen < 0).all():
        raise DataError(f"{path}: has no label for any clip of the table; expected labels of its files")
    about = f"Labels of {path.name}; gray clips have none."
    if any(row.labels for row in table.rows):
        texts = np.array(["|".join(table.rows[k].labels) if k >= 0 else "" for k in chosen])
        return [Coloring(path.stem, about, texts)]
    if not table.targets:
        raise DataError(f"{path}: has neither labels nor numbers; expected a column label, or columns of numbers")
    return [
        Coloring(name, about, np.array([table.rows[k].values[t] if k >= 0 else np.nan for k in chosen], np.float64))
        for t, name in enumerate(table.targets)
    ]
