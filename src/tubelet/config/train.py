"""A pre-training run.

The values of the published recipe (arXiv 2603.14482 and its release) are the defaults wherever a run is long enough for
them. What the recipe counts in steps is kept here as a share of the run, so that a run of 500 steps warms up and hands
over in the same proportions as one of 300,000.
"""

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal

import tyro

from tubelet.config.data import DataConfig, MaskConfig
from tubelet.config.fields import Count, Fraction, LearningRate, Samples, Seconds, Seed, Settings, require
from tubelet.config.model import ModelConfig, vit_ti
from tubelet.validation import Bounds

Precision = Literal["auto", "bf16", "fp32", "fp8"]
Parallel = Literal["auto", "ddp", "fsdp", "hsdp"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Settings):
    """AdamW, the teacher's averaging and the context loss, by share of the run."""

    lr: LearningRate = 6e-4
    """Peak learning rate."""
    start_lr: Annotated[float | None, Bounds(0, 1e6)] = None
    """Learning rate at the first step of the warm-up; None is a sixth of the peak (published: 1e-4 of 6e-4)."""
    final_lr: Annotated[float | None, Bounds(0, 1e6)] = None
    """Learning rate at the last step; None keeps the peak, as the published pre-training does."""
    decay: Literal["cosine", "linear"] = "cosine"
    """How the learning rate goes from its peak to its last value."""
    warmup_fraction: Fraction = 0.04
    """Fraction of the run in which the learning rate rises linearly (published: 12,000 of 300,000 steps)."""
    weight_decay: Annotated[float, Bounds(0, 1e6)] = 0.04
    """Decoupled weight decay; biases and 1-d parameters have none."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    eps: Annotated[float, Bounds(0, 1, exclusive=True)] = 1e-8
    """AdamW's denominator offset."""
    max_grad_norm: Annotated[float, Bounds(0, 1e9)] = 0.0
    """L2 norm of the whole gradient above which it is scaled down to this norm; 0 is off, as published."""
    ema: Fraction | None = None
    """The teacher's momentum at the first step; None is the published 0.99925, lowered where the run is too short."""
    final_ema: Fraction | None = None
    """The teacher's momentum at the last step, approached linearly; None keeps it constant."""
    context_weight: Annotated[float, Bounds(0, 1e6)] = 0.5
    """λ, the weight of the context loss after its warm-up."""
    context_warmup: tuple[Fraction, Fraction] = (0.05, 0.10)
    """Shares of the run between which λ rises from 0 (published: steps 15,000 to 30,000 of 300,000)."""
    distance_weighting: bool = True
    """Whether visible tokens count less in the context loss the farther they are from a hidden one (cool-down: no)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.warmup_fraction < 1,
            "warmup_fraction",
            f"is {self.warmup_fraction}, expected a share of the run below 1",
        )
        require(max(self.betas) < 1, "betas", f"are {self.betas}, expected two rates from 0 to below 1")
        first, last = self.context_warmup
        require(first <= last, "context_warmup", f"is {self.context_warmup}, expected two ascending shares of the run")


@dataclass(frozen=True, kw_only=True)
class GuardConfig(Settings):
    """When a run helps itself, and when it gives up."""

    max_skipped: Count = 10
    """Steps in a row that may be skipped for a loss or gradient that is not finite; with so many the run stops."""
    spike_factor: Annotated[float, Bounds(1, 1e9, exclusive=True, also=0)] = 0.0
    """A loss above this multiple of the median of the last 100 rewinds the run to its last checkpoint; 0 is off."""
    rewind_skip_batches: Count = 200
    """Batches skipped after a rewind, at least those since the checkpoint (PaLM, arXiv 2204.02311, section 5.1)."""
    data_timeout_s: Seconds = 300.0
    """Seconds that a step may wait for its data; then the run ends and names the file that is being read."""
    process_timeout_s: Seconds = 600.0
    """Seconds that a process may wait for another one; then the run ends and says which did not come."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """A whole pre-training run."""

    FORMAT_VERSION = 2
    RENAMED_IN_2 = MappingProxyType(
        {
            "accumulate": "grad_accum_steps",
            "distil_from": "distill_from",
            "distil_weights": "distill_weights",
            "data.allow_outside": "allow_path",
            "data.weights": "source_weights",
            "data.image_share": "image_fraction",
            "data.max_bad_share": "max_failed_fraction",
            "masks.group": "truncation_group_size",
            "optim.warmup_share": "warmup_fraction",
            "guards.spike_batches": "rewind_skip_batches",
        }
    )

    model: tyro.conf.Suppress[ModelConfig] = field(default_factory=vit_ti)
    """Sizes of the network; the command line names a preset instead."""
    data: DataConfig = field(default_factory=DataConfig)
    """What is read."""
    masks: tyro.conf.Suppress[MaskConfig] = field(default_factory=MaskConfig)
    """What is hidden from the student."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser, teacher average and loss weights."""
    guards: GuardConfig = field(default_factory=GuardConfig)
    """What is done about losses that are not finite, spikes and hangs."""
    steps: Count = 300_000
    """Optimiser steps."""
    batch_size: Samples = 24
    """Samples of one optimiser step, images and videos, over all processes."""
    grad_accum_steps: Samples = 1
    """Parts that each step's samples are processed in, to save memory."""
    parallel: Parallel = "auto"
    """How processes share the work: ddp has the model on each, fsdp in shards over all, hsdp in shards on each machine;
    auto is ddp unless what is trained needs more memory than a device has."""
    precision: Precision = "auto"
    """fp32 or bf16 autocast; auto is bf16 where the device has units for it (on a CPU, from a width of 384 on); fp8
    multiplies in 8 bits inside blocks."""
    init_from: str | None = None
    """Run folder, checkpoint, released .pt file or released name whose weights the run starts from, not random ones."""
    distill_from: tyro.conf.Suppress[str | None] = None
    """Frozen model whose last level is predicted instead of the run's own teacher's: whatever `tubelet.load` takes."""
    distill_weights: tyro.conf.Suppress[str | None] = None
    """Which weights those are; the run itself says."""
    lora_rank: Annotated[int, Bounds(0, 65_536)] = 0
    """Train low-rank adapters of this rank in the encoder's blocks, and leave its own weights as they are; 0 is off."""
    seed: Seed = 0
    """Seed of initial weights, data order, crops and masks."""
    compile: bool | None = None
    """Compile the blocks with torch.compile; None does so where the run is long enough to gain from it."""
    activation_checkpointing: bool = False
    """Recompute the blocks' activations in the backward pass instead of keeping them."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints; the last step always writes one."""
    keep_checkpoints: Count = 2
    """Checkpoints that are kept, the newest included."""
    monitor_every: Count = 100
    """Steps between looks at the features of teacher and predictor for collapse."""

    sinks: tuple[str, ...] = ("tensorboard",)
    """Where metrics are logged besides metrics.jsonl: tensorboard, wandb, mlflow, trackio."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.lora_rank == 0 or self.init_from is not None,
            "lora_rank",
            f"is {self.lora_rank}, which adapts trained weights: name them with init_from",
        )
