"""An encoder, a head and the preparation of frames as one graph: uint8 frames (T, H, W, 3) in, scores out."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from tubelet.checkpoint.export import ExportPlan, LevelOutputs, difference_text, write_graph
from tubelet.checkpoint.frame_preprocessing import FramePreprocessing
from tubelet.checkpoint.state_dict import require_colors
from tubelet.config.fields import to_dict
from tubelet.errors import CheckpointError
from tubelet.grid import Grid
from tubelet.heads.head_file import Head
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.dense_features import DenseFeatures
from tubelet.pretrained.encoder_export import graph_metadata

MAX_SCORE_DIFFERENCE = 2e-2
"""Largest absolute difference of scores between the file and its module, and between these and `tubelet predict`; of
values, in standard deviations. Resized colors that lie between two whole ones may be rounded the other way."""


class ClipScores(nn.Module):
    """The exported module: frames (T, H, W, 3) uint8 of any size to what the head gives for the clip.

    Frames are resized, cropped to the head's squares and normalized by `FramePreprocessing`.
    """

    def __init__(self, model: Backbone, head: Head) -> None:
        super().__init__()
        self.levels, self.head = LevelOutputs(model), head
        clips = head.spec.input
        self.preprocess = FramePreprocessing(clips.image_size, clips.resize, clips.views)
        self.grid: Grid = model.config.grid(clips.frames, clips.image_size, clips.image_size)

    def forward(self, frames: Tensor) -> tuple[Tensor]:
        """Scores of one clip: (K,), (T', K) or (T', cells, K), see `Head.forward`."""
        features = DenseFeatures(self.levels(self.preprocess(frames.unsqueeze(0))), self.grid, None)
        return (self.head(features).mean(0),)


def export_head(model: Backbone, head: Head, out: Path, int8: bool = False) -> str:
    """Write an encoder with a head as .pt2 (torch.export) or .onnx, and compare the file with eager.

    The file takes `frames`, (T, H, W, 3) uint8 with the head's T and any H and W, and gives `scores`. Its metadata
    are those of `graph_metadata`, and under `head` the head's spec, with its classes and clips, as JSON.

    Args:
        model: the encoder on the CPU that the head was trained on; it is cast to fp32 in place.
        head: the head.
        out: the file.
        int8: multiply by 8-bit weights, in ONNX, see `quantize_onnx`.

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
    require_colors(model.config, out)
    graph = ClipScores(model.float(), head).eval()
    count, size = head.spec.input.frames, head.spec.input.image_size
    generator = torch.Generator().manual_seed(0)
    shapes = [(size + 7, size + 22), (size, size), (2 * size, 3 * size + 1), (3 * size, 2 * size)]
    examples = [torch.randint(0, 256, (count, *shape, 3), generator=generator, dtype=torch.uint8) for shape in shapes]
    scale = max(1.0, float(head.target_scale.max()))
    with torch.no_grad():
        eager = [head(model.dense_features(head.spec.input.crop_views(frames))).mean(0) for frames in examples]
        apart = max((graph(frames)[0] - scores).abs().max() for frames, scores in zip(examples, eager, strict=True))
    if not apart <= MAX_SCORE_DIFFERENCE * scale:
        raise CheckpointError(
            f"{out}: differs from predictions by {apart:.1e}, expected at most {MAX_SCORE_DIFFERENCE * scale:.0e}; "
            "not written"
        )
    entry = {"name": "frames", "axes": "THWC", "dtype": "uint8", "values": "RGB, 0 to 255"}
    axes = {1: "K", 2: "TK", 3: "TSK"}[eager[0].dim()]
    plan = ExportPlan(
        graph=graph,
        examples=examples,
        dynamic={1: torch.export.Dim("height", min=2), 2: torch.export.Dim("width", min=2)},
        input_name="frames",
        input_axes=entry["axes"],
        output_names=["scores"],
        output_axes=[axes],
        metadata=graph_metadata(model, entry, [{"name": "scores", "axes": axes}])
        | {"head": json.dumps(to_dict(head.spec), sort_keys=True)},
        max_difference=MAX_SCORE_DIFFERENCE * scale,
        int8=int8,
    )
    check = write_graph(plan, out)
    return (
        f"{out}: scores: {difference_text(check, int8)}, from those of predictions by {apart:.1e}, over "
        f"{len(shapes)} sizes of frames; {check.graph_s:.3f} s a clip, eager {check.eager_s:.3f} on this CPU"
    )
