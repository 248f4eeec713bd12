"""Facts about each of the eight steps, from the trace of an input, for the console and the page."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from tubelet.data.masks import hidden_positions, sample_mask
from tubelet.grid import Modality
from tubelet.model.encoder import Encoder
from tubelet.model.layers import Attention, Block
from tubelet.model.predictor import Fusion, Predictor
from tubelet.model.rope import axis_size, rotary_table, rotate
from tubelet.model.tokenizer import Tokenizer
from tubelet.objective import dense_predictive_loss, normalize_targets
from tubelet.view.input_trace import Trace
from tubelet.view.page import count, percent, shape, significant
from tubelet.vjepa import VJEPA

Facts = list[tuple[str, str]]


@dataclass(frozen=True)
class Code:
    """A function or class that computes a step.

    Attributes:
        definition: the function or class.
    """

    definition: Any

    @property
    def name(self) -> str:
        """Its qualified name."""
        name: str = self.definition.__qualname__
        return name

    @cached_property
    def file(self) -> str:
        """Its file, from the package's folder on."""
        return Path(*self.definition.__module__.split(".")).with_suffix(".py").as_posix()

    @cached_property
    def line(self) -> int:
        """Its first line in the file."""
        return inspect.getsourcelines(self.definition)[1]

    @cached_property
    def source(self) -> str:
        """Its lines."""
        return inspect.cleandoc(inspect.getsource(self.definition))


@dataclass(frozen=True)
class Step:
    """One of the eight steps.

    Attributes:
        number: 1 to 8.
        name: name of the step, as in docs/system.md.
        code: what computes it.
        facts: function from a trace to pairs of a name and a value.
    """

    number: int
    name: str
    code: tuple[Code, ...]
    facts: Callable[[Trace], Facts]


