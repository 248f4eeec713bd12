"""Heads from the files of others: V-JEPA 2.0's released probes, and classification models of `transformers`."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tubelet.checkpoint.registry import resolve_checkpoint
from tubelet.checkpoint.state_dict import load_strict
from tubelet.checkpoint.transformers import MODEL_TYPE, read_transformers_config
from tubelet.checkpoint.vjepa2_1 import read_torch_file, state_dict_from
from tubelet.checkpoint.weights import LoadSpec, read_safetensors_files
from tubelet.config.fields import from_dict
from tubelet.errors import CheckpointError, ConfigError
from tubelet.heads.head_file import EncoderId, Head, HeadInput, HeadSpec
from tubelet.heads.probe_layouts import read_probe
from tubelet.io.hidden_files import without_hidden
from tubelet.io.text import read_text
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.inputs import DEFAULT_FPS
from tubelet.pretrained.load import load_unplaced

_PROBE_HEADS = 16  # of all released probes, whatever their width


_VIEWS = 3  # of all released probes: squares along the long side, without a zoom
_ZOOM = 256 / 224  # of the `VJEPA2VideoProcessor`, whatever its config says: short side over the side of the crop


class _ReleasedProbe(NamedTuple):
    """What the evaluation config of a released probe says.

    Attributes:
        encoder: released name of the encoder.
        image_size: side of the crop in pixels.
        frames: frames of a clip.
        fps: frames per second of a clip: every second or fourth frame, of 12 per second in Something-Something v2 and
            of 30 in Diving48.
    """

    encoder: str
    image_size: int
    frames: int
    fps: float


RELEASED_PROBES = {
    "ssv2-vitl-16x2x3.pt": _ReleasedProbe("vjepa2-vitl16-256", 256, 16, 3.0),
    "ssv2-vitg-384-64x2x3.pt": _ReleasedProbe("vjepa2-vitg16-384", 384, 64, 6.0),
    "diving48-vitl-256.pt": _ReleasedProbe("vjepa2-vitl16-256", 256, 32, 15.0),
    "diving48-vitg-384-32x4x3.pt": _ReleasedProbe("vjepa2-vitg16-384", 384, 32, 15.0),
}
"""Released probes by file name."""


def import_head(
    name_or_path: str | Path,
    encoder: str | Path | Backbone | None = None,
    classes: Sequence[str] | None = None,
    **hub: Any,
) -> Head:
    """A head from a released probe, or from a classification model of `transformers`.

    Args:
        name_or_path: the .pt file of a released probe; or a folder, or repository of the Hub, with a
            `VJEPA2ForVideoClassification` or a `TubeletForVideoClassification`.
        encoder: the encoder of a released probe, or anything that `tubelet.load` takes; None is the one that the probe
            was trained on, by its file name. That of a folder is in the folder.
        classes: names of the classes; None is those in a folder's config, and numbers for a released probe.
        hub: options of `huggingface_hub`.

    Raises:
        CheckpointError: if the file is something else, or a tensor is missing, unexpected or misshapen.
        ConfigError: if the encoder of a probe is not known, or the number of names is not that of the classes.
        MissingFileError: if it does not exist.
    """
    path = (
        resolve_checkpoint(name_or_path, **hub)
        if Path(name_or_path).suffix != ".pt"
        else Path(name_or_path).expanduser()
    )
    head = _from_folder(path, str(name_or_path), encoder) if path.is_dir() else _from_release(path, encoder)
    if classes is None:
        return head
    if len(classes) != len(head.spec.classes) or len(set(classes)) < len(classes):
        raise ConfigError(
            f"{name_or_path}: {len(set(classes))} different names of classes, expected {len(head.spec.classes)}"
        )
    return _with_classes(head, tuple(classes))


def read_class_names(path: Path) -> list[str]:
    """Names of classes, one a line."""
    return [line.strip() for line in read_text(path, "write one name a line").splitlines() if line.strip()]


def _from_release(path: Path, encoder: str | Path | Backbone | None) -> Head:
    file = read_torch_file(path)
    probes = file.get("classifiers")
    if not isinstance(probes, (list, tuple)) or not probes:
        raise CheckpointError(f"{path}: expected the key 'classifiers' of a released probe, found {sorted(file)}")
    tensors = state_dict_from({"classifiers[0]": probes[0]}, "classifiers[0]", path)
    names = {name.removeprefix("module."): value for name, value in tensors.items()}
    state, blocks, classes = read_probe(names, "release", _PROBE_HEADS, str(path))
    probe = RELEASED_PROBES.get(path.name)
    if encoder is None and probe is None:
        raise ConfigError(
            f"{path}: the encoder of this probe is not known by its file name, expected one of "
            f"{', '.join(RELEASED_PROBES)}; pass the encoder"
        )
    source = probe.encoder if encoder is None and probe is not None else encoder
    assert source is not None
    model = source if isinstance(source, Backbone) else load_unplaced(source, LoadSpec())
    size, frames, fps = (probe.image_size, probe.frames, probe.fps) if probe else (256, 16, DEFAULT_FPS)
    numbers = tuple(map(str, range(classes)))
    name = model.name if isinstance(source, Backbone) else str(source)
    clips = HeadInput(image_size=size, frames=frames, fps=fps, stride_s=frames / fps, views=_VIEWS, padded=True)
    return _probe_head(state, {"blocks": blocks, "heads": _PROBE_HEADS}, numbers, clips, model, name, str(path))


def _from_folder(path: Path, name_or_path: str, encoder: str | Path | Backbone | None) -> Head:
    values = read_transformers_config(path / "config.json")
    if encoder is not None:
        raise ConfigError(f"{path}: has an encoder of its own; omit the other one")
    tensors, _ = read_safetensors_files(without_hidden(path.glob("*.safetensors")))
    model = load_unplaced(path, LoadSpec())
    classes = _class_names(path, values)
    if values["model_type"] == MODEL_TYPE:
        return _from_tubelet(path, name_or_path, values, tensors, model, classes)
    if values["model_type"] != "vjepa2":
        raise CheckpointError(f"{path}: a head of model_type {values['model_type']!r} is not supported")
    names = {name: value for name, value in tensors.items() if name.startswith(("pooler.", "classifier."))}
    if not names:
        raise CheckpointError(f"{path}: has an encoder without a classification head; load it by tubelet.load")
    state, blocks, count = read_probe(names, "transformers", model.config.heads, str(path))
    if count != len(classes):
        raise CheckpointError(f"{path}: id2label has {len(classes)} names, expected those of {count} classes")
    clips = _clips(path / "config.json", values)
    return _probe_head(
        state, {"blocks": blocks, "heads": model.config.heads}, classes, clips, model, name_or_path, str(path)
    )


def _clips(path: Path, values: Mapping[str, Any]) -> HeadInput:
    """The clips of a `VJEPA2ForVideoClassification`, by its config."""
    defaults = {"crop_size": 256, "frames_per_clip": 64, "fps": DEFAULT_FPS}
    size, frames, fps = (values.get(key, default) for key, default in defaults.items())
    valid = all(isinstance(value, int) and 0 < value <= 65_536 for value in (size, frames))
    if not (valid and isinstance(fps, (int, float)) and 0 < fps <= 65_536):
        raise CheckpointError(
            f"{path}: crop_size, frames_per_clip and fps are {size!r:.40}, {frames!r:.40} and {fps!r:.40}, expected "
            "positive numbers"
        )
    return HeadInput(image_size=size, frames=frames, fps=float(fps), stride_s=frames / fps, resize=int(size * _ZOOM))


def _from_tubelet(
    path: Path,
    name_or_path: str,
    values: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    model: Backbone,
    classes: tuple[str, ...],
) -> Head:
    fields = values.get("head")
    if not isinstance(fields, dict) or fields.keys() < {"network", "options", "input", "temperature"}:
        raise CheckpointError(f"{path}: has an encoder without a classification head; load it by tubelet.load")
    clips: HeadInput = from_dict(HeadInput, fields["input"], str(path / "config.json"))
    multilabel = values.get("problem_type") == "multi_label_classification"
    spec: HeadSpec = HeadSpec(
        task="multilabel" if multilabel else "classification",
        network=fields["network"],
        options=fields["options"],
        width=model.config.width * len(clips.levels),
        classes=classes,
        input=clips,
        encoder=_identity(model, name_or_path),
        exclusive=not multilabel,
        thresholds=(0.5,) * len(classes) if multilabel else (),
        temperature=fields["temperature"],
    )
    head = Head(spec)
    state = {name.removeprefix("head."): value for name, value in tensors.items() if name.startswith("head.")}
    load_strict(head.network, state, f"{path}: head")
    return head.requires_grad_(False).eval()


def _probe_head(
    state: Mapping[str, Tensor],
    options: dict[str, Any],
    classes: tuple[str, ...],
    clips: HeadInput,
    model: Backbone,
    source: str,
    where: str,
) -> Head:
    width = model.config.width
    if state["queries"].shape[1] != width:
        raise ConfigError(f"{where}: a probe of {state['queries'].shape[1]} channels, and an encoder of {width}")
    spec = HeadSpec(
        task="classification",
        network="attentive",
        options=options,
        width=width,
        classes=classes,
        input=clips,
        encoder=_identity(model, source),
    )
    head = Head(spec)
    load_strict(head.network, {f"probe.{name}": value.float() for name, value in state.items()}, where)
    return head.requires_grad_(False).eval()


def _identity(model: Backbone, source: str) -> EncoderId:
    return EncoderId(source=source, model_id=model.model_id, weights_id=model.weights_id, config_hash=model.config_hash)


def _class_names(path: Path, values: Mapping[str, Any]) -> tuple[str, ...]:
    """The names in `id2label`, by number."""
    labels = values.get("id2label")
    if not isinstance(labels, dict):
        raise CheckpointError(f"{path / 'config.json'}: id2label is missing; expected the names of the classes")
    names = tuple(labels.get(str(i)) for i in range(len(labels)))
    if not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise CheckpointError(f"{path / 'config.json'}: id2label does not name the classes 0 to {len(labels) - 1}")
    return tuple(map(str, names))


def _with_classes(head: Head, classes: tuple[str, ...]) -> Head:
    return Head(replace(head.spec, classes=classes), head.network).requires_grad_(False).eval()
