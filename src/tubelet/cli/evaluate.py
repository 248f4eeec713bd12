"""`tubelet evaluate`."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tubelet.cli.command import ConfigurableCommand, Model
from tubelet.cli.predict import HEAD_SUFFIX
from tubelet.config import HEAD_SETTINGS, EvaluateConfig, FitConfig
from tubelet.config.fields import PathText, require
from tubelet.console import open_console, print_wrapped, stages_progress
from tubelet.io.files import directory_lock
from tubelet.io.overwrite_checks import check_output
from tubelet.tasks import get_task, task_names

if TYPE_CHECKING:
    from tubelet.fitting.result import HeadEvaluation
    from tubelet.heads.head_file import Head, ModelMetrics
    from tubelet.tasks.common.result import Result

EvaluateSettings = Annotated[EvaluateConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")]


_UNUSED_BY_HEADS = ("image_size", "frames", "max_samples", *HEAD_SETTINGS, "seed")


@dataclass(frozen=True, kw_only=True)
class Evaluate(ConfigurableCommand):
    """Measure a model's frozen features on a benchmark or sample set (--data), or a head on your labels (--labels)."""

    model: Model
    """A run directory, a .safetensors or released .pt file, a released name, or a Hub id; with --labels, a head of
    `tubelet fit`."""
    settings: EvaluateSettings = field(default_factory=EvaluateConfig)
    """Evaluation settings."""
    data: Path | None = None
    """Folder of the benchmark, or a folder that `tubelet sample-data` wrote."""
    labels: Path | None = None
    """Table of labels, as for `tubelet fit`, that the head MODEL is measured on: with the metrics and intervals of the
    fit, on all of its files that the head was not trained on. See docs/trust.md."""
    include_training_files: bool = False
    """With --labels: measure on files that the head was trained on too, on which it is better than on others."""
    encoder: PathText | None = None
    """With --labels: the encoder that the head was trained on, if it is not where it was then."""
    task: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(task_names()) + "}")] = "suite"
    """What is evaluated, see docs/evaluate.md. The suite measures segmentation, depth, camera motion and tracking on a
    sample set, compared with a random encoder and raw patches."""
    baseline: PathText | None = None
    """Another model to compare with: anything that MODEL may be, or "random" for the same network with random
    weights."""
    out: Path | None = None
    """Folder of the results; by default evaluation/TASK-DATA in the run directory, and for other models in
    evaluation/ID here; with --labels, evaluation/HEAD-LABELS here."""
    cache: Path | None = None
    """Folder of the cached features; by default in the user's cache. The suite caches none."""

    def inputs(self) -> Iterable[str | Path]:
        """See `Command.inputs`."""
        return filter(None, (self.data, self.labels))

    def __post_init__(self) -> None:
        super().__post_init__()
        given = "is missing" if self.data is None else f"is {self.data}, next to --labels"
        require(
            (self.data is None) != (self.labels is None),
            "data",
            f"{given}; pass --data DIR to evaluate a model, or --labels TABLE to evaluate a head",
        )
        for name, option in (("include_training_files", "--include-training-files"), ("encoder", "--encoder")):
            require(self.labels is not None or not getattr(self, name), name, f"requires --labels; remove {option}")
        require(
            self.labels is None or Path(self.model).suffix == HEAD_SUFFIX,
            "labels",
            f"is for heads of `tubelet fit`, whose files end in {HEAD_SUFFIX}, found {self.model}; pass a head, or "
            "--data to evaluate a model",
        )
        require(
            self.labels is None or (self.baseline is None and self.task == "suite"),
            "labels",
            "is for heads, whose task is in their file; remove --task and --baseline",
        )

    def run(self) -> None:
        """Evaluate the model or the head, and write the results."""
        if self.data is None:
            self._run_head()
        else:
            self._run_task(self.data)

    def _run_head(self) -> None:
        """Measure a head on a label table."""
        from tubelet.cli.fit import print_scores
        from tubelet.fitting.evaluate import evaluate_on_labels, read_evaluation_table
        from tubelet.heads.head_file import load_head
        from tubelet.prediction.api import load_encoder
        from tubelet.tasks.common.result import require_writable, write_result
        from tubelet.view.results import write_result_page

        assert self.labels is not None
        self.settings.reject_unused(_UNUSED_BY_HEADS, "--labels")
        head = load_head(self.model)
        folder = self.out or Path("evaluation") / f"{Path(self.model).stem}-{self.labels.stem}"
        check_output(folder, "results", [self.model, self.labels])
        require_writable(folder)
        config = FitConfig(
            workers=self.settings.workers,
            prefetch_mb=self.settings.prefetch_mb,
            max_failed_fraction=self.settings.max_failed_fraction,
        )
        console = open_console()
        with directory_lock(folder, ".evaluation.lock"), stages_progress(console) as progress:
            table = read_evaluation_table(head, self.labels, config, progress)
            found = evaluate_on_labels(
                head,
                table,
                load_encoder(head, self.encoder),
                config,
                include_training_files=self.include_training_files,
                cache=self.cache,
                progress=progress,
            )
            result = _head_result(self.model, head, self.labels, found)
            write_result(result, folder / "result.json")
            write_result_page(result, folder / "page.html")
        print_scores((*found.scores, *_fit_scores(head)), console, self.labels.name)
        print_wrapped(console, ", ".join(f"{what}: {count}" for what, count in found.counts.items()))
        print_wrapped(console, f"{folder / 'page.html'}, {folder / 'result.json'}")

    def _run_task(self, data: Path) -> None:
        """Evaluate a model by a task on a data set."""
        from tubelet.pretrained.load import load, random_init_like
        from tubelet.tasks.common.cache import default_folder
        from tubelet.tasks.common.result import RANDOM_WEIGHTS, print_result, require_writable, write_result
        from tubelet.tasks.common.task import run_task
        from tubelet.view.results import write_result_page

        if self.out is not None:
            require_writable(self.out)
        task = get_task(self.task)
        console, encoder = open_console(), load(self.model, **task.load_options)
        models = {"": (encoder, self.model)}
        if self.baseline == "random":
            models[RANDOM_WEIGHTS] = random_init_like(encoder, self.settings.seed), self.model
        elif self.baseline is not None:
            other = load(self.baseline, **task.load_options)
            models[other.model_id] = other, self.baseline
        folder = Path(self.model) if Path(self.model).is_dir() else Path("evaluation") / encoder.model_id
        folder = self.out or folder / "evaluation" / f"{self.task}-{data.resolve().name}"
        check_output(folder, "results", [self.model, data, self.baseline])
        cache = self.cache or default_folder()
        with directory_lock(folder, ".evaluation.lock"):  # the folder may be the run's, which is locked while it trains
            with stages_progress(console) as progress:
                results = {
                    name: run_task(self.task, model, data, self.settings, cache=cache, source=source, progress=progress)
                    for name, (model, source) in models.items()
                }
            result = results.pop("")
            compared = {name: other.metrics for name, other in results.items()}
            result = replace(result, baselines={**result.baselines, **compared})
            replaced = (folder / "result.json").exists()
            write_result(result, folder / "result.json")
            write_result_page(result, folder / "page.html")
        print_result(result, console)
        print_wrapped(console, f"{folder / 'page.html'}" + " (replaced)" * replaced)


def _fit_scores(head: "Head") -> "list[ModelMetrics]":
    """The metrics of the fit, for comparison."""
    return [replace(each, model="this head, in the fit") for each in head.spec.scores[:1]]


def _head_result(model: str, head: "Head", labels: Path, found: "HeadEvaluation") -> "Result":
    """The metrics of a head as a result."""
    from tubelet.tasks.common.result import Metric, Result

    metrics = {
        each.model: {
            metric.name: Metric(
                value=metric.value,
                unit=metric.unit or "",
                higher_is_better=metric.higher_is_better,
                low=metric.low,
                high=metric.high,
            )
            for metric in each.metrics
        }
        for each in found.scores
    }
    own, *baselines = metrics
    return Result(
        task=head.spec.task,
        benchmark=labels.name,
        data=str(labels),
        model_id=head.spec.encoder.model_id,
        protocol=f"The head {model} on the labeled files that it was not trained on"
        + (", and on those that it was trained on" if found.includes_training_files else ""),
        metrics=metrics[own],
        baselines={name: metrics[name] for name in baselines},
        counts=found.counts,
        skipped=list(found.skipped),
        details={"left_out": list(map(str, found.left_out))},
    )
