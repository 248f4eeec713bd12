"""`tubelet fit`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tubelet.cli.command import ConfigurableCommand
from tubelet.config import FitConfig
from tubelet.console import open_console, print_wrapped, stages_progress
from tubelet.io.csv_tables import CsvDialect
from tubelet.io.files import directory_lock
from tubelet.io.overwrite_checks import check_output

if TYPE_CHECKING:
    from tubelet.heads.head_file import ModelMetrics

Labels = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="LABELS")]


@dataclass(frozen=True, kw_only=True)
class Fit(ConfigurableCommand):
    """Train a head on your own labels, and measure how far to trust it."""

    CONTINUES = True

    labels: Labels
    """Table of labels: CSV, Parquet or JSONL with a column path, or an export of an annotation tool; see
    docs/labels.md."""
    settings: Annotated[FitConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")] = field(default_factory=FitConfig)
    """Settings of the fit."""
    model: str
    """A run directory, a .safetensors or released .pt file, a released name, or a Hub id."""
    out: Path
    """Head file to write, such as head.safetensors; its report is written next to it, as head.report.html."""
    cache: Path | None = None
    """Folder of the cached features; by default in the user's cache."""
    csv_dialect: CsvDialect = "comma"
    """CSV of --suggest: comma has commas and decimal points; semicolon has semicolons and decimal commas, as
    spreadsheets expect where the decimal separator is a comma."""

    def inputs(self) -> Iterable[str | Path]:
        """See `Command.inputs`."""
        return (self.labels,)

    def run(self) -> None:
        """Fit the head, and write it with its report."""
        from tubelet.fitting.run import fit_head, read_label_table
        from tubelet.fitting.suggest import check_suggestions, write_suggestions
        from tubelet.pretrained.load import load
        from tubelet.tasks.common.result import require_writable
        from tubelet.view.fit_report import trust_sentence, write_fit_report

        report, suggestions = self.out.with_suffix(".report.html"), self.out.with_suffix(".suggestions.csv")
        check_output(self.out, "head", [self.labels, self.model])
        check_output(report, "page")
        if self.settings.suggest:
            check_suggestions(suggestions)
        require_writable(self.out.absolute().parent)
        console = open_console()
        with stages_progress(console) as progress:
            table, task = read_label_table(self.labels, self.settings, progress)
        with directory_lock(self.out.absolute().parent, f".{self.out.stem}.lock"):
            with stages_progress(console) as progress:
                head, result = fit_head(
                    table, task, load(self.model), self.model, self.settings, cache=self.cache, progress=progress
                )
            head.save(self.out)
            write_fit_report(result, report)
            if self.settings.suggest:
                targets = table.targets if task.name == "regression" else ()
                write_suggestions(result.suggestions, suggestions, targets, self.csv_dialect)
        print_scores(result.spec.scores, console, "held-out files")
        print_wrapped(console, trust_sentence(result.spec.scores))
        print_wrapped(console, f"{self.out}, {report}" + f", {suggestions}" * bool(self.settings.suggest))


def print_scores(scores: "Sequence[ModelMetrics]", console: Console, files: str) -> None:
    """Print the first metric of the head and of the baselines, with 95 % intervals, and the others of the head.

    Args:
        scores: metrics of the head, then of what it is compared with.
        console: where to print.
        files: the files that they are of.
    """
    head_scores, *_ = scores
    arrows = {True: " ↑", False: " ↓"}
    first = head_scores.metrics[0]
    table = Table(files, first.name + arrows[first.higher_is_better], box=None)
    for each in scores:
        metric = next((one for one in each.metrics if one.name == first.name), None)
        table.add_row(Text(each.model), Text("–" if metric is None else str(metric)))
    console.print(table)
    others = Table("others of this head", "", box=None)
    for metric in head_scores.metrics[1:]:
        others.add_row(Text(metric.name + arrows[metric.higher_is_better]), Text(str(metric)))
    console.print(others)
