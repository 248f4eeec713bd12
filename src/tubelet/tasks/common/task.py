"""The record that defines a task, and the context that its function gets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from tubelet import datasets
from tubelet.checkpoint.native_clip import log_native
from tubelet.config import HEAD_SETTINGS, EvaluateConfig
from tubelet.data.worker_loader import translate_worker_crash
from tubelet.datasets import DatasetRecord
from tubelet.errors import MissingFileError
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks import get_task
from tubelet.tasks.common.cache import FeatureCache
from tubelet.tasks.common.extract import (
    RESUME_HINT,
    Encode,
    FeatureSet,
    Progress,
    Source,
    TokenFeatures,
    Transform,
    extract,
    level_features,
)
from tubelet.tasks.common.result import Result


@dataclass(frozen=True, kw_only=True)
class EvaluationContext:
    """One model on one data set: the argument of a task's `evaluate`.

    Attributes:
        task: name of the task.
        model: the encoder, frozen and in eval mode.
        source: the model as the user named it: a path, or a name.
        data: folder of the data set.
        config: the user's settings; what is None there is up to the task's protocol.
        cache: features of the model on disk.
        progress: called with a stage's name, what is done of it, and its total.
        dataset: the data set in the folder, of the task's type.
        features: what heads on tokens see of each; None is the deepest level.
    """

    task: str
    model: Backbone
    source: str
    data: Path
    config: EvaluateConfig
    cache: FeatureCache
    progress: Progress
    dataset: Any = None
    features: TokenFeatures | None = None

    @property
    def token_features(self) -> TokenFeatures:
        """What heads on tokens see of each."""
        return self.features or level_features(self.model)

    def native_size(self, otherwise: int) -> int:
        """Side of square views: the user's, otherwise the model's own if it is known.

        Args:
            otherwise: the protocol's, for a model that does not say.
        """
        native = self.model.native_clip
        if self.config.image_size or native.source == "assumed":
            return self.config.image_size or otherwise
        log_native(self.model.name, native, f"views of {native.image_size} px", {"--image-size": None})
        return native.image_size

    def dense_size(self, protocol: int) -> int:
        """Side of whole images: the user's, otherwise the protocol's, or a run's own if that is less."""
        native = self.model.native_clip
        if self.config.image_size or native.source != "run" or native.image_size >= protocol:
            return self.config.image_size or protocol
        log_native(self.model.name, native, f"images of {native.image_size} px", {"--image-size": None})
        return native.image_size

    def native_frames(self, protocol: int) -> int:
        """Frames of a clip: the user's, otherwise the protocol's, or a run's own if it has fewer."""
        native = self.model.native_clip
        if self.config.frames or native.source != "run" or native.frames >= protocol:
            return self.config.frames or protocol
        log_native(self.model.name, native, f"{native.frames} frames", {"--frames": None})
        return native.frames

    def extract(
        self,
        sources: Sequence[Source],
        recipe: Mapping[str, Any],
        transform: Transform,
        encode: Encode | None = None,
    ) -> FeatureSet:
        """The features of sources, computed once and kept on disk; see `tubelet.tasks.common.extract.extract`.

        Args:
            sources: the sources.
            recipe: what the views depend on besides the source.
            transform: a source to its views.
            encode: views to features; None gives `token_features`.
        """
        if encode is None:
            recipe = {**recipe, **self.token_features.recipe}
        return extract(
            self.model,
            self.cache,
            sources,
            recipe,
            transform,
            encode or self.token_features.encode,
            workers=self.config.workers,
            prefetch_mb=self.config.prefetch_mb,
            max_failed_fraction=self.config.max_failed_fraction,
            progress=self.progress,
        )

    def result(self, **fields: Any) -> Result:
        """A result with task, data and model filled in; `fields` are the others of `Result`."""
        return Result(task=self.task, data=str(self.data), model_id=self.model.model_id, **fields)


@dataclass(frozen=True, kw_only=True)
class Task:
    """An evaluation of frozen features. The module of the same name defines it as `TASK`.

    Attributes:
        name: name on the command line: that of the module, with `-` for `_`.
        evaluate: fits the head, if there is one, to the train split, predicts the test split and scores it.
        metric: name of the metric that results show first.
        dataset: type of the data sets, whose layouts `tubelet.datasets` finds; None for tasks on the sample set only.
        head: class of the heads that are trained on features; None if nothing is trained.
        unused: names of settings of `EvaluateConfig` that the task refuses, besides those of heads if it has none.
        load_options: options of `tubelet.load` for the model, such as {"with_predictor": True}.
    """

    name: str
    evaluate: Callable[[EvaluationContext], Result]
    metric: str
    dataset: type[DatasetRecord] | None = None
    head: type[nn.Module] | None = None
    unused: tuple[str, ...] = ()
    load_options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, context: EvaluationContext) -> Result:
        """Check the settings and evaluate.

        Raises:
            TubeletError: for a setting that the task does not use, a folder that is missing or in no known layout, a
                file in it that is wrong, and a crashed worker.
        """
        if not context.data.is_dir():
            raise MissingFileError(f"{context.data}: no such folder; expected a data set in its own layout")
        head_settings = () if self.head else HEAD_SETTINGS
        context.config.reject_unused((*head_settings, *self.unused), context.task)
        if self.dataset is not None:
            context = replace(context, dataset=datasets.find(context.data, self.dataset))
        with translate_worker_crash(RESUME_HINT):
            return self.evaluate(context)


def run_task(
    task: str | Task,
    model: Backbone,
    data: Path,
    config: EvaluateConfig | None = None,
    *,
    cache: Path,
    source: str = "",
    progress: Progress = lambda stage, done, total: None,
) -> Result:
    """Evaluate a model by a task.

    Args:
        task: the task, or its name.
        model: the encoder.
        data: folder of the data set.
        config: the user's settings.
        cache: folder of the cached features of all models.
        source: the model as the user named it.
        progress: called with a stage's name, what is done of it, and its total.

    Raises:
        TubeletError: if there is no such task, and see `Task.run`.
    """
    task = get_task(task) if isinstance(task, str) else task
    context = EvaluationContext(
        task=task.name,
        model=model,
        source=source,
        data=data,
        config=config or EvaluateConfig(),
        cache=FeatureCache(cache, model),
        progress=progress,
    )
    return task.run(context)
