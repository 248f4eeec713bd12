"""V-JEPA 2.0 in both its layouts: its release's .pt, and the safetensors and config.json of `transformers`.

Its encoder is this package's with other rotary angles (`ModelConfig.rope`) and less of the rest. One tokenizer takes an
image as a clip of one picture repeated, which is the image tokenizer whose weights are summed over the frames. It adds
no modality embedding, which is one of zeros; and its one final norm serves every level that is tapped. Its predictor
has other heads, and is not read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from tubelet.checkpoint.vjepa2_1 import (
    State,
    count_blocks,
    expected_state,
    interleaved_to_half,
    state_dict_mismatches,
    strip_prefixes,
    tokenizer_shape,
    vector_length,
)
from tubelet.config import ModelConfig, levels_of_depth
from tubelet.errors import TubeletError
from tubelet.io.text import read_json
from tubelet.validation import InvalidValueError, check_value

# Width -> heads and blocks of ViT-L, H and g (arXiv 2506.09985, and its release).
_FAMILY = {1024: (16, 24), 1280: (16, 32), 1408: (22, 40)}
# The release's files still hold the fixed position table of its predecessor, which nothing adds to the tokens.
_UNUSED = "pos_embed"
_OTHER_MODULES = ("predictor.", "pooler.", "classifier.")  # of transformers' models around the encoder
_TRANSFORMERS_NAMES = (
    ("blocks.", "encoder.layer."),
    ("patch_embed.", "encoder.embeddings.patch_embeddings."),
    ("norm.", "encoder.layernorm."),
)


class _Sizes(TypedDict):
    """The fields of the config that tell the model's sizes."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    mlp_ratio: float
    patch_size: int | list[int]
    tubelet_size: int
    in_chans: int


_EXPECTED_FILES = "expected the config.json of a V-JEPA 2.0 model beside its .safetensors files"
# What this package's blocks do not leave open.
_FIXED_SETTINGS = {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "qkv_bias": True}


def from_release(path: Path, state: Mapping[str, Tensor], heads: int | None) -> tuple[ModelConfig, State]:
    """Config and state dictionary of `Encoder` from an encoder of the release.

    Raises:
        TubeletError: if a tensor is missing, unexpected or misshapen, or the width is unknown and `heads` not given.
    """
    encoder = {name: value for name, value in strip_prefixes(state).items() if name != _UNUSED}
    width = vector_length(encoder, r"blocks\.\d+\.norm1\.weight", path)
    depth = count_blocks(encoder, r"blocks\.(\d+)\.")
    if heads is None:
        if width not in _FAMILY:
            raise TubeletError(f"no V-JEPA 2.0 model is {width} wide: say how many attention heads it has with heads=")
        heads, expected = _FAMILY[width]
        if depth != expected:
            raise TubeletError(f"{path}: {depth} blocks of width {width}, expected {expected}, or heads= of your own")
    channels, tubelet_size, patch_size = tokenizer_shape(encoder, width, path)
    config = ModelConfig(
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=vector_length(encoder, r"blocks\.\d+\.mlp\.fc1\.bias", path) / width,
        levels=levels_of_depth(depth),
        patch_size=patch_size,
        tubelet_size=tubelet_size,
        channels=channels,
        rope="2.0",
    )
    _require_match(path, encoder, _expected(config))
    return config, _from_released(encoder, config)


def from_transformers(path: Path, tensors: Mapping[str, Tensor]) -> tuple[ModelConfig, State]:
    """The same from the tensors of `VJEPA2Model`, or a model around it, and the config.json in the folder `path`.

    Raises:
        TubeletError: if the config is missing or of another model, or a tensor is missing, unexpected or misshapen.
    """
    config = _read_config(path / "config.json")
    names = {name.removeprefix("vjepa2."): value for name, value in tensors.items()}
    encoder = {name: value for name, value in names.items() if not name.startswith(_OTHER_MODULES)}
    expected = {}
    for name, value in _expected(config).items():
        for part, theirs in zip(_split_qkv_names(name), value.chunk(3) if ".qkv." in name else [value], strict=True):
            expected[part] = theirs
    _require_match(path, encoder, expected)
    state = {name: torch.cat([encoder[part] for part in _split_qkv_names(name)]) for name in _expected(config)}
    return config, _from_released(state, config)


