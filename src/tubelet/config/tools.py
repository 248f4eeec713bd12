"""The settings of what is done with a trained model."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Literal

from tubelet.config.fields import (
    Count,
    Fraction,
    Frames,
    LearningRate,
    Processes,
    Rate,
    Samples,
    Seconds,
    Seed,
    Settings,
    Side,
    require,
    require_clip,
)
from tubelet.validation import Bounds

HEAD_SETTINGS = ("epochs", "batch_size", "learning_rates", "weight_decays")
"""Settings of the training of a head."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(Settings):
    """Which clips of a collection are embedded, and what is kept of their features."""

    image_size: Side = 224
    """Side of the middle square that is seen, in pixels."""
    frames: Frames = 16
    """Frames of a clip."""
    fps: Rate = 4.0
    """Frames per second of a clip; a video too short for it is read at a higher rate, and counted."""
    stride_s: Seconds | None = None
    """Seconds from clip to clip of a video; None puts them end to end, spread evenly over the video."""
    dense: bool = False
    """Keep all tokens, not their mean alone."""
    levels: bool = False
    """Keep all tapped levels, not the deepest alone."""
    batch_size: Samples = 8
    """Clips that are encoded at once."""
    workers: Processes = 1
    """Decoding processes; 0 decodes in the process that encodes."""
    prefetch_mb: Count = 2048
    """Megabytes (10^6 bytes) of decoded clips that are waiting at most, but one batch always; where they do not hold
    one for each worker, fewer workers start."""
    allow_path: tuple[str, ...] = ()
    """Folders and URLs that manifests may name files of, besides those below a manifest's own folder."""
    max_failed_fraction: Fraction = 0.05
    """Fraction of the files that may be unreadable before the command stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_clip(self.frames, self.image_size)


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Settings):
    """A dry run of a training run, on devices that need not be there."""

    dry_run: bool = False
    """Print what a step would take on the devices named below, and train nothing."""
    devices: Annotated[int, Bounds(1, 10**7)] = 1
    """Devices of the planned run."""
    device_kind: Literal["b200", "h200", "h100", "a100", "cpu"] = "h100"
    """Kind of the planned devices."""
    devices_per_node: Annotated[int, Bounds(1, 10**7)] = 8
    """Devices of the planned run that share a machine."""
    mfu: Annotated[float, Bounds(0, 1, exclusive=True)] = 0.4
    """Fraction of a device's data-sheet rate that matrix products are expected to reach."""
    link_efficiency: Annotated[float, Bounds(0, 1, exclusive=True)] = 0.7
    """Fraction of a link's data-sheet rate that communication is expected to reach."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """How an encoder is evaluated on a benchmark, as far as the benchmark's protocol leaves it open."""

    image_size: Side | None = None
    """Pixels along the side of a view; None is the protocol's."""
    frames: Frames | None = None
    """Frames of a clip; None is the protocol's."""
    max_samples: Count | None = None
    """Files of each split that are used at most, for a quick look; None is all."""
    epochs: Count | None = None
    """Passes over the training features, where a head is trained; None is the protocol's."""
    batch_size: Samples | None = None
    """Samples of an optimiser step, where a head is trained; None is the protocol's."""
    learning_rates: tuple[LearningRate, ...] = ()
    """Peak learning rates of the heads that are trained side by side; none is the protocol's."""
    weight_decays: tuple[Annotated[float, Bounds(0, 1e6)], ...] = ()
    """Weight decays, each combined with every learning rate; none is the protocol's."""
    seed: Seed = 0
    """Seed of initial weights and of all choices."""
    workers: Processes = 1
    """Decoding processes; 0 decodes in the process that encodes."""
    prefetch_mb: Count = 2048
    """Megabytes (10^6 bytes) of decoded clips that are waiting at most, but one file's always; where they do not hold
    one for each worker, fewer workers start."""
    max_failed_fraction: Fraction = 0.0
    """Fraction of a split's files that may be unreadable; they are then left out, counted and listed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_clip(self.frames or 1, self.image_size or 1)

    def refuse(self, names: Collection[str], task: str) -> None:
        """Refuse settings that a task has no use for, rather than let a user think that they did something.

        Raises:
            TubeletError: if one of them was set.
        """
        for name in names:
            value = getattr(self, name)
            require(not value, name, f"is {value}, but {task} has no use for it: leave it out")
