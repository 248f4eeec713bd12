"""Architecture of encoder and predictor, and the presets of the model family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from tubelet.config.fields import Settings, StoredValue, nearest, require
from tubelet.errors import ConfigError
from tubelet.grid import Grid
from tubelet.value_checks import Bounds

RopeVersion = Literal["2.1", "2.0"]
# Ten times the largest ViT: a file with larger sizes is corrupt, and building it would exhaust memory.
MAX_WIDTH, MAX_DEPTH = 2**16, 2**10
Width = Annotated[int, Bounds(1, MAX_WIDTH)]
Depth = Annotated[int, Bounds(1, MAX_DEPTH)]
Ratio = Annotated[float, Bounds(0, 64, exclusive=True)]


@dataclass(frozen=True, kw_only=True)
class PredictorConfig(Settings):
    """Architecture of the predictor, a narrow ViT from the student's context tokens to the teacher's levels."""

    width: Width = 384
    """Channels of a predictor token."""
    depth: Depth = 12
    """Number of blocks."""
    heads: Width = 12
    """Attention heads."""
    mlp_ratio: Ratio = 4.0
    """Ratio of an MLP's hidden width to the width of its block."""
    mask_tokens: Depth = 2
    """Number of learnable mask tokens; training uses only the first."""
    rescale_rope: bool = True
    """Whether row and column positions are rescaled to the pre-training grid (the distilled releases do not)."""
    output_width: Annotated[int | None, Bounds(1, 2**22)] = None
    """Channels of one prediction, over all levels; None is the encoder's width times its output levels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_heads("of the predictor ", self.width, self.heads)


@dataclass(frozen=True, kw_only=True)
class PixelStatistics(Settings):
    """Statistics that normalize stored values for models of other pixels than 8-bit RGB: window, mean, std.

    `tubelet stats` measures them over a collection.
    """

    window: tuple[StoredValue, StoredValue]
    """Stored values that become 0 and 1; what is below or above is clipped."""
    mean: tuple[Annotated[float, Bounds(0, 1)], ...]
    """Mean of each channel, where the window is 0 to 1."""
    std: tuple[Annotated[float, Bounds(0, 1, exclusive=True)], ...]
    """Standard deviation of each channel, where the window is 0 to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.window
        require(low < high, "window", f"is {self.window}, expected two ascending values")
        require(
            len(self.mean) == len(self.std) > 0,
            "std",
            f"has {len(self.std)} numbers and mean has {len(self.mean)}, expected one of each for each channel",
        )

    @property
    def channels(self) -> int:
        """C, number of channels."""
        return len(self.mean)


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Settings):
    """Architecture of encoder and predictor."""

    width: Width
    """D, channels of an encoder token."""
    depth: Depth
    """Number of encoder blocks."""
    heads: Width
    """Attention heads."""
    mlp_ratio: Ratio = 4.0
    """Ratio of an MLP's hidden width to the width of its block."""
    levels: tuple[Annotated[int, Bounds(0, MAX_DEPTH)], ...]
    """Ascending 0-based indices of the output blocks, each followed by its own LayerNorm."""
    output_levels: Annotated[int | None, Bounds(1, MAX_DEPTH)] = None
    """Number of levels, counted from the last, that the encoder returns; None is all."""
    patch_size: Annotated[int, Bounds(1, 1024)] = 16
    """Pixels along each side of a patch."""
    tubelet_size: Annotated[int, Bounds(1, 1024)] = 2
    """Frames of a video token."""
    channels: Annotated[int, Bounds(1, 1024)] = 3
    """C, channels of the input."""
    pixels: PixelStatistics | None = None
    """Window, mean and standard deviation of the stored values; None is 8-bit RGB with the statistics of ImageNet."""
    rope_grid: Width = 16
    """Rows (and columns) of the pre-training grid that rotary positions are rescaled to."""
    rope: RopeVersion = "2.1"
    """Version of the rotary embedding: 2.0 uses two angles for the two channels of a pair and rescales no positions."""
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    """Architecture of the predictor."""

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
        require(
            self.pixels is None or self.pixels.channels == self.channels,
            "channels",
            f"is {self.channels}, and pixels has statistics of {self.pixels and self.pixels.channels}",
        )

    @property
    def num_output_levels(self) -> int:
        """L, number of levels that the encoder returns."""
        return self.output_levels or len(self.levels)

    @property
    def prediction_width(self) -> int:
        """Channels of one prediction: the predictor's output width, or L·D."""
        return self.predictor.output_width or self.num_output_levels * self.width

    def clip_bytes(self, frames: int, size: int) -> int:
        """Bytes of a decoded clip of `size` x `size` pixels: uint8 colors, or float32 with statistics of pixels."""
        return self.channels * frames * size**2 * (1 if self.pixels is None else 4)

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Token grid of an input; frames = 1 is an image.

        Raises:
            ConfigError: if height, width or frames are not multiples of the patch.
        """
        p, t = self.patch_size, self.tubelet_size
        for name, size in (("height", height), ("width", width)):
            if size < p or size % p:
                # Compared here only: graphs are exported for any height and width.
                side = "the image size" if height == width else name
                raise ConfigError(f"{side} is {size} pixels, expected a multiple of the patch size {p}")
        if frames == 1:
            return Grid(1, height // p, width // p)
        if frames < t or frames % t:
            raise ConfigError(f"the clip has {frames} frames, expected a multiple of the tubelet size {t}")
        return Grid(frames // t, height // p, width // p)


def _require_heads(whose: str, width: int, heads: int) -> None:
    require(
        width % (2 * heads) == 0,
        "width",
        f"{whose}is {width}, expected a multiple of 2 x heads = {2 * heads}",
    )


def _quarters(depth: int) -> tuple[int, int, int, int]:
    """Last block of each quarter of the depth: the output levels of the family, except for the third of ViT-G."""
    return (depth // 4 - 1, depth // 2 - 1, 3 * depth // 4 - 1, depth - 1)


def vit_pico() -> ModelConfig:
    """ViT-pico/8, 128 wide, 1.3 M parameters: trains in minutes on a laptop's CPU."""
    predictor = PredictorConfig(width=96, depth=3, heads=4)
    return ModelConfig(width=128, depth=6, heads=4, levels=(1, 2, 4, 5), patch_size=8, predictor=predictor)


def vit_ti() -> ModelConfig:
    """ViT-Ti/16, 192 wide. Its predictor is as wide as the encoder, with the family's 32 channels per head."""
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


def output_levels_for_depth(depth: int) -> tuple[int, ...]:
    """Output blocks of the family member of this depth; the quarters of the depth if there is none."""
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
    """Architecture of a family member by name.

    Raises:
        ConfigError: for an unknown name, with the nearest known one.
    """
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}{nearest(name, MODELS)}; the models are {', '.join(MODELS)}")
    return MODELS[name]()


def resized(config: ModelConfig, patch_size: int | None, tubelet_size: int | None) -> ModelConfig:
    """The same architecture with other patch sizes; None keeps the patch size."""
    return replace(config, patch_size=patch_size or config.patch_size, tubelet_size=tubelet_size or config.tubelet_size)
