"""Export of an encoder with its preprocessing as one graph: uint8 frames of any size in, dense features out."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tubelet.checkpoint.export import ExportPlan, LevelOutputs, difference_text, write_graph
from tubelet.checkpoint.frame_preprocessing import FramePreprocessing
from tubelet.data.clips import resize_center_crop
from tubelet.errors import CheckpointError, ConfigError
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.encoder_export import graph_metadata, level_entries

MIN_ENCODE_COSINE = 0.9999
"""Mean cosine of the features of a graph and of `encode`, whose resized colors may differ by one of 255."""
# Absolute, between the file and its module: a color that lies between two whole ones may be rounded the other way.
_MAX_DIFFERENCE = 2e-2


class FrameLevels(nn.Module):
    """The exported module: frames (B, T, H, W, 3) uint8 of any size to output levels (B, N, D), shallow to deep."""

    def __init__(self, model: Backbone, size: int) -> None:
        super().__init__()
        self.preprocess, self.levels = FramePreprocessing(size), LevelOutputs(model)

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """All output levels of the central squares of the frames."""
        return self.levels(self.preprocess(frames))


def export_frames(model: Backbone, out: Path, size: int, images: bool = False, int8: bool = False) -> str:
    """Write an encoder that takes uint8 frames as .pt2 (torch.export) or .onnx, and compare it with `encode`.

    The file takes `frames`, (B, T, H, W, 3) uint8 with any H and W, and gives the levels of their central squares.

    Args:
        model: the encoder on the CPU; it is cast to fp32 in place.
        out: the file.
        size: side of the square that the encoder gets, in pixels.
        images: export the image tokenizer's graph, for T = 1, instead of the video tokenizer's.
        int8: multiply by 8-bit weights, in ONNX, see `quantize_onnx`.

    Returns:
        a message with the largest differences of colors and features at three shapes.

    Raises:
        ConfigError: if the size does not divide into patches, or the model takes other pixels than 8-bit RGB.
        CheckpointError: if the graph computes something else; a previous file is then untouched.
        MissingPackageError: if the packages for ONNX are not installed.
        FileError: if the file cannot be written.
    """
    if model.config.pixels is not None or model.config.channels != 3:
        raise ConfigError(
            f"{out}: --preprocess is for 8-bit RGB, but the model has statistics of its own, or other channels "
            f"({model.config.channels}); export without --preprocess"
        )
    t = 1 if images else model.config.tubelet_size
    model.config.grid(t, size, size)
    graph = FrameLevels(model.float(), size).eval()
    steps = (1, 1, 1) if images else (2, 3, 2)
    shapes = [
        (2, steps[0] * t, size + 7, size + 22, 3),
        (1, steps[1] * t, 2 * size, 3 * size + 1, 3),
        (1, steps[2] * t, size, size // 2 + 1, 3),
    ]
    generator = torch.Generator().manual_seed(0)
    examples = [torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8) for shape in shapes]
    color, cosine = 0.0, 1.0
    with torch.no_grad():
        for frames in examples:
            color = max(color, _largest_color_difference(graph.preprocess, frames))
            cosine = min(cosine, _encode_cosine(graph, model, frames, size))
    if not (color <= 1 and cosine >= MIN_ENCODE_COSINE):
        raise CheckpointError(
            f"{out}: colors differ from those of encode by {color:.0f} of 255, the cosine of features is {cosine:.5f}, "
            f"expected at most 1 and at least {MIN_ENCODE_COSINE}; not written"
        )
    dynamic = {0: torch.export.Dim("batch")} | ({} if images else {1: t * torch.export.Dim("steps")})
    outputs = level_entries(model.config)
    entry = {"name": "frames", "axes": "BTHWC", "dtype": "uint8", "values": "RGB, 0 to 255"}
    plan = ExportPlan(
        graph=graph,
        examples=examples,
        dynamic=dynamic | {2: torch.export.Dim("height", min=2), 3: torch.export.Dim("width", min=2)},
        input_name="frames",
        input_axes=entry["axes"],
        output_names=[output["name"] for output in outputs],
        output_axes=[output["axes"] for output in outputs],
        metadata=graph_metadata(model, entry, outputs) | {"image_size": str(size)},
        max_difference=_MAX_DIFFERENCE,
        int8=int8,
    )
    check = write_graph(plan, out)
    return (
        f"{out}: uint8 frames of any size, features of {size} x {size} pixels; {difference_text(check, int8)}; from "
        f"encode colors differ by at most {color:.0f} of 255, the cosine of features is {cosine:.6f} or more, over "
        f"{len(shapes)} shapes; {check.graph_s:.3f} s for {'x'.join(map(str, shapes[-1]))}, eager {check.eager_s:.3f} "
        "on this CPU"
    )


def _largest_color_difference(preprocess: FramePreprocessing, frames: Tensor) -> float:
    """Largest difference from the package's own resizing, on the scale of 0 to 255."""
    graph = preprocess.crop(frames.flatten(0, 1))
    reference = resize_center_crop(frames.flatten(0, 1), preprocess.size).permute(1, 2, 3, 0)
    return (graph - reference).abs().max().item()


def _encode_cosine(graph: FrameLevels, model: Backbone, frames: Tensor, size: int) -> float:
    """Lowest mean cosine of the features of a level."""
    levels = model.encode(frames, resize=size).levels
    return min(F.cosine_similarity(a, b, dim=-1).mean().item() for a, b in zip(graph(frames), levels, strict=True))
