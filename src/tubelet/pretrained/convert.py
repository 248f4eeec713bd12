"""Conversion of a model to another file format, chosen by the suffix of the target or by name."""

from pathlib import Path
from typing import Literal, TypedDict

from tubelet.checkpoint.gguf import write_encoder_gguf
from tubelet.checkpoint.hub import WEIGHTS_FILE, card_description, save_encoder
from tubelet.checkpoint.mlx import write_mlx
from tubelet.checkpoint.native_clip import NativeClip
from tubelet.checkpoint.registry import resolve_checkpoint
from tubelet.checkpoint.run import list_checkpoints, load_vjepa
from tubelet.checkpoint.state_dict import State, require_colors
from tubelet.checkpoint.transformers import Values, to_tubelet, to_vjepa2, to_vjepa21
from tubelet.checkpoint.transformers_folder import tubelet_processor, vjepa2_processor, write_folder
from tubelet.checkpoint.vjepa2_1 import MODULE_NAMES, ModuleName, write_released
from tubelet.checkpoint.vjepa2_predictor import is_vjepa2_file, read_vjepa2_predictor
from tubelet.checkpoint.weights import LoadSpec, is_encoder_file
from tubelet.errors import CheckpointError, ConfigError
from tubelet.io.files import directory_lock, file_errors
from tubelet.io.hidden_files import without_hidden
from tubelet.io.overwrite_checks import check_output
from tubelet.io.text import read_json
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.load import load_unplaced

_LOCK = ".convert.lock"
_EVALUATE_AGAIN = "delete it and run `tubelet evaluate` again"
Layout = Literal["transformers", "vjepa21", "mlx", "gguf"]
"""Layouts of other programs."""
_FOREIGN = (".pth", ".ckpt", ".bin", ".pkl", ".npz", ".h5")  # suffixes of files; not directory names


class _SuiteResult(TypedDict):
    """result.json of the suite, as far as a model card needs it."""

    metrics: dict[str, float]


class _SuiteTaskV1(TypedDict):
    """A task in evaluation.json: its metric, by kind of features."""

    name: str
    metric: str
    values: dict[str, float | None]


class _SuiteV1(TypedDict):
    """evaluation.json, which the suite wrote before."""

    tasks: list[_SuiteTaskV1]


def convert(name_or_path: str | Path, out: Path, spec: LoadSpec, license: str = "unknown") -> str:
    """Write a model in another layout without changing a value.

    Args:
        name_or_path: whatever `load` takes.
        out: NAME.pt is the released layout (student, predictor and teacher of a run or a released file; only the
            encoder of an encoder file), NAME.safetensors one file of this package, and a directory the same file with a
            model card for the Hub.
        spec: the encoder to write, and whether to include the predictor.
        license: license of the weights, for the card.

    Returns:
        A message about what was written.

    Raises:
        CheckpointError: if the source cannot be loaded, or cannot be stored in the target layout.
        FileError: if the target cannot be written.
    """
    if out.suffix in (".pt", ".safetensors", *_FOREIGN) or out.is_file():
        return _convert(name_or_path, out, spec, license)
    with directory_lock(out, _LOCK, "write to another directory"):
        try:
            return _convert(name_or_path, out, spec, license)
        finally:
            (out / _LOCK).unlink(missing_ok=True)  # the directory is uploaded as it is


