"""Encoders as GGUF files for CPU runtimes, by the published schema of jepa.cpp, version 1.

Tensors are float32; the runtime's own tool quantizes them.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from tubelet.checkpoint.native_clip import NativeClip
from tubelet.checkpoint.state_dict import State
from tubelet.checkpoint.vjepa2 import expected_tensors, require_match, single_norm, to_encoder_state
from tubelet.checkpoint.vjepa2_1 import expected_state, from_released_names, to_released
from tubelet.config import ModelConfig, output_levels_for_depth
from tubelet.data.clips import IMAGENET_MEAN, IMAGENET_STD
from tubelet.errors import CheckpointError, TubeletError
from tubelet.io.gguf import read_gguf, write_gguf
from tubelet.io.overwrite_checks import MODEL_MARK, check_output
from tubelet.model.layers import NORM_EPS
from tubelet.value_checks import InvalidValueError, check_value

# Patterns of released names, and names in the schema.
_NAMES = (
    (r"patch_embed(_img)?\.proj\.", r"enc.patch_embed\1."),
    (r"(img)_mod_embed", "enc.mod_embed_img"),
    (r"(video)_mod_embed", "enc.mod_embed_video"),
    (r"norms_block\.(\d+)\.", r"enc.hier_norm.\1."),
    (r"norm\.", "enc.norm."),
    (r"blocks\.(\d+)\.norm(\d)\.", r"enc.blk.\1.ln\2."),
    (r"blocks\.(\d+)\.attn\.qkv\.", r"enc.blk.\1.attn_qkv."),
    (r"blocks\.(\d+)\.attn\.proj\.", r"enc.blk.\1.attn_out."),
    (r"blocks\.(\d+)\.mlp\.fc1\.", r"enc.blk.\1.ffn_up."),
    (r"blocks\.(\d+)\.mlp\.fc2\.", r"enc.blk.\1.ffn_down."),
)
_FAMILIES = {"2.0": "vjepa2", "2.1": "vjepa2_1"}
# Settings that are fixed in this package's encoder, by key.
_FIXED = {
    "general.architecture": "jepa",
    "jepa.schema_version": 1,
    "jepa.enc.act": "gelu_erf",
    "jepa.enc.pos_type": "rope3d",
    "jepa.enc.cls_token": False,
    "jepa.enc.n_registers": 0,
    "jepa.enc.qkv_fused": True,
    "jepa.enc.layer_scale": False,
}


def write_encoder_gguf(
    path: Path, state: Mapping[str, Tensor], config: ModelConfig, model_id: str, clip: NativeClip
) -> None:
    """Write an encoder as a GGUF file.

    Args:
        path: the file.
        state: state dictionary of `Encoder`.
        config: its architecture.
        model_id: name and fingerprint of the encoder.
        clip: the clips that it is for.

    Raises:
        CheckpointError: for a model of V-JEPA 2.0 whose tensors are not all of that architecture.
        FileError: if the file cannot be written.
    """
    released = to_released(state, config, "teacher")
    if config.rope == "2.0":
        released = single_norm(released, config)
    check_output(path, "gguf")
    write_gguf(path, _metadata(config, model_id, clip), _to_schema(released, config))


def read_encoder_gguf(path: Path) -> tuple[ModelConfig, State, NativeClip | None]:
    """Config and state dictionary of `Encoder` from a GGUF file, and the clips that it is for.

    A predictor or head in it is not read.

    Raises:
        CheckpointError: if it is of another architecture, quantized, or a tensor is missing, unexpected or misshapen.
        MissingFileError: if it does not exist.
    """
    metadata, tensors = read_gguf(path)
    config = _config(path, metadata)
    clip = NativeClip.from_fields(metadata, ("jepa.enc.img_size",), ("jepa.enc.n_frames",), "")
    encoder = {name: value for name, value in tensors.items() if not name.startswith(("pred.", "head."))}
    expected = expected_tensors(config) if config.rope == "2.0" else expected_state(config, "teacher")
    require_match(path, encoder, _to_schema(expected, config), f"V-JEPA {config.rope}")
    state = {name: encoder[_external_name(name)].view(value.shape).float() for name, value in expected.items()}
    if config.rope == "2.0":
        return config, to_encoder_state(state, config), clip
    return config, from_released_names(state, config, "teacher"), clip


def _to_schema(released: Mapping[str, Tensor], config: ModelConfig) -> State:
    converted = {}
    for name, value in released.items():
        matrix = value.flatten(1) if value.dim() == 5 else value.flatten() if name.endswith("_mod_embed") else value
        converted[_external_name(name)] = matrix
    if config.rope == "2.1":  # the last norm again, under the name that other families have
        last = len(config.levels) - 1
        converted |= {f"enc.norm.{part}": converted[f"enc.hier_norm.{last}.{part}"] for part in ("weight", "bias")}
    return converted


def _external_name(name: str) -> str:
    for pattern, theirs in _NAMES:
        if match := re.match(pattern, name):
            return match.expand(theirs).replace("None", "") + name[match.end() :]
    raise AssertionError(name)


def _metadata(config: ModelConfig, model_id: str, clip: NativeClip) -> dict[str, Any]:
    later = config.rope == "2.1"
    values: dict[str, Any] = {
        "general.architecture": "jepa",
        MODEL_MARK: model_id,  # among the first, where overwrite checks look
        "general.name": model_id,
        "general.file_type": 0,  # all float32
        "jepa.family": _FAMILIES[config.rope],
        "jepa.modality": "image+video" if later else "video",
        "jepa.enc.embed_dim": config.width,
        "jepa.enc.n_layer": config.depth,
        "jepa.enc.n_head": config.heads,
        "jepa.enc.ffn_dim": round(config.width * config.mlp_ratio),
        "jepa.enc.patch_size": config.patch_size,
        "jepa.enc.tubelet_size": config.tubelet_size,
        "jepa.enc.img_size": clip.image_size,
        "jepa.enc.n_frames": clip.frames,
        "jepa.enc.in_chans": config.channels,
        "jepa.enc.ln_eps": NORM_EPS,
        "jepa.enc.rope_theta": 10000.0,
        "jepa.enc.rope_interpolate": later,
        "jepa.enc.rope_freq_layout": "interleaved" if later else "tiled",
        "jepa.enc.modality_embed": later,
        "jepa.enc.image_patch_embed": later,
        "jepa.head.kind": "none",
        "jepa.pre.mean": list(IMAGENET_MEAN),
        "jepa.pre.std": list(IMAGENET_STD),
        "jepa.pre.resize_short": int(clip.image_size * 256 / 224),
        "jepa.pre.crop": clip.image_size,
        "jepa.pre.resample": "bilinear",
        "jepa.pre.rescale": 1 / 255,
    }
    if later:
        values |= {"jepa.enc.rope_ref_grid": config.rope_grid, "jepa.enc.hier_layers": list(config.levels)}
    return values | _FIXED


def _config(path: Path, metadata: Mapping[str, Any]) -> ModelConfig:
    for key, value in _FIXED.items():
        if metadata.get(key) != value:
            raise CheckpointError(f"{path}: {key} is {metadata.get(key)!r:.100}, supported is only {value!r}")
    family = metadata.get("jepa.family")
    rope = next((rope for rope, name in _FAMILIES.items() if name == family), None)
    if rope is None or metadata.get("jepa.enc.attn_mode", "full") != "full":
        raise CheckpointError(
            f"{path}: jepa.family is {family!r:.100}, expected one of {', '.join(_FAMILIES.values())}"
        )
    prefix = "jepa.enc."
    names = ("embed_dim", "n_layer", "n_head", "ffn_dim", "patch_size", "tubelet_size", "in_chans")
    try:
        sizes = check_value(dict[str, int], {name: metadata.get(prefix + name) for name in names}, "", strict=True)
        later: dict[str, Any] = {}
        if rope == "2.1":
            levels = check_value(list[int], metadata.get(prefix + "hier_layers"), prefix + "hier_layers", strict=True)
            grid = check_value(int, metadata.get(prefix + "rope_ref_grid"), prefix + "rope_ref_grid", strict=True)
            later = {"levels": tuple(levels), "rope_grid": grid}
        return ModelConfig(
            **{
                "width": sizes["embed_dim"],
                "depth": sizes["n_layer"],
                "heads": sizes["n_head"],
                "mlp_ratio": sizes["ffn_dim"] / max(sizes["embed_dim"], 1),
                "levels": output_levels_for_depth(sizes["n_layer"]),
                "patch_size": sizes["patch_size"],
                "tubelet_size": sizes["tubelet_size"],
                "channels": sizes["in_chans"],
                "rope": rope,
                **later,
            }
        )
    except (InvalidValueError, TubeletError) as error:
        raise CheckpointError(f"{path}: {error}") from error
