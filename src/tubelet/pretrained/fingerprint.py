"""A hash of an encoder's weights; features are comparable if the hashes are equal."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

FINGERPRINT_DIGITS = 16
_CHUNK = 2**20  # values that are hashed at once


def hash_weights(state: Mapping[str, Tensor], *, with_predictor: bool = False) -> str:
    """Hash of names, shapes and all values of an encoder's tensors, independent of their floating-point type.

    Args:
        state: Tensors of an encoder.
        with_predictor: Whether those of the predictor count too.
    """
    names = [name for name in sorted(state) if with_predictor or not name.startswith("predictor.")]
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:  # hashing releases the GIL
        digests = list(pool.map(lambda name: _hash_values(state[name]), names))
    digest = hashlib.sha256()
    for name, tensor_digest in zip(names, digests, strict=True):
        digest.update(f"{name}{tuple(state[name].shape)}".encode() + tensor_digest)
    return digest.hexdigest()[:FINGERPRINT_DIGITS]


@torch.no_grad()
def _hash_values(tensor: Tensor) -> bytes:
    """Hash all values of a tensor as fp32, in chunks to bound memory."""
    digest = hashlib.sha256()
    for values in tensor.detach().reshape(-1).split(_CHUNK):
        digest.update(values.to("cpu", torch.float32).contiguous().numpy())
    return digest.digest()
