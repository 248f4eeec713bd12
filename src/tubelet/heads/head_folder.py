"""An encoder with a head as a model of `transformers` for `AutoModelForVideoClassification`, and back."""

from pathlib import Path

from tubelet.checkpoint.state_dict import require_colors
from tubelet.checkpoint.transformers import to_tubelet, to_vjepa2
from tubelet.checkpoint.transformers_folder import tubelet_processor, vjepa2_processor, write_folder
from tubelet.errors import CheckpointError, ConfigError
from tubelet.heads.head_file import Head
from tubelet.heads.networks.attentive import AttentiveNetwork
from tubelet.heads.probe_layouts import write_probe
from tubelet.pretrained.backbone import Backbone

_TASKS = {"classification": "single_label_classification", "multilabel": "multi_label_classification"}


def write_classifier(model: Backbone, head: Head, out: Path, license: str = "unknown") -> str:
    """Write an encoder and a head of clips as a folder of the `transformers` package.

    A V-JEPA 2.0 encoder with an attentive head on all tokens of its last level becomes transformers' own
    `VJEPA2ForVideoClassification`, anything else `tubelet.hf.TubeletForVideoClassification`.

    Args:
        model: the encoder that the head was trained on.
        head: a head for the classes of clips.
        out: the folder.
        license: license of the weights, for the model card.

    Returns:
        A message about what was written.

    Raises:
        ConfigError: if the head is of another task, or was trained on another encoder.
        FileError: if the folder cannot be written.
    """
    spec = head.spec
    if spec.task not in _TASKS:
        raise ConfigError(f"{out}: the head is for {spec.task}, expected one for {' or '.join(_TASKS)}")
    model = head.adapt(model)
    require_colors(model.config, out)
    size, frames = spec.input.image_size, spec.input.frames
    labels = {
        "id2label": {str(i): name for i, name in enumerate(spec.classes)},
        "label2id": {name: i for i, name in enumerate(spec.classes)},
        "problem_type": _TASKS[spec.task],
    }
    encoder = {name: value for name, value in model.state_dict().items() if not name.startswith("predictor.")}
    reason = ""
    if _is_vjepa2_head(model, head):
        assert isinstance(head.network, AttentiveNetwork)
        try:
            values, tensors = to_vjepa2(encoder, model.config, size, frames)
        except CheckpointError as error:  # trained further, in ways that V-JEPA 2.0 cannot represent
            reason = f", since {error}"
        else:
            probe = write_probe(head.network.probe.state_dict(), "transformers")
            for name in ("classifier.weight", "classifier.bias"):
                probe[name] = probe[name] / spec.temperature
            values |= labels | {
                "architectures": ["VJEPA2ForVideoClassification"],
                "num_pooler_layers": len(head.network.probe.blocks),
                "fps": spec.input.fps,
            }
            tensors = {f"vjepa2.{name}": value for name, value in tensors.items()} | probe
            model_card = model.generate_model_card(license, {}, "VJEPA2ForVideoClassification", spec.classes)
            card = write_folder(out, values, tensors, vjepa2_processor(size), model.model_id, model_card)
            return (
                f"{out}: {model.model_id} with {len(spec.classes)} classes as VJEPA2ForVideoClassification, with {card}"
            )
    identity = {"name": model.name, "encoder_name": model.encoder_name, "image_size": size, "num_frames": frames}
    values, tensors = to_tubelet(encoder, {}, model.config, identity)
    values |= labels | {
        "architectures": ["TubeletForVideoClassification"],
        "fps": spec.input.fps,
        "head": {
            "network": spec.network,
            "options": spec.options,
            "temperature": spec.temperature,
            "input": spec.input.to_fields(),
        },
    }
    tensors = {f"tubelet.{name}": value for name, value in tensors.items()}
    tensors |= {f"head.{name}": value for name, value in head.network.state_dict().items()}
    processor = tubelet_processor(size, frames, spec.input.fps, spec.input.resize)
    model_card = model.generate_model_card(license, {}, "TubeletForVideoClassification", spec.classes)
    card = write_folder(out, values, tensors, processor, model.model_id, model_card)
    return (
        f"{out}: {model.model_id} with {len(spec.classes)} classes as TubeletForVideoClassification, which "
        f"`import tubelet.hf` registers{reason}, with {card}"
    )


def _is_vjepa2_head(model: Backbone, head: Head) -> bool:
    """Whether `VJEPA2ForVideoClassification` has this head, apart from its weights."""
    network, last = head.network, len(model.config.levels) - 1
    return (
        model.config.rope == "2.0"
        and isinstance(network, AttentiveNetwork)
        and network.probe.pool.heads == model.config.heads
        and head.spec.input.levels in ((-1,), (last,))
        and head.spec.input.cells == 0
    )
