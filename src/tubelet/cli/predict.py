"""`tubelet predict`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tubelet.cli.command import ConfigurableCommand, LoadOptions
from tubelet.config import PredictConfig
from tubelet.console import files_progress, open_console, print_wrapped
from tubelet.errors import ConfigError, escape_filename

if TYPE_CHECKING:
    from tubelet.prediction.pipeline import PredictSummary

HeadsAndSources = Annotated[
    tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="HEAD [HEAD ...] SOURCE [SOURCE ...]")
]
HEAD_SUFFIX = ".safetensors"
_OWN_FOLDERS = {"videos", "players", "_scores"}
MAX_FILES = 1000
"""Files of the page and the ethogram."""


@dataclass(frozen=True, kw_only=True)
class Predict(LoadOptions, ConfigurableCommand):
    """Apply heads to videos and images of any length, and write what they answer to tables, a page and videos."""

    CONTINUES = True

    heads_and_sources: HeadsAndSources
    """Head files of `tubelet fit`, which are the arguments that end in .safetensors; and sources: folders, media
    files, globs, frames (DIR/%06d.png), lists (CSV, TSV, TXT or JSONL), and folders of shards; paths or URLs."""
    settings: Annotated[PredictConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")] = field(
        default_factory=PredictConfig
    )
    """Settings of the tables and of reading."""
    model: str | None = None
    """The encoder that the heads were trained on: a run directory, a .safetensors or released .pt file, a released
    name, or a Hub id; by default where it was when the first head was trained."""
    out: Path
    """Folder of predictions.csv, predictions.parquet, summary.csv, page.html, ethogram.png and bad_files.jsonl; of
    several heads, the tables are in folders of their names. An interrupted command is continued."""

    def inputs(self) -> Iterable[str | Path]:
        """See `Command.inputs`."""
        files, sources = split_heads(self.heads_and_sources)
        # owner/name/heads/HEAD.safetensors may be on the Hub
        return [*sources, *(file for file in files if file.count("/") != 3)]

    def run(self) -> None:
        """Read the sources, apply the heads, and write the tables."""
        from tubelet.heads.head_file import load_head
        from tubelet.io.overwrite_checks import check_output
        from tubelet.prediction.api import load_encoder
        from tubelet.prediction.pipeline import predict_collection
        from tubelet.prediction.training_files import note_training_files
        from tubelet.prediction.videos import draw_videos
        from tubelet.view.ethogram import draw_ethogram
        from tubelet.view.fit_report import caution, trust_sentence
        from tubelet.view.predictions_page import write_predictions_page

        files, sources = split_heads(self.heads_and_sources)
        names = [Path(file).stem for file in files]
        if len(set(names)) < len(names):
            raise ConfigError(f"the heads {', '.join(files)} have equal names, which their folders get; rename one")
        if len(names) > 1 and (taken := _OWN_FOLDERS & set(names)):
            raise ConfigError(f"a head is named {min(taken)}, which is a folder of predictions; rename its file")
        heads = {name: load_head(file) for name, file in zip(names, files, strict=True)}
        page = self.out / "page.html"
        check_output(page, "page")
        console = open_console()
        first = next(iter(heads.values()))
        source = self.model or first.spec.encoder.source
        with files_progress(console) as progress:
            summary = predict_collection(
                load_encoder(first, self.model, **self.load_options()),
                heads,
                sources,
                self.out,
                self.settings,
                [*files, source],
                progress=progress,
            )
        predictions = summary.media_predictions(None if self.settings.video else MAX_FILES)
        predictions, known = note_training_files(predictions, heads)
        cautions = [f"{name}: {text}" for name, head in heads.items() if (text := caution(head.spec.scores))]
        if self.settings.video:
            with files_progress(console) as progress:
                predictions, _ = draw_videos(
                    predictions, summary.media, self.out / "videos", summary.classes, progress, "; ".join(cautions)
                )
        trust = {name: trust_sentence(head.spec.scores) for name, head in heads.items()}
        write_predictions_page(predictions[:MAX_FILES], page, summary.classes, heads=trust)
        if any(each.labels and each.duration_s for each in predictions):
            draw_ethogram(predictions[:MAX_FILES], self.out / "ethogram.png", summary.classes)
        for line in summary_lines(summary, page):
            print_wrapped(console, line)
        for name, sentence in trust.items():
            print_wrapped(console, f"{escape_filename(name)}: {sentence}")
        if known:
            print_wrapped(
                console,
                f"a head was trained on {known} of the {len(predictions)} predicted files: its predictions for them "
                "are better than for other files",
            )


def split_heads(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Head files and sources among the arguments.

    Raises:
        ConfigError: if one of the two is missing.
    """
    from tubelet.data.storage import suffix_of  # imports fsspec, which --help has no use for

    files = [argument for argument in arguments if suffix_of(argument) == HEAD_SUFFIX]
    sources = [argument for argument in arguments if suffix_of(argument) != HEAD_SUFFIX]
    if not files:
        raise ConfigError(
            f"no head among the arguments ({', '.join(arguments)[:200]}); pass the head file of `tubelet fit`, which "
            f"ends in {HEAD_SUFFIX}"
        )
    if not sources:
        raise ConfigError("no source among the arguments; pass the videos or images too: a folder, a file, or a glob")
    return files, sources


def summary_lines(made: "PredictSummary", page: Path) -> list[str]:
    """A summary of the call, line by line."""
    lines = []
    for head in made.heads:
        counts = ", ".join(f"{number} {what}" for what, number in head.output.counts.items())
        lines.append(f"{escape_filename(str(head.folder / 'predictions.csv'))}: {counts}")
    entries = f"{made.media.entry}s"
    before = f" ({made.before} {entries} were already complete)" if made.before else ""
    changed = f"; {made.changed} {entries} changed since: their rows were replaced" if made.changed else ""
    truncated = f" ({made.truncated} of them truncated, without rows)" if made.truncated else ""
    ignored = f"; {made.ignored} images ignored, since a head takes videos" if made.ignored else ""
    files = f"{made.files} {entries}{before}{changed}; {len(made.bad_files)} bad {entries}{truncated}{ignored}"
    if made.outside:
        files += f"; {made.outside} {entries} with nearly all values outside of the model's window"
    more = made.files - len(made.bad_files) - MAX_FILES
    limit = f" (its first {MAX_FILES} {entries})" if more > 0 else ""
    return [*lines, files, f"{escape_filename(str(page))}{limit}"]
