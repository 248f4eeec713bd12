"""The predictor of V-JEPA 2.0, converted from its release to `transformers`; this package cannot compute it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tubelet.checkpoint.state_dict import State
from tubelet.checkpoint.transformers import Values, read_transformers_config, split_tensors
from tubelet.checkpoint.vjepa2 import require_match
from tubelet.checkpoint.vjepa2_1 import (
    count_blocks,
    is_vjepa2,
    read_torch_file,
    state_dict_from,
    strip_prefixes,
    vector_length,
)
from tubelet.errors import CheckpointError, ConfigError
from tubelet.io.arrays import read_safetensors
from tubelet.io.hidden_files import without_hidden
from tubelet.io.text import read_json

_NAMES = (
    ("predictor_embed.", "predictor.embeddings.predictor_embeddings."),
    ("predictor_blocks.", "predictor.layer."),
    ("predictor_norm.", "predictor.layernorm."),
    ("predictor_proj.", "predictor.proj."),
)
_MASK_TOKENS = "predictor.embeddings.mask_tokens"
_UNUSED = "predictor_pos_embed"  # of V-JEPA 1, still in released files
_RELEASED = (384, 12)  # width and heads of all released predictors


def is_vjepa2_file(path: Path) -> bool:
    """Whether a path is a released .pt file of V-JEPA 2.0, or a folder of `transformers` with it."""
    if path.is_dir():
        config = path / "config.json"
        return config.is_file() and read_json(config, dict[str, Any]).get("model_type") == "vjepa2"
    if path.suffix not in (".pt", ".pth"):
        return False
    file = read_torch_file(path)
    key = next((key for key in ("target_encoder", "encoder") if key in file), None)
    return key is not None and is_vjepa2(state_dict_from(file, key, path))


def read_vjepa2_predictor(path: Path, heads: int | None, width: int) -> tuple[Values, State]:
    """The predictor of a V-JEPA 2.0 file, as `VJEPA2Model` has it.

    Args:
        path: a file for which `is_vjepa2_file` holds.
        heads: attention heads of the predictor, which a .pt file does not store; None looks its width up.
        width: channels of the encoder.

    Returns:
        fields of config.json, and tensors.

    Raises:
        CheckpointError: if a tensor is missing, unexpected or misshapen.
        ConfigError: if the width is unknown and `heads` is None.
    """
    if path.is_dir():
        tensors: State = {}
        for file in without_hidden(path.glob("*.safetensors")):
            tensors |= read_safetensors(file)[0]
        names = {name.removeprefix("vjepa2."): value for name, value in tensors.items()}
        state = {name: value for name, value in names.items() if name.startswith("predictor.")}
        heads = heads or read_transformers_config(path / "config.json").get("pred_num_attention_heads", _RELEASED[1])
    else:
        released = read_torch_file(path)
        if not released.get("predictor"):
            raise CheckpointError(f"{path}: contains only an encoder, not the requested predictor")
        state = _from_release(strip_prefixes(state_dict_from(released, "predictor", path)))
    sizes = _sizes(path, state, heads)
    require_match(path, state, _expected(sizes, width), "V-JEPA 2.0 predictor")
    return {f"pred_{name}": value for name, value in sizes.items()}, state


def _from_release(state: Mapping[str, Tensor]) -> State:
    tokens = [name for name in state if re.fullmatch(r"mask_tokens\.\d+", name)]
    others = {name: value for name, value in state.items() if name not in (*tokens, _UNUSED)}
    stacked = torch.stack([state[f"mask_tokens.{i}"] for i in range(len(tokens))]) if tokens else torch.empty(0)
    return split_tensors(others, _NAMES) | {_MASK_TOKENS: stacked}


def _sizes(path: Path, state: Mapping[str, Tensor], heads: int | None) -> dict[str, Any]:
    width = vector_length(state, r"predictor\.layernorm\.weight", path)
    if heads is None:
        if width != _RELEASED[0]:
            raise ConfigError(
                f"{path}: no V-JEPA 2.0 predictor has width {width}; give its heads with predictor_heads="
            )
        heads = _RELEASED[1]
    depth = count_blocks(state, r"predictor\.layer\.(\d+)\.")
    hidden = vector_length(state, r"predictor\.layer\.\d+\.mlp\.fc1\.bias", path) if depth else 4 * width
    tokens = state.get(_MASK_TOKENS)
    return {
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": depth,
        "num_mask_tokens": len(tokens) if tokens is not None and tokens.dim() else 1,
        "mlp_ratio": hidden / width,
    }


def _expected(sizes: Mapping[str, Any], encoder_width: int) -> State:
    """Names and shapes (meta tensors) of the predictor in `VJEPA2Model`."""
    width, tokens = sizes["hidden_size"], sizes["num_mask_tokens"]
    hidden = round(width * sizes["mlp_ratio"])
    shapes: dict[str, tuple[int, ...]] = {
        _MASK_TOKENS: (tokens, 1, 1, width),
        "predictor.embeddings.predictor_embeddings.weight": (width, encoder_width),
        "predictor.embeddings.predictor_embeddings.bias": (width,),
        "predictor.layernorm.weight": (width,),
        "predictor.layernorm.bias": (width,),
        "predictor.proj.weight": (encoder_width, width),
        "predictor.proj.bias": (encoder_width,),
    }
    for i in range(sizes["num_hidden_layers"]):
        layer = f"predictor.layer.{i}"
        linear = {f"attention.{name}": (width, width) for name in ("query", "key", "value", "proj")}
        linear |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
        for name, shape in linear.items():
            shapes |= {f"{layer}.{name}.weight": shape, f"{layer}.{name}.bias": shape[:1]}
        for norm in ("norm1", "norm2"):
            shapes |= {f"{layer}.{norm}.weight": (width,), f"{layer}.{norm}.bias": (width,)}
    with torch.device("meta"):
        return {name: torch.empty(shape) for name, shape in shapes.items()}
