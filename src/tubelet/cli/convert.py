"""`tubelet convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from tubelet.cli.command import Command, Model
from tubelet.config.data import Frames, Side
from tubelet.config.model import MAX_DEPTH, Width
from tubelet.console import open_console, print_wrapped
from tubelet.errors import ConfigError
from tubelet.io.overwrite_checks import check_output
from tubelet.value_checks import Bounds

if TYPE_CHECKING:
    from tubelet.checkpoint.weights import LoadSpec


_FOLDERS = ("transformers", "vjepa21")
"""Layouts that are folders."""


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Write a model in another format: released .pt, .safetensors, a folder for the Hub or others, .pt2 or .onnx."""

    model: Model
    """A run directory, a file, a released name or a Hub id."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="TARGET")]
    """NAME.pt, NAME.safetensors, NAME.gguf (an encoder for jepa.cpp), NAME.pt2, NAME.onnx, or a folder."""
    to: Literal["transformers", "vjepa21", "mlx", "head"] | None = None
    """Layout: "transformers" is a folder with V-JEPA 2.0 as VJEPA2Model, any other model as the one that
    `import tubelet.hf` registers; "vjepa21" a folder like those of the ports on the Hub; "mlx" NAME.safetensors of an
    encoder for the port of V-JEPA 2.1 to MLX; "head" a head file NAME.safetensors, from a classification model of
    transformers, or from a released probe with --head."""
    encoder: Literal["teacher", "student"] | None = None
    """Which encoder; by default the teacher, or the one that the file holds. A .pt of a run holds both."""
    with_predictor: bool = False
    """Include the predictor."""
    heads: Width | None = None
    """Attention heads, for a .pt file whose width is not in the model family."""
    predictor_heads: Width | None = None
    """Attention heads of the predictor, for a .pt file."""
    levels: tuple[Annotated[int, Bounds(0, MAX_DEPTH)], ...] | None = None
    """Output blocks, for a .pt file that is not in the model family."""
    image_size: Side | None = None
    """With --to, --preprocess or for .gguf: side of the images in pixels; by default that in the config of a run or
    of a model of transformers, or in a released name, else that of the pre-training grid."""
    frames: Frames | None = None
    """With --to or for .gguf: frames of a clip; by default the number in that config, else 16."""
    license: str | None = None
    """License of the weights, for a folder's model card; by default "unknown"."""
    images: bool = False
    """Export the path of the image tokenizer instead of the video tokenizer's."""
    preprocess: bool = False
    """For .pt2 and .onnx: the graph takes uint8 frames of any size, (B, T, H, W, 3), and resizes, center-crops and
    normalizes them to --image-size. With --head this is always so, for the size of the head."""
    int8: bool = False
    """For .onnx: 8-bit weights and activations in matrix products, for a file of a fourth of the size."""
    head: Path | None = None
    """A head that was fitted on the model: for .pt2 and .onnx, one graph from uint8 frames to scores; with
    `--to transformers`, a model for video classification. With `--to head`, the .pt file of a released probe."""
    class_names: Path | None = None
    """With `--to head`: a file of the names of the classes, one a line; by default those of the model, or numbers."""

    def run(self) -> None:
        """Convert the model."""
        from tubelet.checkpoint.weights import LoadSpec

        exported = self.out.suffix in (".pt2", ".onnx")
        folder = self.out.suffix not in (".pt", ".safetensors", ".gguf", ".pt2", ".onnx")
        with_head, gguf = self.head is not None, self.out.suffix == ".gguf"
        sized = gguf or self.preprocess or (self.to in _FOLDERS and not with_head)
        encoder_only = exported or with_head or gguf or self.to in ("mlx", "head")
        for option, is_set, applies in (
            ("--with-predictor", self.with_predictor, not encoder_only),
            ("--images", self.images, exported and not with_head),
            ("--preprocess", self.preprocess, exported and not with_head),
            ("--int8", self.int8, self.out.suffix == ".onnx"),
            ("--head", with_head, exported or self.to in ("transformers", "head")),
            ("--class-names", self.class_names is not None, self.to == "head"),
            ("--license", self.license is not None, folder),
            ("--to", self.to is not None, folder if self.to in _FOLDERS else self.out.suffix == ".safetensors"),
            ("--image-size", self.image_size is not None, sized),
            ("--frames", self.frames is not None, sized and not self.preprocess),
        ):
            if is_set and not applies:
                raise ConfigError(f"{option} has no effect for {self.out}; remove it")
        license = self.license or "unknown"
        spec = LoadSpec(self.encoder, self.with_predictor, self.heads, self.predictor_heads, self.levels)
        if exported:
            summary = self._export(spec)
        elif self.to is None and not gguf:
            from tubelet.pretrained.convert import convert

            summary = convert(self.model, self.out, spec, license)
        elif self.to == "head":
            from tubelet.heads.head_import import import_head, read_class_names

            check_output(self.out, "head", [self.model, *([self.head] if self.head else [])])
            names = read_class_names(self.class_names) if self.class_names else None
            source, encoder = (self.model, None) if self.head is None else (self.head, self.model)
            head = import_head(source, encoder, names)
            head.save(self.out)
            summary = f"{self.out}: a head for {len(head.spec.classes)} classes on {head.spec.encoder.model_id}"
        elif self.head is None:
            from tubelet.pretrained.convert import convert_to

            layout = self.to or "gguf"
            summary = convert_to(self.model, self.out, layout, spec, self.image_size, self.frames, license)
        else:
            from tubelet.heads.head_file import load_head
            from tubelet.heads.head_folder import write_classifier
            from tubelet.pretrained.load import load_unplaced

            check_output(self.out, "transformers", [self.model, self.head])
            summary = write_classifier(load_unplaced(self.model, spec), load_head(self.head), self.out, license)
        print_wrapped(open_console(), summary)

    def _export(self, spec: "LoadSpec") -> str:
        """Write a .pt2 or .onnx file, and return a message about it."""
        from tubelet.checkpoint.export import output_kind
        from tubelet.pretrained.load import load_unplaced

        read_from = [self.model] if self.head is None else [self.model, self.head]
        check_output(self.out, output_kind(self.out), read_from)  # before minutes of work
        if self.preprocess:
            from tubelet.pretrained.frame_export import export_frames

            model = load_unplaced(self.model, spec)
            size = self.image_size or model.native_clip.image_size
            return export_frames(model, self.out, size, self.images, self.int8)
        if self.head is None:
            from tubelet.pretrained.encoder_export import export_encoder

            return export_encoder(load_unplaced(self.model, spec), self.out, self.images, self.int8)
        from tubelet.heads.head_export import export_head
        from tubelet.heads.head_file import load_head

        return export_head(load_unplaced(self.model, spec), load_head(self.head), self.out, self.int8)
