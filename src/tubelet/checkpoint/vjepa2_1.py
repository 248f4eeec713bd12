"""V-JEPA 2.1 in the layout of its release: a .pt dictionary whose keys are prefixed `module.backbone.`.

`encoder` contains the student, `target_encoder` the teacher (`ema_encoder` in the distilled B and L), `predictor` the
predictor. Names are mapped to this package's, patch embeddings are flattened from convolution kernels to matrices, and
rows of queries and keys are reordered to the half layout of the rotation (see `tubelet.model.rope`). The conversion is
reversible to the bit. Tensors are checked under the names of the file, so that errors name them.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from tubelet.checkpoint.state_dict import State, state_dict_mismatches
from tubelet.config import MODELS, ModelConfig, PredictorConfig, output_levels_for_depth
from tubelet.errors import CheckpointError, ConfigError
from tubelet.io.arrays import read_pt
from tubelet.io.files import atomic_write
from tubelet.io.overwrite_checks import check_output, mark_archive
from tubelet.model.encoder import Encoder
from tubelet.model.predictor import Predictor
from tubelet.model.rope import pair_permutation

ModuleName = Literal["student", "predictor", "teacher"]
MODULE_NAMES: tuple[ModuleName, ...] = ("student", "predictor", "teacher")
TEACHER_KEYS = ("target_encoder", "ema_encoder")
PREFIX = "module.backbone."

# Prefixes of names in the release and in this package; the first match applies.
_ENCODER_NAMES = (
    ("img_mod_embed", "tokenizer.image_embedding"),
    ("video_mod_embed", "tokenizer.video_embedding"),
    ("patch_embed.proj.", "tokenizer.video."),
    ("patch_embed_img.proj.", "tokenizer.image."),
    ("norms_block.", "norms."),
)
_PREDICTOR_NAMES = (
    ("img_mod_embed", "image_embedding"),
    ("video_mod_embed", "video_embedding"),
    ("predictor_blocks.", "blocks."),
    ("predictor_norm.", "norm."),
    ("predictor_proj_context.", "context_head."),
    ("predictor_proj.", "target_head."),
)


class ReleasedCheckpoint(NamedTuple):
    """The contents of a released file, in this package's names and layout.

    Attributes:
        config: architecture, inferred from the tensors.
        student: state dictionary of `Encoder`; empty if not requested.
        predictor: state dictionary of `Predictor`; empty if not requested.
        teacher: state dictionary of `Encoder`; empty if not requested.
    """

    config: ModelConfig
    student: State
    predictor: State
    teacher: State


def read_released(
    path: str | Path,
    heads: int | None = None,
    predictor_heads: int | None = None,
    levels: tuple[int, ...] | None = None,
    modules: Collection[ModuleName] = MODULE_NAMES,
) -> ReleasedCheckpoint:
    """Read a released checkpoint. Tensors that need no reordering stay in the file until they are used.

    Args:
        path: the .pt file.
        heads: attention heads of the encoder, not stored in the file; None looks the width up in the family.
        predictor_heads: attention heads of the predictor; None looks its width up in the family.
        levels: 0-based output blocks, not stored in the file; None is what the family uses at this depth.
        modules: modules to read.

    Raises:
        CheckpointError: if the file is not such a checkpoint, or a tensor is missing, unexpected or misshapen; all are
            listed.
    """
    file = read_torch_file(path)
    teacher_key = next((key for key in TEACHER_KEYS if key in file), TEACHER_KEYS[0])
    keys = {"student": "encoder", "predictor": "predictor", "teacher": teacher_key}
    absent = [keys[module] for module in modules if keys[module] not in file]
    if absent:
        raise CheckpointError(
            f"{path}: expected the keys {', '.join(map(repr, absent))}, found {sorted(map(str, file))}: "
            "not a V-JEPA 2.1 release"
        )
    found = {module: state_dict_from(file, keys[module], path) for module in MODULE_NAMES if keys[module] in file}
    if any(is_vjepa2(found[module]) for module in modules if module != "predictor"):
        raise CheckpointError(f"{path}: a V-JEPA 2.0 file, of which only the encoder is supported; use tubelet.load")
    states = {module: strip_prefixes(state) for module, state in found.items()}
    encoder = states["student" if "teacher" not in modules and "student" in states else "teacher"]
    distilled = teacher_key == "ema_encoder"
    config = _infer_config(path, encoder, heads, levels, states.get("predictor", {}), distilled)
    if "predictor" in modules:
        config = replace(config, predictor=_infer_predictor(path, states["predictor"], predictor_heads, distilled))
    requested = {module: states[module] for module in modules}
    _require_match(path, {keys[module]: (requested[module], expected_state(config, module)) for module in modules})
    own = {module: from_released_names(state, config, module) for module, state in requested.items()}
    return ReleasedCheckpoint(config, own.get("student", {}), own.get("predictor", {}), own.get("teacher", {}))


def from_released_encoder(
    path: Path, state: Mapping[str, Tensor], heads: int | None, levels: tuple[int, ...] | None
) -> tuple[ModelConfig, State]:
    """Config and state dictionary of `Encoder` from an encoder's tensors in the released names, without prefixes.

    Raises:
        CheckpointError: if a tensor is missing, unexpected or misshapen.
        ConfigError: if the width is unknown and `heads` is None.
    """
    config = _infer_config(path, state, heads, levels, {}, distilled=False)
    _require_match(path, {"encoder": (dict(state), expected_state(config, "teacher"))})
    return config, from_released_names(state, config, "teacher")


def write_released(path: Path, config: ModelConfig, states: Mapping[ModuleName, Mapping[str, Tensor]]) -> None:
    """Write state dictionaries of this package as a released checkpoint; `read_released` restores them to the bit.

    Raises:
        CheckpointError: for a V-JEPA 2.0 model, whose rotary version this layout cannot store.
        FileError: if the file cannot be written.
    """
    if config.rope != "2.1":
        raise CheckpointError(
            f"{path}: the released 2.1 layout cannot store a V-JEPA {config.rope} model; write .safetensors"
        )
    teacher_key = TEACHER_KEYS[0] if config.predictor.rescale_rope else TEACHER_KEYS[1]
    keys = {"student": "encoder", "predictor": "predictor", "teacher": teacher_key}
    file = {
        keys[module]: {PREFIX + name: value for name, value in to_released(state, config, module).items()}
        for module, state in states.items()
    }
    check_output(path, "released")
    with atomic_write(path, also=(RuntimeError,)) as partial:
        torch.save(file, partial)
        mark_archive(partial)


def read_torch_file(path: str | Path) -> dict[str, Any]:
    """The dictionary in a .pt file, with memory-mapped tensors, without running code from the file.

    Raises:
        CheckpointError: if it cannot be read so.
    """
    return read_pt(path, "copy it again, and give a checkpoint of state dictionaries", mapped=True)


def state_dict_from(file: Mapping[str, Any], key: str, path: str | Path) -> State:
    """One state dictionary of a .pt file.

    Raises:
        CheckpointError: if it is something else, or has tensors larger than their storage: a small file could then
            take any amount of memory.
    """
    state = file[key]
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: {key!r} is {type(state).__name__}, expected a dictionary of tensors")
    for name, value in state.items():
        valid = isinstance(name, str) and isinstance(value, Tensor) and value.layout == torch.strided
        if not valid or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(f"{path}: {key!r} holds {ascii(name)[:200]}, which is not a plain tensor")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"{path}: {name} has shape {tuple(value.shape)}, more than its storage in the file")
    names = strip_prefixes(state)
    if len(names) < len(state):
        raise CheckpointError(f"{path}: {key!r} has tensors whose names differ only in their prefix")
    return {name: value.detach() for name, value in state.items()}


def expected_state(config: ModelConfig, module: ModuleName) -> State:
    """Names and shapes (meta tensors) of one module in a released checkpoint of this architecture."""
    with torch.device("meta"):
        network = Predictor(config) if module == "predictor" else Encoder(config)
    return to_released(network.state_dict(), config, module)


def to_released(state: Mapping[str, Tensor], config: ModelConfig, module: ModuleName) -> State:
    """The tensors of one module in the released names and layout, without their prefix."""
    released: State = {}
    p, t = config.patch_size, config.tubelet_size
    heads = config.predictor.heads if module == "predictor" else config.heads
    for name, value in state.items():
        if name == "mask_tokens":
            released |= {f"mask_tokens.{i}": token.view(1, 1, -1) for i, token in enumerate(value)}
            continue
        if name.endswith("_embedding"):
            value = value.view(1, 1, -1)
        elif name in ("tokenizer.video.weight", "tokenizer.image.weight"):
            value = value.view(-1, config.channels, 1 if "image" in name else t, p, p)
        elif ".attention.qkv." in name:
            value = _permute_pairs(value, heads, pair_permutation(head_dim_of(value, heads)).argsort())
        for released_name, own_name in _names(config, module):
            if name.startswith(own_name):
                name = released_name + name.removeprefix(own_name)
                break
        released[name.replace(".attention.", ".attn.")] = value
    return released


def from_released_names(state: Mapping[str, Tensor], config: ModelConfig, module: ModuleName) -> State:
    """The tensors of one module in this package's names and layout."""
    own = {}
    heads = config.predictor.heads if module == "predictor" else config.heads
    for name, value in state.items():
        if name.startswith("mask_tokens."):
            continue
        for released_name, own_name in _names(config, module):
            if name.startswith(released_name):
                name = own_name + name.removeprefix(released_name)
                break
        name = name.replace(".attn.", ".attention.")
        if name.endswith("_embedding"):
            value = value.flatten()
        elif name in ("tokenizer.video.weight", "tokenizer.image.weight"):
            value = value.flatten(1)
        elif ".attention.qkv." in name:
            value = interleaved_to_half(value, heads)
        own[name] = value
    if module == "predictor":
        tokens = [state[f"mask_tokens.{i}"].flatten() for i in range(config.predictor.mask_tokens)]
        own["mask_tokens"] = torch.stack(tokens)
    return own


