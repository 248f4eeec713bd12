"""A classification data set with the user's settings: files, crops, and how heads are trained.

The values are those of V-JEPA 2's published configurations (arXiv 2506.09985, appendix, and its release). What differs,
because features are computed once: training views are not augmented anew each epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tubelet.config import EvaluateConfig
from tubelet.datasets import ClassificationDataset, LabeledFile, ProbeProtocol
from tubelet.datasets.records import drop_missing_files
from tubelet.errors import BadFile
from tubelet.heads.training import HParams, hparam_grid
from tubelet.tasks.common.clip_transforms import ClipView, ImageView, View
from tubelet.tasks.common.extract import Source, subsample_evenly
from tubelet.tasks.common.task import EvaluationContext


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """The files of a split that are used.

    Attributes:
        files: the files in their order.
        missing: files that are listed but not on the disk.
    """

    files: list[LabeledFile]
    missing: list[BadFile]

    @property
    def sources(self) -> list[Source]:
        """The sources of the files."""
        return [Source(files=(file.path,)) for file in self.files]

    def labels(self, numbers: list[int]) -> Tensor:
        """(n, 1) int64 classes of the files with these numbers."""
        return torch.tensor([[self.files[number].label] for number in numbers])


@dataclass(frozen=True, kw_only=True)
class ClassificationPlan:
    """A classification data set, and how its files are cropped with the user's settings.

    Attributes:
        name: name of the data set.
        classes: names of the classes, by index.
        train: the training files.
        val: the test files.
        protocol: the data set's protocol.
        train_view: how training files are cropped.
        val_view: how test files are cropped.
        excluded: reason -> number of files of the folder that are in neither split.
        list_format: how lists were read, where their content decided that.
    """

    name: str
    classes: tuple[str, ...]
    train: SplitFiles
    val: SplitFiles
    protocol: ProbeProtocol
    train_view: View
    val_view: View
    excluded: Mapping[str, int]
    list_format: str

    def describe_views(self) -> str:
        """A phrase on how files are cropped."""
        view = self.val_view
        if isinstance(view, ImageView):
            return f"the middle {view.size} px of each image"
        lists = f"; {self.list_format}" if self.list_format else ""
        return (
            f"{view.segments} segment{'s' * (view.segments > 1)} of {view.frames} frames, one in {view.frame_step} of "
            f"the video's (of all of it, where it is shorter), at {view.size} px{lists}"
        )


def make_plan(context: EvaluationContext) -> ClassificationPlan:
    """The plan for the data set of an evaluation.

    Raises:
        TubeletError: if files are missing, the sizes do not fit the model, or frames are asked for of images.
    """
    benchmark: ClassificationDataset = context.dataset
    config, model = context.config, context.model
    protocol = benchmark.protocol
    size = context.native_size(protocol.image_size)
    if protocol.frames == 1:
        config.reject_unused(("frames",), f"{benchmark.name}")
        model.config.grid(1, size, size)
        train_view: View = ImageView(size=size)
        val_view = train_view
    else:
        frames = context.native_frames(protocol.frames)
        model.config.grid(frames, size, size)
        step, segments = protocol.frame_step, protocol.segments
        train_view = ClipView(size=size, frames=frames, frame_step=step, segments=segments)
        val_view = ClipView(size=size, frames=frames, frame_step=step, segments=segments, views=protocol.views)
    return ClassificationPlan(
        name=benchmark.name,
        classes=benchmark.classes,
        train=_split(benchmark.train, "train", config),
        val=_split(benchmark.test, "test", config),
        protocol=protocol,
        train_view=train_view,
        val_view=val_view,
        excluded=benchmark.excluded,
        list_format=benchmark.list_format,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How the heads of a protocol are trained, with the user's settings.

    Attributes:
        hparams: hyper-parameters of the heads that are trained side by side.
        epochs: passes over the training samples.
        batch_size: samples of a step.
        warmup_epochs: epochs in which the learning rate rises linearly from `start_lr`.
        start_lr: learning rate that the warm-up starts from.
        seed: seed of the initial weights and of the order.
    """

    hparams: list[HParams]
    epochs: int
    batch_size: int
    warmup_epochs: float = 0.0
    start_lr: float = 0.0
    seed: int = 0


def training_settings(protocol: ProbeProtocol, config: EvaluateConfig, samples: int) -> TrainingSettings:
    """The settings of a protocol, with those of the user.

    The published batches are for hundreds of thousands of samples: by default a set too small for 32 of them in an
    epoch is split into smaller ones, for heads that take a few dozen steps learn nothing.

    Args:
        protocol: as published.
        config: the user's settings.
        samples: number of training samples.
    """
    return TrainingSettings(
        hparams=hparam_grid(
            config.learning_rates or protocol.learning_rates, config.weight_decays or protocol.weight_decays
        ),
        epochs=config.epochs or protocol.epochs,
        batch_size=config.batch_size or min(protocol.batch_size, max(8, samples // 32)),
        warmup_epochs=protocol.warmup_epochs,
        start_lr=protocol.start_lr,
        seed=config.seed,
    )


def _split(files: list[LabeledFile], name: str, config: EvaluateConfig) -> SplitFiles:
    existing, missing = drop_missing_files(
        subsample_evenly(files, config.max_samples), name, config.max_failed_fraction
    )
    return SplitFiles(files=existing, missing=missing)
