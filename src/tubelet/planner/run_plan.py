"""Memory, communication and time of a training step on devices that need not exist.

The planned step is the real one, `train_step`, with the real optimizer and the real sharding: one process of a fake
process group takes it on fake tensors, which have sizes and no data, while a log records the lifetime of every storage.
"""

import gc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tubelet.config import PlanConfig, Precision, TrainConfig
from tubelet.data.batch import Batch, StepData
from tubelet.data.batch_partition import accumulation_slices, micro_batches, samples_per_step
from tubelet.data.clips import normalize
from tubelet.data.loader import empty_clips
from tubelet.data.masks import mean_mask_lengths
from tubelet.data.sources import MediaList
from tubelet.device import training_dtype
from tubelet.errors import ConfigError
from tubelet.grid import Mask, Modality
from tubelet.model.layers import Attention
from tubelet.model.optimizers import AdamW
from tubelet.planner.device_kinds import DeviceKind, planned_device
from tubelet.planner.memory_tracker import StepLog, StorageLog, Transfer, track_storage
from tubelet.train.compilation import prepare_model
from tubelet.train.distributed import DistContext
from tubelet.train.optim import build_optimizer
from tubelet.train.packing import should_pack
from tubelet.train.sharding import apply_fsdp, choose_parallel, device_mesh, pick_parallel, training_bytes
from tubelet.train.step import group_batches, train_step
from tubelet.vjepa import VJEPA

CPU = torch.device("cpu")
# Of a device's memory, what its driver, NCCL and the gaps of an allocator leave to tensors.
USABLE = 0.9


@dataclass(frozen=True)
class MaskPass:
    """The way of one mask, or of all masks that are packed, forward and backward on one device.

    Attributes:
        name: which.
        samples: of this device, once for each mask.
        context: Tokens of a sample that the student sees, on average.
        target: Tokens that are predicted, on average.
        tokens: All tokens of a sample, on average.
        live_bytes: Bytes of activations after the forward pass.
        peak: bytes of everything, at its fullest moment.
    """

    name: str
    samples: int
    context: int
    target: int
    tokens: int
    live_bytes: int
    peak: int


@dataclass(frozen=True)
class StepTrace:
    """What one device does and holds in a step.

    Attributes:
        passes: every mask's.
        memory: bytes at the fullest moment, by kind.
        moment: when that is.
        transfers: collective operations.
        flops: operations of matrix products.
    """

    passes: list[MaskPass]
    memory: Counter[str]
    moment: str
    transfers: list[Transfer]
    flops: float

    @property
    def total(self) -> int:
        """Bytes at the fullest moment."""
        return self.memory.total()


@dataclass(frozen=True)
class RunPlan:
    """A planned run.

    Attributes:
        config: the run.
        planned: its devices.
        device: what one of them can do.
        parallel: how they share the work.
        parameters: how many student, predictor and teacher have.
        counts: samples of a step, of each modality.
        step: what one device does in a step.
        trace_other: Traces the same if activation checkpointing were switched over, see `other`.
    """

    config: TrainConfig
    planned: PlanConfig
    device: DeviceKind
    parallel: str
    parameters: dict[str, int]
    counts: dict[Modality, int]
    step: StepTrace
    trace_other: Callable[[], StepTrace]

    @property
    def other(self) -> StepTrace:
        """The step if activation checkpointing were switched over; its first use traces it."""
        return self.trace_other()

    @property
    def fits(self) -> bool:
        """Whether the step leaves enough of a device's memory."""
        return self.step.total <= USABLE * self.device.memory

    @property
    def compute_seconds(self) -> float:
        """Of a step's matrix products, recomputed ones included."""
        return self.step.flops / (self.device.flops * self.planned.mfu)

    @property
    def transfer_seconds(self) -> float:
        """Of a step's communication."""
        return sum(self.seconds(transfer) for transfer in self.step.transfers)

    @property
    def step_seconds(self) -> float:
        """Shards come and go while blocks compute.

        Whole gradients are summed during the last backward pass, but it may be shorter: their sum counts in full.
        """
        if self.parallel == "ddp":
            return self.compute_seconds + self.transfer_seconds
        return max(self.compute_seconds, self.transfer_seconds)

    def rate(self, transfer: Transfer) -> float:
        """Bytes a second of the links that a transfer goes over.

        A ring over whole machines enters and leaves each by all of its devices' network links at once; one over
        replicas, which has one member a machine, by one.
        """
        local = self.planned.devices_per_node
        if self.parallel == "hsdp" and transfer.kind == "all-reduce":
            rate = self.device.network
        elif transfer.members <= local:
            rate = self.device.link
        else:
            rate = min(self.device.link, self.device.network * local)
        return rate * self.planned.link_efficiency

    def seconds(self, transfer: Transfer) -> float:
        """Of a ring: every member sends and receives all parts but its own, and for an all-reduce twice."""
        rounds = 2 if transfer.kind == "all-reduce" else 1
        return rounds * transfer.size * (transfer.members - 1) / transfer.members / self.rate(transfer)


