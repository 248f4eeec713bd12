"""The one function that loads a trained encoder from wherever it is.

model = tubelet.load("vjepa2.1-vitb16-384")
features = model.encode("video.mp4")
"""

from __future__ import annotations

from inspect import signature
from pathlib import Path
from typing import Any, get_args

import torch

from tubelet.checkpoint.adapters import apply_adapters
from tubelet.checkpoint.native_clip import NativeClip
from tubelet.checkpoint.registry import HUB_OPTIONS, RELEASED, released_name, resolve_checkpoint
from tubelet.checkpoint.run import resolve_best
from tubelet.checkpoint.state_dict import load_strict, require_finite
from tubelet.checkpoint.weights import EncoderName, LoadSpec, read_weights
from tubelet.config.fields import check, nearest
from tubelet.device import pick_device, pick_dtype
from tubelet.errors import ConfigError, escape_unprintable, first_line
from tubelet.pretrained.backbone import Backbone


def load(
    name_or_path: str | Path,
    *,
    encoder: EncoderName | None = None,
    with_predictor: bool = False,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    int8: bool = False,
    compile: bool = False,
    heads: int | None = None,
    predictor_heads: int | None = None,
    levels: tuple[int, ...] | None = None,
    adapter: str | Path | None = None,
    sha256: str | None = None,
    **hub: Any,
) -> Backbone:
    """Load a trained encoder, in eval mode and without gradients.

    Weights are memory-mapped: tensors that need no reordering, cast or copy are read when they are used.

    Args:
        name_or_path: a run directory, one of its checkpoints, or RUN/best; a .safetensors file or directory of
            `save_pretrained`; a folder of `transformers`, of a port of V-JEPA 2.1 to it, or of the MLX ports; a .gguf
            file of jepa.cpp; a released .pt file; a released name such as "vjepa2.1-vitb16-384", also as torch.hub
            has it ("vjepa2_1_vit_base_384"); or the id of a repository on the Hub.
        encoder: "teacher" (Y-encoder), which has the better features, or "student" (X-encoder); None is the
            teacher, or the only one in the file.
        with_predictor: load the predictor too, as `model.predictor`.
        device: by default an accelerator if there is one.
        dtype: by default bfloat16 if the device supports it natively, else float32.
        int8: use 8-bit weights and activations in the linear layers of the blocks, on a CPU with VNNI units; the model
            cannot be saved.
        compile: compile the blocks, which takes up to a minute the first time.
        heads: attention heads, for a .pt file of a width outside the family.
        predictor_heads: attention heads of the predictor, for a .pt file of a width outside the family.
        levels: 0-based output blocks, for a .pt file outside the family.
        adapter: the `adapter` directory of a run with lora_rank on these weights, which is merged into them.
        sha256: expected hash of the file, in hexadecimal.
        hub: revision, token, cache_dir, force_download, local_files_only, as `huggingface_hub` takes them.

    Raises:
        MissingFileError: if there is no such model.
        CheckpointError: if a tensor is missing, unexpected or misshapen; a model is never loaded partially.
        ConfigError: if an option is unknown or not valid, or int8 or compile is not possible on this machine.
    """
    for option in hub:
        if option not in HUB_OPTIONS:
            hint = nearest(option, [*signature(load).parameters, *HUB_OPTIONS])
            raise ConfigError(f"tubelet.load has no option {option!r}{hint}")
    for name, value in (("with_predictor", with_predictor), ("int8", int8), ("compile", compile)):
        check(bool, value, name)
    chosen = _device(device)
    floating = isinstance(dtype, torch.dtype) and dtype.is_floating_point
    if dtype is not None and not (floating and dtype.itemsize > 1):  # types of 8 bits store, but do not compute
        raise ConfigError(f"dtype is {dtype!r}, expected a floating-point type of 16 bits or more, as torch.bfloat16")
    model = load_unplaced(
        name_or_path, LoadSpec(encoder, with_predictor, heads, predictor_heads, levels), sha256, **hub
    )
    if adapter is not None:
        apply_adapters(model, Path(adapter))
        require_finite(model.state_dict(), str(adapter))
        model.identify()
    model = model.to(chosen, dtype or pick_dtype("auto", chosen))
    if model.dtype == torch.float16:
        require_finite(model.state_dict(), f"{name_or_path} as float16, which ends at 65,504 (bfloat16 does not)")
    if int8:
        from tubelet.pretrained.quantization import quantize_linear_layers

        quantize_linear_layers(model)
    if compile:
        from tubelet.pretrained.compilation import compile_encoder

        compile_encoder(model)
    return model


def random_init_like(model: Backbone, seed: int) -> Backbone:
    """The same architecture with random initial weights, on the same device; a baseline for trained features."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        random_model = Backbone(model.config, model.predictor is not None)
    random_model.name, random_model.native_clip = "random", model.native_clip
    random_model.identify()
    return random_model.requires_grad_(False).eval().to(model.device, model.dtype)


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return pick_device()
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:  # any of which PyTorch may raise
        raise ConfigError(f"device is {str(device)!r}, which is not available here ({first_line(error)})") from error


def load_unplaced(name_or_path: str | Path, spec: LoadSpec, sha256: str | None = None, **hub: Any) -> Backbone:
    """Like `load`, without casting or moving the weights."""
    if spec.encoder is not None and spec.encoder not in get_args(EncoderName):
        raise ConfigError(f"encoder is {spec.encoder!r}, expected 'teacher' or 'student'")
    path = resolve_checkpoint(name_or_path, sha256, **hub)
    weights = read_weights(path, _name_of(name_or_path, path), spec)
    for name, value in (("heads", weights.config.heads), ("levels", weights.config.levels)):
        if getattr(spec, name) not in (None, value):
            raise ConfigError(f"{path}: {name} is {getattr(spec, name)}, but the file has {value}; leave it out")
    with torch.device("meta"):
        model = Backbone(weights.config, spec.predictor)
    state = weights.encoder | {f"predictor.{name}": value for name, value in weights.predictor.items()}
    load_strict(model, state, str(path), assign=True)
    model.name, model.encoder_name = escape_unprintable(weights.name), weights.encoder_name
    model.native_clip = weights.clip or NativeClip.of_name(weights.name, weights.config)
    model.stored_dtype = model.dtype
    model.identify()
    return model.requires_grad_(False).eval()


def _name_of(name_or_path: str | Path, path: Path) -> str:
    """The released name, also for a path to a released file; the Hub id; or the name of the file or directory."""
    released = {file: name for name, file in RELEASED.items()}
    if not resolve_best(Path(name_or_path).expanduser()).exists():
        return released_name(name_or_path) or str(name_or_path)
    path = path.resolve()
    return released.get(path.name, path.name if path.is_dir() else path.stem)
