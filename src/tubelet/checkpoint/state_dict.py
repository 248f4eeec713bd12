"""State dictionaries that must match a module to the last tensor, with finite values."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tubelet.errors import TubeletError
from tubelet.vjepa import local_shard

State = dict[str, Tensor]


def load_strict(module: nn.Module, state: Mapping[str, Tensor], what: str, assign: bool = False) -> None:
    """Load a state dictionary that must fit to the last tensor; `assign` puts its tensors in the parameters' place.

    Raises:
        TubeletError: that lists every missing, unexpected and misshapen tensor, or those that are not finite.
    """
    if wrong := state_dict_mismatches(state, module.state_dict()):
        raise TubeletError(f"{what} does not fit the model: {'; '.join(wrong)}")
    require_finite(state, what)
    module.load_state_dict(state, assign=assign)


@torch.no_grad()
def require_finite(tensors: Mapping[str, Tensor], what: str) -> None:
    """See that weights hold numbers: one NaN makes every feature NaN, and nothing that is computed of them says so.

    Args:
        tensors: by name; of a sharded one, this process's part is looked at.
        what: what the error calls them.

    Raises:
        TubeletError: names the tensors that hold NaN or infinity, and how many values of them are.
    """
    wrong = []
    for name, tensor in tensors.items():
        values = local_shard(tensor)
        # One pass, and no memory for a mask as large as the tensor, unless there is something to count.
        if values.numel() and not torch.stack(torch.aminmax(values)).isfinite().all():
            wrong.append(f"{name}, {int((~values.isfinite()).sum())} of {values.numel()} values")
    if wrong:
        more = f" and {len(wrong) - 5} more tensors" if len(wrong) > 5 else ""
        raise TubeletError(
            f"{what}: not finite (NaN or infinity): {'; '.join(wrong[:5])}{more}: the training diverged or the file is "
            "damaged; use another checkpoint"
        )


def state_dict_mismatches(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Every tensor of `state` that is missing, unexpected, misshapen or not of floats, in words."""
    wrong = [f"missing {name} {tuple(expected[name].shape)}" for name in expected if name not in state]
    wrong += [f"unexpected {name} {tuple(state[name].shape)}" for name in state if name not in expected]
    wrong += [
        f"{name} holds {state[name].dtype}, expected floats"
        for name in expected
        if name in state and not state[name].is_floating_point()
    ]
    return wrong + [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
