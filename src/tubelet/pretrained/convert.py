"""Convert a model to another file layout, chosen by the suffix of the target."""

from pathlib import Path
from typing import TypedDict

from tubelet.checkpoint.hub import WEIGHTS_FILE, save_encoder
from tubelet.checkpoint.registry import resolve_checkpoint
from tubelet.checkpoint.run import list_checkpoints, load_vjepa
from tubelet.checkpoint.state_dict import State
from tubelet.checkpoint.vjepa2_1 import MODULE_NAMES, ModuleName, write_released
from tubelet.checkpoint.weights import LoadSpec, is_encoder_file
from tubelet.errors import ConfigError
from tubelet.io.files import directory_lock, file_errors
from tubelet.io.hidden_files import without_hidden
from tubelet.io.overwrite_checks import check_output
from tubelet.io.text import read_json
from tubelet.pretrained.load import load_unplaced

_LOCK = ".convert.lock"
_EVALUATE_AGAIN = "delete it and run `tubelet evaluate` again"
_FOREIGN = (".pth", ".ckpt", ".bin", ".pkl", ".npz", ".h5", ".gguf")  # suffixes of files; not directory names


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


def convert(what: str | Path, out: Path, spec: LoadSpec, license: str = "unknown") -> str:
    """Write a model in another layout without changing a value.

    Args:
        what: whatever `load` takes.
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
        return _convert(what, out, spec, license)
    with directory_lock(out, _LOCK, "write to another directory"):
        try:
            return _convert(what, out, spec, license)
        finally:
            (out / _LOCK).unlink(missing_ok=True)  # the directory is uploaded as it is


def _convert(what: str | Path, out: Path, spec: LoadSpec, license: str) -> str:
    path = resolve_checkpoint(what)
    if path.is_file() and path.suffix not in (".pt", ".pth", ".safetensors"):
        raise ConfigError(f"{path}: expected a run directory, a .safetensors or a .pt file")
    if out.suffix in _FOREIGN:
        raise ConfigError(f"{out}: expected NAME.pt, NAME.safetensors, NAME.pt2, NAME.onnx, or a directory")
    check_output(out, {".pt": "released", ".safetensors": "encoder"}.get(out.suffix, "model"), _read_from(path))
    if out.is_dir() and any(file.name != WEIGHTS_FILE for file in without_hidden(out.glob("*.safetensors"))):
        raise ConfigError(f"{out}: holds the weights of another model: write to another directory")
    if out.suffix == ".pt" and not is_encoder_file(path):
        system, _ = load_vjepa(path)
        write_released(out, system.config, {name: getattr(system, name).state_dict() for name in MODULE_NAMES})
        return f"{out}: student, predictor and teacher in the released layout"
    model = load_unplaced(what, spec)
    if out.suffix == ".pt":
        encoder = {name: value for name, value in model.state_dict().items() if not name.startswith("predictor.")}
        parts: dict[ModuleName, State] = {model.encoder_name: encoder}
        if model.predictor is not None:
            parts["predictor"] = model.predictor.state_dict()
        write_released(out, model.config, parts)
        return f"{out}: the {' and the '.join(parts)} in the released layout"
    if out.suffix == ".safetensors":
        save_encoder(out, model.state_dict(), model.config, model.name, model.encoder_name)
        return f"{out}: {model.model_id}"
    card = "its card"
    if (out / "README.md").exists():
        card = "the existing README.md (delete it for a new card)"
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