def plan_run(config: TrainConfig, planned: PlanConfig) -> RunPlan:
    """Plan a run.

    Raises:
        TubeletError: if the run could not be, or is of a kind that is not planned.
    """
    if config.lora_rank or config.distill_from:
        raise ConfigError(
            "--dry-run is of pre-training; it knows no adapters (lora_rank) and no frozen teacher (distill)"
        )
    device, on_cpu = planned_device(planned)
    low = training_dtype(config, CPU) if on_cpu else torch.bfloat16
    precision: Precision = "fp32" if config.precision == "fp32" or low == torch.float32 else "bf16"
    config = replace(config, precision=precision, compile=False)
    with torch.device("meta"):
        model = VJEPA(config.model)
    ctx = DistContext(CPU, 0, planned.devices)
    ctx.local_world_size = min(planned.devices, planned.devices_per_node)
    memory = None if on_cpu else int(device.memory)
    parallel = _pick_parallel(config, memory, model, ctx)
    counts = samples_per_step(config, MediaList(["video"], ["image"]))
    accumulation_slices(config, counts, ctx.world_size)  # refuses what is too small
    last = ctx.world_size - 1
    rank_counts = {
        modality: [len(batch.samples) for batch in micro_batches(config, count, last, ctx.world_size)]
        for modality, count in counts.items()
    }
    lengths = mean_mask_lengths(config, counts)
    config = replace(config, pack_masks=_should_pack(config, planned, memory, model, parallel, counts))

    @cache
    def trace_with(recompute: bool) -> StepTrace:
        traced = replace(config, activation_checkpointing=recompute)
        return _run_isolated(trace, traced, planned, on_cpu, parallel, rank_counts, lengths)

    parts = {name: getattr(model, name) for name in ("student", "predictor", "teacher")}
    parameters = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    recompute = config.activation_checkpointing
    trace_other = partial(trace_with, not recompute)
    return RunPlan(config, planned, device, parallel, parameters, counts, trace_with(recompute), trace_other)


def _pick_parallel(config: TrainConfig, memory: int | None, model: VJEPA, ctx: DistContext) -> str:
    """The parallelism of the planned devices: the requested one, or the one that their memory needs; None on a CPU."""
    if config.parallel != "auto" or memory is None:
        return pick_parallel(model, config, ctx)
    if ctx.world_size == 1:
        return "ddp"
    return choose_parallel(training_bytes(model), memory, ctx.world_size, ctx.local_world_size)


def _should_pack(
    config: TrainConfig,
    planned: PlanConfig,
    memory: int | None,
    model: VJEPA,
    parallel: str,
    counts: dict[Modality, int],
) -> bool:
    local = min(planned.devices, planned.devices_per_node)
    state = training_bytes(model) // {"ddp": 1, "hsdp": local}.get(parallel, planned.devices)
    return should_pack(config, model, counts, memory, planned.devices, state)


