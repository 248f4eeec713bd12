"""An encoder as a directory for the Hugging Face Hub, readable by any program with safetensors."""

import json
import re
from collections.abc import Mapping
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

WEIGHTS_FILE = "model.safetensors"
_CARD = """---
{{ card_data }}
---

# {{ model_id }}

Dense, temporally consistent features of videos and images: one vector of {{ width }} channels for each patch of
{{ patch }} x {{ patch }} pixels and {{ tubelet }} frames. The {{ part }} of [V-JEPA
{{ generation }}](https://arxiv.org/abs/{{ paper }}), {{ depth }} blocks, {{ millions }} M parameters.

```python
import tubelet

model = tubelet.load("this repository's id, or the directory")
features = model.encode("video.mp4")  # .tokens, .map, .levels, .pooled, .times
```
{% if metrics %}
| metric | value |
|---|---|
{% for name, value in metrics.items() %}| {{ name }} | {{ value }} |
{% endfor %}{% endif %}"""


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


def model_card(
    config: ModelConfig, model_id: str, part: str, parameters: int, license: str, metrics: Mapping[str, float]
) -> ModelCard:
    """A model card with license and metrics in its metadata, and a table of the metrics below."""
    data = ModelCardData(
        license=license,
        library_name="tubelet",
        tags=["v-jepa", "video", "self-supervised", "dense-features"],
        pipeline_tag="image-feature-extraction",
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
        metrics={_markdown(name): value for name, value in metrics.items()},
    )


def _markdown(name: str) -> str:
    """Escape a name for Markdown: no markup, no HTML, no end of a table cell."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&$])", r"\\\1", escape_unprintable(name))
