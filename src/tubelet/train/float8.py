"""float8 matrix products in the blocks, for the largest models on devices that support them."""

import torch

from tubelet.errors import ConfigError, MissingPackageError
from tubelet.vjepa import VJEPA

# Ada (8.9) and Hopper (9.0) are the first with float8 tensor cores.
_CAPABILITY = (8, 9)


def use_float8(model: VJEPA, device: torch.device) -> None:
    """Replace the linear layers of all blocks, in place, by layers that multiply in float8 with per-tensor scales.

    Parameters keep their names, dtype and identity, so that nothing changes for optimizer and checkpoints.

    Raises:
        TubeletError: if the device does not support float8 or torchao is not installed.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _CAPABILITY:
        raise ConfigError(
            f"precision is fp8, which needs a CUDA device of compute capability {'.'.join(map(str, _CAPABILITY))} or "
            f"higher, and this run is on {device.type}: use bf16"
        )
    convert(model)


def convert(model: VJEPA, emulate: bool = False) -> None:
    """Replace the layers; `emulate` rounds to float8 and multiplies in the original dtype, on any device."""
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise MissingPackageError("precision is fp8, which needs torchao: pip install torchao") from error
    # float8 kernels need inner sizes that are multiples of 16; numbers of visible tokens are not.
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    for part in (model.student, model.teacher, model.predictor):
        convert_to_float8_training(part.blocks, config=config)
