"""The record that defines a task on labels, and the context that its function gets."""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tubelet.config import FitConfig
from tubelet.config.fields import nearest
from tubelet.errors import ConfigError
from tubelet.fitting.features import Extract
from tubelet.fitting.result import FitResult, HeadEvaluation
from tubelet.fitting.rounds import Rounds
from tubelet.heads.head_file import EncoderId, Head, HeadInput
from tubelet.labels.records import LabelTable
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.cache import FeatureCache
from tubelet.tasks.common.extract import Progress, extract

Split = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Indices of the training rows and of the held-out rows of a table."""
ROUNDS = ("part 1 of 4, choice", "part 2 of 4, held-out scores", "part 3 of 4, baseline", "part 4 of 4, learning curve")
"""The rounds of trainings of a fit, in order, as its progress names them."""


@dataclass(frozen=True, kw_only=True)
class FitContext:
    """Labels, an encoder and settings: the argument of a task's `fit`.

    Attributes:
        task: name of the task.
        table: the label table, checked.
        splits: one split, or the folds of a cross-validation.
        model: the encoder, in eval mode.
        source: argument of `tubelet.load` that it was loaded by.
        head_input: the clips.
        config: the user's settings.
        cache: features of the encoder on disk.
        progress: called with a stage's name, what is done of it, and its total.
        rounds: counts the trainings.
    """

    task: str
    table: LabelTable
    splits: Sequence[Split]
    model: Backbone
    source: str
    head_input: HeadInput
    config: FitConfig
    cache: FeatureCache
    progress: Progress
    rounds: Rounds = field(default_factory=Rounds)

    @property
    def encoder(self) -> EncoderId:
        """The identity of the encoder."""
        model = self.model
        return EncoderId(
            source=self.source, model_id=model.model_id, weights_id=model.weights_id, config_hash=model.config_hash
        )

    def with_model(self, model: Backbone) -> Self:
        """The same fit with another encoder and a cache of that one's features."""
        if model is self.model:
            return self
        return replace(self, model=model, cache=FeatureCache(self.cache.folder.parent, model))

    def in_round(self, name: str) -> Self:
        """The same fit, whose progress names a round: the stage `training` becomes `training: NAME`.

        Args:
            name: the round, such as "fold 2 of 5"; of a round in a round, both are named.
        """

        def progress(stage: str, done: int, total: int) -> None:
            first, _, inner = stage.partition(": ")
            self.progress(f"{first}: {name}{', ' * bool(inner)}{inner}", done, total)

        return replace(self, progress=progress)

    def in_fold(self, number: int) -> Self:
        """The same fit, whose progress names a fold, counted from 0, if there are several."""
        count = len(self.splits)
        return self.in_round(f"fold {number + 1} of {count}") if count > 1 else self

    @property
    def extract(self) -> Extract:
        """`tubelet.tasks.common.extract.extract` with encoder, cache and settings."""
        return partial(
            extract,
            self.model,
            self.cache,
            workers=self.config.workers,
            prefetch_mb=self.config.prefetch_mb,
            max_failed_fraction=self.config.max_failed_fraction,
            progress=self.progress,
        )


@dataclass(frozen=True, kw_only=True)
class LabelTask:
    """A task on labels. The module of the same name in `tubelet.fitting.tasks` defines it as `LABEL_TASK`.

    Attributes:
        name: name on the command line.
        fit: trains a head and measures it.
        evaluate: measures a head on all rows of a table, by the metrics of `fit`; None if there is no way to.
        networks: networks that are trained side by side by default.
        cells: side of the grid that the tokens of a time step are averaged to; 0 keeps all.
        stride_clips: distance of clips when a video is covered, in lengths of a clip.
        unused: names of settings of `FitConfig` that the task refuses.
    """

    name: str
    fit: Callable[[FitContext], tuple[Head, FitResult]]
    networks: tuple[str, ...]
    cells: int = 0
    stride_clips: float = 1.0
    unused: tuple[str, ...] = ()
    evaluate: Callable[[FitContext, Head], HeadEvaluation] | None = None


def label_task_names() -> list[str]:
    """Names of all tasks on labels."""
    package = importlib.import_module("tubelet.fitting.tasks")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def get_label_task(name: str) -> LabelTask:
    """A task on labels by its name.

    Raises:
        ConfigError: if there is none, naming the nearest.
    """
    names = label_task_names()
    if name not in names:
        raise ConfigError(f"task is {name!r}, expected one of {', '.join(names)}{nearest(name, names)}")
    task: LabelTask = importlib.import_module(f"tubelet.fitting.tasks.{name}").LABEL_TASK
    return task
