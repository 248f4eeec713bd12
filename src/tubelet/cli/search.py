"""`tubelet search`."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tubelet.cli.command import Command
from tubelet.config.fields import Count, PathText, require
from tubelet.console import open_console, print_wrapped
from tubelet.errors import MissingFileError
from tubelet.value_checks import Bounds

if TYPE_CHECKING:
    from tubelet.embed.search import Hit


@dataclass(frozen=True, kw_only=True)
class Search(Command):
    """Find the clips of a table that are most similar to an image, a moment of a video, or a region of either."""

    index: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """A folder that `tubelet embed` wrote."""
    file: Annotated[PathText, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The query; a path or a URL."""
    at: Annotated[float, Bounds(0, 1e6, unit="seconds")] | None = None
    """Moment of the query in seconds; by default the middle of the video."""
    box: Annotated[str | None, tyro.conf.arg(metavar="X,Y,W,H")] = None
    """Region of the query: left, top, width and height in pixels of its frames. Needs a table with tokens (`tubelet
    embed --dense`); results are moments and boxes."""
    top: Count = 10
    """Number of clips to show."""
    other_files: bool = False
    """Leave out all clips of the query's file; by default only those that overlap the query."""
    json: bool = False
    """Print the results as JSON."""
    page: Path | None = None
    """Also write a page on which the results play."""
    model: PathText | None = None
    """The model that computed the table, if it has moved since."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.region()

    def region(self) -> tuple[int, int, int, int] | None:
        """The region in `box`.

        Raises:
            SettingError: if it is not four whole numbers.
        """
        if self.box is None:
            return None
        values = self.box.split(",")
        whole = len(values) == 4 and all(value.strip().isdecimal() and len(value) < 10 for value in values)
        require(whole, "box", f"is {self.box!r:.60}, expected x,y,width,height in whole pixels")
        x, y, w, h = map(int, values)
        return x, y, w, h

    def inputs(self) -> Iterable[str | Path]:
        """See `Command.inputs`."""
        words = " " in self.file and not Path(self.file).suffix  # what `search` says about them, before it is imported
        if words and not Path(self.file).exists():
            raise MissingFileError(
                f"{self.file}: no such file; search by an image or a video, words cannot be compared"
            )
        return self.index, self.file

    def run(self) -> None:
        """Print the nearest clips."""
        from tubelet.embed.search import search
        from tubelet.embed.table import read_settings
        from tubelet.io.overwrite_checks import check_output
        from tubelet.pretrained.load import load
        from tubelet.view.search_page import write_search_page

        if self.page is not None:
            check_output(self.page, "page", [self.file])
        model = load(self.model) if self.model else None
        hits = search(self.index, self.file, self.top, model, self.at, self.region(), self.other_files)
        if self.page is not None:
            write_search_page(hits, self.file, self.page, self.at, self.region(), read_settings(self.index)["fps"])
        if self.json:
            print(json.dumps([asdict(hit) for hit in hits], indent=1))
            return
        print_hits(hits)
        if self.page is not None:
            print_wrapped(open_console(), f"page: {self.page}")


def print_hits(hits: Sequence["Hit"]) -> None:
    """Print results as a table, with paths relative to their common folder."""
    from rich.table import Table

    from tubelet.embed.search import common_folder

    folder = common_folder([hit.path for hit in hits])
    table = Table(title=f"in {folder}" if folder else None, title_justify="left")
    for column in ("similarity", "seconds"):
        table.add_column(column, justify="right")
    dense = any(hit.time_s is not None for hit in hits)
    for column in ("at", "box") if dense else ():
        table.add_column(column, justify="right")
    table.add_column("file", overflow="fold")
    for hit in hits:
        at = [] if hit.time_s is None else [f"{hit.time_s:.2f}", ",".join(map(str, hit.box)) if hit.box else "?"]
        span = f"{hit.start_s:.1f}-{hit.end_s:.1f}"
        table.add_row(f"{hit.similarity:.4f}", span, *at, hit.path.removeprefix(folder))
    open_console().print(table)
