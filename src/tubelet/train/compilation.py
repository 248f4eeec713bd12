"""torch.compile of the blocks, with dynamic sequence length and a cache that runs share."""

import logging

import torch

from tubelet.config import TrainConfig
from tubelet.device import has_bf16_units
from tubelet.errors import ConfigError, first_line
from tubelet.io.files import remove_incomplete_libraries, set_compile_cache
from tubelet.model.encoder import Encoder
from tubelet.model.predictor import Predictor
from tubelet.train.float8 import use_float8
from tubelet.train.step_cost import StepCost
from tubelet.vjepa import VJEPA

logger = logging.getLogger(__name__)

# Compiling takes minutes. On a CPU it saves a tenth of the time or more, on CUDA, where it also halves the
# number of kernels, a third or more: what is over sooner does not gain.
WORTH_SECONDS = {"cpu": 20 * 60, "cuda": 5 * 60}
# Operations a second that a modest device of each kind does; whether to compile must not hang on a measurement, since
# compiled blocks round differently and a resumed run has to decide as it did before.
_RATES = {"cuda": 1e14, "cpu": 1e11, "cpu with bf16 units": 5e11}
# Seconds in which the host starts an uncompiled kernel: Python, autograd and autocast included.
_LAUNCH_S = 15e-6


def prepare_model(
    model: VJEPA, config: TrainConfig, device: torch.device, compiled: bool, sharded: bool = False
) -> str | None:
    """Set attention's kernels, precision and recomputation of the blocks, and compile them.

    Args:
        model: Not yet sharded.
        config: The run.
        device: Where it will compute.
        compiled: Whether to compile, see `should_compile`.
        sharded: Whether it will be in shards.

    Returns:
        A message about compilation, or None.

    Raises:
        TubeletError: if the device cannot compute in the precision that the config asks for.
    """
    disable_cudnn_attention(device)
    if config.precision == "fp8":
        use_float8(model, device)
    model.student.recompute_activations = config.activation_checkpointing
    model.predictor.recompute_activations = config.activation_checkpointing
    return compile_blocks(model, device, sharded) if compiled else None


def disable_cudnn_attention(device: torch.device) -> None:
    """Let this process's attention run on flash kernels, not on cuDNN's, where the device is a CUDA one.

    From 2.11 on PyTorch prefers cuDNN on Hopper, which builds a plan for each new shape, in tenths of a second, and
    keeps it forever. Masks have new lengths in every step; flash kernels take any length.
    """
    if device.type == "cuda":
        torch.backends.cuda.enable_cudnn_sdp(False)


def compile_blocks(model: VJEPA, device: torch.device, sharded: bool = False) -> str:
    """Compile the blocks and the loss in place.

    All blocks of an encoder share one graph, as do those of the predictor, and sizes are symbols in it: four graphs
    (student, teacher, predictor, loss) serve every mask length. They are kept on disk: the next run only loads them.

    Returns:
        A message for the user.
    """
    set_compile_cache()
    remove_incomplete_libraries()
    logging.getLogger("torch._dynamo.convert_frame").addFilter(_report_recompile_limit)
    if problem := _problem(device):
        return f"not compiling, steps will be slower: {problem}"
    parts: list[Encoder | Predictor] = [model.student, model.teacher, model.predictor, *model.frozen_teacher]
    for part in parts:
        for block in part.blocks:
            if sharded and part not in model.frozen_teacher:  # gathering and releasing weights stay out of the graph
                block.forward = torch.compile(block.forward, dynamic=True)
            else:
                block.compile(dynamic=True)
    model.loss = torch.compile(model.loss, dynamic=True)
    return "compiling the transformer blocks; the first step takes minutes longer (disable with --no-compile)"


def _report_recompile_limit(record: logging.LogRecord) -> bool:
    """A log filter that replaces PyTorch's lines about the limit of graphs by one sentence."""
    if "recompile_limit" not in record.getMessage():
        return True
    logger.warning(
        "the transformer blocks meet more kinds of input than PyTorch compiles; the others run uncompiled, which is "
        "slower but computes the same; please report it, with the output of TORCH_LOGS=recompiles"
    )
    return False


def should_compile(config: TrainConfig, cost: StepCost, device: torch.device) -> bool:
    """Whether a run compiles its blocks: as the config has it or, if it is silent, where that pays.

    Raises:
        ConfigError: for fp8 without compiling.
    """
    if config.precision == "fp8":
        if config.compile is False:
            raise ConfigError(
                "precision is fp8 and compile is off: uncompiled, scales and casts take about three times as many "
                "kernels as bf16; leave --no-compile out, or use --precision bf16"
            )
        return True
    return is_worth_compiling(config, cost, device) if config.compile is None else config.compile


def is_worth_compiling(config: TrainConfig, cost: StepCost, device: torch.device) -> bool:
    """Whether the uncompiled run takes longer than `WORTH_SECONDS`, by the sizes of model, batch and run.

    A CUDA device waits for the host where kernels are small: there a step takes as long as its matrix products or as
    starting its kernels, whichever is longer.
    """
    if device.type not in WORTH_SECONDS:
        return False
    kind = "cpu with bf16 units" if device.type == "cpu" and has_bf16_units(device) else device.type
    seconds = cost.flops / _RATES[kind]
    if device.type == "cuda":
        seconds = max(seconds, cost.kernels * _LAUNCH_S)
    return config.steps * seconds > WORTH_SECONDS[device.type]


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