def interleaved_to_half(qkv: Tensor, heads: int) -> Tensor:
    """Reorder rows (3D, ...) of queries and keys from interleaved pairs to the half layout; values stay."""
    return _permute_pairs(qkv, heads, pair_permutation(head_dim_of(qkv, heads)))


def head_dim_of(qkv: Tensor, heads: int) -> int:
    """Channels of a head of stacked queries, keys and values (3D, ...)."""
    return qkv.shape[0] // (3 * heads)


def _permute_pairs(qkv: Tensor, heads: int, permutation: Tensor) -> Tensor:
    per_head = qkv.unflatten(0, (3, heads, -1))
    return torch.cat([per_head[:2, :, permutation.to(qkv.device)], per_head[2:]]).flatten(0, 2)


def _names(config: ModelConfig, module: ModuleName) -> tuple[tuple[str, str], ...]:
    if module != "predictor":
        return _ENCODER_NAMES
    # A single level is not fused: its only layer is not in a list in the release.
    fusion = ("predictor_embed.", "fusion.0." if config.num_output_levels == 1 else "fusion.")
    return (fusion, *_PREDICTOR_NAMES)


def strip_prefixes(state: Mapping[str, Tensor]) -> State:
    """The same tensors without the wrappers' prefixes."""
    return {name.removeprefix("module.").removeprefix("backbone."): value for name, value in state.items()}


