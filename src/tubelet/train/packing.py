"""Whether all masks of a step go through the model in one pass or one after the other, by what that takes."""

import torch

from tubelet.config import TrainConfig
from tubelet.data.masks import mean_mask_lengths, token_grid
from tubelet.grid import Modality
from tubelet.vjepa import VJEPA

# Of a device's memory, what state and activations may take by these estimates, which are good to a fifth.
_MEMORY_FRACTION = 0.7
# On a CPU, activations of all masks up to which one pass is faster: what one pass saves there is the threads' waits for
# each other at the end of each operator, which larger operators make small. Measured in docs/performance.md.
_CPU_BYTES = 2**30


def should_pack(
    config: TrainConfig, model: VJEPA, counts: dict[Modality, int], memory: int | None, processes: int, state: int
) -> bool:
    """Whether a run packs its masks: as the config has it or, if it is silent, where memory suffices.

    One pass in place of one a mask and modality saves more than half of a step's kernels, which is time where a device
    waits for its host to start them: on CUDA. On another kind of device it pays where a step is small.

    Args:
        config: The run.
        model: Student, predictor and teacher.
        counts: Samples of each modality in a step.
        memory: Bytes of a CUDA device's memory; None on another kind of device.
        processes: Number of processes that share the samples.
        state: Bytes of weights, gradients and moments on one device.
    """
    if config.pack_masks is not None:
        return config.pack_masks
    activations = packed_bytes(config, model, counts, processes)
    if memory is None:
        return activations <= _CPU_BYTES
    return state + activations <= _MEMORY_FRACTION * memory


def device_memory(device: torch.device) -> int | None:
    """Bytes of a CUDA device's memory; None for another kind of device."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def packed_bytes(config: TrainConfig, model: VJEPA, counts: dict[Modality, int], processes: int) -> float:
    """Bytes of the activations of a packed pass on one device, approximately."""
    size = config.model.predictor
    low = 4 if config.precision == "fp32" else 2
    lengths = mean_mask_lengths(config, counts)
    total = 0.0
    for modality, count in counts.items():
        samples = -(-count // (processes * config.grad_accum_steps))
        targets = 2 * 4 * token_grid(config, modality).tokens * config.model.prediction_width  # levels, and joined
        total += samples * targets
        for context, target in lengths[modality]:
            student = model.config.depth * _block_bytes(config, model.config.width, model.config.mlp_ratio, low)
            predictor = size.depth * _block_bytes(config, size.width, size.mlp_ratio, low)
            predictions = config.model.prediction_width * (low + 2 * 4)  # and their errors in fp32
            total += samples * (context * student + (context + target) * (predictor + predictions))
    return total


def _block_bytes(config: TrainConfig, width: int, mlp_ratio: float, low: int) -> float:
    """Bytes a token that a block keeps for its backward pass."""
    if config.activation_checkpointing:
        return 4.0 * width
    # Two residual streams in fp32; in low precision two norms, qkv, rotated qk, attention joined and in segments, and
    # the MLP before and after its GELU.
    return width * (2 * 4 + low * (2 + 3 + 2 + 2 + 2 * mlp_ratio))
