"""Layouts of the `transformers` package: safetensors files and a config.json whose `model_type` names the architecture.

| model_type | what |
|---|---|
| `vjepa2` | V-JEPA 2.0, transformers' own `VJEPA2Model`, also inside of `VJEPA2ForVideoClassification` |
| `vjepa21`, `vjepa2_1` | ports of V-JEPA 2.1 on the Hub with code of their own; of the second only the encoder |
| `tubelet` | any model of this package, with the classes that `import tubelet.hf` registers |

The first two rows have the released names under others, and queries, keys and values as three tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor

from tubelet.checkpoint.native_clip import NativeClip
from tubelet.checkpoint.state_dict import State, select_prefix
from tubelet.checkpoint.vjepa2 import expected_tensors, require_match, single_norm, to_encoder_state
from tubelet.checkpoint.vjepa2_1 import ModuleName, expected_state, from_released_names, to_released
from tubelet.config import ModelConfig, PredictorConfig, output_levels_for_depth
from tubelet.config.fields import from_dict, to_dict
from tubelet.errors import CheckpointError, TubeletError
from tubelet.io.text import read_json
from tubelet.model.encoder import Encoder
from tubelet.model.predictor import Predictor
from tubelet.value_checks import InvalidValueError, check_value

Values = dict[str, Any]
"""Fields of a config.json."""
MODEL_TYPE = "tubelet"
_PORTS = ("vjepa21", "vjepa2_1")  # model types of ports of V-JEPA 2.1
_HEAD_MODULES = ("pooler.", "classifier.", "head.")
_NAMES = (
    ("blocks.", "encoder.layer."),
    ("patch_embed.", "encoder.embeddings.patch_embeddings."),
    ("patch_embed_img.", "encoder.embeddings.patch_embeddings_img."),
    ("img_mod_embed", "encoder.embeddings.img_mod_embed"),
    ("video_mod_embed", "encoder.embeddings.video_mod_embed"),
    ("norms_block.", "encoder.norms_block."),
    ("norm.", "encoder.layernorm."),
)
_PREDICTOR_NAMES = (
    ("predictor_embed.", "predictor.embeddings.predictor_embed."),
    ("mask_tokens.", "predictor.embeddings.mask_tokens."),
    ("img_mod_embed", "predictor.embeddings.img_mod_embed"),
    ("video_mod_embed", "predictor.embeddings.video_mod_embed"),
    ("predictor_blocks.", "predictor.layer."),
    ("predictor_norm.", "predictor.layernorm."),
    ("predictor_proj_context.", "predictor.proj_context."),
    ("predictor_proj.", "predictor.proj."),
)


class _Sizes(TypedDict):
    """Fields of config.json that define the encoder."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    mlp_ratio: float
    patch_size: int | list[int]
    tubelet_size: int
    in_chans: int


class _PredictorSizes(TypedDict):
    """Fields of config.json that define the predictor of a `vjepa21` port."""

    pred_hidden_size: int
    pred_num_hidden_layers: int
    pred_num_attention_heads: int
    pred_mlp_ratio: float
    pred_num_mask_tokens: int
    pred_teacher_embed_dim: int | None
    n_output_distillation: int


class TransformersModel(NamedTuple):
    """The content of a `transformers` folder, in this package's names.

    Attributes:
        config: architecture.
        encoder: state dictionary of `Encoder`.
        predictor: state dictionary of `Predictor`; empty if not requested.
        name: name of the model in the config; None if it has none.
        encoder_name: "teacher" or "student" in the config; None if it has neither.
        clip: the clips that it is for, if its config says so.
    """

    config: ModelConfig
    encoder: State
    predictor: State
    name: str | None = None
    encoder_name: str | None = None
    clip: NativeClip | None = None


_EXPECTED_FILES = "expected the config.json of a V-JEPA model next to its .safetensors files"
# Settings that are fixed in this package's blocks.
_FIXED_SETTINGS = {"layer_norm_eps": 1e-6, "hidden_act": "gelu", "qkv_bias": True}
_FIXED_IN_PORTS = {
    "img_temporal_dim_size": 1,
    "interpolate_rope": True,
    "modality_embedding": True,
    "n_registers": 0,
    "has_cls_first": False,
    "wide_silu": True,
}


