"""`tubelet evaluate`."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from tubelet.cli.command import ConfigurableCommand, Model
from tubelet.config import EvaluateConfig
from tubelet.config.fields import PathText
from tubelet.console import open_console, print_wrapped, stages_progress
from tubelet.io.files import directory_lock
from tubelet.io.overwrite_checks import check_output
from tubelet.tasks import get_task, task_names

EvaluateSettings = Annotated[EvaluateConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Evaluate(ConfigurableCommand):
    """Measure the quality of a model's frozen features on a benchmark in its own layout, or on a sample set."""

    model: Model
    """A run directory, a .safetensors or released .pt file, a released name, or a Hub id."""
    settings: EvaluateSettings = field(default_factory=EvaluateConfig)
    """Evaluation settings."""
    data: Path
    """Folder of the benchmark, or a folder that `tubelet sample-data` wrote."""
    task: Annotated[str, tyro.conf.arg(metavar="{" + ",".join(task_names()) + "}")] = "suite"
    """What is evaluated, see docs/evaluate.md. The suite measures segmentation, depth, camera motion and tracking on a
    sample set, compared with a random encoder and raw patches."""
    baseline: PathText | None = None
    """Another model to compare with: anything that MODEL may be, or "random" for the same network with random
    weights."""
    out: Path | None = None
    """Folder of the results; by default evaluation/TASK-DATA in the run directory, and for other models in
    evaluation/ID here."""
    cache: Path | None = None
    """Folder of the cached features; by default in the user's cache. The suite caches none."""

    def inputs(self) -> Iterable[str | Path]:
        """See `Command.inputs`."""
        return (self.data,)

    def run(self) -> None:
        """Evaluate the model and write the results."""
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
        folder = self.out or folder / "evaluation" / f"{self.task}-{self.data.resolve().name}"
        check_output(folder, "results", [self.model, self.data, self.baseline])
        cache = self.cache or default_folder()
        with directory_lock(folder, ".evaluation.lock"):  # the folder may be the run's, which is locked while it trains
            with stages_progress(console) as progress:
                results = {
                    name: run_task(
                        self.task, model, self.data, self.settings, cache=cache, source=source, progress=progress
                    )
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
