"""Every setting of the package: frozen dataclasses, each field documented with its unit; presets are functions.

The values of the published recipe (arXiv 2603.14482 and its release) are the defaults wherever a run is long enough for
them. What the recipe counts in steps is kept here as a share of the run, so that a run of 500 steps warms up and hands
over in the same proportions as one of 300,000.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_type_hints

import tyro

from tubelet.types import Grid, TubeletError

Precision = Literal["auto", "bf16", "fp32", "fp8"]
RopeVersion = Literal["2.1", "2.0"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise TubeletError(message)


@dataclass(frozen=True, kw_only=True)
class PredictorConfig:
    """The narrow ViT that predicts the teacher's levels from the student's context tokens."""

    width: int = 384
    """Channels of a predictor token."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Hidden channels of a block's MLP over its width."""
    mask_tokens: int = 2
    """Number of learnable mask tokens; training uses the first."""
    rescale_rope: bool = True
    """Whether row and column positions are rescaled to the pre-training grid (the distilled releases do not)."""
    output_width: int | None = None
    """Channels of one prediction, all levels together; None is the encoder's width times its output levels."""

    def __post_init__(self) -> None:
        _require(
            self.width % self.heads == 0 and (self.width // self.heads) % 2 == 0,
            f"predictor width {self.width} does not split into {self.heads} heads of even size: "
            "choose a width that is a multiple of 2 x heads",
        )
        _require(self.depth >= 1, f"predictor depth is {self.depth}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of encoder and predictor."""

    width: int
    """D, channels of an encoder token."""
    depth: int
    """Number of encoder blocks."""
    heads: int
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Hidden channels of a block's MLP over its width."""
    levels: tuple[int, ...]
    """0-based blocks whose output is tapped, each with a LayerNorm of its own, ascending."""
    output_levels: int | None = None
    """How many of the tapped levels, counted from the last, the encoder returns; None is all."""
    patch_size: int = 16
    """Pixels along each side of a patch."""
    tubelet_size: int = 2
    """Frames of a video token."""
    channels: int = 3
    """Colour channels of the input."""
    rope_grid: int = 16
    """Rows (and columns) of the pre-training grid that rotary positions are rescaled to."""
    rope: RopeVersion = "2.1"
    """Whose rotary angles: V-JEPA 2.0 gives the two channels of a pair two angles and rescales no positions."""
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    """The predictor's sizes."""

    def __post_init__(self) -> None:
        _require(
            self.width % self.heads == 0 and (self.width // self.heads) % 2 == 0,
            f"encoder width {self.width} does not split into {self.heads} heads of even size: "
            "choose a width that is a multiple of 2 x heads",
        )
        ascending = all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))
        _require(
            bool(self.levels) and ascending and self.levels[0] >= 0 and self.levels[-1] < self.depth,
            f"levels {self.levels} must be ascending block numbers in 0..{self.depth - 1}",
        )
        _require(
            self.output_levels is None or 1 <= self.output_levels <= len(self.levels),
            f"output_levels is {self.output_levels}, expected 1..{len(self.levels)}",
        )
        _require(self.rope in get_args(RopeVersion), f"rope is {self.rope!r}, expected '2.1' or '2.0'")

    @property
    def num_output_levels(self) -> int:
        """L, how many levels the encoder returns."""
        return self.output_levels or len(self.levels)

    @property
    def prediction_width(self) -> int:
        """Channels of one prediction: L·D unless the predictor's output width says otherwise."""
        return self.predictor.output_width or self.num_output_levels * self.width

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """The token grid of an input; frames = 1 is an image.

        Raises:
            TubeletError: if the input does not divide into patches.
        """
        p, t = self.patch_size, self.tubelet_size
        for name, size in (("height", height), ("width", width)):
            _require(
                size >= p and size % p == 0,
                f"{name} is {size} pixels, which does not divide into patches of {p}: use a multiple of {p}",
            )
        if frames == 1:
            return Grid(1, height // p, width // p)
        _require(
            frames >= t and frames % t == 0,
            f"a clip has {frames} frames, which do not divide into tubelets of {t}: use a multiple of {t}",
        )
        return Grid(frames // t, height // p, width // p)


def _quarters(depth: int) -> tuple[int, int, int, int]:
    """The last block of each quarter of the depth: the levels that the family taps, ViT-G's third alone apart."""
    return (depth // 4 - 1, depth // 2 - 1, 3 * depth // 4 - 1, depth - 1)


def vit_pico() -> ModelConfig:
    """ViT-pico/8, 128 wide, 1.3 M parameters: small enough to learn something on a laptop's CPU in minutes."""
    predictor = PredictorConfig(width=96, depth=3, heads=4)
    return ModelConfig(width=128, depth=6, heads=4, levels=(1, 2, 4, 5), patch_size=8, predictor=predictor)


def vit_ti() -> ModelConfig:
    """ViT-Ti/16, 192 wide. Its predictor is no wider than itself and keeps the family's 32 channels a head."""
    predictor = PredictorConfig(width=192, depth=12, heads=6)
    return ModelConfig(width=192, depth=12, heads=3, levels=_quarters(12), predictor=predictor)


def vit_s() -> ModelConfig:
    """ViT-S/16, 384 wide."""
    return ModelConfig(width=384, depth=12, heads=6, levels=_quarters(12))


def vit_b() -> ModelConfig:
    """ViT-B/16, 768 wide, 80 M parameters."""
    return ModelConfig(width=768, depth=12, heads=12, levels=_quarters(12))


def vit_l() -> ModelConfig:
    """ViT-L/16, 1024 wide, 300 M parameters, with the predictor of its own pre-training."""
    return ModelConfig(width=1024, depth=24, heads=16, levels=_quarters(24), predictor=PredictorConfig(depth=24))


def vit_g() -> ModelConfig:
    """ViT-g/16, 1408 wide, 1 B parameters."""
    return ModelConfig(
        width=1408, depth=40, heads=22, mlp_ratio=48 / 11, levels=_quarters(40), predictor=PredictorConfig(depth=24)
    )


def vit_gigantic() -> ModelConfig:
    """ViT-G/16, 1664 wide, 2 B parameters."""
    return ModelConfig(
        width=1664, depth=48, heads=26, mlp_ratio=64 / 13, levels=(11, 23, 37, 47), predictor=PredictorConfig(depth=24)
    )


def levels_of_depth(depth: int) -> tuple[int, ...]:
    """The blocks that the family member of this depth taps; quarters of the depth where the family has none."""
    return {preset().depth: preset().levels for preset in MODELS.values()}.get(depth) or _quarters(depth)


MODELS: Mapping[str, Callable[[], ModelConfig]] = {
    "vit-pico": vit_pico,
    "vit-ti": vit_ti,
    "vit-s": vit_s,
    "vit-b": vit_b,
    "vit-l": vit_l,
    "vit-g": vit_g,
    "vit-G": vit_gigantic,
}


def model_preset(name: str) -> ModelConfig:
    """The sizes of a family member by name.

    Raises:
        TubeletError: for an unknown name, with the nearest known one.
    """
    if name not in MODELS:
        raise TubeletError(f"no model is called {name!r}{_nearest(name, MODELS)}; the models are {', '.join(MODELS)}")
    return MODELS[name]()


def _nearest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (nearest: {close[0]!r})" if close else ""


@dataclass(frozen=True, kw_only=True)
class BlockMask:
    """One multi-block mask: the union of random rectangles, each spanning all of time, is what must be predicted."""

    blocks: int
    """How many rectangles."""
    area: float
    """Share of the frame that one rectangle covers."""
    aspect: tuple[float, float] = (0.75, 1.5)
    """Range of height over width."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """The masks drawn for every batch (SYSTEM step 3)."""

    video: tuple[BlockMask, ...] = (BlockMask(blocks=8, area=0.15), BlockMask(blocks=2, area=0.7))
    """Masks of a video batch: many small blocks, and few large ones."""
    image: tuple[BlockMask, ...] = (BlockMask(blocks=10, area=0.15),)
    """Masks of an image batch."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read and how it is cut."""

    sources: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders, media files, globs, CSV or JSONL manifests, and folders or URLs of shards."""
    image_size: int = 256
    """Side of the square crop, in pixels."""
    frames: int = 16
    """Frames of a clip."""
    fps: float = 4.0
    """Frames per second that a clip is sampled at; a video too short for it is read at a higher rate, and counted."""
    clips_per_video: int = 1
    """Clips taken from a video each time it is opened."""
    image_share: float = 0.5
    """Share of a step's samples that are images, where the sources hold both images and videos."""
    image_frames: int = 1
    """Frames of a still image: 1 has the image tokenizer; more repeat it for the video tokenizer, as in V-JEPA 2.0."""
    crop_scale: tuple[float, float] = (0.3, 1.0)
    """Range of the random crop's area over the frame's."""
    crop_aspect: tuple[float, float] = (0.75, 1.35)
    """Range of the random crop's width over height."""
    flip: bool = True
    """Whether half of the samples are mirrored."""
    workers: int = 1
    """Decoding processes; 0 decodes in the training process."""
    max_bad_share: float = 0.05
    """Share of the files that may be unreadable before the run stops."""

    def __post_init__(self) -> None:
        _require(self.fps > 0, f"fps is {self.fps}, expected a positive rate")
        _require(self.frames >= 1, f"frames is {self.frames}, expected at least 1")
        _require(self.image_frames >= 1, f"image_frames is {self.image_frames}, expected at least 1")
        _require(self.clips_per_video >= 1, f"clips_per_video is {self.clips_per_video}, expected at least 1")
        _require(0 <= self.image_share <= 1, f"image_share is {self.image_share}, expected a share from 0 to 1")
        _require(0 <= self.max_bad_share <= 1, f"max_bad_share is {self.max_bad_share}, expected a share from 0 to 1")
        _require(self.workers >= 0, f"workers is {self.workers}, expected 0 or more processes")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How source files are cut into the members of shards."""

    size: int = 256
    """Pixels of the short side of what is kept; smaller pictures stay as they are."""
    fps: float = 8.0
    """Frames per second that are kept, each with its own time in the source; no run can ask for a higher rate."""
    segment_s: float = 20.0
    """Seconds of a segment: a video is cut into equal ones of at least this length; no clip can be longer."""
    gop: int = 8
    """Frames from one keyframe to the next: fewer are faster to enter and take more space."""
    crf: int = 20
    """H.264 quality from 0 (lossless) to 51."""
    image_quality: int = 92
    """JPEG quality of still images, 1 to 100."""

    def __post_init__(self) -> None:
        _require(self.size >= 16, f"size is {self.size}, expected at least 16 pixels")
        _require(0 < self.fps <= 1000, f"fps is {self.fps}, expected a rate above 0 and at most 1000")
        _require(
            self.segment_s * self.fps >= 2,
            f"segment_s is {self.segment_s}, expected at least two frames, {2 / self.fps:g} s at {self.fps:g} fps",
        )
        _require(self.gop >= 1, f"gop is {self.gop}, expected at least 1 frame")
        _require(0 <= self.crf <= 51, f"crf is {self.crf}, expected 0 to 51")
        _require(1 <= self.image_quality <= 100, f"image_quality is {self.image_quality}, expected 1 to 100")


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
    max_bad_share: float = 0.05
    """Share of the files that may be unreadable before the command stops."""

    def __post_init__(self) -> None:
        _require(self.fps > 0, f"fps is {self.fps}, expected a positive rate")
        _require(self.stride_s is None or self.stride_s > 0, f"stride_s is {self.stride_s}, expected seconds above 0")
        for name in ("image_size", "frames", "batch_size"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        _require(self.workers >= 0, f"workers is {self.workers}, expected 0 or more processes")
        _require(0 <= self.max_bad_share <= 1, f"max_bad_share is {self.max_bad_share}, expected a share from 0 to 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW, the teacher's averaging and the context loss, by share of the run."""

    lr: float = 6e-4
    """Peak learning rate."""
    start_lr: float = 1e-4
    """Learning rate at the first step of the warm-up."""
    final_lr: float = 6e-4
    """Learning rate at the last step; the published pre-training keeps its peak."""
    warmup_share: float = 0.04
    """Share of the run in which the learning rate rises linearly (published: 12,000 of 300,000 steps)."""
    weight_decay: float = 0.04
    """Decoupled weight decay; biases and 1-d parameters have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the two moments."""
    eps: float = 1e-8
    """AdamW's denominator offset."""
    ema: float | None = None
    """The teacher's momentum at the first step; None is the published 0.99925, lowered where the run is too short."""
    final_ema: float | None = None
    """The teacher's momentum at the last step, approached linearly; None keeps it constant."""
    context_weight: float = 0.5
    """λ, the weight of the context loss after its warm-up."""
    context_warmup: tuple[float, float] = (0.05, 0.10)
    """Shares of the run between which λ rises from 0 (published: steps 15,000 to 30,000 of 300,000)."""
    distance_weighting: bool = True
    """Whether visible tokens count less in the context loss the farther they are from a hidden one (cool-down: no)."""

    def __post_init__(self) -> None:
        _require(self.lr > 0, f"lr is {self.lr}, expected a positive learning rate")
        _require(0 <= self.warmup_share < 1, f"warmup_share is {self.warmup_share}, expected a share of the run")
        for name, value in (("ema", self.ema), ("final_ema", self.final_ema)):
            _require(value is None or 0 <= value <= 1, f"{name} is {value}, expected a momentum from 0 to 1")
        first, last = self.context_warmup
        _require(
            0 <= first <= last <= 1,
            f"context_warmup is {self.context_warmup}, expected two ascending shares of the run",
        )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole pre-training run."""

    model: tyro.conf.Suppress[ModelConfig] = field(default_factory=vit_ti)
    """Sizes of the network; the command line names a preset instead."""
    data: DataConfig = field(default_factory=DataConfig)
    """What is read."""
    masks: tyro.conf.Suppress[MaskConfig] = field(default_factory=MaskConfig)
    """What is hidden from the student."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """How it learns."""
    steps: int = 300_000
    """Optimiser steps."""
    batch_size: int = 24
    """Samples of one optimiser step, images and videos, over all processes."""
    accumulate: int = 1
    """Parts that each step's samples are processed in, to save memory."""
    precision: Precision = "auto"
    """fp32 or bf16 autocast; auto is bf16 where the device has units for it; fp8 multiplies in 8 bits inside blocks."""
    init_from: str | None = None
    """Run folder, checkpoint or released .pt whose weights the run starts from, instead of from random ones."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank in the encoder's blocks, and leave its own weights as they are; 0 is off."""
    seed: int = 0
    """Seed of initial weights, data order, crops and masks."""
    compile: bool | None = None
    """Compile the blocks with torch.compile; None does so where the run is long enough to gain from it."""
    activation_checkpointing: bool = False
    """Recompute the blocks' activations in the backward pass instead of keeping them."""
    checkpoint_every: int = 1000
    """Steps between checkpoints; the last step always writes one."""
    keep_checkpoints: int = 2
    """Checkpoints that are kept, the newest included."""
    monitor_every: int = 100
    """Steps between looks at the teacher's features for collapse."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "checkpoint_every", "keep_checkpoints", "monitor_every"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, expected at least 1")
        _require(self.lora_rank >= 0, f"lora_rank is {self.lora_rank}, expected 0 (off) or more")
        _require(
            self.lora_rank == 0 or self.init_from is not None,
            "lora_rank adapts trained weights: say which with init_from",
        )


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain dictionaries, lists and scalars, ready for JSON."""
    return dataclasses.asdict(config)


def from_dict(kind: type, values: Mapping[str, Any], where: str = "config") -> Any:
    """Rebuild a config from what `to_dict` gave.

    Raises:
        TubeletError: for an unknown key, naming the nearest valid one, and for a key without a value or default.
    """
    kinds = get_type_hints(kind)
    for key in values:
        if key not in kinds:
            raise TubeletError(f"{where} has an unknown key {key!r}{_nearest(key, kinds)}")
    given = {name: _rebuild(kinds[name], value, f"{where}.{name}") for name, value in values.items()}
    try:
        return kind(**given)
    except TypeError as error:
        raise TubeletError(f"{where}: {error}") from error


def _rebuild(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return from_dict(kind, value, where)  # type: ignore[arg-type]
    if kind == tuple[BlockMask, ...]:
        return tuple(from_dict(BlockMask, item, f"{where}[{i}]") for i, item in enumerate(value))
    return tuple(value) if isinstance(value, list) else value
