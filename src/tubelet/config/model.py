"""Sizes of encoder and predictor, and the family: a preset is a function."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from tubelet.config.fields import Settings, nearest, require
from tubelet.errors import TubeletError
from tubelet.grid import Grid
from tubelet.validation import Bounds

RopeVersion = Literal["2.1", "2.0"]
# Ten times the largest ViT there is: a file that states more is damaged, and building it would take all memory.
MAX_WIDTH, MAX_DEPTH = 2**16, 2**10
Width = Annotated[int, Bounds(1, MAX_WIDTH)]
Depth = Annotated[int, Bounds(1, MAX_DEPTH)]
Ratio = Annotated[float, Bounds(0, 64, exclusive=True)]


@dataclass(frozen=True, kw_only=True)
class PredictorConfig(Settings):
    """The narrow ViT that predicts the teacher's levels from the student's context tokens."""

    width: Width = 384
    """Channels of a predictor token."""
    depth: Depth = 12
    """Number of blocks."""
    heads: Width = 12
    """Attention heads."""
    mlp_ratio: Ratio = 4.0
    """Hidden channels of a block's MLP over its width."""
    mask_tokens: Depth = 2
    """Number of learnable mask tokens; training uses the first."""
    rescale_rope: bool = True
    """Whether row and column positions are rescaled to the pre-training grid (the distilled releases do not)."""
    output_width: Annotated[int | None, Bounds(1, 2**22)] = None
    """Channels of one prediction, all levels together; None is the encoder's width times its output levels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_heads("of the predictor ", self.width, self.heads)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Sizes of encoder and predictor."""

    width: Width
    """D, channels of an encoder token."""
    depth: Depth
    """Number of encoder blocks."""
    heads: Width
    """Attention heads."""
    mlp_ratio: Ratio = 4.0
    """Hidden channels of a block's MLP over its width."""
    levels: tuple[Annotated[int, Bounds(0, MAX_DEPTH)], ...]
    """0-based blocks whose output is tapped, each with a LayerNorm of its own, ascending."""
    output_levels: Annotated[int | None, Bounds(1, MAX_DEPTH)] = None
    """How many of the tapped levels, counted from the last, the encoder returns; None is all."""
    patch_size: Annotated[int, Bounds(1, 1024)] = 16
    """Pixels along each side of a patch."""
    tubelet_size: Annotated[int, Bounds(1, 1024)] = 2
    """Frames of a video token."""
    channels: Annotated[int, Bounds(1, 1024)] = 3
    """Colour channels of the input."""
    rope_grid: Width = 16
    """Rows (and columns) of the pre-training grid that rotary positions are rescaled to."""
    rope: RopeVersion = "2.1"
    """Whose rotary angles: V-JEPA 2.0 gives the two channels of a pair two angles and rescales no positions."""
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    """The predictor's sizes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_heads("", self.width, self.heads)
        ascending = all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))
        require(
            bool(self.levels) and ascending and self.levels[0] >= 0 and self.levels[-1] < self.depth,
            "levels",
            f"are {self.levels}, expected ascending block numbers in 0..{self.depth - 1}",
        )
        require(
            self.output_levels is None or 1 <= self.output_levels <= len(self.levels),
            "output_levels",
            f"is {self.output_levels}, expected 1..{len(self.levels)}",
        )

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
            if size < p or size % p:
                raise TubeletError(
                    f"{name} is {size} pixels, which does not divide into patches of {p}: use a multiple of {p}"
                )
        if frames == 1:
            return Grid(1, height // p, width // p)
        if frames < t or frames % t:
            raise TubeletError(
                f"a clip has {frames} frames, which do not divide into tubelets of {t}: use a multiple of {t}"
            )
        return Grid(frames // t, height // p, width // p)


def _require_heads(whose: str, width: int, heads: int) -> None:
    require(
        width % (2 * heads) == 0,
        "width",
        f"{whose}is {width}, which does not split into {heads} heads of even size: choose a multiple of 2 x heads",
    )


def _quarters(depth: int) -> tuple[int, int, int, int]:
    """The last block of each quarter of the depth, which the family taps as its levels; ViT-G's third is another."""
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
        raise TubeletError(f"no model is called {name!r}{nearest(name, MODELS)}; the models are {', '.join(MODELS)}")
    return MODELS[name]()


def resized(config: ModelConfig, patch_size: int | None, tubelet_size: int | None) -> ModelConfig:
    """The same network on patches of other sizes; None keeps its own."""
    return replace(config, patch_size=patch_size or config.patch_size, tubelet_size=tubelet_size or config.tubelet_size)
