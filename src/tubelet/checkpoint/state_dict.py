"""Strict loading of state dictionaries: all tensors must match the module, and values must be finite."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tubelet.config import ModelConfig
from tubelet.errors import CheckpointError
from tubelet.vjepa import local_shard

State = dict[str, Tensor]


def select_prefix(tensors: Mapping[str, Tensor], prefix: str) -> State:
    """The tensors whose names have a prefix, under their names without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def load_strict(module: nn.Module, state: Mapping[str, Tensor], subject: str, assign: bool = False) -> None:
    """Load a state dictionary; names, shapes and types of all tensors must match the module.

    Args:
        module: the module.
        state: its tensors by name.
        subject: name of the file for the error.
        assign: replace the parameters by these tensors instead of copying the values.

    Raises:
        CheckpointError: lists every missing, unexpected and misshapen tensor, or those with values that are not finite.
    """
    if mismatches := state_dict_mismatches(state, module.state_dict()):
        raise CheckpointError(f"{subject} does not match the model: {'; '.join(mismatches)}")
    require_finite(state, subject)
    module.load_state_dict(state, assign=assign)


@torch.no_grad()
def require_finite(tensors: Mapping[str, Tensor], subject: str) -> None:
    """Check that weights are finite: a single NaN makes every feature NaN without an error.

    Args:
        tensors: tensors by name; of sharded ones, this rank's part is checked.
        subject: name of the file for the error.

    Raises:
        CheckpointError: names the tensors with NaN or infinity, and the number of such values.
    """
    not_finite = []
    for name, tensor in tensors.items():
        values = local_shard(tensor)
        # One pass without a mask as large as the tensor, unless there are values to count.
        if values.numel() and not torch.stack(torch.aminmax(values)).isfinite().all():
            not_finite.append(f"{name}, {int((~values.isfinite()).sum())} of {values.numel()} values")
    if not_finite:
        more = f" and {len(not_finite) - 5} more tensors" if len(not_finite) > 5 else ""
        raise CheckpointError(
            f"{subject}: not finite (NaN or infinity): {'; '.join(not_finite[:5])}{more}: the training diverged or "
            "the file is damaged; use another checkpoint"
        )


def state_dict_mismatches(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Messages for every tensor that is missing, unexpected, misshapen or not of floats."""
    mismatches = [f"missing {name} {tuple(expected[name].shape)}" for name in expected if name not in state]
    mismatches += [f"unexpected {name} {tuple(state[name].shape)}" for name in state if name not in expected]
    mismatches += [
        f"{name} holds {state[name].dtype}, expected floats"
        for name in expected
        if name in state and not state[name].is_floating_point()
    ]
    return mismatches + [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]


def require_colors(config: ModelConfig, where: object) -> None:
    """Reject a layout that assumes 8-bit RGB if the model takes other pixels.

    Raises:
        CheckpointError: the model has statistics of its own.
    """
    if config.pixels is not None:
        raise CheckpointError(
            f"{where}: the model takes {config.channels} channels by a window, means and deviations of its own, "
            "which this layout cannot hold; write NAME.safetensors or a folder for the Hub"
        )
