"""8-bit matrix products for inference on CPUs: the linear layers of the blocks in int8.

Weights have a scale for each output channel, activations one for each token, which is computed from the token only:
features do not depend on what else is in the batch, and no data set is needed to choose scales. Sums are in int32.
Attention, norms and activation functions stay in the data type of the model.
"""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from tubelet.errors import ConfigError, first_line
from tubelet.pretrained.backbone import Backbone

_LARGEST = 127
_ZERO = 128
# Rows that are quantized, multiplied and scaled at once, in cache.
_ROWS = 256
_DTYPES = (torch.float32, torch.bfloat16)


@torch.library.custom_op("tubelet::int8_product", mutates_args=())
def int8_product(x: Tensor, packed_weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """(K, D) uint8 less 128, times packed weights: (K, D') of `dtype`, each column multiplied by its scale (D',)."""
    zeros = torch.zeros(len(scale), dtype=torch.long)
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, _ZERO, packed_weight, scale, zeros, None, 1.0, 0, dtype, "none", [], ""
    )


@int8_product.register_fake
def _(x: Tensor, packed_weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape[0], scale.shape[0], dtype=dtype)  # len(x) would fix the number of rows


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, for inference; it has no parameters, and copies share the weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(1).clamp_(min=1e-12) / _LARGEST
        self._packed = torch.ops.onednn.qlinear_prepack((weight / scale[:, None]).round_().to(torch.int8), None)
        self._scale = scale / _LARGEST  # a token's scale is its largest value, which becomes 127
        self._bias = torch.zeros(len(scale)) if linear.bias is None else linear.bias.detach().float().clone()

    def __reduce_ex__(self, _: Any) -> Any:
        raise ConfigError("8-bit weights cannot be saved or sent to other processes; load the model there")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        clone = self.__new__(type(self))
        clone.__dict__ = self.__dict__.copy()
        return clone

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        moved = fn(torch.empty(0))
        if moved.device.type != "cpu" or moved.dtype.itemsize > 4:
            target = f"{moved.dtype} on {moved.device}"
            raise ConfigError(f"8-bit weights cannot become {target}; load the model without int8")
        return super()._apply(fn, recurse)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D').

        Raises:
            ConfigError: if gradients are requested, which rounding has none of.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise ConfigError("8-bit weights give no gradients; load the model without int8, or use torch.no_grad()")
        rows = x.flatten(0, -2)
        if torch.compiler.is_compiling():
            out = self._product(rows)
        else:
            out = torch.cat([self._product(chunk) for chunk in rows.split(_ROWS)])
        return out.unflatten(0, x.shape[:-1])

    def _product(self, x: Tensor) -> Tensor:
        """(K, D) -> (K, D')."""
        largest = x.abs().amax(1, keepdim=True).float().clamp(min=1e-12)
        # The processors without AMX multiply unsigned by signed numbers: zero is 128, and adding a half rounds.
        rounded = (x * (_LARGEST / largest)).add_(_ZERO + 0.5).to(torch.uint8)
        product = int8_product(rounded, self._packed, self._scale, x.dtype)
        return torch.addcmul(self._bias.to(x.dtype), product, largest.to(x.dtype))


def has_int8_units() -> bool | None:
    """Whether the CPU multiplies in 8 bits (AVX-512 VNNI); None if this version of PyTorch does not tell."""
    if hasattr(torch.cpu, "get_capabilities"):  # the public function of later versions
        return torch.cpu.get_capabilities().get("avx512_vnni")
    private = getattr(torch.cpu, "_is_vnni_supported", None)
    return None if private is None else bool(private())


def quantize_linear_layers(model: Backbone) -> None:
    """Replace the linear layers of a model's blocks by ones with int8 weights, in place.

    Raises:
        ConfigError: if the model is not on a CPU, or in a data type without such products, or the CPU or PyTorch has
            none.
    """
    if model.device.type != "cpu" or model.dtype not in _DTYPES:
        raise ConfigError(
            f"int8 is for CPUs, with float32 or bfloat16 around it, but the model is {model.dtype} on {model.device}; "
            'pass device="cpu", or leave int8 out'
        )
    if (units := has_int8_units()) is not True:
        # Slower than fp32 there, and sums of two products in 16 bits overflow.
        reason = "which this one has not" if units is False else f"but PyTorch {torch.__version__} does not tell"
        raise ConfigError(f"int8 needs a CPU with 8-bit units (AVX-512 VNNI), {reason}; leave int8 out")
    fingerprint = model.fingerprint
    for parent in list(model.blocks.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(parent, name, _quantized(layer))
    model.int8 = True
    model.identify(fingerprint)  # of the weights before rounding, whose features are comparable


def _quantized(layer: nn.Linear) -> Int8Linear:
    try:
        quantized = Int8Linear(layer)
        quantized(torch.zeros(1, layer.in_features))
    except (RuntimeError, NotImplementedError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"int8: PyTorch {torch.__version__} has no oneDNN products in 8 bits ({first_line(error)}); leave int8 "
            "out, or install PyTorch for x86 CPUs"
        ) from error
    return quantized
