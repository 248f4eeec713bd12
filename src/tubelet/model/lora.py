"""Low-rank adapters (LoRA; Hu et al., arXiv 2106.09685) in the linear layers of an encoder's blocks, by peft.

A layer with weight W computes with W + B·A; A and B are trained and W is frozen. alpha equals the rank, so that the
update is not scaled.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from tubelet.errors import MissingPackageError

_LAYERS = ["qkv", "proj", "fc1", "fc2"]
_BASE, _A, _B = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def add_adapters(encoder: nn.Module, rank: int) -> None:
    """Add adapters to an encoder's blocks, in place; afterward only they require a gradient.

    A is initialized at random and B with zeros, so that the output of the encoder does not change.

    Raises:
        TubeletError: if peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise MissingPackageError("lora_rank needs peft: pip install peft") from error
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=_LAYERS), encoder)


def get_adapters(encoder: nn.Module) -> dict[str, Tensor]:
    """The adapter weights of an encoder, by peft's names."""
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(encoder)
    return state


def merge_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge adapters into the weights of a state dictionary; returns that of the plain network."""
    merged = {name.replace(_BASE, "."): value for name, value in state.items() if ".lora_" not in name}
    for name in state:
        if name.endswith(_A):
            layer = name.removesuffix(_A)
            update = state[layer + _B].float() @ state[name].float()
            merged[layer + ".weight"] = (merged[layer + ".weight"] + update).to(merged[layer + ".weight"].dtype)
    return merged
