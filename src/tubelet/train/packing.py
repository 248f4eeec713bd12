"""Whether all masks of a step go through the model in one pass, or one after the other, by the memory needed."""

import torch

from tubelet.config import TrainConfig
from tubelet.data.masks import mean_mask_lengths, token_grid
from tubelet.grid import Modality
from tubelet.vjepa import VJEPA

# Fraction of a device's memory that state and activations may take by these estimates, whose error is up to 20 %.
_MEMORY_FRACTION = 0.7
# On a CPU, one pass is faster up to this size of the activations: it saves the synchronization of threads after each
# operator, which matters less for larger operators. Measured in docs/performance.md.
_CPU_BYTES = 2**30


def should_pack(
    config: TrainConfig, model: VJEPA, counts: dict[Modality, int], memory: int | None, processes: int, state: int
) -> bool:
    """Whether a run packs its masks: `config.pack_masks` or, if that is None, whether memory suffices.

    One pass instead of one per mask and modality launches less than half as many kernels. That saves time on CUDA where
    the device waits for the host to launch them, and on other devices where a step is small.

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
    element_bytes = 4 if config.precision == "fp32" else 2
    lengths = mean_mask_lengths(config, counts)
    total = 0.0
    for modality, count in counts.items():
        samples = -(-count // (processes * config.grad_accum_steps))
        targets = 2 * 4 * token_grid(config, modality).tokens * config.model.prediction_width  # levels, and joined
        total += samples * targets
        for context, target in lengths[modality]:
            student = model.config.depth * _block_bytes(
                config, model.config.width, model.config.mlp_ratio, element_bytes
            )
            predictor = size.depth * _block_bytes(config, size.width, size.mlp_ratio, element_bytes)
            predictions = config.model.prediction_width * (element_bytes + 2 * 4)  # and their errors in fp32
            total += samples * (context * student + (context + target) * (predictor + predictions))
    return total


def _block_bytes(config: TrainConfig, width: int, mlp_ratio: float, element_bytes: int) -> float:
    """Bytes per token that a block stores for its backward pass."""
    if config.activation_checkpointing:
        return 4.0 * width
    # Two residual streams in fp32; in low precision two norms, qkv, rotated qk, attention joined and in segments, and
    # the MLP before and after its GELU.
    return width * (2 * 4 + element_bytes * (2 + 3 + 2 + 2 + 2 * mlp_ratio))
