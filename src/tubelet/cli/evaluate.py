"""`tubelet evaluate`."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from tubelet.cli.command import ConfigurableCommand, Model
from tubelet.config import EvaluateConfig
from tubelet.console import open_console, print_wrapped, stages_progress
from tubelet.errors import ConfigError
from tubelet.io.files import directory_lock
from tubelet.io.overwrite import check_output

EvaluateSettings = Annotated[EvaluateConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Evaluate(ConfigurableCommand):
    """Measure the quality of a model's frozen features on a benchmark in its own layout, or on a sample set.

    Without --task: segmentation, depth, camera motion and tracking on a sample set, compared with a random encoder and
    raw patches.
    """

    model: Model
    """A run directory, a .safetensors or released .pt file, a released name, or a Hub id."""
    settings: EvaluateSettings = field(default_factory=EvaluateConfig)
    """Evaluation settings."""
    data: Path
    """Folder of the benchmark, or a folder that `tubelet sample-data` wrote."""
    task: str | None = None
    """One of the tasks in docs/evaluate.md."""
    baseline: str | None = None
    """With --task, another model to compare with: anything that MODEL may be, or "random" for the same network with
    random weights."""
    out: Path | None = None
    """Folder of the results; by default the run directory, with --task its folder evaluation/TASK-DATA, and for other
    models evaluation/ID here."""
    cache: Path | None = None
    """Folder of the cached features; by default in the user's cache."""

    def run(self) -> None:
        """Evaluate the model and write the results."""
        from tubelet.tasks.common.result import require_writable

        if self.out is not None:
            require_writable(self.out)
        if self.task is not None:
            return self._run_task(self.task)
        if self.baseline is not None:
            raise ConfigError("--baseline requires --task (the default suite already compares with random weights)")
        if self.cache is not None:
            raise ConfigError("--cache requires --task (the default suite caches no features)")
        from tubelet.tasks.common.comparison import print_table
        from tubelet.tasks.suite import evaluate_model

        print_table(evaluate_model(self.model, self.data, self.settings, self.out), open_console())

    def _run_task(self, task: str) -> None:
        from tubelet.pretrained.load import load, random_init_like
        from tubelet.tasks.common.cache import FeatureCache, default_folder
        from tubelet.tasks.common.result import print_result, write_result
        from tubelet.tasks.common.task import WITH_PREDICTOR, run_task
        from tubelet.view.results import write_result_page

        console, encoder = open_console(), load(self.model, with_predictor=task in WITH_PREDICTOR)
        others = {}
        if self.baseline == "random":
            others["random weights"] = random_init_like(encoder, self.settings.seed)
        elif self.baseline is not None:
            other = load(self.baseline, with_predictor=task in WITH_PREDICTOR)
            others[other.model_id] = other
        folder = Path(self.model) if Path(self.model).is_dir() else Path("evaluation") / encoder.model_id
        folder = self.out or folder / "evaluation" / f"{task}-{self.data.resolve().name}"
        check_output(folder, "results", [self.model, self.data, self.baseline])
        cache = self.cache or default_folder()
        with directory_lock(folder, ".evaluation.lock"):  # the folder may be the run's, which is locked while it trains
            with stages_progress(console) as progress:
                result, *beside = (
                    run_task(task, each, self.data, self.settings, FeatureCache(cache, each), progress)
                    for each in (encoder, *others.values())
                )
            result = replace(result, beside={name: other.metrics for name, other in zip(others, beside, strict=True)})
            replaced = (folder / "result.json").exists()
            write_result(result, folder / "result.json")
            write_result_page(result, folder / "page.html")
        print_result(result, console)
        print_wrapped(console, f"{folder / 'page.html'}" + " (replaced)" * replaced)
