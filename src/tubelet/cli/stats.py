"""`tubelet stats`."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tubelet.cli.command import ConfigurableCommand, Sources
from tubelet.config.fields import Count, PathText, Seed, StoredValue
from tubelet.console import files_progress, open_console, print_wrapped
from tubelet.errors import escape_filename
from tubelet.io.overwrite_checks import check_output
from tubelet.value_checks import Bounds

if TYPE_CHECKING:
    from rich.table import Table

    from tubelet.data.pixel_statistics import CollectionStatistics

_SHOWN_FAILURES = 5


@dataclass(frozen=True, kw_only=True)
class Stats(ConfigurableCommand):
    """Measure the values of videos, images and stacks of any depth and number of channels, to train on them."""

    sources: Sources
    """Folders, media files, globs, frames (DIR/%06d.png), and lists (CSV, TSV, TXT or JSONL); paths or URLs."""
    out: Path
    """File of the statistics (JSON), for `tubelet train --stats`."""
    channels: Annotated[int | None, Bounds(1, 1024)] = None
    """Channels of the model; by default as most files have. Gray is repeated for 3, and colors become gray for 1."""
    window: tuple[StoredValue, StoredValue] | None = None
    """Stored values that become 0 and 1, such as 0 4095; by default the percentiles."""
    percentiles: tuple[Annotated[float, Bounds(0, 100)], Annotated[float, Bounds(0, 100)]] = (0.5, 99.5)
    """Percentiles of the values between which the window lies; 0 100 clips nothing that was read."""
    max_files: Count = 200
    """Largest number of files that are read: a random sample of the collection."""
    seed: Seed = 0
    """Seed of the sample."""
    allow_path: tuple[PathText, ...] = ()
    """Folders and URLs, besides a manifest's own folder, that the manifest's files may lie in."""

    def inputs(self) -> Iterable[str | Path]:
        """See `Command.inputs`."""
        return self.sources

    def run(self) -> None:
        """Measure, print a table, and write the file."""
        from tubelet.data.pixel_statistics import measure_collection
        from tubelet.data.sources import list_media

        check_output(self.out, "statistics", self.sources)
        console = open_console()
        media = list_media(self.sources, self.allow_path)
        for note in media.notes:
            print_wrapped(console, escape_filename(note))
        with files_progress(console) as progress:
            statistics = measure_collection(
                media,
                channels=self.channels,
                window=self.window,
                percentiles=self.percentiles,
                max_files=self.max_files,
                seed=self.seed,
                progress=progress,
            )
        console.print(_table(statistics))
        kinds = ", ".join(f"{count} of {kind}" for kind, count in statistics.depths.items())
        low, high = statistics.pixels.window
        print_wrapped(
            console,
            f"read {statistics.frames} frames of {statistics.files} of {statistics.available} files ({kinds}); "
            f"{len(statistics.failed)} failed; window {low:g} to {high:g}",
        )
        if len(statistics.depths) > 1:
            print_wrapped(
                console,
                "the files have values of several kinds, and one window is for all of them: keep kinds of different "
                "ranges in collections of their own",
            )
        for bad in statistics.failed[:_SHOWN_FAILURES]:
            print_wrapped(console, f"failed: {escape_filename(str(bad))}")
        statistics.save(self.out, self.sources)
        print_wrapped(console, f"{self.out}: for `tubelet train --stats {self.out}`")


def _table(statistics: "CollectionStatistics") -> "Table":
    from rich.table import Table

    low, high = statistics.percentiles
    table = Table(title="stored values; mean and std where the window is 0 to 1", title_justify="left")
    for column in ("channel", "min", f"{low:g} %", f"{high:g} %", "max", "mean", "std", "outside"):
        table.add_column(column, justify="right")
    for number, each in enumerate(statistics.by_channel):
        values = (each.minimum, each.low, each.high, each.maximum, each.mean, each.std)
        table.add_row(str(number), *(f"{value:.6g}" for value in values), f"{100 * each.outside:.3f} %")
    return table