def from_transformers(
    path: Path, tensors: Mapping[str, Tensor], predictor: bool = False, default_type: str | None = None
) -> TransformersModel:
    """Read a model from the tensors in `path` and `path`/config.json.

    Args:
        path: the folder.
        tensors: its tensors by name, of a model or of one with a classification head around it.
        predictor: whether to read the predictor too.
        default_type: model type of a config that has none.

    Raises:
        CheckpointError: if the config is of another model, or a tensor is missing, unexpected or misshapen.
        MissingFileError: if there is no config.
    """
    values = read_transformers_config(path / "config.json", default_type)
    model_type = values["model_type"]
    clip = NativeClip.from_fields(values, ("crop_size", "image_size"), ("num_frames", "frames_per_clip"), "fps")
    # Of a model with a head: its module is called by the model type.
    names = {name.removeprefix(f"{model_type}."): value for name, value in tensors.items()}
    names = {name: value for name, value in names.items() if not name.startswith(_HEAD_MODULES)}
    if model_type == MODEL_TYPE:
        return _from_tubelet(path, values, names, predictor)._replace(clip=clip)
    if predictor and model_type != "vjepa21":
        kind = "predictor of V-JEPA 2.0 has other heads and" if model_type == "vjepa2" else "predictor of this port"
        raise CheckpointError(f"{path}: the {kind} is not supported; load only the encoder")
    encoder = {name: value for name, value in names.items() if not name.startswith("predictor.")}
    config = _encoder_config(path / "config.json", values)
    if model_type == "vjepa2":
        state = _joined(path, encoder, expected_tensors(config), _NAMES, "V-JEPA 2.0")
        return TransformersModel(config, to_encoder_state(state, config), {}, clip=clip)
    own = from_released_names(
        _joined(path, encoder, expected_state(config, "teacher"), _NAMES, "V-JEPA 2.1"), config, "teacher"
    )
    if not predictor:
        return TransformersModel(config, own, {}, clip=clip)
    predictor_tensors = {name: value for name, value in names.items() if name.startswith("predictor.")}
    state = _joined(path, predictor_tensors, expected_state(config, "predictor"), _PREDICTOR_NAMES, "V-JEPA 2.1")
    return TransformersModel(config, own, from_released_names(state, config, "predictor"), clip=clip)


def read_transformers_config(path: Path, default_type: str | None = None) -> Values:
    """The config.json of a model of one of the supported types.

    Raises:
        CheckpointError: if it is of another model.
        MissingFileError: if it does not exist.
    """
    values = read_json(path, dict[str, Any], _EXPECTED_FILES)
    if default_type is not None:
        values.setdefault("model_type", default_type)
    if values.get("model_type") not in ("vjepa2", *_PORTS, MODEL_TYPE):
        raise CheckpointError(
            f"{path}: model_type is {values.get('model_type')!r:.100}, expected 'vjepa2', 'vjepa21' or 'tubelet'; "
            f"{_EXPECTED_FILES}"
        )
    return values


def to_vjepa2(
    state: Mapping[str, Tensor],
    config: ModelConfig,
    image_size: int,
    frames: int,
    predictor: tuple[Values, State] | None = None,
) -> tuple[Values, State]:
    """Config and tensors of transformers' `VJEPA2Model` for a V-JEPA 2.0 encoder.

    The predictor of V-JEPA 2.0 is not a model of this package, and theirs is not optional: without one, it becomes one
    of no layers whose prediction is 0; `skip_predictor=True` omits it.

    Args:
        state: state dictionary of `Encoder`.
        config: its architecture.
        image_size: side of the images, to which the positions of their rotary embedding refer.
        frames: frames of a clip.
        predictor: fields and tensors of the predictor, see `vjepa2_predictor`.

    Raises:
        CheckpointError: if the weights are not a V-JEPA 2.0 encoder.
    """
    released = single_norm(to_released(state, config, "teacher"), config)
    tensors = split_tensors(released, _NAMES)
    fields, weights = predictor or _no_predictor(config.width, next(iter(tensors.values())).dtype)
    values = {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        **_encoder_values(config, image_size, frames),
        **fields,
    }
    return values, tensors | weights


def _no_predictor(width: int, dtype: torch.dtype) -> tuple[Values, State]:
    """Fields and tensors of a predictor without layers whose prediction is 0."""
    shapes = {
        "embeddings.mask_tokens": (1, 1, 1, 1),
        "embeddings.predictor_embeddings.weight": (1, width),
        "embeddings.predictor_embeddings.bias": (1,),
        "layernorm.weight": (1,),
        "layernorm.bias": (1,),
        "proj.weight": (width, 1),
        "proj.bias": (width,),
    }
    fields = ("hidden_size", "num_attention_heads", "num_mask_tokens")
    values = {f"pred_{name}": 1 for name in fields} | {"pred_num_hidden_layers": 0}
    return values, {f"predictor.{name}": torch.zeros(shape, dtype=dtype) for name, shape in shapes.items()}


