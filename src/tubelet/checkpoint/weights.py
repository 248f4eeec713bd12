"""From a file or folder of any known layout to a config and state dictionaries in this package's names."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tubelet.checkpoint.run import FORMAT as CHECKPOINT_FORMAT
from tubelet.checkpoint.run import config_from_header, is_model_tensor, list_checkpoints, read_checkpoint
from tubelet.checkpoint.sharded import is_sharded
from tubelet.checkpoint.state_dict import State
from tubelet.checkpoint.transformers import from_transformers
from tubelet.checkpoint.vjepa2 import from_release
from tubelet.checkpoint.vjepa2_1 import TEACHER_KEYS, is_vjepa2, read_released, read_torch_file, state_dict_from
from tubelet.config import ModelConfig, TrainConfig
from tubelet.errors import CheckpointError, MissingFileError
from tubelet.io.arrays import open_safetensors, read_safetensors
from tubelet.io.hidden import without_hidden
from tubelet.model.lora import merge_adapters

EncoderName = Literal["teacher", "student"]
FORMAT = "tubelet-encoder-1"


class Weights(NamedTuple):
    """What a model is made of.

    Attributes:
        config: its sizes.
        encoder: state dictionary of `Encoder`.
        predictor: state dictionary of `Predictor`; empty if it was not asked for.
        name: what it is called, wherever its file lies.
        encoder_name: which of the two encoders it is.
    """

    config: ModelConfig
    encoder: State
    predictor: State
    name: str
    encoder_name: EncoderName


class LoadSpec(NamedTuple):
    """What to read, and what no tensor tells.

    Attributes:
        encoder: teacher or student; None is the teacher, or what a file of one part holds.
        predictor: whether the predictor too.
        heads, predictor_heads, levels: of a .pt file, see `read_released`.
    """

    encoder: EncoderName | None = None
    predictor: bool = False
    heads: int | None = None
    predictor_heads: int | None = None
    levels: tuple[int, ...] | None = None


def read_weights(path: Path, name: str, spec: LoadSpec) -> Weights:
    """Read an encoder; what it does not hold is said by whoever puts the tensors into a model.

    Args:
        path: a run folder, a folder with .safetensors files and a config.json, a .safetensors file, or a released .pt.
        name: what to call it unless the file tells.
        spec: what to read.

    Raises:
        TubeletError: if it is none of these or damaged.
    """
    if path.is_dir():
        found = [path] if is_sharded(path) else list_checkpoints(path)
        if found:
            return _from_safetensors(found[-1:], f"{path.resolve().name}/{found[-1].stem}", spec)
        files = without_hidden(path.glob("*.safetensors"))
        if not files:
            raise MissingFileError(
                f"{path}: no checkpoint in this folder (expected checkpoints/step-*.safetensors, or .safetensors files)"
            )
        return _from_safetensors(files, name, spec)
    if path.suffix in (".pt", ".pth"):
        return _from_pt(path, name, spec)
    if path.suffix == ".safetensors":
        return _from_safetensors([path], name, spec)
    raise CheckpointError(f"{path}: expected a run folder, a .safetensors or a .pt file")


def is_encoder_file(path: Path) -> bool:
    """Whether a .safetensors file, or a folder with some, holds an encoder without what it was trained with."""
    if path.is_dir():
        return not is_sharded(path) and not list_checkpoints(path) and bool(without_hidden(path.glob("*.safetensors")))
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    with open_safetensors(path) as file:
        return file.header.get("format") in (None, "pt", FORMAT)  # transformers says "pt"


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
    tensors, header = _read_safetensors(files)
    where, part = str(files[0]), spec.encoder or "teacher"
    if header.get("format") == CHECKPOINT_FORMAT:
        train = config_from_header(header, TrainConfig, where)
        encoder = merge_adapters(_strip_prefix(tensors, f"{part}."))
        return Weights(train.model, encoder, _predictor(tensors, spec, where), name, part)
    if header.get("format") == FORMAT:
        config = config_from_header(header, ModelConfig, where)
        held: EncoderName = "student" if header.get("part") == "student" else "teacher"
        if held != (spec.encoder or held):
            raise CheckpointError(
                f"{where}: holds the {held} alone, not the {part}: leave encoder out, or name another file"
            )
        encoder = {key: value for key, value in tensors.items() if not key.startswith("predictor.")}
        return Weights(config, encoder, _predictor(tensors, spec, where), header.get("name", name), held)
    folder = files[0].parent
    if part != "teacher":
        raise CheckpointError(f"{where}: transformers' files hold the teacher alone, not the {part}: leave encoder out")
    return Weights(*from_transformers(folder, tensors), _no_predictor(folder, spec), name, part)


def _no_predictor(path: Path, spec: LoadSpec) -> State:
    if spec.predictor:
        raise CheckpointError(f"{path}: V-JEPA 2.0's predictor has other heads and is not read: load the encoder alone")
    return {}


def _predictor(tensors: Mapping[str, Any], spec: LoadSpec, where: str) -> State:
    if not spec.predictor:
        return {}
    found = _strip_prefix(tensors, "predictor.")
    if not found:
        raise CheckpointError(f"{where}: holds an encoder alone, without the predictor that was asked for")
    return found


def _strip_prefix(tensors: Mapping[str, Any], prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _read_safetensors(files: Iterable[Path]) -> tuple[State, dict[str, str]]:
    """All tensors of a model's files, mapped rather than read, and the header of the last."""
    tensors: State = {}
    header: dict[str, str] = {}
    for path in files:
        if path.is_dir():
            tensors, header = read_checkpoint(path, is_model_tensor)
            continue
        found, header = read_safetensors(path)
        if twice := next((name for name in found if name in tensors), None):
            raise CheckpointError(
                f"{path.parent}: holds several models ({twice} is in {path.name} and in another file): name one file"
            )
        tensors |= found
    return tensors, header