def _split_qkv_names(name: str) -> list[str]:
    """The names in `transformers` of a tensor of the release: queries, keys and values are three there."""
    for there, theirs in _TRANSFORMERS_NAMES:
        if name.startswith(there):
            name = theirs + name.removeprefix(there)
            break
    name = name.replace(".attn.", ".attention.")
    return [name.replace(".qkv.", f".{part}.") for part in ("query", "key", "value")] if ".qkv." in name else [name]


def _read_config(path: Path) -> ModelConfig:
    stated = read_json(path, dict[str, Any], _EXPECTED_FILES)
    if stated.get("model_type") != "vjepa2":
        raise TubeletError(
            f"{path}: model_type is {stated.get('model_type')!r:.100}, expected 'vjepa2'; {_EXPECTED_FILES}"
        )
    for key, value in _FIXED_SETTINGS.items():
        if stated.get(key, value) != value:
            raise TubeletError(
                f"{path}: {key} is {stated[key]!r:.100}, this package's blocks have {value!r}; {_EXPECTED_FILES}"
            )
    try:
        sizes = check_value(_Sizes, stated, "", strict=True)
        patch = sizes["patch_size"]
        if isinstance(patch, list) and (not patch or len({*patch}) > 1):
            raise InvalidValueError("patch_size", f"is {patch!r:.100}, expected one number, or two that are equal")
    except InvalidValueError as error:
        raise TubeletError(f"{path}: {error}; {_EXPECTED_FILES}") from error
    try:
        return ModelConfig(
            width=sizes["hidden_size"],
            depth=sizes["num_hidden_layers"],
            heads=sizes["num_attention_heads"],
            mlp_ratio=sizes["mlp_ratio"],
            levels=levels_of_depth(sizes["num_hidden_layers"]),
            patch_size=patch[0] if isinstance(patch, list) else patch,
            tubelet_size=sizes["tubelet_size"],
            channels=sizes["in_chans"],
            rope="2.0",
        )
    except TubeletError as error:
        raise TubeletError(f"{path}: {error}") from error


def _expected(config: ModelConfig) -> State:
    """Names and shapes, without content, in the release's layout: those of 2.1 less what came with it."""
    state = {}
    for name, value in expected_state(config, "teacher").items():
        if name.startswith("norms_block."):
            state["norm." + name.rsplit(".", 1)[1]] = value
        elif not name.startswith(("img_mod_embed", "video_mod_embed", "patch_embed_img.")):
            state[name] = value
    return state


def _from_released(state: Mapping[str, Tensor], config: ModelConfig) -> State:
    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    own = {
        "tokenizer.video.weight": kernel.flatten(1),
        "tokenizer.video.bias": bias,
        "tokenizer.image.weight": kernel.sum(2).flatten(1),
        "tokenizer.image.bias": bias.clone(),
        "tokenizer.video_embedding": torch.zeros_like(bias),
        "tokenizer.image_embedding": torch.zeros_like(bias),
    }
    for i in range(len(config.levels)):
        own |= {f"norms.{i}.{name}": state[f"norm.{name}"].clone() for name in ("weight", "bias")}
    for name, value in state.items():
        if name.startswith("blocks."):
            own[name.replace(".attn.", ".attention.")] = (
                interleaved_to_half(value, config.heads) if ".attn.qkv." in name else value
            )
    return own


def _require_match(path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    if wrong := state_dict_mismatches(state, expected):
        raise TubeletError(f"{path} does not fit the V-JEPA 2.0 model that its sizes speak of: {'; '.join(wrong)}")