def convert_to(
    name_or_path: str | Path,
    out: Path,
    layout: Layout,
    spec: LoadSpec,
    image_size: int | None = None,
    frames: int | None = None,
    license: str = "unknown",
) -> str:
    """Write a model in a layout of another program.

    Args:
        name_or_path: whatever `load` takes.
        out: the folder; for "mlx" and "gguf" the file.
        layout: "transformers" writes a V-JEPA 2.0 encoder as transformers' own `VJEPA2Model`, and every other model as
            `tubelet.hf.TubeletModel`, which `import tubelet.hf` registers; "vjepa21" is the layout of the ports of
            V-JEPA 2.1 on the Hub, which have code of their own; "mlx" writes the .safetensors file of a V-JEPA 2.1
            encoder for the port to MLX, and "gguf" the .gguf file of an encoder for jepa.cpp.
        spec: the encoder to write, and whether to include the predictor.
        image_size: side of the images that the video processor gives, and that the positions of `VJEPA2Model` refer to;
            None is the model's own, see `NativeClip`.
        frames: frames of a clip; None is the model's own.
        license: license of the weights, for the model card of a folder.

    Returns:
        A message about what was written.

    Raises:
        CheckpointError: if the source cannot be loaded, or cannot be stored in the layout.
        FileError: if the target cannot be written.
    """
    in_file = layout in ("mlx", "gguf")
    if not in_file and (out.suffix in (".pt", ".safetensors", ".gguf", *_FOREIGN) or out.is_file()):
        raise ConfigError(f"{out}: --to {layout} writes a folder, expected a name without a suffix")
    path = resolve_checkpoint(name_or_path)
    check_output(out, layout if in_file else "transformers", _read_from(path))
    model, vjepa2_predictor = _load_with_vjepa2_predictor(name_or_path, layout, spec)
    require_colors(model.config, out)
    clip = model.native_clip._replace(frames=frames or model.native_clip.frames)
    if image_size is not None:
        clip = clip._replace(image_size=image_size, source="published")
    model.config.grid(clip.frames, clip.image_size, clip.image_size)
    shape = f"{clip.frames} x {clip.image_size} x {clip.image_size}"
    encoder, predictor = split_state(model)
    if layout == "mlx":
        write_mlx(out, encoder, model.config, model.model_id, clip)
        return f"{out}: {model.model_id} for MLX"
    if layout == "gguf":
        write_encoder_gguf(out, encoder, model.config, model.model_id, clip)
        return f"{out}: {model.model_id} in float32 for jepa.cpp, for clips of {shape}"
    if layout == "vjepa21":
        parts: dict[ModuleName, State] = {model.encoder_name: encoder} | ({"predictor": predictor} if predictor else {})
        values, tensors = to_vjepa21(parts, model.config, clip.image_size, clip.frames)
        processor, note = vjepa2_processor(clip.image_size), "vjepa21, for the code of the ports on the Hub"
    else:
        values, tensors, processor, note = transformers_files(model, clip, vjepa2_predictor)
    card = model.generate_model_card(license, _metrics(path), values["architectures"][0])
    card_text = write_folder(out, values, tensors, processor, model.model_id, card)
    return f"{out}: {model.model_id} as {note}, for clips of {shape}, with {card_text}"


def _load_with_vjepa2_predictor(
    name_or_path: str | Path, layout: Layout, spec: LoadSpec
) -> tuple[Backbone, tuple[Values, State] | None]:
    """A model, and a requested predictor of V-JEPA 2.0, which is none of this package, for transformers."""
    path = resolve_checkpoint(name_or_path)
    if layout != "transformers" or not spec.predictor or not is_vjepa2_file(path):
        return load_unplaced(name_or_path, spec), None
    model = load_unplaced(name_or_path, spec._replace(predictor=False))
    return model, read_vjepa2_predictor(path, spec.predictor_heads, model.config.width)


