"""Settings of evaluations."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from tubelet.config.fields import (
    Count,
    Fraction,
    Frames,
    LearningRate,
    Processes,
    Samples,
    Seed,
    Settings,
    Side,
    require,
    require_clip,
)
from tubelet.value_checks import Bounds

HEAD_SETTINGS = ("epochs", "batch_size", "learning_rates", "weight_decays")
"""Settings of training heads."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(Settings):
    """Settings of an evaluation that override the benchmark's protocol."""

    image_size: Side | None = None
    """Side of a view in pixels; None is the model's own, and for dense tasks the protocol's unless a run's is less."""
    frames: Frames | None = None
    """Frames of a clip; None is the protocol's, or a run's own if that is less."""
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
