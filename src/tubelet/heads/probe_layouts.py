"""The attentive probe in the layouts of V-JEPA 2.0's release and of `transformers`.

The release has .pt files with a list `classifiers`, one for each learning rate that was tried, the best first, whose
names are prefixed `module.`. `VJEPA2ForVideoClassification` has the same tensors as `pooler.*` and `classifier.*`, with
queries, keys and values as separate ones. Names are those of `AttentiveProbe` with one output.
"""

import re
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from tubelet.checkpoint.state_dict import State, state_dict_mismatches
from tubelet.errors import CheckpointError
from tubelet.heads.attentive import AttentiveProbe

ProbeLayout = Literal["release", "transformers"]
# Patterns of names in this package, and their names in the release and in `transformers`.
_NAMES = (
    (r"queries", "pooler.query_tokens", "pooler.query_tokens"),
    (r"linears\.0\.", "linear.", "classifier."),
    (r"blocks\.(\d+)\.norm(\d)\.", r"pooler.blocks.\1.norm\2.", r"pooler.self_attention_layers.\1.layer_norm\2."),
    (r"blocks\.(\d+)\.qkv\.", r"pooler.blocks.\1.attn.qkv.", r"pooler.self_attention_layers.\1.self_attn.{qkv}_proj."),
    (r"blocks\.(\d+)\.proj\.", r"pooler.blocks.\1.attn.proj.", r"pooler.self_attention_layers.\1.self_attn.out_proj."),
    (r"blocks\.(\d+)\.mlp\.", r"pooler.blocks.\1.mlp.", r"pooler.self_attention_layers.\1.mlp."),
    (r"pool\.norm(\d)\.", r"pooler.cross_attention_block.norm\1.", r"pooler.cross_attention_layer.layer_norm\1."),
    (r"pool\.q\.", "pooler.cross_attention_block.xattn.q.", "pooler.cross_attention_layer.cross_attn.q_proj."),
    (r"pool\.kv\.", "pooler.cross_attention_block.xattn.kv.", "pooler.cross_attention_layer.cross_attn.{kv}_proj."),
    (r"pool\.mlp\.", "pooler.cross_attention_block.mlp.", "pooler.cross_attention_layer.mlp."),
)
_FIRST_BLOCK = {"release": "pooler.blocks.", "transformers": "pooler.self_attention_layers."}
_LINEAR = {"release": "linear.", "transformers": "classifier."}


def read_probe(tensors: Mapping[str, Tensor], layout: ProbeLayout, heads: int, where: str) -> tuple[State, int, int]:
    """A probe from a file's tensors.

    Args:
        tensors: those of the probe, by the file's names without prefixes.
        layout: which names they are.
        heads: attention heads, which the tensors do not determine.
        where: name of the file for messages.

    Returns:
        the state dictionary of `AttentiveProbe`, its blocks and its classes.

    Raises:
        CheckpointError: if a tensor is missing, unexpected or misshapen, by the names of the file.
    """
    linear = tensors.get(_LINEAR[layout] + "weight")
    if linear is None or linear.dim() != 2:
        raise CheckpointError(f"{where}: {_LINEAR[layout]}weight is missing, or not a matrix; not an attentive probe")
    classes, width = linear.shape
    pattern = re.compile(re.escape(_FIRST_BLOCK[layout]) + r"(\d+)\.")
    numbers = [int(match[1]) for name in tensors if (match := pattern.match(name))]
    blocks = max(numbers, default=-1) + 2
    if blocks > len(tensors) or width % heads:
        raise CheckpointError(f"{where}: {blocks} blocks and {heads} heads of {width} channels do not make a probe")
    with torch.device("meta"):
        expected = AttentiveProbe(width, (classes,), heads, blocks).state_dict()
    if mismatches := state_dict_mismatches(tensors, write_probe(expected, layout)):
        raise CheckpointError(f"{where} does not match an attentive probe: {'; '.join(mismatches)}")
    state = {name: torch.cat([tensors[part] for part in _external_names(name, layout)]) for name in expected}
    return state | {"queries": state["queries"].view(1, width)}, blocks, classes


def write_probe(state: Mapping[str, Tensor], layout: ProbeLayout) -> State:
    """The tensors of a probe of one output in another layout; the inverse of `read_probe`."""
    tensors: State = {}
    for name, value in state.items():
        external = _external_names(name, layout)
        value = value.unsqueeze(0) if name == "queries" else value
        tensors |= dict(zip(external, value.chunk(len(external)), strict=True))
    return tensors


def _external_names(name: str, layout: ProbeLayout) -> list[str]:
    column = 1 if layout == "release" else 2
    for row in _NAMES:
        if re.match(row[0], name):
            name = re.sub("^" + row[0], row[column], name)
            break
    parts = re.search(r"\{(q?kv)\}", name)
    return [name.replace(parts[0], part) for part in parts[1]] if parts else [name]
