"""Low-rank adapters in the file format of the `peft` package: adapter_model.safetensors and adapter_config.json."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from tubelet.errors import CheckpointError, MissingFileError
from tubelet.io.arrays import read_safetensors
from tubelet.io.files import atomic_write, file_errors


def save_adapters(adapters: Mapping[str, Tensor], encoder: nn.Module, folder: Path) -> None:
    """Write adapters as peft does: `adapter_model.safetensors` and `adapter_config.json`.

    Args:
        adapters: contiguous tensors, see `get_adapters`.
        encoder: the encoder with the settings of its adapters.
        folder: directory; created if it does not exist.

    Raises:
        FileError: if it cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_write(folder / "adapter_model.safetensors", also=(SafetensorError,)) as partial:
        save_file(dict(adapters), partial)
    with file_errors(folder):
        encoder.peft_config["default"].save_pretrained(folder)  # type: ignore[index,union-attr]


def apply_adapters(encoder: nn.Module, folder: Path) -> None:
    """Add adapters from a directory of `save_adapters` to the weights of their encoder, in place.

    Raises:
        MissingFileError: if the directory has no adapters.
        CheckpointError: if they belong to another encoder.
    """
    path = folder / "adapter_model.safetensors"
    if not path.is_file():
        raise MissingFileError(f"{path}: no such file; expected the adapter directory of a run with lora_rank")
    parameters = dict(encoder.named_parameters())
    for name, value in adapted_weights(parameters, read_safetensors(path)[0], str(path)).items():
        parameters[name].data = value  # not in place: the weight may be memory-mapped


@torch.no_grad()
def adapted_weights(weights: Mapping[str, Tensor], adapters: Mapping[str, Tensor], subject: str) -> dict[str, Tensor]:
    """The weights that adapters change, with the adapters merged into them.

    Args:
        weights: weights of the encoder by name.
        adapters: tensors as `get_adapters` names them.
        subject: name of the file of the adapters for the error.

    Raises:
        CheckpointError: if they belong to another encoder.
    """
    changed = {}
    for layer in sorted({name.rsplit(".lora_", 1)[0] for name in adapters}):
        weight = weights.get(layer + ".weight")
        a, b = adapters.get(layer + ".lora_A.weight"), adapters.get(layer + ".lora_B.weight")
        if (
            weight is None
            or a is None
            or b is None
            or a.dim() != 2
            or b.dim() != 2
            or (b.shape[0], a.shape[1]) != weight.shape
            or b.shape[1] != a.shape[0]
        ):
            raise CheckpointError(
                f"{subject}: {layer} does not match this encoder; load the weights that the adapters were trained on"
            )
        changed[layer + ".weight"] = weight + (b @ a).to(weight)
    return changed
