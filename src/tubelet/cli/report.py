"""`tubelet report`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tubelet.cli.command import Command
from tubelet.console import open_console, print_wrapped


@dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Write a run's report: metrics, curves, and images of its features."""

    run_directory: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run directory."""
    data: Path | None = None
    """Source of the images: a sample set, or a folder of videos; by default the run's own sources."""
    out: Path | None = None
    """The page; RUN/report.html by default."""

    def inputs(self) -> Iterable[str | Path]:
        """See `Command.inputs`."""
        return (self.run_directory, *([self.data] if self.data else []))

    def run(self) -> None:
        """Write the page."""
        from tubelet.view.report import write_report

        page = self.out or self.run_directory / "report.html"
        write_report(self.run_directory, self.data, page)
        print_wrapped(open_console(), f"report: {page}")
