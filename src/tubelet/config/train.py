"""Settings of a training run.

Defaults are the values of the published recipe (arXiv 2603.14482 and its release). What the recipe counts in steps is a
fraction of the run here, so that the schedules of a run of 500 steps have the proportions of one of 300,000.
"""

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Literal

import tyro

from tubelet.config.data import DataConfig, MaskConfig
from tubelet.config.fields import Count, Fraction, LearningRate, PathText, Samples, Seconds, Seed, Settings, require
from tubelet.config.model import ModelConfig, vit_ti
from tubelet.value_checks import LARGEST_INT, Bounds

Precision = Literal["auto", "bf16", "fp32", "fp8"]
Parallel = Literal["auto", "ddp", "fsdp", "hsdp"]


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Settings):
    """Settings of AdamW, the teacher's EMA and the context loss; schedules are in fractions of the run."""

    lr: LearningRate = 6e-4
    """Peak learning rate."""
    start_lr: Annotated[float | None, Bounds(0, 1e6)] = None
    """Learning rate at the first step of the warm-up; None is a sixth of the peak (published: 1e-4 of 6e-4)."""
    final_lr: Annotated[float | None, Bounds(0, 1e6)] = None
    """Learning rate at the last step; None keeps the peak, as the published pre-training does."""
    decay: Literal["cosine", "linear"] = "cosine"
    """Shape of the decay from the peak to the final learning rate."""
    warmup_fraction: Fraction = 0.04
    """Fraction of the run with a linear warm-up of the learning rate (published: 12,000 of 300,000 steps)."""
    weight_decay: Annotated[float, Bounds(0, 1e6)] = 0.04
    """Decoupled weight decay; biases and 1-d parameters have none."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    eps: Annotated[float, Bounds(0, 1, exclusive=True)] = 1e-8
    """AdamW's denominator offset."""
    max_grad_norm: Annotated[float, Bounds(0, 1e9)] = 0.0
    """L2 norm of the whole gradient above which it is scaled down to this norm; 0 is off, as published."""
    ema: Fraction | None = None
    """EMA momentum of the teacher at the first step; None is the published 0.99925, less for short runs."""
    final_ema: Fraction | None = None
    """EMA momentum of the teacher at the last step, approached linearly; None keeps it constant."""
    context_weight: Annotated[float, Bounds(0, 1e6)] = 0.5
    """λ, the weight of the context loss after its warm-up."""
    context_warmup: tuple[Fraction, Fraction] = (0.05, 0.10)
    """Fractions of the run between which λ rises from 0 (published: steps 15,000 to 30,000 of 300,000)."""
    distance_weighting: bool = True
    """Whether the context loss weighs a token by 1 / sqrt(distance to the nearest target) (cool-down: no)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.warmup_fraction < 1,
            "warmup_fraction",
            f"is {self.warmup_fraction}, expected a fraction of the run below 1",
        )
        require(max(self.betas) < 1, "betas", f"are {self.betas}, expected two rates from 0 to below 1")
        first, last = self.context_warmup
        require(
            first <= last, "context_warmup", f"is {self.context_warmup}, expected two ascending fractions of the run"
        )


@dataclass(frozen=True, kw_only=True)
class GuardConfig(Settings):
    """Fault-tolerance thresholds."""

    max_skipped: Count = 10
    """Consecutive steps skipped for a non-finite loss or gradient after which the run stops."""
    spike_factor: Annotated[float, Bounds(1, 1e9, exclusive=True, also=0)] = 0.0
    """Loss spike threshold, as a multiple of the median of the last 100 losses; a spike rewinds to the last checkpoint.
    0 is off."""
    rewind_skip_batches: Count = 200
    """Batches skipped after a rewind, at least those since the checkpoint (PaLM, arXiv 2204.02311, section 5.1)."""
    data_timeout_s: Seconds = 300.0
    """Maximum seconds to wait for the data of a step; then the run ends and names the file that is being read."""
    process_timeout_s: Seconds = 600.0
    """Maximum seconds to wait for another process; then the run ends and names the missing ranks."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Settings of a training run."""

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
    """Architecture; the command line names a preset instead."""
    data: DataConfig = field(default_factory=DataConfig)
    """Sources and clips."""
    masks: tyro.conf.Suppress[MaskConfig] = field(default_factory=MaskConfig)
    """Masks of the student's input."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer, teacher EMA and loss weights."""
    guards: GuardConfig = field(default_factory=GuardConfig)
    """Thresholds for non-finite losses, loss spikes and hangs."""
    steps: Count = 300_000
    """Optimizer steps."""
    batch_size: Samples = 24
    """Samples per optimizer step, images and videos, over all processes."""
    grad_accum_steps: Samples = 1
    """Gradient accumulation: micro-batches per optimizer step, to save memory."""
    parallel: Parallel = "auto"
    """Parallelism: ddp replicates the model, fsdp shards it over all processes, hsdp shards it within each node; auto
    is ddp unless the training state needs more memory than a device has."""
    precision: Precision = "auto"
    """fp32 or bf16 autocast; auto is bf16 if the device supports it in hardware (on a CPU, from a width of 384); fp8
    additionally multiplies in 8 bits inside the blocks."""
    init_from: PathText | None = None
    """Run directory, checkpoint, released .pt file or released name of the initial weights; None is random weights."""
    distill_from: tyro.conf.Suppress[PathText | None] = None
    """Frozen model that replaces the EMA teacher in distillation; anything that `tubelet.load` takes."""
    distill_weights: tyro.conf.Suppress[str | None] = None
    """Identifier of the weights of `distill_from`; set by the run itself."""
    lora_rank: Annotated[int, Bounds(0, 65_536)] = 0
    """Rank of low-rank adapters in the encoder's blocks, which are trained instead of its weights; 0 is off."""
    seed: Seed = 0
    """Seed of initial weights, data order, crops and masks."""
    compile: bool | None = None
    """Compile the blocks with torch.compile; None compiles runs that are long enough to gain from it."""
    deterministic: bool = False
    """Use deterministic algorithms only, so that on CUDA, too, a resumed run has the same losses bit by bit as one that
    never stopped; slower."""
    activation_checkpointing: bool = False
    """Recompute the blocks' activations in the backward pass to save memory."""
    pack_masks: bool | None = None
    """Run all masks of a step, of videos and images, in one forward and backward pass, which takes fewer kernels and
    more memory than one pass after the other; None does so on CUDA where memory suffices, elsewhere in small steps."""
    checkpoint_every: Count = 1000
    """Steps between checkpoints; the last step always saves one."""
    keep_checkpoints: Count = 2
    """Number of checkpoints to keep, the newest included."""
    keep_every: Annotated[int, Bounds(0, LARGEST_INT)] = 0
    """Steps between checkpoints that are never removed; 0 is none."""
    monitor_every: Count = 100
    """Steps between checks of the features of teacher and predictor for collapse."""
    eval_every: Annotated[int, Bounds(0, LARGEST_INT)] = 0
    """Steps between evaluations of the teacher on eval_data, whose metrics are logged; 0 is never. Each evaluation has
    to end within process_timeout_s where several processes train."""
    eval_data: PathText | None = None
    """A folder that `tubelet sample-data` wrote, on which the teacher is evaluated."""
    best_metric: str = "eval_segmentation"
    """Metric by which the checkpoint in best.json is chosen, which is kept in addition to the newest ones:
    eval_segmentation, eval_depth, eval_camera_motion or eval_tracking."""
    sinks: tuple[str, ...] = ("tensorboard",)
    """Where metrics are logged besides metrics.jsonl: tensorboard, wandb, mlflow, trackio."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.lora_rank == 0 or self.init_from is not None,
            "lora_rank",
            f"is {self.lora_rank}, which requires init_from (the checkpoint to adapt)",
        )
        require(
            self.eval_every == 0 or self.eval_data is not None,
            "eval_every",
            f"is {self.eval_every}, which requires eval_data (a sample data set)",
        )