def is_vjepa2(state: Mapping[str, Tensor]) -> bool:
    """Whether the encoder of a released .pt file is V-JEPA 2.0: one final norm instead of one per level."""
    names = strip_prefixes(state)
    return "norm.weight" in names and not any(name.startswith("norms_block.") for name in names)


def _require_match(path: str | Path, modules: Mapping[str, tuple[State, State]]) -> None:
    problems = [
        f"{key}: {'; '.join(mismatches)}"
        for key, (state, expected) in modules.items()
        if (mismatches := state_dict_mismatches(state, expected))
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not match the architecture inferred from its tensors: {' | '.join(problems)}"
        )


def count_blocks(state: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the largest number that `pattern` matches at the beginning of a name."""
    numbers = [int(match[1]) for name in state if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def vector_length(state: Mapping[str, Tensor], pattern: str, path: str | Path) -> int:
    """Length of the vectors whose names match; the most frequent one, so that one wrong vector gives one error.

    Raises:
        CheckpointError: if there is none.
    """
    lengths = [value.shape[0] for name, value in state.items() if re.fullmatch(pattern, name) and value.dim() == 1]
    if not lengths:
        raise CheckpointError(f"{path}: no tensor matches {pattern!r}; not a V-JEPA release")
    return max(set(lengths), key=lengths.count)


def tokenizer_shape(state: Mapping[str, Tensor], width: int, path: str | Path) -> tuple[int, int, int]:
    """Channels, frames and pixels of the video tokenizer's kernel.

    Raises:
        CheckpointError: if it is missing or not a kernel of this width.
    """
    name = "patch_embed.proj.weight"
    shape = tuple(state[name].shape) if name in state else ()
    if len(shape) != 5 or shape[0] != width or shape[3] != shape[4]:
        problem = f"has shape {shape}" if shape else "is missing"
        raise CheckpointError(f"{path}: {name} {problem}, expected (width = {width}, channels, frames, p, p)")
    return shape[1], shape[2], shape[3]


def _infer_config(
    path: str | Path,
    encoder: Mapping[str, Tensor],
    heads: int | None,
    levels: tuple[int, ...] | None,
    predictor: Collection[str],
    distilled: bool,
) -> ModelConfig:
    width = vector_length(encoder, r"blocks\.\d+\.norm1\.weight", path)
    channels, tubelet_size, patch_size = tokenizer_shape(encoder, width, path)
    depth = count_blocks(encoder, r"blocks\.(\d+)\.")
    family = {preset().width: preset() for preset in MODELS.values()}.get(width)
    if heads is None:
        if family is None:
            raise ConfigError(
                f"{path}: no model of the family has width {width}; give the number of attention heads with heads="
            )
        if levels is None and depth != family.depth:  # a file without its last blocks would pass as a shallower model
            raise ConfigError(
                f"{path}: {depth} blocks of width {width}, but the model of the family with that width has "
                f"{family.depth}; blocks are missing, or describe the model with heads= and levels="
            )
        heads = family.heads
    return ModelConfig(
        width=width,
        depth=depth,
        heads=heads,
        mlp_ratio=vector_length(encoder, r"blocks\.\d+\.mlp\.fc1\.bias", path) / width,
        levels=levels or output_levels_for_depth(depth),
        output_levels=1 if "predictor_embed.weight" in predictor else None,
        patch_size=patch_size,
        tubelet_size=tubelet_size,
        channels=channels,
        predictor=PredictorConfig(rescale_rope=not distilled),
    )


def _infer_predictor(
    path: str | Path, state: Mapping[str, Tensor], heads: int | None, distilled: bool
) -> PredictorConfig:
    width = vector_length(state, r"predictor_norm\.weight", path)
    if heads is None:
        by_width = {preset().predictor.width: preset().predictor.heads for preset in MODELS.values()}
        if width not in by_width:
            raise ConfigError(
                f"{path}: no predictor of the family has width {width}; give the number of attention heads with "
                "predictor_heads="
            )
        heads = by_width[width]
    return PredictorConfig(
        width=width,
        depth=count_blocks(state, r"predictor_blocks\.(\d+)\."),
        heads=heads,
        mlp_ratio=vector_length(state, r"predictor_blocks\.\d+\.mlp\.fc1\.bias", path) / width,
        mask_tokens=count_blocks(state, r"mask_tokens\.(\d+)$"),
        rescale_rope=not distilled,
        output_width=vector_length(state, r"predictor_proj\.bias", path),
    )
