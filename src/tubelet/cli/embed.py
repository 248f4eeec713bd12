"""`tubelet embed`."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tubelet.cli.command import ConfigurableCommand, LoadOptions, Sources
from tubelet.config import EmbedConfig
from tubelet.config.fields import PathText
from tubelet.console import files_progress, open_console, print_wrapped

if TYPE_CHECKING:
    from tubelet.embed.collection import EmbedSummary


@dataclass(frozen=True, kw_only=True)
class Embed(LoadOptions, ConfigurableCommand):
    """Write the features of a collection's clips to a table of Parquet files."""

    CONTINUES = True

    sources: Sources
    """Folders, media files, globs, frames (DIR/%06d.png), lists (CSV, TSV, TXT or JSONL), and folders of shards; paths
    or URLs."""
    settings: Annotated[EmbedConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")] = field(
        default_factory=EmbedConfig
    )
    """Settings of clips and features."""
    model: PathText
    """A run directory, a .safetensors or released .pt file, a released name, or a Hub id."""
    out: Path
    """Folder of the table; an interrupted command is continued."""

    def inputs(self) -> Iterable[str | Path]:
        """See `Command.inputs`."""
        return self.sources

    def run(self) -> None:
        """Compute and write the features."""
        from tubelet.embed.collection import embed_collection
        from tubelet.pretrained.load import load

        console = open_console()
        with files_progress(console) as progress:
            summary = embed_collection(
                load(self.model, **self.load_options()),
                self.sources,
                self.out,
                self.settings,
                self.model,
                progress=progress,
            )
        print_wrapped(console, f"{self.out}: {_summary(summary, self.settings.prune)}")


def _summary(made: "EmbedSummary", pruned: bool) -> str:
    """A summary of the call for the log; counts of 0 are omitted."""
    changed = f" and {made.changed} changed, whose rows were replaced" if made.changed else ""
    new = f"{made.new} new {made.entry}{'s' * (made.new != 1)}"
    clauses = [f"{new}{changed} ({made.rows} clip{'s' * (made.rows != 1)})"]
    if made.before:
        clauses.append(f"{made.before} unchanged")
    if made.gone:
        clauses.append(f"{made.gone} gone ({'their rows were removed' if pruned else 'kept; --prune removes them'})")
    if made.bad:
        truncated = f" ({made.truncated} of them truncated, without rows)" if made.truncated else ""
        clauses.append(f"{made.bad} bad {made.entry}{'s' * (made.bad != 1)}{truncated}")
    if made.short:
        clauses.append(f"{made.short} too short for --fps, sampled at a higher rate")
    if made.repeating:
        clauses.append(f"{made.repeating} with fewer frames a second than --fps, which repeat")
    if made.outside:
        clauses.append(f"{made.outside} with nearly all values outside of the model's window")
    return ", ".join(clauses)