def to_vjepa21(
    states: Mapping[ModuleName, Mapping[str, Tensor]], config: ModelConfig, image_size: int, frames: int
) -> tuple[Values, State]:
    """Config and tensors of the `vjepa21` ports for a V-JEPA 2.1 model.

    Args:
        states: state dictionaries of "teacher" or "student", and of "predictor", which the ports require.
        config: the architecture.
        image_size: side of the images that the model is for.
        frames: frames of a clip.

    Raises:
        CheckpointError: if the ports have no such architecture.
    """
    size = config.predictor
    if config.rope != "2.1" or config.levels != output_levels_for_depth(config.depth):
        raise CheckpointError(
            f"the vjepa21 layout has V-JEPA 2.1 models with the output levels of their depth, "
            f"{output_levels_for_depth(config.depth)}, found rope {config.rope} and {config.levels}; write another "
            "layout, such as --to transformers"
        )
    if config.rope_grid != _rope_grid(config.patch_size):
        raise CheckpointError(
            f"the vjepa21 layout has positions on {_rope_grid(config.patch_size)} rows for patches of "
            f"{config.patch_size} pixels, found {config.rope_grid}; write another layout, such as --to transformers"
        )
    if "predictor" not in states:
        raise CheckpointError("the vjepa21 layout includes the predictor; add --with-predictor")
    tensors: State = {}
    for module, state in states.items():
        names = _PREDICTOR_NAMES if module == "predictor" else _NAMES
        tensors |= split_tensors(to_released(state, config, module), names)
    values = {
        "architectures": ["VJEPA21Model"],
        "model_type": "vjepa21",
        **_encoder_values(config, image_size, frames),
        "img_temporal_dim_size": 1,
        "interpolate_rope": True,
        "modality_embedding": True,
        "n_output_distillation": config.num_output_levels,
        "n_registers": 0,
        "has_cls_first": False,
        "pred_hidden_size": size.width,
        "pred_num_attention_heads": size.heads,
        "pred_num_hidden_layers": size.depth,
        "pred_num_mask_tokens": size.mask_tokens,
        "pred_mlp_ratio": _ratio(size.width, size.mlp_ratio),
        "pred_teacher_embed_dim": None if size.rescale_rope else config.prediction_width,
        "pred_return_all_tokens": True,
    }
    return values, tensors


def to_tubelet(
    encoder: Mapping[str, Tensor], predictor: Mapping[str, Tensor], config: ModelConfig, identity: Mapping[str, Any]
) -> tuple[Values, State]:
    """Config and tensors of `tubelet.hf.TubeletModel`.

    Args:
        encoder: state dictionary of `Encoder`.
        predictor: state dictionary of `Predictor`, or empty.
        config: the architecture.
        identity: further fields of the config: `name`, `encoder_name`, `image_size`, `num_frames`, `fps`.
    """
    values = {
        "architectures": ["TubeletModel"],
        "model_type": MODEL_TYPE,
        "model": to_dict(config),
        "with_predictor": bool(predictor),
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        **identity,
    }
    tensors = {f"encoder.{name}": value for name, value in encoder.items()}
    return values, tensors | {f"predictor.{name}": value for name, value in predictor.items()}


def _from_tubelet(path: Path, values: Mapping[str, Any], tensors: State, predictor: bool) -> TransformersModel:
    if predictor and not values.get("with_predictor"):
        raise CheckpointError(f"{path}: contains only an encoder, not the requested predictor")
    where = str(path / "config.json")
    model = values.get("model")
    config: ModelConfig = from_dict(ModelConfig, model if isinstance(model, dict) else {}, where)
    with torch.device("meta"):
        expected = {f"encoder.{name}": value for name, value in Encoder(config).state_dict().items()}
        if values.get("with_predictor"):
            expected |= {f"predictor.{name}": value for name, value in Predictor(config).state_dict().items()}
    require_match(path, tensors, expected, "tubelet")
    name, encoder_name = values.get("name"), values.get("encoder_name")
    return TransformersModel(
        config,
        select_prefix(tensors, "encoder."),
        select_prefix(tensors, "predictor.") if predictor else {},
        name if isinstance(name, str) else None,
        encoder_name if encoder_name in ("teacher", "student") else None,
    )


