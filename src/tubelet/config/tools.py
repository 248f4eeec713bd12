"""Settings of embedding, evaluation and dry runs."""

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
"""Settings of training heads."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(Settings):
    """Settings of the clips of a collection and of their features."""

    image_size: Side = 224
    """Side of the center crop, in pixels."""
    frames: Frames = 16
    """Frames of a clip."""
    fps: Rate = 4.0
    """Frames per second of a clip; shorter videos are sampled at a higher rate, and counted."""
    stride_s: Seconds | None = None
    """Seconds from clip to clip of a video; None places clips end to end, spread evenly over the video."""
    dense: bool = False
    """Keep all tokens, not only their mean."""
    all_levels: bool = False
    """Keep all output levels, not only the deepest."""
    batch_size: Samples = 8
    """Clips per batch."""
    workers: Processes = 1
    """Decoding processes; 0 decodes in the encoding process."""
    prefetch_mb: Count = 2048
    """Maximum of prefetched clips in megabytes (10^6 bytes), at least one batch; fewer workers start if it holds less
    than a batch for each."""
    allow_path: tuple[str, ...] = ()
    """Folders and URLs, besides a manifest's own folder, that the manifest's files may lie in."""
    max_failed_fraction: Fraction = 0.05
    """Fraction of the files that may be unreadable before the command stops."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_clip(self.frames, self.image_size)


@dataclass(frozen=True, kw_only=True)
class PlanConfig(Settings):
    """A dry run: the plan of a training run on devices that need not exist."""

    dry_run: bool = False
    """Print memory and time of a step on the devices below instead of training."""
    devices: Annotated[int, Bounds(1, 10**7)] = 1
    """Devices of the planned run."""
    device_kind: Literal["b200", "h200", "h100", "a100", "cpu"] = "h100"
    """Kind of the planned devices."""
    devices_per_node: Annotated[int, Bounds(1, 10**7)] = 8
    """Devices of the planned run per node."""
    mfu: Annotated[float, Bounds(0, 1, exclusive=True)] = 0.4
    """Model FLOPs utilization: expected fraction of a device's data-sheet rate."""
    link_efficiency: Annotated[float, Bounds(0, 1, exclusive=True)] = 0.7
    """Expected fraction of a link's data-sheet bandwidth."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """Settings of an evaluation that override the benchmark's protocol."""

    image_size: Side | None = None
    """Side of a view in pixels; None is the protocol's."""
    frames: Frames | None = None
    """Frames of a clip; None is the protocol's."""
    max_samples: Count | None = None
    """Maximum number of files per split, spread evenly; None uses all."""
    epochs: Count | None = None
    """Epochs of head training; None is the protocol's."""
    batch_size: Samples | None = None
    """Samples per optimizer step of head training; None is the protocol's."""
    learning_rates: tuple[LearningRate, ...] = ()
    """Peak learning rates of the heads, which are trained in parallel; the protocol's by default."""
    weight_decays: tuple[Annotated[float, Bounds(0, 1e6)], ...] = ()
    """Weight decays, each combined with every learning rate; the protocol's by default."""
    seed: Seed = 0
    """Seed of initial weights and of sampling."""
    workers: Processes = 1
    """Decoding processes; 0 decodes in the encoding process."""
    prefetch_mb: Count = 2048
    """Maximum of prefetched clips in megabytes (10^6 bytes), at least those of one file; fewer workers start if it
    holds less than a file for each."""
    max_failed_fraction: Fraction = 0.0
    """Fraction of a split's files that may be unreadable; they are skipped, counted and listed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_clip(self.frames or 1, self.image_size or 1)

    def reject_unused(self, names: Collection[str], task: str) -> None:
        """Reject settings that a task does not use.

        Raises:
            SettingError: if one of them is set.
        """
        for name in names:
            value = getattr(self, name)
            require(not value, name, f"is {value}, but is not supported by {task}; remove it")
