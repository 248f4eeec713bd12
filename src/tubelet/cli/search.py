"""`tubelet search`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tubelet.cli.command import Command
from tubelet.config.fields import Count, PathText
from tubelet.console import open_console


@dataclass(frozen=True, kw_only=True)
class Search(Command):
    """Find the clips of a table that are most similar to an image or to the middle of a video."""

    index: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TABLE")]
    """A folder that `tubelet embed` wrote."""
    file: Annotated[PathText, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The query; a path or a URL."""
    top: Count = 10
    """Number of clips to show."""
    model: PathText | None = None
    """The model that computed the table, if it has moved since."""

    def run(self) -> None:
        """Print the nearest clips."""
        from rich.table import Table

        from tubelet.embed.search import search
        from tubelet.pretrained.load import load

        table = Table()
        for column in ("similarity", "seconds"):
            table.add_column(column, justify="right")
        table.add_column("file", overflow="fold")
        for hit in search(self.index, self.file, self.top, load(self.model) if self.model else None):
            table.add_row(f"{hit.similarity:.3f}", f"{hit.start_s:.1f}-{hit.end_s:.1f}", hit.path)
        open_console().print(table)
