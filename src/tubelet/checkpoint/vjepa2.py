"""V-JEPA 2.0 in the layout of its release, a .pt file; `transformers.py` has the other layout.

The encoder is a special case of this package's encoder with other rotary angles (`ModelConfig.rope`). Its only
tokenizer encodes an image as a clip of repeated frames, which equals an image tokenizer whose weights are summed over
the frames. The missing modality embedding equals one of zeros, and the single final norm is used for every output
level. The predictor has other heads and is not supported.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tubelet.checkpoint.state_dict import State, state_dict_mismatches
from tubelet.checkpoint.vjepa2_1 import (
    count_blocks,
    expected_state,
    interleaved_to_half,
    strip_prefixes,
    tokenizer_shape,
    vector_length,
)
from tubelet.config import ModelConfig, output_levels_for_depth
from tubelet.errors import CheckpointError, ConfigError

# Width -> heads and blocks of ViT-L, H and g (arXiv 2506.09985, and its release).
_FAMILY = {1024: (16, 24), 1280: (16, 32), 1408: (22, 40)}
# Released files still contain the fixed position table of V-JEPA 1, which is not used.
_UNUSED = "pos_embed"


def from_release(path: Path, state: Mapping[str, Tensor], heads: int | None) -> tuple[ModelConfig, State]:
    """Config and state dictionary of `Encoder` from an encoder of the release.

    Raises:
        CheckpointError: if a tensor is missing, unexpected or misshapen.
        ConfigError: if the width is unknown and `heads` is None.
    """
    encoder = {name: value for name, value in strip_prefixes(state).items() if name != _UNUSED}
    width = vector_length(encoder, r"blocks\.\d+\.norm1\.weight", path)
    depth = count_blocks(encoder, r"blocks\.(\d+)\.")
    if heads is None:
        if width not in _FAMILY:
            raise ConfigError(
                f"{path}: no V-JEPA 2.0 model has width {width}; give the number of attention heads with heads="
            )
        heads, expected = _FAMILY[width]
        if depth != expected:
            raise ConfigError(
                f"{path}: {depth} blocks of width {width}, expected {expected}; for another model give heads="
            )
    channels, tubelet_size, patch_size = tokenizer_shape(encoder, width, path)
    config = ModelConfig(
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=vector_length(encoder, r"blocks\.\d+\.mlp\.fc1\.bias", path) / width,
        levels=output_levels_for_depth(depth),
        patch_size=patch_size,
        tubelet_size=tubelet_size,
        channels=channels,
        rope="2.0",
    )
    require_match(path, encoder, expected_tensors(config))
    return config, to_encoder_state(encoder, config)


def expected_tensors(config: ModelConfig) -> State:
    """Names and shapes (meta tensors) in the layout of the release: those of 2.1 without its additions."""
    state = {}
    for name, value in expected_state(config, "teacher").items():
        if name.startswith("norms_block."):
            state["norm." + name.rsplit(".", 1)[1]] = value
        elif not name.startswith(("img_mod_embed", "video_mod_embed", "patch_embed_img.")):
            state[name] = value
    return state


def to_encoder_state(state: Mapping[str, Tensor], config: ModelConfig) -> State:
    """The state dictionary of `Encoder` from tensors in the release's names and layout."""
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


def single_norm(released: Mapping[str, Tensor], config: ModelConfig) -> State:
    """The tensors of V-JEPA 2.0 from those of 2.1 in the released names; the inverse of `to_encoder_state`.

    Raises:
        CheckpointError: if they compute something that V-JEPA 2.0 does not.
    """
    if config.rope != "2.0":
        raise CheckpointError(f"the layout of V-JEPA 2.0 cannot represent a V-JEPA {config.rope} encoder")
    kernel, bias = released["patch_embed.proj.weight"], released["patch_embed.proj.bias"]
    as_image = kernel.sum(2, keepdim=True)
    close = torch.allclose(released["patch_embed_img.proj.weight"].float(), as_image.float(), rtol=1e-3, atol=1e-6)
    differences = [] if close and torch.equal(released["patch_embed_img.proj.bias"], bias) else ["an image tokenizer"]
    differences += ["modality embeddings"] if any(released[f"{m}_mod_embed"].any() for m in ("img", "video")) else []
    norms = {name: value for name, value in released.items() if name.startswith("norms_block.")}
    last = {part: norms[f"norms_block.{len(config.levels) - 1}.{part}"] for part in ("weight", "bias")}
    differences += (
        [] if all(value.equal(last[name.rsplit(".", 1)[1]]) for name, value in norms.items()) else ["several norms"]
    )
    if differences:
        raise CheckpointError(f"the encoder has {', '.join(differences)} of its own, which V-JEPA 2.0 does not have")
    return {name: released[name] for name in expected_tensors(config) if not name.startswith("norm.")} | {
        f"norm.{part}": value for part, value in last.items()
    }


def require_match(
    path: Path, state: Mapping[str, Tensor], expected: Mapping[str, Tensor], architecture: str = "V-JEPA 2.0"
) -> None:
    """Raise a `TubeletError` that lists all names and shapes in which an encoder differs from what is expected."""
    if mismatches := state_dict_mismatches(state, expected):
        raise CheckpointError(f"{path} does not match its {architecture} architecture: {'; '.join(mismatches)}")
