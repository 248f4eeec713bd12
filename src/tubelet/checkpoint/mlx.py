"""Encoders in the layouts of the public ports to MLX: safetensors files whose convolution kernels are channels-last.

The port of V-JEPA 2.1 (vjepa2.1-mlx) has one file in the released names; that of V-JEPA 2.0 (vjepa2-mlx) has a folder
with a config.json in the names of `transformers`. Their header has `format: mlx`.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tubelet.checkpoint.native_clip import NativeClip
from tubelet.checkpoint.state_dict import State
from tubelet.checkpoint.transformers import from_transformers
from tubelet.checkpoint.vjepa2 import from_release
from tubelet.checkpoint.vjepa2_1 import from_released_encoder, is_vjepa2, to_released
from tubelet.config import ModelConfig
from tubelet.errors import CheckpointError
from tubelet.io.files import atomic_write
from tubelet.io.overwrite_checks import MODEL_MARK, check_output

FORMAT = "mlx"


def write_mlx(path: Path, state: Mapping[str, Tensor], config: ModelConfig, model_id: str, clip: NativeClip) -> None:
    """Write a V-JEPA 2.1 encoder as one file.

    Args:
        path: the file.
        state: state dictionary of `Encoder`.
        config: its architecture.
        model_id: name and fingerprint of the encoder.
        clip: the clips that it is for.

    Raises:
        CheckpointError: for a V-JEPA 2.0 model, whose rotary version the port does not have.
        FileError: if the file cannot be written.
    """
    if config.rope != "2.1":
        raise CheckpointError(f"{path}: the MLX layout is that of V-JEPA 2.1, found a model of V-JEPA {config.rope}")
    tensors = {
        name: value.movedim(1, -1).contiguous() if value.dim() == 5 else value.contiguous()
        for name, value in to_released(state, config, "teacher").items()
    }
    check_output(path, "mlx")
    with atomic_write(path, also=(SafetensorError,)) as partial:
        save_file(tensors, partial, {"format": FORMAT, MODEL_MARK: model_id} | clip.to_header())


def from_mlx(
    path: Path, tensors: Mapping[str, Tensor], heads: int | None, levels: tuple[int, ...] | None
) -> tuple[ModelConfig, State, NativeClip | None]:
    """Config and state dictionary of `Encoder` from the tensors of a port, and the clips in its config.json.

    Args:
        path: the file, or one of its folder.
        tensors: its tensors by name.
        heads: attention heads, which a file without a config does not store; None looks the width up in the family.
        levels: output blocks of V-JEPA 2.1, which it does not store either.

    Raises:
        CheckpointError: if a tensor is missing, unexpected or misshapen.
        ConfigError: if the width is unknown and `heads` is None.
    """
    kernels = {name: value.movedim(-1, 1) if value.dim() == 5 else value for name, value in tensors.items()}
    if any(name.startswith(("encoder.", "vjepa2.")) for name in kernels):
        model = from_transformers(path.parent, kernels, default_type="vjepa2")
        return model.config, model.encoder, model.clip
    if is_vjepa2(kernels):
        return *from_release(path, kernels, heads), None
    return *from_released_encoder(path, kernels, heads, levels), None
