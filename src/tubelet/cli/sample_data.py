"""`tubelet sample-data`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tubelet.cli.command import Command
from tubelet.config.fields import Seed, Side
from tubelet.console import files_progress, open_console, print_wrapped
from tubelet.value_checks import Bounds

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class SampleData(Command):
    """Render first-person clips of textured 3-D levels with ground truth: depth, classes, instances, poses, tracks."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """Folder to write the data set to."""
    clips: Annotated[int, Bounds(0, 10**6)] = 1000
    """Video clips, train and val together; a quarter as many images are added."""
    seed: Seed = 0
    """Seed; the same seed gives the same files."""
    size: Side = 128
    """Side of the square frames in pixels."""
    frames: Annotated[int, Bounds(2, 10_000, unit="frames")] = 16
    """Frames of a clip."""
    workers: Annotated[int | None, Bounds(1, 1024)] = None
    """Rendering processes; all cores by default."""
    layout: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Also write the set as FOLDER/layouts/NAME in the layout of a public benchmark (see docs/evaluate.md); may be
    repeated, and "all" writes every layout."""
    long_videos: Annotated[int, Bounds(0, 10**5)] = 0
    """Also join clips into this number of long videos, train and val together, and write them with tables of labels to
    FOLDER/labels (see docs/fit.md)."""

    def run(self) -> None:
        """Render and write the data set."""
        from tubelet.sample_data import write_long_videos, write_sample_data
        from tubelet.sample_data.layouts import check_layouts, write_layout

        console, layouts = open_console(), check_layouts(self.layout)
        with files_progress(console, "clips") as progress:
            index = write_sample_data(
                self.folder,
                clips=self.clips,
                seed=self.seed,
                size=self.size,
                frames=self.frames,
                workers=self.workers,
                progress=progress,
            )
        counts = (f"{c['videos']} {split} clips and {c['images']} images" for split, c in index["counts"].items())
        rejected = ", ".join(f"{count} {reason}" for reason, count in index["dropped"].items())
        existing = " (already complete)" if index["reused"] else ""
        print_wrapped(console, f"{self.folder}{existing}: {', '.join(counts)}")
        print_wrapped(console, f"rejected views: {rejected or 'none'}")
        for name in layouts:
            _print_written(console, self.folder / "layouts" / name, write_layout(self.folder, name))
        if self.long_videos:
            _print_written(console, self.folder / "labels", write_long_videos(self.folder, self.long_videos))


def _print_written(console: "Console", folder: Path, counts: Mapping[str, int]) -> None:
    written = ", ".join(f"{count} {what}" for what, count in counts.items())
    print_wrapped(console, f"{folder}: {written or 'already complete'}")
