"""Trace of one input through the method: all tensors that the explain page and the console show.

The modules of training run here, and forward hooks capture the tensors between them.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tubelet.checkpoint.native_clip import NativeClip, choose_clip
from tubelet.checkpoint.registry import released_name
from tubelet.checkpoint.run import load_vjepa
from tubelet.config import (
    MODELS,
    BlockMask,
    MaskConfig,
    OptimConfig,
    PixelStatistics,
    TrainConfig,
    model_preset,
)
from tubelet.data.clips import center_clip_times, normalize, resize_center_crop
from tubelet.data.file_types import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from tubelet.data.masks import block_shape, sample_mask
from tubelet.data.model_frames import open_frames, read_still
from tubelet.data.stacks import is_image_file, is_stack
from tubelet.errors import ConfigError, DataError, MissingFileError
from tubelet.grid import Grid, Mask, MaskedGrid, Modality
from tubelet.model.rope import RotaryTable, rotary_table
from tubelet.model.tokenizer import modality_of
from tubelet.objective import Losses, normalize_targets, target_distance, token_errors
from tubelet.vjepa import VJEPA

# Name and number of blocks, relative to the recipe's, of each draw of the masks; the first is what training would draw.
DRAWS = (
    ("as in training", 1.0),
    ("a second draw", 1.0),
    ("a third draw", 1.0),
    ("half as many rectangles", 0.5),
    ("one and a half times the rectangles", 1.5),
)
BLENDS = (0.0, 0.25, 0.5, 0.75)


@dataclass(frozen=True)
class TracedInput:
    """A clip, or an image, as it was read.

    Attributes:
        path: the file.
        pixels: (C, T, S, S), the center crop as the model takes it.
        times: (T,) timestamps of the frames in seconds; (0,) for an image.
        height, width: size of the file's frames in pixels.
        duration_s: duration of the video; None for an image.
        file_fps: frames per second of the video; None for an image.
        fps: frames per second of the clip; None for an image.
        stretched: whether the video is shorter than the requested clip.
    """

    path: Path
    pixels: Tensor
    times: np.ndarray
    height: int
    width: int
    duration_s: float | None = None
    file_fps: float | None = None
    fps: float | None = None
    stretched: bool = False


@dataclass(frozen=True)
class MaskTrace:
    """Tensors under one mask. Batch size 1; Kc context and Kt target tokens; P is the predictor's width.

    Attributes:
        spec: parameters of the mask.
        block: rows and columns of each rectangle.
        mask: context (1, Kc) and target (1, Kt) indices.
        tokens: (1, Kc, D) input of the student's first block.
        levels: L tensors (1, Kc, D), the student's output levels.
        concatenated: (1, Kc, L·D) input of the fusion.
        fused: (1, Kc, P) output of the fusion.
        sequence: (1, N, P) input of the predictor's first block.
        predicted: (1, Kt, L·D) predictions at target tokens.
        reconstructed: (1, Kc, L·D) predictions at context tokens.
        counts: (1, Kc) weight of each context token's error: 1 / sqrt(grid steps to the nearest target token), or 1.
        target_error: (1, Kt) L1 of each target token; None where predictions and targets are of different widths.
        context_error: (1, Kc) unweighted L1 of each context token.
        losses: losses of this mask, scalars.
    """

    spec: BlockMask
    block: tuple[int, int]
    mask: Mask
    tokens: Tensor
    levels: list[Tensor]
    concatenated: Tensor
    fused: Tensor
    sequence: Tensor
    predicted: Tensor
    reconstructed: Tensor
    counts: Tensor
    target_error: Tensor | None
    context_error: Tensor | None
    losses: Losses | None

    @property
    def visible_fraction(self) -> float:
        """Context tokens over all tokens."""
        context, target = self.mask.context.shape[1], self.mask.target.shape[1]
        return context / (context + target)


@dataclass(frozen=True)
class MaskDraw:
    """One draw of an input's masks.

    Attributes:
        name: description for a reader.
        masks: trace under each mask; empty where so many blocks leave nothing visible of the grid.
    """

    name: str
    masks: list[MaskTrace]


@dataclass(frozen=True)
class Blend:
    """Features of a network between student and teacher.

    Attributes:
        momentum: the teacher's share m of its weights, m · teacher + (1 - m) · student.
        targets: (1, N, L·D) fp32, its normalized levels.
    """

    momentum: float
    targets: Tensor


@dataclass(frozen=True)
class Trace:
    """All tensors of one input.

    Attributes:
        source: the input clip.
        model: the network.
        weights: source of the weights, for a reader; None if they are random.
        name: name of the network.
        modality: modality of the input, which selects the tokenizer.
        grid: the token grid.
        pixels: (1, C, T, S, S) normalized.
        tokens: (1, N, D) all tokens, embedded by the student's tokenizer.
        rotary: the encoder's angles of all N tokens.
        draws: draws of the masks, the first as in training.
        blends: networks from the student to the teacher, which is not among them; empty if the two are equal.
        teacher_levels: L tensors (1, N, D).
        targets: (1, N, L·D) fp32.
        context_weight: λ after its warm-up.
        seed: seed of masks and random weights.
    """

    source: TracedInput
    model: VJEPA
    weights: str | None
    name: str
    modality: Modality
    grid: Grid
    pixels: Tensor
    tokens: Tensor
    rotary: RotaryTable
    draws: list[MaskDraw]
    blends: list[Blend]
    teacher_levels: list[Tensor]
    targets: Tensor
    context_weight: float
    seed: int

    @property
    def masks(self) -> list[MaskTrace]:
        """Trace under each mask of the first draw."""
        return self.draws[0].masks

    @property
    def level_width(self) -> int:
        """D, channels of one level."""
        return self.teacher_levels[0].shape[-1]

    @property
    def losses(self) -> Losses | None:
        """Mean losses over the masks, scalars; None if predictions and targets have different widths."""
        parts = [mask.losses for mask in self.masks if mask.losses is not None]
        return Losses(*(torch.stack(part).mean() for part in zip(*parts, strict=True))) if parts else None


def trace_input(
    file: Path,
    name_or_path: str,
    image_size: int | None = None,
    frames: int | None = None,
    fps: float | None = None,
    seed: int = 0,
) -> Trace:
    """Trace one file through the method.

    Args:
        file: a video or an image.
        name_or_path: a preset's name (random weights), a run directory, a checkpoint, or a released .pt file.
        image_size: side of the center crop in pixels; None is the model's own.
        frames: frames of the clip; None is the model's own.
        fps: frames per second of the clip; None is the model's own.
        seed: seed of the masks, and of random weights.

    Raises:
        TubeletError: if the file or the model cannot be read, or the sizes do not fit together.
    """
    is_video = _is_video(file)
    model, config, weights = _load(name_or_path, seed)
    name = name_or_path if weights is None else Path(name_or_path).name or name_or_path
    native = NativeClip.of_run(config.data) if config else NativeClip.of_name(released_name(name) or name, model.config)
    size, length, rate, _ = choose_clip(name, native, image_size, frames, fps)
    model.config.grid(length if is_video else 1, size, size)  # raises before decoding
    statistics = model.config.pixels
    source = _read_video(file, size, length, rate, statistics) if is_video else _read_still(file, size, statistics)
    specs = config.masks if config else MaskConfig()
    weight = (config.optim if config else OptimConfig()).context_weight
    return _run(model, source, specs, weight, weights, name, seed)


@torch.no_grad()
def _run(
    model: VJEPA, source: TracedInput, specs: MaskConfig, weight: float, weights: str | None, name: str, seed: int
) -> Trace:
    pixels = normalize(source.pixels.unsqueeze(0), model.config.pixels)
    grid, modality = model.student.tokenizer.grid(pixels), modality_of(pixels)
    config = model.config
    levels = model.teacher(pixels)
    targets = normalize_targets(levels)
    drawn = specs.specs_for(modality)
    return Trace(
        source=source,
        model=model,
        weights=weights,
        name=name,
        modality=modality,
        grid=grid,
        pixels=pixels,
        tokens=model.student.tokenizer(pixels),
        rotary=rotary_table(
            torch.arange(grid.tokens).unsqueeze(0), grid, config.width // config.heads, config.rope_grid
        ),
        draws=[_trace_draw(model, pixels, targets, drawn, weight, number, seed) for number in range(len(DRAWS))],
        blends=_blends(model, pixels),
        teacher_levels=levels,
        targets=targets,
        context_weight=weight,
        seed=seed,
    )


def _trace_draw(
    model: VJEPA, pixels: Tensor, targets: Tensor, specs: Sequence[BlockMask], weight: float, number: int, seed: int
) -> MaskDraw:
    """The draw `DRAWS[number]`.

    Raises:
        TubeletError: if the blocks of the recipe leave nothing visible; more blocks than that are left out.
    """
    name, factor = DRAWS[number]
    rng = np.random.default_rng([seed, number] if number else seed)
    specs = [replace(spec, blocks=max(1, round(spec.blocks * factor))) for spec in specs]
    try:
        return MaskDraw(name, [_trace_mask(model, pixels, targets, spec, rng, weight) for spec in specs])
    except ConfigError:
        if factor <= 1:
            raise
        return MaskDraw(f"{name}: nothing would stay visible", [])


def _blends(model: VJEPA, pixels: Tensor) -> list[Blend]:
    """Features at momenta from 0, the student, to below 1, the teacher."""
    pairs = list(zip(model.teacher.parameters(), model.student.parameters(), strict=True))
    if all(torch.equal(teacher, student) for teacher, student in pairs):
        return []
    blends = []
    for momentum in BLENDS:
        network = copy.deepcopy(model.teacher)
        for mixed, (teacher, student) in zip(network.parameters(), pairs, strict=True):
            mixed.copy_(torch.lerp(student, teacher, momentum))
        blends.append(Blend(momentum, normalize_targets(network(pixels))))
    return blends


def _trace_mask(
    model: VJEPA, pixels: Tensor, targets: Tensor, spec: BlockMask, rng: np.random.Generator, weight: float
) -> MaskTrace:
    student, predictor = model.student, model.predictor
    grid, modality = student.tokenizer.grid(pixels), modality_of(pixels)
    # The sampler draws the shape of the rectangles first: a copy of its generator draws the same shape.
    block = block_shape(spec, grid, copy.deepcopy(rng))
    mask = sample_mask(spec, grid, 1, rng)
    parts = {"tokens": student.blocks[0], "fusion": predictor.fusion, "sequence": predictor.blocks[0]}
    with _captured(parts) as (inputs, outputs):
        levels = student(pixels, mask.context)
        predicted, reconstructed = predictor(levels, [MaskedGrid(mask, grid, modality)])[0]
    # A distilled release predicts the last level of a larger teacher, which its file does not have.
    comparable = predicted.shape[-1] == targets.shape[-1]
    distance, weighting = target_distance(mask, grid), {"distance_weighting": model.distance_weighting}
    return MaskTrace(
        spec=spec,
        block=block,
        mask=mask,
        tokens=inputs["tokens"],
        levels=levels,
        concatenated=inputs["fusion"],
        fused=outputs["fusion"],
        sequence=inputs["sequence"],
        predicted=predicted,
        reconstructed=reconstructed,
        counts=distance.rsqrt() if model.distance_weighting else torch.ones_like(distance),
        target_error=token_errors(predicted, targets, mask.target) if comparable else None,
        context_error=token_errors(reconstructed, targets, mask.context) if comparable else None,
        losses=model.loss(predicted, reconstructed, targets, mask, grid, weight, **weighting) if comparable else None,
    )


@contextmanager
def _captured(parts: dict[str, nn.Module]) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
    """Capture the first input and the output of modules while they run, by name."""
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}

    def hook(name: str) -> Any:
        def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            inputs[name], outputs[name] = args[0], output

        return keep

    handles = [module.register_forward_hook(hook(name)) for name, module in parts.items()]
    try:
        yield inputs, outputs
    finally:
        for handle in handles:
            handle.remove()


def _load(name_or_path: str, seed: int) -> tuple[VJEPA, TrainConfig | None, str | None]:
    """Network, config of its run, and source of its weights; a folder named like a preset is ./NAME."""
    if name_or_path in MODELS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return VJEPA(model_preset(name_or_path)).eval(), None, None
    if not Path(name_or_path).exists():
        raise DataError(
            f"{name_or_path}: no such model; expected one of {', '.join(MODELS)}, a run directory, a checkpoint or "
            "a .pt file"
        )
    model, config = load_vjepa(name_or_path)
    return model, config, name_or_path


def _is_video(file: Path) -> bool:
    if file.is_dir():
        if is_stack(file):
            return True
        raise DataError(f"{file}: is a folder, expected one video or image; name a file in it")
    if not file.is_file():
        raise MissingFileError(f"{file}: no such file; expected a video or an image")
    if is_image_file(file):
        return False
    if file.suffix.lower() not in VIDEO_SUFFIXES and not is_stack(file):
        raise DataError(
            f"{file}: neither a video ({' '.join(sorted(VIDEO_SUFFIXES))}) "
            f"nor an image ({' '.join(sorted(IMAGE_SUFFIXES))})"
        )
    return True


def _read_video(file: Path, size: int, frames: int, fps: float, statistics: PixelStatistics | None) -> TracedInput:
    with open_frames(file, statistics, fps) as video:
        info = video.info
        times, stretched = center_clip_times(info, frames, fps)
        (clip,) = video.clips([times])
    rate = 1 / (times[1] - times[0]) if frames > 1 else fps
    pixels = resize_center_crop(clip.pixels, size)
    return TracedInput(
        file, pixels, clip.times, info.height, info.width, info.duration_s, info.fps, float(rate), stretched
    )


def _read_still(file: Path, size: int, statistics: PixelStatistics | None) -> TracedInput:
    pixels = read_still(file, statistics)
    height, width = pixels.shape[:2]
    return TracedInput(file, resize_center_crop(pixels.unsqueeze(0), size), np.zeros(1), height, width)
