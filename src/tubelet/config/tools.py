"""The settings of what is done with a trained model."""

from collections.abc import Collection
from dataclasses import dataclass
from math import inf
from typing import Literal

from tubelet.config.fields import require

HEAD_SETTINGS = ("epochs", "batch_size", "learning_rates", "weight_decays")
"""Settings of the training of a head."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """Which clips of a collection are embedded, and what is kept of their features."""

    image_size: int = 224
    """Side of the middle square that is seen, in pixels."""
    frames: int = 16
    """Frames of a clip."""
    fps: float = 4.0
    """Frames per second of a clip; a video too short for it is read at a higher rate, and counted."""
    stride_s: float | None = None
    """Seconds from clip to clip of a video; None puts them end to end, spread evenly over the video."""
    dense: bool = False
    """Keep all tokens, not their mean alone."""
    levels: bool = False
    """Keep all tapped levels, not the deepest alone."""
    batch_size: int = 8
    """Clips that are encoded at once."""
    workers: int = 1
    """Decoding processes; 0 decodes in the process that encodes."""
    prefetch_mb: int = 2048
    """Megabytes (10^6 bytes) of decoded clips that are waiting at most, but one batch always; where they do not hold
    one for each worker, fewer workers start."""
    allow_outside: tuple[str, ...] = ()
    """Folders and URLs that manifests may name files of, besides those below a manifest's own folder."""
    max_bad_share: float = 0.05
    """Share of the files that may be unreadable before the command stops."""

    def __post_init__(self) -> None:
        require(0 < self.fps < inf, f"fps is {self.fps}, expected a positive rate")
        require(
            self.stride_s is None or 0 < self.stride_s < inf, f"stride_s is {self.stride_s}, expected seconds above 0"
        )
        for name in ("image_size", "frames", "batch_size"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        require(self.workers >= 0, f"workers is {self.workers}, expected 0 or more processes")
        require(self.prefetch_mb >= 1, f"prefetch_mb is {self.prefetch_mb}, expected at least 1 megabyte")
        require(0 <= self.max_bad_share <= 1, f"max_bad_share is {self.max_bad_share}, expected a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """A dry run of a training run, on devices that need not be there."""

    plan: bool = False
    """Print what a step would take on the devices named below, and train nothing."""
    devices: int = 1
    """Devices of the planned run."""
    device_kind: Literal["b200", "h200", "h100", "a100", "cpu"] = "h100"
    """Kind of the planned devices."""
    devices_per_machine: int = 8
    """Devices of the planned run that share a machine."""
    utilisation: float = 0.4
    """Share of a device's data-sheet rate that matrix products are expected to reach."""
    link_share: float = 0.7
    """Share of a link's data-sheet rate that communication is expected to reach."""

    def __post_init__(self) -> None:
        for name in ("devices", "devices_per_machine"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("utilisation", "link_share"):
            require(
                0 < getattr(self, name) <= 1, f"{name} is {getattr(self, name)}, expected a share above 0, at most 1"
            )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How an encoder is evaluated on a benchmark, as far as the benchmark's protocol leaves it open."""

    image_size: int | None = None
    """Pixels along the side of a view; None is the protocol's."""
    frames: int | None = None
    """Frames of a clip; None is the protocol's."""
    limit: int | None = None
    """Files of each split that are used at most, for a quick look; None is all."""
    epochs: int | None = None
    """Passes over the training features, where a head is trained; None is the protocol's."""
    batch_size: int | None = None
    """Samples of an optimiser step, where a head is trained; None is the protocol's."""
    learning_rates: tuple[float, ...] = ()
    """Peak learning rates of the heads that are trained side by side; none is the protocol's."""
    weight_decays: tuple[float, ...] = ()
    """Weight decays, each combined with every learning rate; none is the protocol's."""
    seed: int = 0
    """Seed of initial weights and of all choices."""
    workers: int = 1
    """Decoding processes; 0 decodes in the process that encodes."""
    prefetch_mb: int = 2048
    """Megabytes (10^6 bytes) of decoded clips that are waiting at most, but one file's always; where they do not hold
    one for each worker, fewer workers start."""
    max_bad_share: float = 0.0
    """Share of a split's files that may be unreadable; they are then left out, counted and listed."""

    def __post_init__(self) -> None:
        for name in ("image_size", "frames", "limit", "epochs", "batch_size"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} is {value}, expected at least 1")
        require(
            all(lr > 0 for lr in self.learning_rates), f"learning_rates are {self.learning_rates}, expected above 0"
        )
        require(
            all(wd >= 0 for wd in self.weight_decays), f"weight_decays are {self.weight_decays}, expected 0 or more"
        )
        require(self.workers >= 0, f"workers is {self.workers}, expected 0 or more processes")
        require(self.prefetch_mb >= 1, f"prefetch_mb is {self.prefetch_mb}, expected at least 1 megabyte")
        require(0 <= self.max_bad_share <= 1, f"max_bad_share is {self.max_bad_share}, expected a share from 0 to 1")

    def refuse(self, names: Collection[str], task: str) -> None:
        """Refuse settings that a task has no use for, rather than let a user think that they did something.

        Raises:
            TubeletError: if one of them was set.
        """
        for name in names:
            value = getattr(self, name)
            require(not value, f"{name} is {value}, but {task} has no use for it: leave it out")
