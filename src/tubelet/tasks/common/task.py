"""The evaluations of `tubelet evaluate MODEL --task NAME --data DIR`, each a function from a folder to a result.

A task recognises the layouts of its benchmarks by what lies in the folder.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from tubelet.config import HEAD_SETTINGS, EvaluateConfig
from tubelet.data.worker_loader import translate_worker_crash
from tubelet.errors import TubeletError
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks import anticipation, classification, depth, pooled, segmentation, tracking, vos
from tubelet.tasks.common.cache import FeatureCache
from tubelet.tasks.common.extract import AGAIN, Progress
from tubelet.tasks.common.result import Result


class Task(Protocol):
    """Evaluates an encoder on the benchmark that lies in a folder."""

    def __call__(
        self, model: Backbone, data: Path, config: EvaluateConfig, cache: FeatureCache, progress: Progress
    ) -> Result:
        """See the task's own file.

        Raises:
            TubeletError: if the folder has none of the layouts that the task reads, or a file in it is wrong.
        """
        ...


TASKS: Mapping[str, Task] = {
    "segmentation": segmentation.evaluate,
    "depth": depth.evaluate,
    "classification": classification.evaluate,
    "knn": pooled.knn,
    "linear": pooled.linear,
    "anticipation": anticipation.evaluate,
    "tracking": tracking.evaluate,
    "vos": vos.evaluate,
}
WITH_PREDICTOR = frozenset({"anticipation"})
"""Tasks that use the model's predictor too, see `load`."""

_UNUSED = {
    "segmentation": ("frames",),
    "depth": ("frames",),
    "knn": HEAD_SETTINGS,
    "tracking": HEAD_SETTINGS,
    "vos": HEAD_SETTINGS,
}


def run_task(
    task: str, model: Backbone, data: Path, config: EvaluateConfig, cache: FeatureCache, progress: Progress
) -> Result:
    """Run a task by name.

    Raises:
        TubeletError: for an unknown name, a setting that the task has no use for, and what the task raises.
    """
    if task not in TASKS:
        raise TubeletError(f"no task is called {task!r}; the tasks are {', '.join(TASKS)}")
    if not data.is_dir():
        raise TubeletError(f"{data}: no such folder; expected a benchmark in its own layout")
    config.reject_unused(_UNUSED.get(task, ()), task)
    with translate_worker_crash(AGAIN):
        return TASKS[task](model, data, config, cache, progress)
