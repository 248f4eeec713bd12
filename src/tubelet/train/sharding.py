"""Placement of a model: replicated on every device (DDP), or sharded over several (FSDP2).

If sharded, the weights of a block are gathered just before it computes and freed just after. Student, predictor and
teacher are sharded alike, block by block, so that the teacher's update is local to each process. A step runs one
backward pass for each mask, or one in all if masks are packed; each pass reduces its gradients into the shards, since
whole gradients would need the memory that sharding saves.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor

from tubelet.config import TrainConfig
from tubelet.device import training_dtype
from tubelet.errors import ConfigError
from tubelet.train.distributed import DistContext
from tubelet.vjepa import VJEPA, local_shard

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# Fraction of a device's memory that weights, gradients and moments may take; activations need the rest.
STATE_FRACTION = 0.6


def training_bytes(model: VJEPA) -> int:
    """Bytes of the training state: fp32 weights, and a gradient and two moments for each that is trained."""
    return sum(p.numel() * (16 if p.requires_grad else 4) for p in model.parameters())


def pick_parallel(model: VJEPA, config: TrainConfig, ctx: DistContext) -> str:
    """The kind of parallelism: `config.parallel` or, for "auto", the kind that the memory of the devices allows.

    Returns:
        "ddp" (also for a single process), "fsdp" or "hsdp".

    Raises:
        TubeletError: if the requested kind is not possible.
    """
    if config.parallel == "auto":
        if ctx.world_size == 1 or ctx.device.type != "cuda" or config.lora_rank:
            return "ddp"
        memory = torch.cuda.get_device_properties(ctx.device).total_memory
        memory -= sum(p.nbytes for frozen in model.frozen_teacher for p in frozen.parameters())  # never in shards
        return choose_parallel(training_bytes(model), memory, ctx.world_size, ctx.local_world_size)
    if config.parallel != "ddp":
        if ctx.world_size == 1:
            raise ConfigError(f"parallel is {config.parallel}, which needs several processes: start torchrun")
        if config.lora_rank:
            raise ConfigError(f"parallel is {config.parallel}, but adapters are not sharded: use ddp")
    if config.parallel == "hsdp" and (
        ctx.world_size % ctx.local_world_size or ctx.local_world_size in (1, ctx.world_size)
    ):
        raise ConfigError(
            f"parallel is hsdp, which shards within a machine and replicates across: it needs several machines of "
            f"several processes each, not {ctx.world_size} processes of which {ctx.local_world_size} are here: use fsdp"
        )
    return config.parallel


def choose_parallel(state: int, memory: int, processes: int, local: int) -> str:
    """The kind of parallelism that fits: replicas, shards within each machine, or shards over all machines.

    Args:
        state: bytes of the training state.
        memory: bytes of memory of a device.
        processes: number of processes.
        local: number of processes on each machine.
    """
    room = STATE_FRACTION * memory
    if state <= room:
        return "ddp"
    return "hsdp" if 1 < local < processes and processes % local == 0 and state / local <= room else "fsdp"


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether all elements of this process's shards of some tensors are finite, as a scalar on their device."""
    return local_norms([local_shard(tensor) for tensor in tensors], torch.inf).isfinite().all()


def local_norms(tensors: Sequence[Tensor], order: float = 2.0) -> Tensor:
    """(K,) norms of K tensors of any shapes; tensors without elements are ignored."""
    return torch.stack(torch._foreach_norm([tensor for tensor in tensors if tensor.numel()], order))


def to_device_or_shard(model: VJEPA, parallel: str, config: TrainConfig, ctx: DistContext) -> None:
    """Move a model from the CPU to the devices of the run, replicated or sharded."""
    if parallel == "ddp":
        model.to(ctx.device)
        ctx.broadcast(model.parameters())  # equal seeds round differently on different processors
    else:
        apply_fsdp(model, device_mesh(parallel, ctx), training_dtype(config, ctx.device))
        ctx.sharded = True
        ctx.gradient_replicas = ctx.world_size // ctx.local_world_size if parallel == "hsdp" else 1


def apply_fsdp(model: VJEPA, mesh: "DeviceMesh", dtype: torch.dtype) -> None:
    """Shard a model, in place.

    Args:
        model: whole model, with the same weights on every process.
        mesh: (shard,) or (replicate, shard) processes.
        dtype: dtype in which the weights of blocks are gathered.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard  # takes long to import
    from torch.distributed.tensor import DTensor

    # FSDP2 warns of outputs that are views, which must not be changed in place: nothing here does that.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    # Products are in low precision by autocast already; gathered in it, the blocks' weights take half the time and
    # memory. All else, and what goes into a block, keeps its own, as it does without sharding.
    low = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    policy = MixedPrecisionPolicy() if dtype == torch.float32 else low
    for part in (model.student, model.predictor, model.teacher):
        for block in part.blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy)
        # After a forward pass without a backward one, the teacher must lie in shards again, to be updated there.
        fully_shard(part, mesh=mesh, reshard_after_forward=True if part is model.teacher else None)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Losses are weighted by samples: gradients add up to the whole step's, there is nothing to average.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    if mesh.ndim == 2:
        for parameter in model.parameters():
            shard = cast(DTensor, parameter).to_local().detach()
            dist.broadcast(shard, group=mesh.get_group("replicate"), group_src=0)


def device_mesh(parallel: str, ctx: DistContext) -> "DeviceMesh":
    """The processes of a run as "fsdp" or "hsdp" arranges them: (shard,) or (replicate, shard)."""
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

    if parallel == "fsdp":
        return init_device_mesh(ctx.device.type, (ctx.world_size,), mesh_dim_names=("shard",))
    # Groups of its own: `init_device_mesh` splits the default group, which fails for two backends in some releases.
    ranks = torch.arange(ctx.world_size).view(-1, ctx.local_world_size)
    groups = [dist.new_subgroups_by_enumeration(grid.tolist())[0] for grid in (ranks.T, ranks)]
    return DeviceMesh.from_group(groups, ctx.device.type, mesh=ranks, mesh_dim_names=("replicate", "shard"))
