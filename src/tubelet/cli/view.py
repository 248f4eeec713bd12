"""`tubelet view`."""

import signal
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tubelet.cli.command import ConfigurableCommand, Sources
from tubelet.config import ViewConfig
from tubelet.config.fields import PathText
from tubelet.console import files_progress, open_console, print_wrapped
from tubelet.errors import ConfigError, escape_filename
from tubelet.value_checks import Bounds


@dataclass(frozen=True, kw_only=True)
class View(ConfigurableCommand):
    """Show features on videos and images: one page with colors, similarity to a patch, clusters and surprise."""

    sources: Sources
    """Videos and images on this machine: folders, files, globs, frames (DIR/%06d.png), and lists (CSV, TSV, TXT or
    JSONL). With --serve, a table of `tubelet embed --dense`, and perhaps the files of it to show."""
    settings: Annotated[ViewConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")] = field(
        default_factory=ViewConfig
    )
    """Settings of the features."""
    model: Annotated[tuple[PathText, ...], tyro.conf.UseAppendAction] = ()
    """A run directory, a .safetensors or released .pt file, a released name, or a Hub id; repeat the option to compare
    models with each other. With --serve, it may be left out."""
    out: Path = Path("view.html")
    """The page."""
    video: Annotated[Path | None, tyro.conf.arg(metavar="FILE.mp4")] = None
    """Also write the only video among the sources, with its features as colors next to it."""

    serve: bool = False
    """Serve the page of a table on this machine until Ctrl-C, for videos that are too long for a file; size, frames and
    rate are those of the table, and it has no surprise."""
    port: Annotated[int, Bounds(0, 65535)] = 0
    """Port of --serve on 127.0.0.1; 0 takes any that is free."""

    def inputs(self) -> Iterable[str | Path]:
        """See `Command.inputs`."""
        return self.sources

    def run(self) -> None:
        """Encode the files and write the page, or serve the page of a table."""
        if self.serve:
            self._serve()
        else:
            self._write()

    def _serve(self) -> None:
        from tubelet.pretrained.load import load
        from tubelet.view.serve import serve_table

        unused = [name for name in ("image_size", "levels", "encoder") if getattr(self.settings, name)]
        if unused or self.video is not None or len(self.model) > 1 or not self.sources:
            raise ConfigError(
                "--serve takes one table of `tubelet embed --dense`, --directions, --port and at most one --model; "
                "size, level and encoder are those of the table, and nothing is written"
            )
        console = open_console()
        weights = load(self.model[0]).weights_id if self.model else None
        table, *chosen = self.sources
        stop = signal.signal(signal.SIGTERM, signal.default_int_handler)  # also ends it cleanly
        try:
            with serve_table(Path(table), chosen, self.settings.directions, self.port, weights) as server:
                console.print(f"{server.url}  (Ctrl-C ends)", soft_wrap=True)
                server.serve_forever()
        except KeyboardInterrupt:
            console.print("stopped")
        finally:
            signal.signal(signal.SIGTERM, stop)

    def _write(self) -> None:
        from tubelet.view.feature_page import write_feature_page

        if not self.model:
            raise ConfigError("--model is missing; pass a run directory, a model file, a released name or a Hub id")
        console = open_console()
        with files_progress(console) as progress:
            summary = write_feature_page(self.sources, self.model, self.out, self.settings, self.video, progress)
        for view in summary.encoders:
            for name, level in zip(view.names, view.levels, strict=True):
                print_wrapped(
                    console,
                    f"{view.model} {view.encoder}, {name}: {level.values.shape[1]} directions; error of the cosine "
                    f"{level.mean_error:.4f} on average, 99 % below {level.largest_error:.4f}",
                )
        print_wrapped(
            console,
            f"{escape_filename(str(self.out))}: {summary.files} file{'s' if summary.files != 1 else ''}, "
            f"{summary.tokens:,} tokens a level, {summary.size / 1e6:.1f} MB",
        )
        if self.video is not None:
            print_wrapped(console, escape_filename(str(self.video)))