def _run_isolated(call: Callable[..., StepTrace], *arguments: object) -> StepTrace:
    """Call a function where nothing but its arguments changes what a step allocates.

    In a thread of its own, since the states of autocast and autograd are those of a thread, and other code may have
    left them changed; without garbage collection, which may close other code's contexts, such as autocast's, mid-step.
    """
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(call, *arguments).result()
    finally:
        if collecting:
            gc.enable()


def trace(
    config: TrainConfig,
    planned: PlanConfig,
    on_cpu: bool,
    parallel: str,
    shares: dict[Modality, list[int]],
    lengths: dict[Modality, list[tuple[int, int]]],
) -> StepTrace:
    """Take one step on fake tensors.

    Args:
        config: the run, its precision decided.
        planned: number of devices and nodes.
        on_cpu: whether the devices are CPUs.
        parallel: how they share the work.
        shares: this device's samples of each modality, one micro-batch after the other.
        lengths: context and target tokens of each modality under each mask.
    """
    normalize(torch.zeros(1, 3, 1, 1, 1, dtype=torch.uint8))  # which keeps its constants: they must be real ones
    with torch.device("meta"):
        model = VJEPA(config.model)
    if not on_cpu:  # attention has another backward pass on a CPU in bf16
        for module in model.modules():
            if isinstance(module, Attention):
                module.kernel = F.scaled_dot_product_attention  # type: ignore[assignment]  # other names
    ctx = DistContext(CPU, 0, planned.devices)
    ctx.local_world_size = min(planned.devices, planned.devices_per_node)
    prepare_model(model, config, CPU, compiled=False)
    model.pack_masks = bool(config.pack_masks)
    with fake_group(planned.devices):
        mesh = device_mesh(parallel, ctx) if parallel != "ddp" else None
        with FakeTensorMode(allow_non_fake_inputs=True):
            _give_sizes(model)
            if mesh is not None:
                apply_fsdp(model, mesh, training_dtype(config, CPU))
                ctx.sharded = True
            optimizer = _begin_run(model, config)
            with track_storage() as storage_log:
                passes = _take_step(model, optimizer, config, ctx, shares, lengths, storage_log)
    return _summarize(storage_log.log, config, passes)


@contextmanager
def fake_group(processes: int) -> Iterator[None]:
    """A process group of which this is the first process and the others are not there.

    Raises:
        TubeletError: if this process has a real one.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if processes == 1:
        yield
        return
    if dist.is_initialized():
        raise ConfigError("--dry-run is made by a single process: start it without torchrun")
    dist.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    try:
        yield
    finally:
        dist.destroy_process_group()


def _give_sizes(model: nn.Module) -> None:
    """Parameters on the meta device become fake ones on a CPU, which sharding takes."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = nn.Parameter(torch.empty(parameter.shape), requires_grad=parameter.requires_grad)
            setattr(module, name, fake)


def _begin_run(model: VJEPA, config: TrainConfig) -> AdamW:
    """The optimizer with its moments, which are there from the first step on.

    Each operation on shards is also tried on whole tensors, once, to find its result: here, outside of the log.
    """
    optimizer = build_optimizer(model, config.optim)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
            parameter.grad += parameter.grad
    optimizer.found_inf = torch.zeros(())  # type: ignore[attr-defined]  # as the step hands it in
    optimizer.step()
    optimizer.zero_grad()
    model.update_teacher(1.0)
    return optimizer


