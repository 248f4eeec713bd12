"""Encoders whose weights were fine-tuned together with a head."""

import hashlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from tubelet.checkpoint.adapters import adapted_weights
from tubelet.checkpoint.state_dict import load_strict
from tubelet.errors import ConfigError
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.compilation import compile_encoder
from tubelet.pretrained.fingerprint import FINGERPRINT_DIGITS, hash_weights

Finetuned = Literal["lora", "full"]
"""Which weights of an encoder are trained together with a head: low-rank adapters, or all."""


def with_encoder_weights(model: Backbone, trained: Mapping[str, Tensor], finetuned: Finetuned) -> Backbone:
    """A copy of an encoder with trained weights, in eval mode and without gradients.

    Weights that were not trained are shared with the model, not copied.

    Args:
        model: the encoder whose weights the training started from; it is not changed.
        trained: all weights of the encoder, or adapters as `tubelet.model.lora.get_adapters` names them.
        finetuned: which of the two.

    Returns:
        an encoder of the same device and data type, compiled if the model is. Its fingerprint is `adapted_fingerprint`.

    Raises:
        ConfigError: if the encoder has 8-bit weights, which cannot be replaced.
        CheckpointError: if the weights do not fit the encoder, or are not finite.
    """
    if model.int8:
        raise ConfigError("the head has trained weights for the encoder, which is in 8 bits; load it without int8")
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("predictor.")}
    if finetuned == "lora":
        state = weights | adapted_weights(weights, trained, "the head")
    else:
        state = {name: value.to(model.device, model.dtype) for name, value in trained.items()}
    with torch.device("meta"):
        adapted = Backbone(model.config)
        adapted.native_clip = model.native_clip
    load_strict(adapted, state, "the trained encoder", assign=True)
    adapted.name, adapted.encoder_name = f"{model.name}-{finetuned}", model.encoder_name
    adapted.stored_dtype = model.stored_dtype
    adapted.identify(adapted_fingerprint(model.fingerprint, trained))
    adapted.requires_grad_(False).eval()
    if model.compiled:
        compile_encoder(adapted)
    return adapted


def adapted_fingerprint(base: str, trained: Mapping[str, Tensor]) -> str:
    """The fingerprint of an encoder with trained weights.

    It is a hash of two hashes and not of the weights: a sum of weights and adapters is rounded to the data type that
    the encoder was loaded with, on which a fingerprint must not depend.

    Args:
        base: fingerprint of the encoder that the training started from.
        trained: the trained weights.
    """
    return hashlib.sha256(f"{base}+{hash_weights(trained)}".encode()).hexdigest()[:FINGERPRINT_DIGITS]
