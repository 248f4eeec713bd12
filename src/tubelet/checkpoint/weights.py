"""From a file or folder of any known layout to a config and state dictionaries in this package's names."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tubelet.checkpoint.run import FORMAT as CHECKPOINT_FORMAT
from tubelet.checkpoint.run import checkpoints, is_of_model, read_tensors, stored_config
from tubelet.checkpoint.sharded import is_in_parts
from tubelet.checkpoint.vjepa2 import from_release, from_transformers
from tubelet.checkpoint.vjepa2_1 import TEACHER_KEYS, State, is_2_0, read_released, read_torch_file, state_in
from tubelet.config import ModelConfig, TrainConfig
from tubelet.errors import TubeletError
from tubelet.io.arrays import open_tensors
from tubelet.io.arrays import read_tensors as read_safetensors
from tubelet.io.hidden import without_hidden
from tubelet.model.lora import merge_adapters

EncoderPart = Literal["teacher", "student"]
FORMAT = "tubelet-encoder-1"


class Weights(NamedTuple):
    """What a model is made of.

    Attributes:
        config: its sizes.
        encoder: state dictionary of `Encoder`.
        predictor: state dictionary of `Predictor`; empty if it was not asked for.
        name: what it is called, wherever its file lies.
        part: which of the two encoders it is.
    """

    config: ModelConfig
    encoder: State
    predictor: State
    name: str
    part: EncoderPart


class Wanted(NamedTuple):
    """What to read, and what no tensor tells.

    Attributes:
        part: teacher or student; None is the teacher, or what a file of one part holds.
        predictor: whether the predictor too.
        heads, predictor_heads, levels: of a .pt file, see `read_released`.
    """

    part: EncoderPart | None = None
    predictor: bool = False
    heads: int | None = None
    predictor_heads: int | None = None
    levels: tuple[int, ...] | None = None


def read_weights(path: Path, name: str, wanted: Wanted) -> Weights:
    """Read an encoder; what it does not hold is said by whoever puts the tensors into a model.

    Args:
        path: a run folder, a folder with .safetensors files and a config.json, a .safetensors file, or a released .pt.
        name: what to call it unless the file tells.
        wanted: what to read.

    Raises:
        TubeletError: if it is none of these or damaged.
    """
    if path.is_dir():
        found = [path] if is_in_parts(path) else checkpoints(path)
        if found:
            return _from_safetensors(found[-1:], f"{path.resolve().name}/{found[-1].stem}", wanted)
        files = without_hidden(path.glob("*.safetensors"))
        if not files:
            raise TubeletError(
                f"{path}: no checkpoint in this folder (expected checkpoints/step-*.safetensors, or .safetensors files)"
            )
        return _from_safetensors(files, name, wanted)
    if path.suffix in (".pt", ".pth"):
        return _from_pt(path, name, wanted)
    if path.suffix == ".safetensors":
        return _from_safetensors([path], name, wanted)
    raise TubeletError(f"{path}: expected a run folder, a .safetensors or a .pt file")


def is_encoder(path: Path) -> bool:
    """Whether a .safetensors file, or a folder with some, holds an encoder without what it was trained with."""
    if path.is_dir():
        return not is_in_parts(path) and not checkpoints(path) and bool(without_hidden(path.glob("*.safetensors")))
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    with open_tensors(path) as file:
        return file.header.get("format") in (None, "pt", FORMAT)  # transformers says "pt"


def _from_pt(path: Path, name: str, wanted: Wanted) -> Weights:
    file = read_torch_file(path)
    only_student = "encoder" in file and not any(key in file for key in TEACHER_KEYS)
    part = wanted.part or ("student" if only_student else "teacher")
    key = "encoder" if part == "student" else "target_encoder"
    if key in file and is_2_0(state := state_in(file, key, path)):
        return Weights(*from_release(path, state, wanted.heads), _no_predictor(path, wanted), name, part)
    released = read_released(
        path,
        wanted.heads,
        wanted.predictor_heads,
        wanted.levels,
        parts=(part, "predictor") if wanted.predictor else (part,),
    )
    encoder = released.teacher if part == "teacher" else released.student
    return Weights(released.config, encoder, released.predictor, name, part)


def _from_safetensors(files: list[Path], name: str, wanted: Wanted) -> Weights:
    tensors, header = _read_safetensors(files)
    where, part = str(files[0]), wanted.part or "teacher"
    if header.get("format") == CHECKPOINT_FORMAT:
        train = stored_config(header, TrainConfig, where)
        encoder = merge_adapters(_below(tensors, f"{part}."))
        return Weights(train.model, encoder, _predictor(tensors, wanted, where), name, part)
    if header.get("format") == FORMAT:
        config = stored_config(header, ModelConfig, where)
        held: EncoderPart = "student" if header.get("part") == "student" else "teacher"
        if held != (wanted.part or held):
            raise TubeletError(f"{where}: holds the {held} alone, not the {part}: leave part out, or name another file")
        encoder = {key: value for key, value in tensors.items() if not key.startswith("predictor.")}
        return Weights(config, encoder, _predictor(tensors, wanted, where), header.get("name", name), held)
    folder = files[0].parent
    if part != "teacher":
        raise TubeletError(f"{where}: transformers' files hold the teacher alone, not the {part}: leave part out")
    return Weights(*from_transformers(folder, tensors), _no_predictor(folder, wanted), name, part)


def _no_predictor(path: Path, wanted: Wanted) -> State:
    if wanted.predictor:
        raise TubeletError(f"{path}: V-JEPA 2.0's predictor has other heads and is not read: load the encoder alone")
    return {}


def _predictor(tensors: Mapping[str, Any], wanted: Wanted, where: str) -> State:
    if not wanted.predictor:
        return {}
    found = _below(tensors, "predictor.")
    if not found:
        raise TubeletError(f"{where}: holds an encoder alone, without the predictor that was asked for")
    return found


def _below(tensors: Mapping[str, Any], prefix: str) -> State:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _read_safetensors(files: Iterable[Path]) -> tuple[State, dict[str, str]]:
    """All tensors of a model's files, mapped rather than read, and the header of the last."""
    tensors: State = {}
    header: dict[str, str] = {}
    for path in files:
        if path.is_dir():
            tensors, header = read_tensors(path, is_of_model)
            continue
        found, header = read_safetensors(path)
        if twice := next((name for name in found if name in tensors), None):
            raise TubeletError(
                f"{path.parent}: holds several models ({twice} is in {path.name} and in another file): name one file"
            )
        tensors |= found
    return tensors, header
