"""Reading of weights in any supported layout: config and state dictionaries in this package's names."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tubelet.checkpoint.gguf import read_encoder_gguf
from tubelet.checkpoint.mlx import FORMAT as MLX
from tubelet.checkpoint.mlx import from_mlx
from tubelet.checkpoint.native_clip import NativeClip
from tubelet.checkpoint.run import FORMAT as CHECKPOINT_FORMAT
from tubelet.checkpoint.run import (
    config_from_header,
    is_model_tensor,
    list_checkpoints,
    no_checkpoint,
    read_checkpoint,
    untrained_image_tokenizer,
)
from tubelet.checkpoint.sharded import is_sharded
from tubelet.checkpoint.state_dict import State, select_prefix
from tubelet.checkpoint.transformers import from_transformers
from tubelet.checkpoint.vjepa2 import from_release
from tubelet.checkpoint.vjepa2_1 import TEACHER_KEYS, is_vjepa2, read_released, read_torch_file, state_dict_from
from tubelet.config import ModelConfig, TrainConfig
from tubelet.errors import CheckpointError
from tubelet.io.arrays import open_safetensors, read_safetensors
from tubelet.io.hidden_files import without_hidden
from tubelet.model.lora import merge_adapters

EncoderName = Literal["teacher", "student"]
FORMAT = "tubelet-encoder-1"


class Weights(NamedTuple):
    """The contents of a model file.

    Attributes:
        config: architecture.
        encoder: state dictionary of `Encoder`.
        predictor: state dictionary of `Predictor`; empty if not requested.
        name: name of the model, independent of where its file is.
        encoder_name: which of the two encoders it is.
        clip: the clips that it is for; None if the file does not say.
    """

    config: ModelConfig
    encoder: State
    predictor: State
    name: str
    encoder_name: EncoderName
    clip: NativeClip | None = None


class LoadSpec(NamedTuple):
    """What to read, and properties that a .pt file does not store.

    Attributes:
        encoder: teacher or student; None is the teacher, or the only encoder in the file.
        predictor: whether to read the predictor too.
        heads: attention heads of the encoder in a .pt file, see `read_released`.
        predictor_heads: attention heads of the predictor in a .pt file.
        levels: output blocks of the encoder in a .pt file.
    """

    encoder: EncoderName | None = None
    predictor: bool = False
    heads: int | None = None
    predictor_heads: int | None = None
    levels: tuple[int, ...] | None = None


def read_weights(path: Path, name: str, spec: LoadSpec) -> Weights:
    """Read an encoder from any supported layout; missing tensors are reported when they are loaded into a model.

    Args:
        path: a run directory, a directory with .safetensors files and a config.json, a .safetensors file, a released
            .pt file, or a .gguf file.
        name: name of the model, unless the file has one.
        spec: what to read.

    Raises:
        CheckpointError: if it is none of these, or damaged.
        MissingFileError: if the directory has no checkpoint.
    """
    if path.is_dir():
        checkpoints = [path] if is_sharded(path) else list_checkpoints(path)
        if checkpoints:
            return _from_safetensors(checkpoints[-1:], f"{path.resolve().name}/{checkpoints[-1].stem}", spec)
        files = without_hidden(path.glob("*.safetensors"))
        if not files:
            raise no_checkpoint(path, "checkpoints/step-*.safetensors, or *.safetensors")
        return _from_safetensors(files, name, spec)
    if path.suffix in (".pt", ".pth"):
        return _from_pt(path, name, spec)
    if path.suffix == ".safetensors":
        return _from_safetensors([path], name, spec)
    if path.suffix == ".gguf":
        _require_teacher(path, "GGUF", spec)
        config, encoder, clip = read_encoder_gguf(path)
        return Weights(config, encoder, {}, name, "teacher", clip)
    raise CheckpointError(f"{path}: expected a run directory, a .safetensors, .pt or .gguf file")


def is_encoder_file(path: Path) -> bool:
    """Whether a .safetensors file, or a directory of them, is an encoder without its training state."""
    if path.is_dir():
        return not is_sharded(path) and not list_checkpoints(path) and bool(without_hidden(path.glob("*.safetensors")))
    if path.suffix != ".safetensors" or not path.is_file():
        return path.suffix == ".gguf"
    with open_safetensors(path) as file:
        return file.header.get("format") in (None, "pt", MLX, FORMAT)  # transformers writes "pt"


def _from_pt(path: Path, name: str, spec: LoadSpec) -> Weights:
    file = read_torch_file(path)
    only_student = "encoder" in file and not any(key in file for key in TEACHER_KEYS)
    part = spec.encoder or ("student" if only_student else "teacher")
    key = "encoder" if part == "student" else "target_encoder"
    if key in file and is_vjepa2(state := state_dict_from(file, key, path)):
        return Weights(*from_release(path, state, spec.heads), _no_predictor(path, spec), name, part)
    released = read_released(
        path,
        spec.heads,
        spec.predictor_heads,
        spec.levels,
        modules=(part, "predictor") if spec.predictor else (part,),
    )
    encoder = released.teacher if part == "teacher" else released.student
    return Weights(released.config, encoder, released.predictor, name, part)


def _from_safetensors(files: list[Path], name: str, spec: LoadSpec) -> Weights:
    tensors, header = read_safetensors_files(files)
    where, part = str(files[0]), spec.encoder or "teacher"
    if header.get("format") == CHECKPOINT_FORMAT:
        train = config_from_header(header, TrainConfig, where)
        encoder = merge_adapters(select_prefix(tensors, f"{part}."))
        encoder |= untrained_image_tokenizer(encoder, "", train)
        predictor = _predictor(tensors, spec, where)
        return Weights(train.model, encoder, predictor, name, part, NativeClip.of_run(train.data))
    if header.get("format") == FORMAT:
        config = config_from_header(header, ModelConfig, where)
        stored = _stored(header.get("part"))
        if stored != (spec.encoder or stored):
            raise CheckpointError(
                f"{where}: contains only the {stored}, not the {part}; omit encoder=, or name another file"
            )
        encoder = {key: value for key, value in tensors.items() if not key.startswith("predictor.")}
        predictor = _predictor(tensors, spec, where)
        clip = NativeClip.from_header(header, where)
        return Weights(config, encoder, predictor, header.get("name", name), stored, clip)
    if header.get("format") == MLX:
        _require_teacher(where, "MLX", spec)
        config, encoder, clip = from_mlx(files[0], tensors, spec.heads, spec.levels)
        return Weights(config, encoder, {}, name, part, clip or NativeClip.from_header(header, where))
    model = from_transformers(files[0].parent, tensors, spec.predictor)
    stored = _stored(model.encoder_name)
    if stored != (spec.encoder or stored):
        raise CheckpointError(f"{where}: transformers files contain only the {stored}, not the {part}; omit encoder=")
    return Weights(model.config, model.encoder, model.predictor, model.name or name, stored, model.clip)


def _stored(name: str | None) -> EncoderName:
    return "student" if name == "student" else "teacher"


def _require_teacher(where: str | Path, kind: str, spec: LoadSpec) -> None:
    if spec.encoder not in (None, "teacher"):
        raise CheckpointError(f"{where}: {kind} files contain only the teacher, not the {spec.encoder}; omit encoder=")
    if spec.predictor:
        raise CheckpointError(f"{where}: of {kind} files only the encoder is read, not the requested predictor")


def _no_predictor(path: Path, spec: LoadSpec) -> State:
    if spec.predictor:
        raise CheckpointError(
            f"{path}: the V-JEPA 2.0 predictor has other heads and is not supported; load only the encoder"
        )
    return {}


def _predictor(tensors: Mapping[str, Any], spec: LoadSpec, where: str) -> State:
    if not spec.predictor:
        return {}
    state = select_prefix(tensors, "predictor.")
    if not state:
        raise CheckpointError(f"{where}: contains only an encoder, not the requested predictor")
    return state


def read_safetensors_files(files: Iterable[Path]) -> tuple[State, dict[str, str]]:
    """All tensors of a model's files, memory-mapped, and the header of the last file."""
    tensors: State = {}
    header: dict[str, str] = {}
    for path in files:
        if path.is_dir():
            tensors, header = read_checkpoint(path, is_model_tensor)
            continue
        shard, header = read_safetensors(path)
        if twice := next((name for name in shard if name in tensors), None):
            raise CheckpointError(
                f"{path.parent}: contains several models ({twice} is in {path.name} and in another file); name one file"
            )
        tensors |= shard
    return tensors, header