def _joined(
    path: Path, tensors: State, expected: Mapping[str, Tensor], names: tuple[tuple[str, str], ...], architecture: str
) -> State:
    """Tensors in the released names, from a file's, which are compared with what is expected by their own names."""
    require_match(path, tensors, split_tensors(expected, names), architecture)
    return {name: torch.cat([tensors[part] for part in _external_names(name, names)]) for name in expected}


def split_tensors(released: Mapping[str, Tensor], names: tuple[tuple[str, str], ...]) -> State:
    """Tensors in the names of `transformers`, from the released ones.

    Args:
        released: tensors by released name.
        names: pairs of prefixes, released and theirs.
    """
    split: State = {}
    for name, value in released.items():
        external = _external_names(name, names)
        split |= dict(zip(external, value.chunk(len(external)), strict=True))
    return split


def _external_names(name: str, names: tuple[tuple[str, str], ...]) -> list[str]:
    """Names in `transformers` of a released tensor: queries, keys and values are three tensors there."""
    for there, their_name in names:
        if name.startswith(there):
            name = their_name + name.removeprefix(there)
            break
    name = name.replace(".attn.", ".attention.")
    return [name.replace(".qkv.", f".{part}.") for part in ("query", "key", "value")] if ".qkv." in name else [name]


def _encoder_config(path: Path, values: dict[str, Any]) -> ModelConfig:
    port = values["model_type"] in _PORTS
    for key, value in (_FIXED_SETTINGS | (_FIXED_IN_PORTS if port else {})).items():
        if values.get(key, value) != value:
            raise CheckpointError(
                f"{path}: {key} is {values[key]!r:.100}, supported is only {value!r}; {_EXPECTED_FILES}"
            )
    try:
        sizes = check_value(_Sizes, values, "", strict=True)
        patch = sizes["patch_size"]
        if isinstance(patch, list) and (not patch or len({*patch}) > 1):
            raise InvalidValueError("patch_size", f"is {patch!r:.100}, expected one number, or two that are equal")
        side = patch[0] if isinstance(patch, list) else patch
        extra = _port_settings(values, side) if port else {"rope": "2.0"}
    except InvalidValueError as error:
        raise CheckpointError(f"{path}: {error}; {_EXPECTED_FILES}") from error
    try:
        return ModelConfig(
            width=sizes["hidden_size"],
            depth=sizes["num_hidden_layers"],
            heads=sizes["num_attention_heads"],
            mlp_ratio=sizes["mlp_ratio"],
            levels=output_levels_for_depth(sizes["num_hidden_layers"]),
            patch_size=side,
            tubelet_size=sizes["tubelet_size"],
            channels=sizes["in_chans"],
            **extra,
        )
    except TubeletError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _port_settings(values: dict[str, Any], patch: int) -> dict[str, Any]:
    """The fields of `ModelConfig` that only V-JEPA 2.1 has.

    A predictor with the width of another teacher is of a distilled model, whose positions are not rescaled.
    """
    settings: dict[str, Any] = {"rope_grid": _rope_grid(patch)}
    if values["model_type"] != "vjepa21":
        return settings
    defaults = {"pred_mlp_ratio": 4.0, "pred_teacher_embed_dim": None}
    sizes = check_value(_PredictorSizes, defaults | values, "", strict=True)
    teacher = sizes["pred_teacher_embed_dim"]
    settings["output_levels"] = sizes["n_output_distillation"]
    settings["predictor"] = PredictorConfig(
        width=sizes["pred_hidden_size"],
        depth=sizes["pred_num_hidden_layers"],
        heads=sizes["pred_num_attention_heads"],
        mlp_ratio=sizes["pred_mlp_ratio"],
        mask_tokens=sizes["pred_num_mask_tokens"],
        rescale_rope=teacher is None,
        output_width=teacher,
    )
    return settings


def _encoder_values(config: ModelConfig, image_size: int, frames: int) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "mlp_ratio": _ratio(config.width, config.mlp_ratio),
        "patch_size": config.patch_size,
        "crop_size": image_size,
        "tubelet_size": config.tubelet_size,
        "frames_per_clip": frames,
        "num_frames": frames,
        "in_chans": config.channels,
        **_FIXED_SETTINGS,
    }


def _ratio(width: int, ratio: float) -> float:
    """A ratio that gives the same hidden width where `transformers` rounds down: 48 / 11 of 1408 can be 6143.999."""
    hidden = round(width * ratio)
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def _rope_grid(patch: int) -> int:
    """Rows of the ports' pre-training grid: of 256 pixels, or 252 in patches of 14."""
    return 252 // 14 if patch == 14 else 256 // patch
