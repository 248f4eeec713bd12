"""An encoder, a head and the preparation of frames as one graph: uint8 frames in, scores out.

T frames of H x W pixels, S pixels a side of the crop.
"""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from tubelet.checkpoint.export import ExportPlan, LevelOutputs, write_graph
from tubelet.config.fields import to_dict
from tubelet.data.clips import IMAGENET_MEAN, IMAGENET_STD, resize_center_crop
from tubelet.errors import CheckpointError
from tubelet.grid import Grid
from tubelet.heads.head_file import Head
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.dense_features import DenseFeatures

MAX_SCORE_DIFFERENCE = 1e-4
"""Largest absolute difference of scores between the file and its module; of values, in standard deviations."""
MAX_PIPELINE_DIFFERENCE = 2e-2
"""The same between the file and `tubelet predict`, whose resized colors may differ by one of 255."""


class ClipScores(nn.Module):
    """The exported module: frames (T, H, W, 3) uint8 to what the head gives for the clip.

    Frames of any size are resized and cropped to the head's central square, as `resize_center_crop` does: their short
    side becomes S by antialiased bilinear interpolation, with a result of whole colors. Interpolation is written as
    products with weights, so that every runtime computes the same.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Backbone, head: Head) -> None:
        super().__init__()
        self.levels, self.head = LevelOutputs(model), head
        size = head.spec.input.image_size
        self.size = size
        self.grid: Grid = model.config.grid(head.spec.input.frames, size, size)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, 255 * torch.tensor(values).view(3, 1, 1, 1))

    def forward(self, frames: Tensor) -> tuple[Tensor]:
        """Scores of one clip: (K,), (T', K) or (T', cells, K), see `Head.forward`."""
        pixels = (self.crop(frames).permute(3, 0, 1, 2) - self.mean) / self.std
        features = DenseFeatures(self.levels(pixels.unsqueeze(0)), self.grid, None)
        return (self.head(features)[0],)

    def crop(self, frames: Tensor) -> Tensor:
        """(T, H, W, 3) uint8 -> (T, S, S, 3) float32 with whole numbers from 0 to 255."""
        colors = frames.float()
        # Sizes as tensors: in the graph they are those of the input.
        height, width = torch.ones_like(colors[0, :, 0, 0]).sum(), torch.ones_like(colors[0, 0, :, 0]).sum()
        short = torch.minimum(height, width)
        across = self._weights(colors[0, 0, :, 0], width, short)
        along = self._weights(colors[0, :, 0, 0], height, short)
        # The uint8 kernel of PyTorch rounds after each direction, halves upward.
        colors = torch.einsum("sw,thwc->thsc", across, colors).add(0.5).floor().clamp(0, 255)
        return torch.einsum("sh,thwc->tswc", along, colors).add(0.5).floor().clamp(0, 255)

    def _weights(self, line: Tensor, length: Tensor, short: Tensor) -> Tensor:
        """(S, length) weights of the source pixels of a direction for each pixel of the crop.

        Args:
            line: (length,) any pixels of the direction.
            length: their number.
            short: length of the short side.
        """
        resized = torch.clamp((length * self.size / short).round(), min=self.size)
        first = torch.floor((resized - self.size) / 2)
        scale = length / resized
        centers = (torch.arange(self.size, device=line.device) + first + 0.5) * scale
        places = torch.cumsum(torch.ones_like(line), 0) - 0.5
        distances = (places[None] - centers[:, None]).abs() / torch.clamp(scale, min=1.0)
        weights = torch.clamp(1 - distances, min=0.0)
        return weights / weights.sum(1, keepdim=True)


def export_head(model: Backbone, head: Head, out: Path) -> str:
    """Write an encoder with a head as .pt2 (torch.export) or .onnx, and compare the file with eager.

    The file takes `frames`, (T, H, W, 3) uint8 with the head's T and any H and W, and gives `scores`. An ONNX file has
    the head's spec, with its classes and clips, as JSON in its metadata under `head`.

    Args:
        model: the encoder on the CPU that the head was trained on; it is cast to fp32 in place.
        head: the head.
        out: the file.

    Returns:
        a message with the largest differences: from the same module in eager mode, and from what `tubelet predict`
        computes.

    Raises:
        ConfigError: if the head was trained on another encoder.
        CheckpointError: if the file computes something else; a previous file is then untouched.
        MissingPackageError: if the packages for ONNX are not installed.
        FileError: if the file cannot be written.
    """
    model = head.adapt(model)
    graph = ClipScores(model.float(), head).eval()
    count, size = head.spec.input.frames, head.spec.input.image_size
    generator = torch.Generator().manual_seed(0)
    shapes = [(size + 7, size + 22), (size, size), (2 * size, 3 * size + 1), (3 * size, 2 * size)]
    examples = [torch.randint(0, 256, (count, *shape, 3), generator=generator, dtype=torch.uint8) for shape in shapes]
    scale = max(1.0, float(head.target_scale.max()))
    with torch.no_grad():
        crops = [resize_center_crop(frames, size).unsqueeze(0) for frames in examples]
        eager = [head(model.dense_features(pixels))[0] for pixels in crops]
        apart = max((graph(frames)[0] - scores).abs().max() for frames, scores in zip(examples, eager, strict=True))
    if not apart <= MAX_PIPELINE_DIFFERENCE * scale:
        raise CheckpointError(
            f"{out}: differs from predictions by {apart:.1e}, expected at most {MAX_PIPELINE_DIFFERENCE * scale:.0e}; "
            "not written"
        )
    plan = ExportPlan(
        graph=graph,
        examples=examples,
        dynamic={1: torch.export.Dim("height", min=2), 2: torch.export.Dim("width", min=2)},
        input_name="frames",
        output_names=["scores"],
        metadata={"head": json.dumps(to_dict(head.spec), sort_keys=True)},
        max_difference=MAX_SCORE_DIFFERENCE * scale,
    )
    worst, eager_s, exported_s = write_graph(plan, out)
    return (
        f"{out}: scores differ from eager by at most {worst:.1e}, from those of predictions by {apart:.1e}, over "
        f"{len(shapes)} sizes of frames; {exported_s:.3f} s a clip, eager {eager_s:.3f} on this CPU"
    )