def _take_step(
    model: VJEPA,
    optimizer: AdamW,
    config: TrainConfig,
    ctx: DistContext,
    shares: dict[Modality, list[int]],
    lengths: dict[Modality, list[tuple[int, int]]],
    storage_log: StorageLog,
) -> list[MaskPass]:
    """One step of a run under way; returns its passes in their order, their bytes not yet summed up."""
    storage_log.name(model.parameters(), "parameters")
    storage_log.name(model.teacher.parameters(), "teacher")
    moments = (value for state in optimizer.state.values() for value in state.values())
    storage_log.name((value for value in moments if isinstance(value, torch.Tensor)), "optimizer moments")
    storage_log.enter("inputs")
    batches = [
        _fake_batch(config, modality, count, lengths[modality])
        for modality, counts in shares.items()
        for count in counts
    ]
    views = [
        [(f"{batch.modality} mask {i}", batch, mask) for batch in joint for i, mask in enumerate(batch.masks, start=1)]
        for joint in group_batches(batches, model.pack_masks)
    ]
    groups = views if model.pack_masks else [[view] for joint in views for view in joint]
    passes = [_mask_pass(config, group) for group in groups]
    names = iter([each.name for each in passes])
    model.teacher.register_forward_pre_hook(lambda *_: storage_log.enter("teacher's pass", "teacher"))
    model.teacher.register_forward_hook(lambda *_: storage_log.enter("targets"))
    model.register_forward_pre_hook(lambda *_: storage_log.enter("student's activations", next(names)))
    model.predictor.register_forward_pre_hook(lambda *_: storage_log.enter("predictor's activations"))
    model.predictor.register_forward_hook(lambda *_: storage_log.enter("loss"))
    model.register_forward_hook(lambda *_: storage_log.enter("backward pass", "backward"))

    def before_update(*_: object) -> None:
        gradients = (parameter.grad for parameter in model.parameters())
        storage_log.name((gradient for gradient in gradients if gradient is not None), "gradients")
        storage_log.enter("optimizer", "optimizer")

    optimizer.register_step_pre_hook(before_update)
    train_step(model, optimizer, StepData(batches, []), config, config.steps - 1, ctx)
    return passes


def _mask_pass(config: TrainConfig, views: list[tuple[str, Batch, Mask]]) -> MaskPass:
    samples = sum(len(batch.pixels) for _, batch, _ in views)

    def mean(numbers: Iterable[int]) -> int:
        return round(sum(len(batch.pixels) * n for n, (_, batch, _) in zip(numbers, views, strict=True)) / samples)

    return MaskPass(
        " + ".join(name for name, _, _ in views),
        samples,
        mean(mask.context.shape[1] for _, _, mask in views),
        mean(mask.target.shape[1] for _, _, mask in views),
        mean(config.model.grid(*batch.pixels.shape[2:]).tokens for _, batch, _ in views),
        live_bytes=0,
        peak=0,
    )


def _fake_batch(config: TrainConfig, modality: Modality, count: int, lengths: list[tuple[int, int]]) -> Batch:
    pixels = empty_clips(config, modality, count).zero_()
    ids = [[torch.zeros(count, length, dtype=torch.int64) for length in pair] for pair in lengths]
    tokenizer = Modality.IMAGE if pixels.shape[2] == 1 else Modality.VIDEO
    return Batch(tokenizer, pixels, [Mask(*pair) for pair in ids], count / config.batch_size)


ACTIVATIONS = ("student's activations", "predictor's activations", "loss")


def _summarize(log: StepLog, config: TrainConfig, passes: list[MaskPass]) -> StepTrace:
    begins = [(time, name) for time, name in log.marks if name not in ("teacher", "backward", "optimizer")]
    backward = [time for time, name in log.marks if name == "backward"]
    later = [time for time, _ in log.marks]
    summaries = []
    for (begin, _), middle, each in zip(begins, backward, passes, strict=True):
        end = next((time for time in later if time > middle), log.clock)
        live = log.live_bytes(middle)
        peak = log.live_bytes(log.peak(begin, end)).total()
        summaries.append(replace(each, live_bytes=sum(live[kind] for kind in ACTIVATIONS), peak=peak))
    when = log.peak()
    _, name = max((mark for mark in log.marks if mark[0] <= when), default=(0, "start"))
    if name == "backward":
        name = f"{max(begin for begin in begins if begin[0] <= when)[1]}, backward"
    return StepTrace(summaries, log.live_bytes(when), name, log.transfers, float(log.flops.total()))
