"""The classification benchmarks: how each is recognised, read, cut and trained on, and what its files become.

The values are those of V-JEPA 2's published configurations (arXiv 2506.09985, appendix, and its release). What differs,
because features are computed once: training views are not augmented anew each epoch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tubelet import datasets
from tubelet.config import EvaluateConfig
from tubelet.datasets import ClassificationDataset, LabeledFile, ProbeProtocol
from tubelet.datasets.records import drop_missing_files
from tubelet.errors import BadFile
from tubelet.heads.training import Candidate, Schedule, grid
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.clip_transforms import ClipView, ImageView, View
from tubelet.tasks.common.extract import Source, spread


@dataclass(frozen=True, kw_only=True)
class Split:
    """The files of a split that are used.

    Attributes:
        files: in their order.
        gone: listed, but not on the disk.
    """

    files: list[LabeledFile]
    gone: list[BadFile]

    @property
    def sources(self) -> list[Source]:
        """What is extracted."""
        return [Source(files=(file.path,)) for file in self.files]

    def labels(self, numbers: list[int]) -> Tensor:
        """(n, 1) int64 classes of the files with these numbers."""
        return torch.tensor([[self.files[number].label] for number in numbers])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A benchmark in a folder, and how it is cut with the settings that were given.

    Attributes:
        name: of the benchmark.
        classes: names, by index.
        train, val: the files.
        protocol: with what the settings change.
        train_view, val_view: how the files are cut.
        left_out: reason -> how many files of the folder are in neither split.
        read_as: how lists were read, in words, where that was decided by what they hold.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    val: Split
    protocol: ProbeProtocol
    train_view: View
    val_view: View
    left_out: Mapping[str, int]
    read_as: str

    def cut_in_words(self) -> str:
        """How files are cut, in words."""
        view = self.val_view
        if isinstance(view, ImageView):
            return f"the middle {view.size} px of each image"
        lists = f"; {self.read_as}" if self.read_as else ""
        return (
            f"{view.segments} segment{'s' * (view.segments > 1)} of {view.frames} frames, one in {view.frame_step} of "
            f"the video's (of all of it, where it is shorter), at {view.size} px{lists}"
        )


def plan(model: Backbone, data: Path, config: EvaluateConfig) -> Plan:
    """Read the benchmark that lies in a folder.

    Raises:
        TubeletError: if it is none, its files are wrong or missing, the sizes do not fit the model, or frames are
            asked for of images.
    """
    benchmark = datasets.find(data, ClassificationDataset)
    protocol = benchmark.protocol
    size = config.image_size or protocol.image_size
    if protocol.frames == 1:
        config.reject_unused(("frames",), f"{benchmark.name}, which holds images,")
        model.config.grid(1, size, size)
        train_view: View = ImageView(size=size)
        val_view = train_view
    else:
        frames = config.frames or protocol.frames
        model.config.grid(frames, size, size)
        step, segments = protocol.frame_step, protocol.segments
        train_view = ClipView(size=size, frames=frames, frame_step=step, segments=segments)
        val_view = ClipView(size=size, frames=frames, frame_step=step, segments=segments, views=protocol.views)
    return Plan(
        name=benchmark.name,
        classes=benchmark.classes,
        train=_split(benchmark.train, "train", config),
        val=_split(benchmark.test, "test", config),
        protocol=protocol,
        train_view=train_view,
        val_view=val_view,
        left_out=benchmark.excluded,
        read_as=benchmark.list_format,
    )


def training(protocol: ProbeProtocol, config: EvaluateConfig, count: int) -> tuple[list[Candidate], Schedule]:
    """What the heads of a protocol are trained with, with the settings that were given.

    The published batches are for hundreds of thousands of samples: by default, a set too small for 32 of them in an
    epoch is cut into smaller ones, for heads that take a few dozen steps learn nothing.

    Args:
        protocol: as published.
        config: what was given.
        count: training samples.
    """
    candidates = grid(config.learning_rates or protocol.learning_rates, config.weight_decays or protocol.weight_decays)
    schedule = Schedule(
        epochs=config.epochs or protocol.epochs,
        batch_size=config.batch_size or min(protocol.batch_size, max(8, count // 32)),
        warmup_epochs=protocol.warmup_epochs,
        start_lr=protocol.start_lr,
        seed=config.seed,
    )
    return candidates, schedule


def _split(files: list[LabeledFile], name: str, config: EvaluateConfig) -> Split:
    there, gone = drop_missing_files(spread(files, config.max_samples), name, config.max_failed_fraction)
    return Split(files=there, gone=gone)
