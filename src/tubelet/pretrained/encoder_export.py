"""Export of an encoder as a graph, and the metadata that every exported graph has."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tubelet.checkpoint.export import ExportPlan, LevelOutputs, difference_text, write_graph
from tubelet.config import ModelConfig
from tubelet.pretrained.backbone import Backbone

_COLOR_WINDOW = (0, 255)


def graph_metadata(
    model: Backbone, input_entry: Mapping[str, Any], output_entries: list[dict[str, Any]]
) -> dict[str, str]:
    """The metadata of an exported graph: texts, of which entries with several values are JSON.

    Args:
        model: the encoder.
        input_entry: name, axes (a letter each: B batch, C channels, T frames, H height, W width), data type and values
            of the input.
        output_entries: name and axes of each output (B batch, N tokens, D channels; of scores T time steps, S cells, K
            classes or values).

    Returns:
        `tubelet_version`, `model_id`, `input`, `outputs`, `patch_size` (pixels), `tubelet_size` (frames) and
        `native_clip` (image size in pixels, frames, frames per second). For an .onnx file they are its metadata; a .pt2
        file has them as JSON in the extra file `metadata.json`.
    """
    return {
        "tubelet_version": version("tubelet"),
        "model_id": model.model_id,
        "input": json.dumps(input_entry),
        "outputs": json.dumps(output_entries),
        "patch_size": str(model.config.patch_size),
        "tubelet_size": str(model.config.tubelet_size),
        "native_clip": json.dumps(model.native_clip._asdict()),
    }


def level_entries(config: ModelConfig) -> list[dict[str, Any]]:
    """Name, axes and 0-based block of each output of an exported encoder; the last is what `encode` returns as tokens.

    Tokens are ordered by time step, then row, then column.
    """
    return [
        {"name": f"level{i}", "axes": "BND", "token_order": "time, row, column", "block": block}
        for i, block in enumerate(config.levels)
    ]


def export_encoder(model: Backbone, out: Path, images: bool = False, int8: bool = False) -> str:
    """Write an encoder in fp32 as .pt2 (torch.export) or .onnx, and compare the file with eager mode at other shapes.

    Args:
        model: the encoder on the CPU; it is cast to fp32 in place.
        out: the file.
        images: export the image tokenizer's graph, for inputs with T = 1, instead of the video tokenizer's.
        int8: multiply by 8-bit weights, in ONNX, see `quantize_onnx`.

    Returns:
        a message with the largest difference and the speed relative to eager.

    Raises:
        CheckpointError: if the file computes something else; a previous file is then untouched.
        MissingPackageError: if the packages for ONNX are not installed.
        FileError: if the file cannot be written.
    """
    config = model.config
    shapes, outputs = _example_shapes(config, images), level_entries(config)
    pixels = model.pretrained_cfg
    normalization = {
        "window": config.pixels.window if config.pixels else _COLOR_WINDOW,
        "mean": pixels["mean"],
        "std": pixels["std"],
        "formula": "((x - window[0]) / (window[1] - window[0]) - mean) / std, per channel",
    }
    entry: dict[str, Any] = {"name": "pixels", "axes": "BCTHW", "dtype": "float32", "normalization": normalization}
    plan = ExportPlan(
        graph=LevelOutputs(model.float()).eval(),
        examples=[torch.randn(shape, generator=torch.Generator().manual_seed(0)) for shape in shapes],
        dynamic=_dynamic_dimensions(config, images),
        input_name="pixels",
        input_axes=entry["axes"],
        output_names=[output["name"] for output in outputs],
        output_axes=[output["axes"] for output in outputs],
        metadata=graph_metadata(model, entry, outputs),
        int8=int8,
    )
    check = write_graph(plan, out)
    tokens, size = config.grid(*shapes[-1][2:]).tokens * shapes[-1][0], "x".join(map(str, shapes[-1]))
    return (
        f"{out}: {difference_text(check, int8)} over {len(shapes)} shapes; "
        f"{tokens / check.graph_s:,.0f} tokens/s, eager {tokens / check.eager_s:,.0f} "
        f"(ratio {check.eager_s / check.graph_s:.2f}) at {size} on this CPU"
    )


def _example_shapes(config: ModelConfig, images: bool) -> list[tuple[int, ...]]:
    """Input shapes of several batch sizes, lengths and sizes, some not square; the first is traced."""
    C, t, p = config.channels, config.tubelet_size, config.patch_size
    steps = [1, 1, 1] if images else [2 * t, 3 * t, 4 * t]
    return [(2, C, steps[0], 4 * p, 3 * p), (1, C, steps[1], 2 * p, 5 * p), (3, C, steps[2], 8 * p, 8 * p)]


def _dynamic_dimensions(config: ModelConfig, images: bool) -> dict[int, Any]:
    """Dynamic batch, frames and size; only inputs of a single row or column of patches are excluded."""
    dims: dict[int, Any] = {
        0: torch.export.Dim("batch"),
        3: config.patch_size * torch.export.Dim("rows", min=2),
        4: config.patch_size * torch.export.Dim("columns", min=2),
    }
    return dims if images else dims | {2: config.tubelet_size * torch.export.Dim("steps")}
