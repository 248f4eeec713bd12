"""The settings of `tubelet evaluate`."""

from collections.abc import Collection
from dataclasses import dataclass

from tubelet.config import require

HEAD_SETTINGS = ("epochs", "batch_size", "learning_rates", "weight_decays")
"""Settings of the training of a head."""


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
    """Weight decays, each of which goes with each learning rate; none is the protocol's."""
    seed: int = 0
    """Seed of initial weights and of all choices."""
    workers: int = 1
    """Decoding processes; 0 decodes in the process that encodes."""
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
        require(0 <= self.max_bad_share <= 1, f"max_bad_share is {self.max_bad_share}, expected a share from 0 to 1")

    def refuse(self, names: Collection[str], task: str) -> None:
        """Refuse settings that a task has no use for, rather than let a user think that they did something.

        Raises:
            TubeletError: if one of them was set.
        """
        for name in names:
            value = getattr(self, name)
            require(not value, f"{name} is {value}, but {task} has no use for it: leave it out")
