"""What a training step costs: floating-point operations and kernels, by the sizes of model, batch and masks."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from tubelet.config import TrainConfig
from tubelet.data.masks import mean_mask_lengths, token_grid
from tubelet.grid import Modality
from tubelet.model.encoder import Encoder
from tubelet.model.predictor import Predictor
from tubelet.vjepa import VJEPA

# Kernels of an uncompiled block under bf16 autocast, and of all else (loss, optimizer, teacher). They fit the counts of
# `benchmarks/kernels.py`; tests/cuda/test_fake_cuda.py compares.
_FORWARD_KERNELS, _BACKWARD_KERNELS, _OTHER_KERNELS = 30, 44, 800


class StepCost(NamedTuple):
    """What all processes together compute in a step, and what each of them launches.

    Attributes:
        flops: Floating-point operations of matrix products, attention's included and recomputed ones not, as model
            FLOPs utilization counts them (PaLM, arXiv 2204.02311, appendix B).
        kernels: Kernels that one CUDA device is sent, approximately, where nothing is compiled.
    """

    flops: float
    kernels: int


def step_cost(model: VJEPA, config: TrainConfig, counts: dict[Modality, int]) -> StepCost:
    """The cost of a step of a run.

    Args:
        model: Student, predictor, teacher, and the frozen teacher of a distillation.
        config: The run.
        counts: Samples of each modality in a step, see `samples_per_step`.
    """
    flops = 0.0
    lengths = mean_mask_lengths(config, counts)
    teacher = model.frozen_teacher[0] if model.frozen_teacher else model.teacher
    for modality, count in counts.items():
        tokens = token_grid(config, modality).tokens
        tokenizer = Modality.IMAGE if config.data.frames_for(modality) == 1 else Modality.VIDEO
        flops += count * encoder_flops(teacher, tokenizer, tokens)
        for context, target in lengths[modality]:
            flops += count * encoder_flops(model.student, tokenizer, context)
            flops += count * predictor_flops(model.predictor, context, target)
    return StepCost(flops, step_kernels(model, config, counts))


def encoder_flops(encoder: Encoder, tokenizer: Modality, tokens: int) -> float:
    """Operations of an encoder for one sample, and of its backward pass if any of its weights is trained."""
    patches = getattr(encoder.tokenizer, str(tokenizer)).weight
    embedding = patches.numel() * (2 + 2 * patches.requires_grad)  # pixels have no gradient
    return tokens * embedding + _blocks_flops(encoder.blocks, tokens, encoder.config.width)


def predictor_flops(predictor: Predictor, context: int, target: int) -> float:
    """Operations of the predictor, forward and backward, for one sample under a mask of such lengths."""
    weights = (
        context * _weight_flops(predictor.fusion.parameters())
        + target * _weight_flops(predictor.target_head.parameters())
        + context * _weight_flops(predictor.context_head.parameters())
    )
    return weights + _blocks_flops(predictor.blocks, context + target, predictor.config.predictor.width)


def _blocks_flops(blocks: nn.ModuleList, tokens: int, width: int) -> float:
    """Of a stack of blocks: its weights', and two products of (tokens x tokens x width) a block for attention."""
    attention = len(blocks) * 4 * tokens**2 * width
    return tokens * _weight_flops(blocks.parameters()) + attention * (3 if _is_trained(blocks) else 1)


def _weight_flops(parameters: Iterable[nn.Parameter]) -> float:
    """Operations a token of matrices: a product and, in training, one for its input's gradient and one for its own."""
    matrices = [p for p in parameters if p.dim() == 2]
    trained = any(p.requires_grad for p in matrices)
    return float(sum(p.numel() * (2 + 2 * trained + 2 * p.requires_grad) for p in matrices))


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def step_kernels(model: VJEPA, config: TrainConfig, counts: dict[Modality, int]) -> int:
    """Kernels that a CUDA device is sent in a step, approximately: those of each block and pass, and all others.

    Sizes do not matter: the small kernels of a small model are as many as the large ones of a large model.
    """
    teacher = model.frozen_teacher[0] if model.frozen_teacher else model.teacher
    masks = sum(len(config.masks.specs_for(modality)) for modality in counts)
    passes, teacher_passes = (1, 1) if model.pack_masks else (masks, len(counts))
    forward = _FORWARD_KERNELS * (2 if config.activation_checkpointing else 1)
    trained = passes * (len(model.student.blocks) + len(model.predictor.blocks)) * (forward + _BACKWARD_KERNELS)
    targets = teacher_passes * len(teacher.blocks) * _FORWARD_KERNELS
    return config.grad_accum_steps * (trained + targets) + _OTHER_KERNELS
