"""The released checkpoints' layout: a .pt dictionary whose keys are prefixed `module.backbone.`.

`encoder` holds the student, `target_encoder` the teacher (`ema_encoder` in the distilled B and L), `predictor` the
predictor. Names are mapped to this package's, patch embeddings are flattened from convolution kernels to matrices, and
rows of queries and keys are reordered to the rotation's half layout (see `tubelet.model.rope`).
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tubelet.config import MODELS, ModelConfig, PredictorConfig, levels_of_depth
from tubelet.model.rope import pair_permutation
from tubelet.types import TubeletError

TEACHER_KEYS = ("target_encoder", "ema_encoder")
PREFIX = "module.backbone."

_MODALITY = {"img": "image", "video": "video"}
_ENCODER_NAMES = (
    (r"^(img|video)_mod_embed$", lambda m: f"tokenizer.{_MODALITY[m[1]]}_embedding"),
    (r"^patch_embed\.proj\.", lambda m: "tokenizer.video."),
    (r"^patch_embed_img\.proj\.", lambda m: "tokenizer.image."),
    (r"^norms_block\.", lambda m: "norms."),
    (r"\.attn\.", lambda m: ".attention."),
)
_PREDICTOR_NAMES = (
    (r"^(img|video)_mod_embed$", lambda m: f"{_MODALITY[m[1]]}_embedding"),
    (r"^predictor_embed\.(weight|bias)$", lambda m: f"fusion.0.{m[1]}"),
    (r"^predictor_embed\.", lambda m: "fusion."),
    (r"^predictor_blocks\.", lambda m: "blocks."),
    (r"^predictor_norm\.", lambda m: "norm."),
    (r"^predictor_proj_context\.", lambda m: "context_head."),
    (r"^predictor_proj\.", lambda m: "target_head."),
    (r"\.attn\.", lambda m: ".attention."),
)


class Released(NamedTuple):
    """What a released file holds, in this package's names and layout.

    Attributes:
        config: sizes read off the tensors.
        student, predictor, teacher: state dictionaries of `Encoder`, `Predictor` and `Encoder`.
    """

    config: ModelConfig
    student: dict[str, Tensor]
    predictor: dict[str, Tensor]
    teacher: dict[str, Tensor]


def read_released(
    path: str | Path, heads: int | None = None, predictor_heads: int = 12, levels: tuple[int, ...] | None = None
) -> Released:
    """Read a released checkpoint.

    Args:
        path: the .pt file.
        heads: attention heads of the encoder, which no tensor tells; None looks the width up in the family.
        predictor_heads: attention heads of the predictor; every released one has 12.
        levels: tapped blocks, which no tensor tells; None is what the family taps at this depth.

    Raises:
        TubeletError: if the file is not such a checkpoint, or its tensors contradict each other.
    """
    try:
        file = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise TubeletError(f"{path}: not a checkpoint that can be read safely ({error})") from error
    teacher_key = next((key for key in TEACHER_KEYS if key in file), None)
    if teacher_key is None or "encoder" not in file or "predictor" not in file:
        raise TubeletError(
            f"{path}: expected the keys 'encoder', 'predictor' and one of {TEACHER_KEYS}, found {sorted(file)}"
        )
    student, predictor, teacher = (_strip(file[key]) for key in ("encoder", "predictor", teacher_key))
    config = _infer_config(student, predictor, heads, predictor_heads, levels, distilled=teacher_key == "ema_encoder")
    return Released(
        config,
        _to_own(student, _ENCODER_NAMES, config.heads),
        _stack_mask_tokens(_to_own(predictor, _PREDICTOR_NAMES, config.predictor.heads)),
        _to_own(teacher, _ENCODER_NAMES, config.heads),
    )


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load a state dictionary that must fit to the last tensor.

    Raises:
        TubeletError: that lists every missing, unexpected and misshapen tensor.
    """
    own = module.state_dict()
    wrong = [f"missing {name} {tuple(own[name].shape)}" for name in own if name not in state]
    wrong += [f"unexpected {name} {tuple(state[name].shape)}" for name in state if name not in own]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if wrong:
        raise TubeletError(f"{what} does not fit the model: {'; '.join(wrong)}")
    module.load_state_dict(state)


def _strip(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(PREFIX): value for name, value in state.items()}


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    found = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1


def _infer_config(
    encoder: Mapping[str, Tensor],
    predictor: Mapping[str, Tensor],
    heads: int | None,
    predictor_heads: int,
    levels: tuple[int, ...] | None,
    distilled: bool,
) -> ModelConfig:
    try:
        width, channels, tubelet_size, patch_size, _ = encoder["patch_embed.proj.weight"].shape
        hidden = encoder["blocks.0.mlp.fc1.weight"].shape[0]
        predictor_width = predictor["predictor_norm.weight"].shape[0]
        predictor_hidden = predictor["predictor_blocks.0.mlp.fc1.weight"].shape[0]
        output_width = predictor["predictor_proj.weight"].shape[0]
    except KeyError as error:
        raise TubeletError(f"the checkpoint has no tensor {error}: not a V-JEPA 2.1 release") from error
    if heads is None:
        by_width = {preset().width: preset().heads for preset in MODELS.values()}
        if width not in by_width:
            raise TubeletError(f"no family member is {width} wide: say how many attention heads it has with heads=")
        heads = by_width[width]
    depth = _count(encoder, r"blocks\.(\d+)\.")
    return ModelConfig(
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=hidden / width,
        levels=levels or levels_of_depth(depth),
        output_levels=1 if "predictor_embed.weight" in predictor else None,
        patch_size=patch_size,
        tubelet_size=tubelet_size,
        channels=channels,
        predictor=PredictorConfig(
            width=predictor_width,
            depth=_count(predictor, r"predictor_blocks\.(\d+)\."),
            heads=predictor_heads,
            mlp_ratio=predictor_hidden / predictor_width,
            mask_tokens=_count(predictor, r"mask_tokens\.(\d+)$"),
            rescale_rope=not distilled,
            output_width=output_width,
        ),
    )


def _to_own(state: Mapping[str, Tensor], names: tuple, heads: int) -> dict[str, Tensor]:
    """Rename, flatten and reorder one module's tensors."""
    own = {}
    for name, value in state.items():
        renamed = name
        for pattern, replacement in names:
            renamed = re.sub(pattern, replacement, renamed)
        if renamed.endswith("_embedding") or renamed.startswith("mask_tokens."):
            value = value.flatten()
        elif renamed in ("tokenizer.video.weight", "tokenizer.image.weight"):
            value = value.flatten(1)
        elif ".attention.qkv." in renamed:
            value = _halve_pairs(value, heads)
        own[renamed] = value
    return own


def _halve_pairs(qkv: Tensor, heads: int) -> Tensor:
    """(3D, ...) rows of queries and keys from interleaved pairs to the half layout; values stay."""
    per_head = qkv.unflatten(0, (3, heads, -1))
    permutation = pair_permutation(per_head.shape[2])
    return torch.cat([per_head[:2, :, permutation], per_head[2:]]).flatten(0, 2)


def _stack_mask_tokens(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = sorted(
        (name for name in state if name.startswith("mask_tokens.")), key=lambda name: int(name.split(".")[1])
    )
    tokens = [state.pop(name) for name in names]
    if tokens:
        state["mask_tokens"] = torch.stack(tokens)
    return state
