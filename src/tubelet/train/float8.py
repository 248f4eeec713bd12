"""Matrix products of the blocks in 8-bit floats, for the largest models on devices that have units for them."""

import torch

from tubelet.errors import ConfigError, MissingPackageError
from tubelet.vjepa import VJEPA

# Ada (8.9) and Hopper (9.0) are the first with such units.
_CAPABILITY = (8, 9)


def use_float8(model: VJEPA, device: torch.device) -> None:
    """Swap the linear layers of all blocks, in place, for ones that multiply in float8 with a scale a tensor.

    Parameters keep their names, their precision and their identity, so that optimizer and checkpoints see no change.

    Raises:
        TubeletError: if the device has no such units or torchao is not installed.
    """
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < _CAPABILITY:
        raise ConfigError(
            f"precision is fp8, which needs a CUDA device of compute capability {'.'.join(map(str, _CAPABILITY))} or "
            f"higher, and this run is on {device.type}: use bf16"
        )
    convert(model)


def convert(model: VJEPA, emulate: bool = False) -> None:
    """Swap the layers; `emulate` rounds as float8 would and multiplies in the old precision, on any device."""
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise MissingPackageError("precision is fp8, which needs torchao: pip install torchao") from error
    # The units take inner sizes in sixteens, which numbers of visible tokens are not.
    config = Float8LinearConfig(emulate=emulate, pad_inner_dim=True)
    for part in (model.student, model.teacher, model.predictor):
        convert_to_float8_training(part.blocks, config=config)
