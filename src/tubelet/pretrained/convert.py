"""One model, other files: the suffix of the target says which."""

import json
from pathlib import Path

from tubelet.checkpoint import checkpoints, load_vjepa
from tubelet.hidden import visible
from tubelet.pretrained.backbone import build
from tubelet.pretrained.hub import WEIGHTS_FILE, save_encoder
from tubelet.pretrained.sources import find
from tubelet.pretrained.weights import Wanted, is_encoder
from tubelet.released import PARTS, Part, State, write_released
from tubelet.types import TubeletError

_FOREIGN = (".pth", ".ckpt", ".bin", ".pkl", ".npz", ".h5", ".gguf")  # files, of which one would not want a folder


def convert(what: str | Path, out: Path, wanted: Wanted, license: str = "unknown") -> str:
    """Write a model in another layout; no number changes.

    Args:
        what: whatever `load` takes.
        out: NAME.pt is the released layout (student, predictor and teacher of a run or a released file; of an encoder
            what there is), NAME.safetensors one file of this package, and a folder that and a model card for the Hub.
        wanted: which encoder, and whether the predictor too.
        license: of the weights, for the card.

    Returns:
        what was written, in words.

    Raises:
        TubeletError: if the source cannot be loaded, or the target cannot hold it.
    """
    path = find(what)
    if path.is_file() and path.suffix not in (".pt", ".pth", ".safetensors"):
        raise TubeletError(f"{path}: expected a run folder, a .safetensors or a .pt file")
    if out.suffix in _FOREIGN:
        raise TubeletError(f"{out}: expected NAME.pt, NAME.safetensors, NAME.pt2, NAME.onnx, or a folder")
    if out.exists() and out.resolve() == path.resolve():
        raise TubeletError(f"{out}: is the source itself: write to another file")
    if out.is_dir() and out.suffix in (".pt", ".safetensors"):
        raise TubeletError(f"{out}: is a folder, expected a file or a new name")
    if out.is_dir() and ((out / "checkpoints").exists() or checkpoints(out.parent)):
        raise TubeletError(f"{out}: holds a run, whose files would be overwritten: write to another folder")
    if out.is_dir() and any(file.name != WEIGHTS_FILE for file in visible(out.glob("*.safetensors"))):
        raise TubeletError(f"{out}: holds the weights of another model: write to another folder")
    if out.exists() and not out.suffix and not out.is_dir():
        raise TubeletError(f"{out}: is a file, expected a folder, or a name that ends in .pt or .safetensors")
    if out.suffix == ".pt" and not is_encoder(path):
        system, _ = load_vjepa(path)
        write_released(out, system.config, {name: getattr(system, name).state_dict() for name in PARTS})
        return f"{out}: student, predictor and teacher in the released layout"
    model = build(what, wanted)
    if out.suffix == ".pt":
        encoder = {name: value for name, value in model.state_dict().items() if not name.startswith("predictor.")}
        parts: dict[Part, State] = {model.part: encoder}
        if model.predictor is not None:
            parts["predictor"] = model.predictor.state_dict()
        write_released(out, model.config, parts)
        return f"{out}: the {' and the '.join(parts)} in the released layout"
    if out.suffix == ".safetensors":
        save_encoder(out, model.state_dict(), model.config, model.name, model.part)
        return f"{out}: {model.model_id}"
    try:
        model.save_pretrained(out, model_card_kwargs={"license": license, "metrics": _metrics(path)})
    except OSError as error:
        raise TubeletError(f"{out}: cannot be written ({error.strerror or error}): choose another folder") from error
    return f"{out}: {model.model_id} with its card; push_to_hub uploads it"


def _metrics(path: Path) -> dict[str, float]:
    """What `tubelet evaluate` found of a run's trained features."""
    file = path / "evaluation.json"
    if not file.is_file():
        return {}
    tasks = json.loads(file.read_text())["tasks"]
    values = {f"{task['name']}, {task['metric']}": task["values"]["trained"] for task in tasks}
    return {name: round(value, 4) for name, value in values.items() if value is not None}
