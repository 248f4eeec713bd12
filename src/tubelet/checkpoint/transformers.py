"""V-JEPA 2.0 in the layout of the `transformers` package: safetensors files and a config.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from tubelet.checkpoint.state_dict import State
from tubelet.checkpoint.vjepa2 import expected_tensors, require_match, to_encoder_state
from tubelet.config import ModelConfig, output_levels_for_depth
from tubelet.errors import CheckpointError, TubeletError
from tubelet.io.text import read_json
from tubelet.value_checks import InvalidValueError, check_value

_OTHER_MODULES = ("predictor.", "pooler.", "classifier.")  # of transformers' models around the encoder
_NAMES = (
    ("blocks.", "encoder.layer."),
    ("patch_embed.", "encoder.embeddings.patch_embeddings."),
    ("norm.", "encoder.layernorm."),
)


class _Sizes(TypedDict):
    """Fields of config.json that define the architecture."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    mlp_ratio: float
    patch_size: int | list[int]
    tubelet_size: int
    in_chans: int


_EXPECTED_FILES = "expected the config.json of a V-JEPA 2.0 model next to its .safetensors files"
# Settings that are fixed in this package's blocks.
_FIXED_SETTINGS = {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "qkv_bias": True}


def from_transformers(path: Path, tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, State]:
    """Config and encoder from the tensors of a `VJEPA2Model`, or a model around it, and `path`/config.json.

    Raises:
        CheckpointError: if the config is of another model, or a tensor is missing, unexpected or misshapen.
        MissingFileError: if there is no config.
    """
    config = _read_config(path / "config.json")
    names = {name.removeprefix("vjepa2."): value for name, value in tensors.items()}
    encoder = {name: value for name, value in names.items() if not name.startswith(_OTHER_MODULES)}
    expected = {}
    for name, value in expected_tensors(config).items():
        for part, their_name in zip(
            _split_qkv_names(name), value.chunk(3) if ".qkv." in name else [value], strict=True
        ):
            expected[part] = their_name
    require_match(path, encoder, expected)
    state = {name: torch.cat([encoder[part] for part in _split_qkv_names(name)]) for name in expected_tensors(config)}
    return config, to_encoder_state(state, config)


def _split_qkv_names(name: str) -> list[str]:
    """Names in `transformers` of a released tensor: queries, keys and values are three tensors there."""
    for there, their_name in _NAMES:
        if name.startswith(there):
            name = their_name + name.removeprefix(there)
            break
    name = name.replace(".attn.", ".attention.")
    return [name.replace(".qkv.", f".{part}.") for part in ("query", "key", "value")] if ".qkv." in name else [name]


def _read_config(path: Path) -> ModelConfig:
    values = read_json(path, dict[str, Any], _EXPECTED_FILES)
    if values.get("model_type") != "vjepa2":
        raise CheckpointError(
            f"{path}: model_type is {values.get('model_type')!r:.100}, expected 'vjepa2'; {_EXPECTED_FILES}"
        )
    for key, value in _FIXED_SETTINGS.items():
        if values.get(key, value) != value:
            raise CheckpointError(
                f"{path}: {key} is {values[key]!r:.100}, supported is only {value!r}; {_EXPECTED_FILES}"
            )
    try:
        sizes = check_value(_Sizes, values, "", strict=True)
        patch = sizes["patch_size"]
        if isinstance(patch, list) and (not patch or len({*patch}) > 1):
            raise InvalidValueError("patch_size", f"is {patch!r:.100}, expected one number, or two that are equal")
    except InvalidValueError as error:
        raise CheckpointError(f"{path}: {error}; {_EXPECTED_FILES}") from error
    try:
        return ModelConfig(
            width=sizes["hidden_size"],
            depth=sizes["num_hidden_layers"],
            heads=sizes["num_attention_heads"],
            mlp_ratio=sizes["mlp_ratio"],
            levels=output_levels_for_depth(sizes["num_hidden_layers"]),
            patch_size=patch[0] if isinstance(patch, list) else patch,
            tubelet_size=sizes["tubelet_size"],
            channels=sizes["in_chans"],
            rope="2.0",
        )
    except TubeletError as error:
        raise CheckpointError(f"{path}: {error}") from error