def tokenize(trace: Trace) -> Facts:
    """Step 1."""
    config, grid, tokenizer = trace.model.config, trace.grid, trace.model.student.tokenizer
    video = trace.modality is Modality.VIDEO
    embed = tokenizer.video if video else tokenizer.image
    sizes = [config.patch_size, config.patch_size]
    if video:
        sizes.insert(0, trace.pixels.shape[2] // grid.t)
    patch = " × ".join(map(str, sizes))
    plural = "" if grid.t == 1 else "s"
    return [
        ("pixels", shape(trace.pixels.shape)),
        ("patch", f"{patch} pixels × {trace.pixels.shape[1]} colors = {embed.in_features} numbers"),
        ("grid", f"{grid.t} time step{plural} × {grid.h} rows × {grid.w} columns = {count(grid.tokens)} tokens"),
        ("tokens", shape(trace.tokens.shape)),
        ("weights", f"Linear {embed.in_features} → {embed.out_features}, the {trace.modality} one of two"),
    ]


def positions(trace: Trace) -> Facts:
    """Step 2."""
    config, grid = trace.model.config, trace.grid
    head = trace.rotary.cos.shape[-1]
    each = axis_size(head)
    stretched = (grid.h - 1) * (config.rope_grid - 1) / max(grid.h - 1, 1)
    return [
        (
            "a head",
            f"{head} channels: {each} turn with time, {each} with row, {each} with column, {head - 3 * each} never",
        ),
        ("angles", f"cos and sin of shape {shape(trace.rotary.cos.shape)}"),
        (
            "last row",
            f"{grid.h - 1} → {significant(stretched)}, scaled to {config.rope_grid} rows as the published runs have",
        ),
        ("modality", f"one learnable vector of {trace.tokens.shape[-1]} for '{trace.modality}', added to every token"),
    ]


def masks(trace: Trace) -> Facts:
    """Step 3."""
    return [
        (
            f"mask {i}",
            f"{mask.spec.blocks} rectangles of {percent(mask.spec.area)} of the area: "
            f"sees {count(mask.mask.context.shape[1])}, "
            f"hides {count(mask.mask.target.shape[1])} of {count(trace.grid.tokens)} "
            f"({percent(mask.visible_fraction)} visible)",
        )
        for i, mask in enumerate(trace.masks, start=1)
    ]


def student(trace: Trace) -> Facts:
    """Step 4."""
    config, first = trace.model.config, trace.masks[0]
    blocks = ", ".join(str(i + 1) for i in config.levels[-len(first.levels) :])
    return [
        ("in", " and ".join(shape(mask.tokens.shape) for mask in trace.masks)),
        ("network", f"{config.depth} blocks, {config.heads} heads, {millions(trace.model.student)} parameters"),
        ("taps", f"{len(first.levels)} levels, after blocks {blocks}, each {shape(first.levels[0].shape)}"),
        ("attention", f"{percent(first.visible_fraction**2)} of the pairs that all tokens would make (mask 1)"),
    ]


def fusion(trace: Trace) -> Facts:
    """Step 5."""
    first = trace.masks[0]
    layers = [
        f"Linear {layer.in_features} → {layer.out_features}" if isinstance(layer, nn.Linear) else type(layer).__name__
        for layer in trace.model.predictor.fusion
    ]
    return [
        ("in", f"{len(first.levels)} × {shape(first.levels[0].shape)} → {shape(first.concatenated.shape)}"),
        ("layers", ", ".join(layers)),
        ("out", shape(first.fused.shape)),
    ]


def mask_tokens(trace: Trace) -> Facts:
    """Step 6."""
    return [
        (
            f"mask {i}",
            f"{count(mask.mask.context.shape[1])} context + {count(mask.mask.target.shape[1])} mask tokens "
            f"= {shape(mask.sequence.shape)}",
        )
        for i, mask in enumerate(trace.masks, start=1)
    ]


def predictor(trace: Trace) -> Facts:
    """Step 7."""
    size, first, network = trace.model.config.predictor, trace.masks[0], trace.model.predictor
    head, width = network.target_head, first.sequence.shape[-1]
    return [
        ("network", f"{size.depth} blocks, width {width}, {size.heads} heads, {millions(network)} parameters"),
        ("at targets", f"{shape(first.predicted.shape)}, Linear {head.in_features} → {head.out_features}"),
        ("at context", f"{shape(first.reconstructed.shape)}, another Linear of that size"),
    ]


def loss(trace: Trace) -> Facts:
    """Step 8."""
    levels, losses = trace.teacher_levels, trace.losses
    targets = ("targets", f"{len(levels)} × {shape(levels[0].shape)} → {shape(trace.targets.shape)}")
    if losses is None:
        width = trace.masks[0].predicted.shape[-1]
        return [targets, ("loss", f"none: predictions, {width} wide, are of a larger teacher that the file lacks")]
    prediction, context, total = (
        significant(float(value), 4) for value in (losses.prediction, losses.context, losses.total)
    )
    return [
        targets,
        ("L_predict", prediction),
        ("L_context", context),
        ("loss", f"{prediction} + {significant(trace.context_weight, 2)} · {context} = {total}"),
    ]


STEPS = (
    Step(1, "Tokenize, by modality", (Code(Tokenizer),), tokenize),
    Step(2, "Position and modality", (Code(rotary_table), Code(rotate)), positions),
    Step(3, "Mask", (Code(sample_mask), Code(hidden_positions)), masks),
    Step(
        4, "X-encoder", (Code(Encoder.get_intermediate_layers), Code(Block.forward), Code(Attention.forward)), student
    ),
    Step(5, "Multi-level fusion", (Code(Fusion),), fusion),
    Step(6, "Add mask tokens", (Code(Predictor.forward),), mask_tokens),
    Step(7, "Multi-level predictor", (Code(Predictor.forward),), predictor),
    Step(
        8, "Targets and loss", (Code(normalize_targets), Code(dense_predictive_loss), Code(VJEPA.update_teacher)), loss
    ),
)


def describe_weights(trace: Trace) -> str:
    """Source of the weights, in one sentence."""
    if trace.weights is None:
        return f"{trace.name} with random weights: sizes are real, what it sees and predicts means nothing yet."
    return f"Weights of {trace.weights}."


def millions(module: nn.Module) -> str:
    """Number of parameters in millions."""
    return f"{significant(sum(p.numel() for p in module.parameters()) / 1e6)} M"


def head_cells(head_dim: int) -> list[str]:
    """Axis that rotates each pair of channels of a head, in the head's order."""
    pairs = axis_size(head_dim) // 2
    rest = head_dim // 2 - 3 * pairs
    return ["time"] * pairs + ["row"] * pairs + ["column"] * pairs + ["rest"] * rest
