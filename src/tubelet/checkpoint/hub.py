"""An encoder as a directory for the Hugging Face Hub, readable by any program with safetensors."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tubelet.checkpoint.native_clip import NativeClip
from tubelet.checkpoint.weights import FORMAT
from tubelet.config import ModelConfig, to_dict
from tubelet.errors import escape_unprintable
from tubelet.io.files import atomic_write
from tubelet.io.overwrite_checks import check_output

WEIGHTS_FILE, CARD_FILE = "model.safetensors", "README.md"
_CARD = """---
{{ card_data }}
---

# {{ model_id }}

Dense, temporally consistent features of videos and images: one vector of {{ width }} channels for each patch of
{{ patch }} x {{ patch }} pixels and {{ tubelet }} frames. The {{ part }} of [V-JEPA
{{ generation }}](https://arxiv.org/abs/{{ paper }}), {{ depth }} blocks, {{ millions }} M parameters.
{% if classes %}With a head for {{ classes | length }} classes: {{ classes | join(", ") }}.
{% endif %}
```python
{{ usage }}
```
{% if metrics %}
| metric | value |
|---|---|
{% for name, value in metrics.items() %}| {{ name }} | {{ value }} |
{% endfor %}{% endif %}"""

_PLACE = '"this repository\'s id, or the directory"'
_OWN_USAGE = f"""import tubelet

model = tubelet.load({_PLACE})
features = model.encode("video.mp4")  # .tokens, .map, .levels, .pooled, .times"""
_REGISTER = "import tubelet.hf  # registers the model with transformers; pip install 'tubelet[hf]'"
_USAGES = {
    "TubeletModel": f"""{_REGISTER}
from transformers import AutoModel

model = AutoModel.from_pretrained({_PLACE})
processor = tubelet.hf.AutoVideoProcessor.from_pretrained({_PLACE})
features = model(**processor("video.mp4")).last_hidden_state""",
    "TubeletForVideoClassification": f"""{_REGISTER}
from transformers import pipeline

classify = pipeline("video-classification", model={_PLACE})
scores = classify("video.mp4")""",
    "VJEPA2Model": f"""from transformers import AutoModel, AutoVideoProcessor

model = AutoModel.from_pretrained({_PLACE})
processor = AutoVideoProcessor.from_pretrained({_PLACE})
inputs = processor(frames, return_tensors="pt")  # (T, 3, H, W) uint8
features = model(**inputs, skip_predictor=True).last_hidden_state""",
    "VJEPA2ForVideoClassification": f"""from transformers import AutoModelForVideoClassification, AutoVideoProcessor

model = AutoModelForVideoClassification.from_pretrained({_PLACE})
processor = AutoVideoProcessor.from_pretrained({_PLACE})
logits = model(**processor(frames, return_tensors="pt")).logits  # of (T, 3, H, W) uint8""",
}
"""How to use a folder, by the class of `transformers` in it; any other folder is used by `_OWN_USAGE`."""


def save_encoder(
    path: Path, tensors: Mapping[str, Tensor], config: ModelConfig, name: str, part: str, clip: NativeClip
) -> None:
    """Write an encoder, with its predictor if it has one, as one safetensors file.

    Config, name, and the clips that the model is for are in its header.

    Raises:
        FileError: if it cannot be written.
    """
    header = {"format": FORMAT, "config": json.dumps(to_dict(config)), "name": escape_unprintable(name), "part": part}
    header |= clip.to_header()
    check_output(path, "encoder")
    with atomic_write(path, also=(SafetensorError,)) as partial:
        save_file({key: value.contiguous() for key, value in tensors.items()}, partial, metadata=header)


def card_description(folder: Path) -> str:
    """Which card a folder gets, for a message: an existing one is not replaced."""
    existing = (folder / CARD_FILE).exists()
    return f"the existing {CARD_FILE} (delete it for a new card)" if existing else "its card"


def model_card(
    config: ModelConfig,
    model_id: str,
    part: str,
    parameters: int,
    license: str,
    metrics: Mapping[str, float],
    architecture: str = "",
    classes: Sequence[str] = (),
) -> ModelCard:
    """A model card with license and metrics in its metadata, and usage and a table of the metrics below.

    Args:
        config: architecture of the encoder.
        model_id: name and fingerprint of the encoder.
        part: "teacher" or "student".
        parameters: number of parameters of the encoder.
        license: license of the weights, one of the Hub's identifiers.
        metrics: evaluation metrics by name.
        architecture: class of `transformers` that the folder is for; empty for a folder of this package.
        classes: names of the classes of its head.
    """
    tags = ["v-jepa", "video", "self-supervised"]
    data = ModelCardData(
        license=license,
        library_name="transformers" if architecture.startswith("VJEPA2") and architecture in _USAGES else "tubelet",
        tags=tags if classes else [*tags, "dense-features"],
        pipeline_tag="video-classification" if classes else "image-feature-extraction",
        metrics=[escape_unprintable(name) for name in metrics] or None,
    )
    return ModelCard.from_template(
        data,
        template_str=_CARD,
        model_id=_markdown(model_id),
        part=part,
        generation=config.rope,
        paper="2603.14482" if config.rope == "2.1" else "2506.09985",
        width=config.width,
        patch=config.patch_size,
        tubelet=config.tubelet_size,
        depth=config.depth,
        millions=f"{parameters / 1e6:.1f}",
        classes=[_markdown(name) for name in classes],
        usage=_USAGES.get(architecture, _OWN_USAGE),
        metrics={_markdown(name): value for name, value in metrics.items()},
    )


def _markdown(name: str) -> str:
    """Escape a name for Markdown: no markup, no HTML, no end of a table cell."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", escape_unprintable(name))
