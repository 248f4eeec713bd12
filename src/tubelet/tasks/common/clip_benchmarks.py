"""The classification benchmarks: how each is recognised, read, cut and trained on, and what its files become.

The values are those of V-JEPA 2's published configurations (arXiv 2506.09985, appendix, and its release). What differs,
because features are computed once: training views are not augmented anew each epoch.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tubelet.config import EvaluateConfig
from tubelet.datasets import diving48, imagenet, kinetics, ssv2
from tubelet.datasets.labelled import ClassificationDataset, LabeledFile, present
from tubelet.datasets.locate import refuse
from tubelet.errors import BadFile
from tubelet.heads.training import Candidate, Schedule, grid
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.clip_transforms import ClipView, ImageView, View
from tubelet.tasks.common.extract import Source, spread


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How an attentive probe is trained and tested on a benchmark.

    Attributes:
        image_size: side of a view in pixels.
        frames: of a segment; 1 is an image.
        frame_step: frames of the video from one frame of a segment to the next.
        segments: of a video, which the probe sees together.
        views: squares along the long side, over which the answers of a test file are averaged.
        epochs, batch_size: of the probe's training.
        learning_rates, weight_decays: of the probes trained side by side, each with each.
        warmup_epochs, start_lr: of the learning rate.
    """

    image_size: int = 256
    frames: int = 16
    frame_step: int = 4
    segments: int = 1
    views: int = 1
    epochs: int = 20
    batch_size: int = 256
    learning_rates: tuple[float, ...] = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
    weight_decays: tuple[float, ...] = (0.01, 0.1, 0.4, 0.8)
    warmup_epochs: float = 0.0
    start_lr: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One benchmark.

    Attributes:
        recognise: whether a folder looks like it.
        read: its lists.
        protocol: as published.
    """

    recognise: Callable[[Path], bool]
    read: Callable[[Path], ClassificationDataset]
    protocol: Protocol


BENCHMARKS = (
    Benchmark(recognise=ssv2.recognise, read=ssv2.read, protocol=Protocol(segments=2, views=3)),
    Benchmark(
        recognise=diving48.recognise,
        read=diving48.read,
        protocol=Protocol(
            frames=32,
            frame_step=2,
            segments=4,
            views=3,
            epochs=100,
            batch_size=128,
            learning_rates=(1e-3, 3e-4, 1e-4),
            weight_decays=(0.8,),
        ),
    ),
    Benchmark(recognise=kinetics.recognise, read=kinetics.read, protocol=Protocol(segments=8, views=3)),
    Benchmark(
        recognise=imagenet.recognise,
        read=imagenet.read,
        protocol=Protocol(
            frames=1,
            batch_size=1024,
            learning_rates=(5e-4, 1e-3, 1.5e-3, 2e-3),
            weight_decays=(5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
            warmup_epochs=5,
            start_lr=2e-4,
        ),
    ),
)


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
    protocol: Protocol
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
    found = next((benchmark for benchmark in BENCHMARKS if benchmark.recognise(data)), None)
    if found is None:
        raise refuse(
            data,
            "no benchmark of classification is recognised",
            f"Something-Something v2 ({ssv2.VIDEOS}/ and labels/), Kinetics (annotations/train.csv and val.csv, or "
            f"train.csv and val.csv), Diving-48 ({diving48.TRAIN}) or ImageNet (train/CLASS/ and val/CLASS/)",
        )
    protocol, benchmark = found.protocol, found.read(data)
    size = config.image_size or protocol.image_size
    if protocol.frames == 1:
        config.refuse(("frames",), f"{benchmark.name}, which holds images,")
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
        val=_split(benchmark.val, "test", config),
        protocol=protocol,
        train_view=train_view,
        val_view=val_view,
        left_out=benchmark.left_out,
        read_as=benchmark.read_as,
    )


def training(protocol: Protocol, config: EvaluateConfig, count: int) -> tuple[list[Candidate], Schedule]:
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
    there, gone = present(spread(files, config.max_samples), name, config.max_failed_fraction)
    return Split(files=there, gone=gone)
