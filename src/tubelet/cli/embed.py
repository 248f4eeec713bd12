"""`tubelet embed`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from tubelet.cli.command import ConfigurableCommand, Known, Sources, trained_clips
from tubelet.config import EmbedConfig
from tubelet.config.fields import PathText
from tubelet.console import files_progress, open_console, print_wrapped


@dataclass(frozen=True, kw_only=True)
class Embed(ConfigurableCommand):
    """Write the features of a collection's clips to a table of Parquet files."""

    sources: Sources
    """Folders, media files, globs, lists (CSV, TSV, TXT or JSONL), and folders of shards; paths or URLs."""
    settings: Annotated[EmbedConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")] = field(
        default_factory=EmbedConfig
    )
    """Settings of clips and features."""
    model: PathText
    """A run directory, a .safetensors or released .pt file, a released name, or a Hub id."""
    out: Path
    """Folder of the table; an interrupted command is continued."""

    @classmethod
    def defaults(cls, known: Known) -> dict[str, Any]:
        """The clips that the run named by --model was trained on."""
        data = trained_clips(known)
        return {"settings": EmbedConfig(image_size=data.image_size, frames=data.frames, fps=data.fps)} if data else {}

    def run(self) -> None:
        """Compute and write the features."""
        from tubelet.embed.collection import embed_collection
        from tubelet.pretrained.load import load

        console = open_console()
        with files_progress(console) as progress:
            made = embed_collection(
                load(self.model),
                self.sources,
                self.out,
                self.settings,
                self.model,
                progress=progress,
            )
        before = f" ({made.before} files were already complete)" if made.before else ""
        changed = f"; {made.changed} files changed since: their rows were replaced" if made.changed else ""
        truncated = f" ({made.truncated} of them truncated, without rows)" if made.truncated else ""
        short = f"; {made.short} videos too short for --fps were sampled at a higher rate" if made.short else ""
        print_wrapped(
            console,
            f"{self.out}: {made.rows} clips of {made.files} files{before}{changed}; {made.bad} bad files"
            f"{truncated}{short}",
        )