def transformers_files(
    model: Backbone, clip: NativeClip, vjepa2_predictor: tuple[Values, State] | None = None
) -> tuple[Values, State, Values, str]:
    """Config, tensors and processor of a model of `transformers`, and what it is."""
    encoder, predictor = split_state(model)
    reason = ""
    if model.config.rope == "2.0":
        try:
            values, tensors = to_vjepa2(encoder, model.config, clip.image_size, clip.frames, vjepa2_predictor)
            return values, tensors, vjepa2_processor(clip.image_size), "VJEPA2Model of transformers"
        except CheckpointError as error:  # trained further, in ways that V-JEPA 2.0 cannot represent
            if vjepa2_predictor is not None:
                raise
            reason = f", since {error}"
    identity = {"name": model.name, "encoder_name": model.encoder_name}
    clips = {"image_size": clip.image_size, "num_frames": clip.frames, "fps": clip.fps}
    values, tensors = to_tubelet(encoder, predictor, model.config, identity | clips)
    processor = tubelet_processor(clip.image_size, clip.frames, clip.fps)
    return values, tensors, processor, f"TubeletModel, which `import tubelet.hf` registers{reason}"


def split_state(model: Backbone) -> tuple[State, State]:
    """State dictionaries of the encoder and of the predictor, which is empty if there is none."""
    predictor = model.predictor.state_dict() if model.predictor is not None else {}
    encoder = {name: value for name, value in model.state_dict().items() if not name.startswith("predictor.")}
    return encoder, predictor


def _convert(name_or_path: str | Path, out: Path, spec: LoadSpec, license: str) -> str:
    path = resolve_checkpoint(name_or_path)
    if path.is_file() and path.suffix not in (".pt", ".pth", ".safetensors", ".gguf"):
        raise ConfigError(f"{path}: expected a run directory, a .safetensors, .pt or .gguf file")
    if out.suffix in _FOREIGN:
        raise ConfigError(f"{out}: expected NAME.pt, NAME.safetensors, NAME.gguf, NAME.pt2, NAME.onnx, or a directory")
    check_output(out, {".pt": "released", ".safetensors": "encoder"}.get(out.suffix, "model"), _read_from(path))
    if out.is_dir() and any(file.name != WEIGHTS_FILE for file in without_hidden(out.glob("*.safetensors"))):
        raise ConfigError(f"{out}: holds the weights of another model: write to another directory")
    if out.suffix == ".pt" and not is_encoder_file(path):
        system, _ = load_vjepa(path)
        require_colors(system.config, out)
        write_released(out, system.config, {name: getattr(system, name).state_dict() for name in MODULE_NAMES})
        return f"{out}: student, predictor and teacher in the released layout"
    model = load_unplaced(name_or_path, spec)
    if out.suffix == ".pt":
        require_colors(model.config, out)
        encoder, predictor = split_state(model)
        parts: dict[ModuleName, State] = {model.encoder_name: encoder} | ({"predictor": predictor} if predictor else {})
        write_released(out, model.config, parts)
        return f"{out}: the {' and the '.join(parts)} in the released layout"
    if out.suffix == ".safetensors":
        save_encoder(out, model.state_dict(), model.config, model.name, model.encoder_name, model.native_clip)
        return f"{out}: {model.model_id}"
    card = card_description(out)
    with file_errors(out, "choose another directory"):
        model.save_pretrained(out, model_card_kwargs={"license": license, "metrics": _metrics(path)})
    return f"{out}: {model.model_id} with {card}; push_to_hub uploads it"


def _read_from(path: Path) -> list[Path]:
    """Files that the model is read from."""
    return [path, *path.glob("*.safetensors"), *list_checkpoints(path)] if path.is_dir() else [path]


def _metrics(path: Path) -> dict[str, float]:
    """The metrics of a run's latest suite, for its model card."""
    results = sorted(path.glob("evaluation/suite-*/result.json"), key=lambda file: file.stat().st_mtime)
    if results:
        values: dict[str, float | None] = read_json(results[-1], _SuiteResult, _EVALUATE_AGAIN)["metrics"]
    elif (first_version := path / "evaluation.json").is_file():
        tasks = read_json(first_version, _SuiteV1, _EVALUATE_AGAIN)["tasks"]
        values = {f"{task['name']}, {task['metric']}": task["values"].get("trained") for task in tasks}
    else:
        return {}
    return {name: round(value, 4) for name, value in values.items() if value is not None}
