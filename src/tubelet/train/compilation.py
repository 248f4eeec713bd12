"""torch.compile of the blocks, with dynamic sequence length and a cache that runs share."""

import os
import time
from pathlib import Path

import torch

from tubelet.config import TrainConfig
from tubelet.device import has_bf16_units
from tubelet.errors import first_line
from tubelet.io.files import set_compile_cache
from tubelet.train.float8 import use_float8
from tubelet.vjepa import VJEPA

# Compiling takes up to a minute and a half and saves a tenth of the time or more: what is over sooner does not gain.
WORTH_SECONDS = 20 * 60
_LINKING_S = 5.0  # for so long an empty library may be one that another process is writing
# Operations a second that a modest device of each kind does; whether to compile must not hang on a measurement, since
# compiled blocks round differently and a resumed run has to decide as it did before.
_RATES = {"cuda": 1e14, "cpu": 1e11, "cpu with bf16 units": 5e11}


def prepare_model(model: VJEPA, config: TrainConfig, device: torch.device, sharded: bool = False) -> str | None:
    """Set precision and recomputation of the blocks and compile them, as the config has it.

    Args:
        model: not yet sharded.
        config: the run.
        device: where it will compute.
        sharded: whether it will be in shards.

    Returns:
        A message about compilation, or None.

    Raises:
        TubeletError: if the device cannot compute in the precision that the config asks for.
    """
    if config.precision == "fp8":
        use_float8(model, device)
    model.student.recompute_activations = config.activation_checkpointing
    model.predictor.recompute_activations = config.activation_checkpointing
    return compile_blocks(model, config, device, sharded)


def compile_blocks(model: VJEPA, config: TrainConfig, device: torch.device, sharded: bool = False) -> str | None:
    """Compile the blocks and the loss in place, where the config asks for it or, if it is silent, where it pays.

    All blocks of an encoder share one graph, as do those of the predictor, and sizes are symbols in it: four graphs
    (student, teacher, predictor, loss) serve every mask length. They are kept on disk: the next run only loads them.

    Returns:
        A message for the user, or None.
    """
    if config.compile is False or (config.compile is None and not is_worth_compiling(model, config, device)):
        return None
    set_compile_cache()
    if cache := os.environ.get("TORCHINDUCTOR_CACHE_DIR"):
        remove_incomplete_libraries(Path(cache))
    if problem := _problem(device):
        return f"not compiling, steps will be slower: {problem}"
    for part in (model.student, model.teacher, model.predictor):
        for block in part.blocks:
            if sharded:  # gathering and letting go of weights stay outside of the graph
                block.forward = torch.compile(block.forward, dynamic=True)
            else:
                block.compile(dynamic=True)
    model.loss = torch.compile(model.loss, dynamic=True)
    return "compiling the transformer blocks; the first step may take up to 2 min (disable with --no-compile)"


def is_worth_compiling(model: VJEPA, config: TrainConfig, device: torch.device) -> bool:
    """Whether the run's matrix products alone take `WORTH_SECONDS`, by the sizes of model, batch and run."""
    if device.type not in ("cpu", "cuda"):
        return False
    kind = "cpu with bf16 units" if device.type == "cpu" and has_bf16_units(device) else device.type
    return config.steps * step_flops(model, config) / _RATES[kind] > WORTH_SECONDS


def step_flops(model: VJEPA, config: TrainConfig) -> float:
    """Floating-point operations of a step's matrix products: 2 a weight and token, 6 where there is a backward pass.

    As if all samples were videos. Who gives the targets (in a distillation, the frozen model) sees all tokens, the
    student about a fifth under each of two masks, the predictor all under each. Attention's own products are left out,
    as is usual for MFU.
    """
    data = config.data
    tokens = config.batch_size * config.model.grid(data.frames, data.image_size, data.image_size).tokens
    parts = (model.student, model.predictor, *(model.frozen_teacher or (model.teacher,)))
    student, predictor, teacher = (sum(p.numel() for p in part.parameters()) for part in parts)
    return tokens * (2 * teacher + len(config.masks.video) * 6 * (0.2 * student + predictor))


def remove_incomplete_libraries(cache: Path) -> None:
    """Remove what a compiler that was killed left: an empty library would be taken for a finished one for ever."""
    for library in cache.rglob("*.so"):
        found = library.stat()
        if found.st_size == 0 and time.time() - found.st_mtime > _LINKING_S:
            library.unlink(missing_ok=True)


def _problem(device: torch.device) -> str | None:
    """Why nothing can be compiled here, found out by compiling something small."""

    @torch.compile
    def double(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    try:
        double(torch.ones(8, device=device))
    except Exception as error:  # compilers and their drivers fail in every way there is
        return f"nothing can be compiled on this machine ({first_line(error)})"
    return None
