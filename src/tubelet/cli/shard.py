"""`tubelet shard`."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tubelet.cli.command import ConfigurableCommand, Sources
from tubelet.config import ShardConfig
from tubelet.config.fields import Fraction, PathText
from tubelet.console import files_progress, open_console, print_wrapped
from tubelet.value_checks import Bounds


@dataclass(frozen=True, kw_only=True)
class Shard(ConfigurableCommand):
    """Transcode videos and images into shards for faster training: short clips in indexed tar files."""

    CONTINUES = True

    sources: Sources
    """Folders, media files, globs, frames (DIR/%06d.png), and lists (CSV, TSV, TXT or JSONL); paths or URLs."""
    settings: Annotated[ShardConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")] = field(
        default_factory=ShardConfig
    )
    """Settings of the encoding."""
    out: Path
    """Folder of the shards; an interrupted command is continued, and files that existing shards lack are added."""
    workers: Annotated[int | None, Bounds(1, 1024)] = None
    """Processes; all cores by default."""
    shard_mb: Annotated[float, Bounds(0, 1e9, exclusive=True)] = 1024
    """Megabytes of source files per shard."""
    max_failed_fraction: Fraction = 0.05
    """Fraction of the files that may be unreadable before the command stops."""
    allow_path: tuple[PathText, ...] = ()
    """Folders and URLs, besides a manifest's own folder, that the manifest's files may lie in."""

    def inputs(self) -> Iterable[str | Path]:
        """See `Command.inputs`."""
        return self.sources

    def run(self) -> None:
        """Write the shards."""
        from tubelet.data.shards.writer import write_shards

        console = open_console()
        with files_progress(console) as progress:
            summary = write_shards(
                self.sources,
                self.out,
                self.settings,
                workers=self.workers,
                shard_mb=self.shard_mb,
                max_failed_fraction=self.max_failed_fraction,
                allow_path=self.allow_path,
                progress=progress,
            )
        existing = (
            (f" ({summary.added} files added)" if summary.added else " (already complete)") if summary.reused else ""
        )
        print_wrapped(
            console,
            f"{self.out}{existing}: {summary.videos} video segments and {summary.images} images in {summary.shards} "
            f"shards, {summary.size / 1e6:.1f} MB from {summary.source_size / 1e6:.1f} MB of sources; "
            f"{summary.bad} bad files",
        )
