"""Settings of fitting a head to labels."""

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
from tubelet.value_checks import Bounds

LabelTaskName = Literal["classification", "multilabel", "regression", "timeline", "segmentation", "depth"]

FINETUNE_SETTINGS = {
    "finetune_lr": ("lora", "full"),
    "finetune_epochs": ("lora", "full"),
    "finetune_batch_size": ("lora", "full"),
    "lora_rank": ("lora",),
    "layer_decay": ("full",),
    "activation_checkpointing": ("lora", "full"),
    "crop_scale": ("lora", "full"),
    "flip": ("lora", "full"),
}
"""Setting -> values of `finetune` that use it; others refuse it."""


@dataclass(frozen=True, kw_only=True)
class FitConfig(Settings):
    """Settings of fitting a head to labels."""

    task: LabelTaskName | None = None
    """What is learned; None infers it from the columns of the label table."""
    networks: tuple[str, ...] = ()
    """Networks of the heads that are tried: linear, mlp, attentive and knn for classification, multilabel and
    regression (by default all but mlp); temporal and correlation for timelines (by default both)."""
    image_size: Side | None = None
    """Side of the center crop, in pixels; None is the size that the encoder was trained with."""
    frames: Frames | None = None
    """Frames of a clip; None is that of the encoder's training."""
    fps: Rate | None = None
    """Frames per second of a clip; None is that of the encoder's training."""
    stride_s: Seconds | None = None
    """Seconds from clip to clip when a video is covered; None is a clip's length, and half of it for timelines."""
    levels: tuple[Annotated[int, Bounds(-64, 63)], ...] = (-1,)
    """Output levels whose channels a head sees; -1 is the deepest."""
    causal: bool = False
    """Whether the head answers from frames up to a time only: clips end with the time step or span that they are
    about, and networks over time see earlier time steps only. `tubelet predict` then needs causal too."""
    epochs: Count | None = None
    """Epochs of head training; None is the task's. A few give a first impression in a fraction of the time."""
    batch_size: Samples | None = None
    """Samples per optimizer step; None is the task's."""
    learning_rates: tuple[LearningRate, ...] = ()
    """Peak learning rates of the heads that are trained side by side; the task's by default."""
    weight_decays: tuple[Annotated[float, Bounds(0, 1e6)], ...] = ()
    """Weight decays, each combined with every learning rate; the task's by default."""
    held_out_fraction: Annotated[float, Bounds(0, 0.5, exclusive=True)] = 0.2
    """Fraction of the files, or groups, that are held out where the table has no split."""
    folds: Annotated[int, Bounds(2, 20)] | None = None
    """Folds of cross-validation; None uses 5 where a class has fewer than 10 held-out files, otherwise one split. The
    time of a fit is proportional to them; a column split in the table gives one split."""
    finetune: Literal["none", "lora", "full"] = "none"
    """Whether the encoder is trained too: not at all, by low-rank adapters, or all of its weights."""
    finetune_lr: LearningRate | None = None
    """Peak learning rate where the encoder is trained too; None is 1e-3 for lora and 3e-4 for full."""
    finetune_epochs: Count | None = None
    """Passes over the training clips where the encoder is trained too; None is 20."""
    finetune_batch_size: Samples | None = None
    """Clips per optimizer step where the encoder is trained too; None is 16."""
    lora_rank: Annotated[int, Bounds(1, 65_536)] | None = None
    """Rank of the adapters of lora; None is 8."""
    layer_decay: Annotated[float, Bounds(0, 1, exclusive=True)] | None = None
    """Ratio of the learning rate of a block to that of the block after it, for full; 1 trains all alike. None is
    0.75."""
    activation_checkpointing: bool | None = None
    """Whether the activations of the encoder's blocks are recomputed in the backward pass to save memory; None does so
    where they would take more than half of the free memory."""
    crop_scale: tuple[Fraction, Fraction] | None = None
    """Range of the area of random crops where the encoder is trained too, as a fraction of the frame; None is 0.5
    to 1."""
    flip: bool = False
    """Whether clips are flipped horizontally with probability 0.5 where the encoder is trained too. It is off because a
    flip swaps left and right: only labels that mean the same in a mirror allow it."""
    suggest: Annotated[int, Bounds(0, 100_000)] = 0
    """Number of unlabeled clips to suggest for labeling next, in a table next to the head."""
    unlabeled: tuple[str, ...] = ()
    """Folders, files and lists of media to suggest clips of; by default the folders of the labeled files."""
    min_examples: Count = 2
    """Fewest examples of each class."""
    seed: Seed = 0
    """Seed of initial weights, of sampling, and of the split."""
    workers: Processes = 1
    """Decoding processes; 0 decodes in the encoding process."""
    prefetch_mb: Count = 2048
    """Maximum of prefetched clips in megabytes (10^6 bytes), at least those of one file."""
    max_failed_fraction: Fraction = 0.0
    """Fraction of the files that may be unreadable; they are skipped, counted and listed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_clip(self.frames or 1, self.image_size or 1)
        require(bool(self.levels), "levels", "is empty, expected at least one output level, such as -1")
        low, high = self.crop_scale or (1, 1)
        require(
            0 < low <= high,
            "crop_scale",
            f"is {self.crop_scale}, expected two ascending fractions of the frame above 0",
        )
        for name, modes in FINETUNE_SETTINGS.items():
            value = getattr(self, name)
            require(
                self.finetune in modes or value == getattr(type(self), name),
                name,
                f"is {value}, which requires finetune {' or '.join(modes)}, found {self.finetune}",
            )

    def reject_unused(self, names: Collection[str], task: str) -> None:
        """Reject settings that a task does not use.

        Raises:
            SettingError: if one of them is set.
        """
        for name in names:
            value = getattr(self, name)
            require(value == getattr(type(self), name), name, f"is {value}, but is not supported by {task}; remove it")
