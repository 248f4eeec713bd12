"""Training steps on fake CUDA tensors; to be used inside of `fake_cuda()`."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from tests.helpers.fake_cuda import CUDA, OperatorLog, to_fake_cuda
from tubelet.config import DataConfig, ModelConfig, PredictorConfig, TrainConfig
from tubelet.data.batch import Batch, StepData
from tubelet.data.clips import normalize
from tubelet.data.masks import sample_mask
from tubelet.device import training_dtype
from tubelet.grid import Mask, Modality
from tubelet.model.optimizers import AdamW
from tubelet.planner.run_plan import fake_group
from tubelet.train.compilation import prepare_model
from tubelet.train.distributed import DistContext
from tubelet.train.initialization import distillation_config
from tubelet.train.optim import build_optimizer
from tubelet.train.sharding import apply_fsdp, device_mesh
from tubelet.train.step import autocast, train_step
from tubelet.vjepa import VJEPA

LATE_STEP = 200_000  # λ is at its full value
SIZES = ModelConfig(
    width=64,
    depth=2,
    heads=2,
    levels=(0, 1),
    patch_size=8,
    predictor=PredictorConfig(width=32, depth=1, heads=2),
)


def step_config(**changes: Any) -> TrainConfig:
    """A run in bf16 with the smallest model that has all parts: 32 px, 4 frames."""
    settings = {"model": SIZES, "data": DataConfig(image_size=32, frames=4), "precision": "bf16", "compile": False}
    return TrainConfig(**(settings | changes))


def step_data(config: TrainConfig, videos: int, images: int) -> StepData:
    """A step's data as a loader returns them: pinned pixels, and masks whose lengths are those of real ones."""
    rng, size = np.random.default_rng(0), config.data.image_size
    parts = config.grad_accum_steps
    batches = []
    for modality, count in ((Modality.VIDEO, videos), (Modality.IMAGE, images)):
        frames = config.data.frames_for(modality)
        grid = config.model.grid(frames, size, size)
        masks = [sample_mask(spec, grid, count, rng) for spec in config.masks.specs_for(modality)] if count else []
        for part in range(parts if count else 0):
            rows = slice(part * count // parts, (part + 1) * count // parts)
            own = [Mask(mask.context[rows], mask.target[rows]) for mask in masks]
            pixels = torch.empty(rows.stop - rows.start, 3, frames, size, size, dtype=torch.uint8)
            batches.append(Batch(modality, pixels, own, len(pixels) / (videos + images)))
    return StepData(batches, []).pin_memory()


@contextmanager
def real_tensors(device: str = "meta") -> Iterator[None]:
    """A context in which new tensors are not fake, for modules that are built and then moved by `to_fake_cuda`."""
    with unset_fake_temporarily(), torch.device(device):
        yield


class FakeRun:
    """A model on CUDA, its optimizer and the data of a step.

    Attributes:
        config: the run.
        ctx: this process among those of the run.
        model: student, predictor and teacher.
        optimizer: AdamW.
        data: the data of every step.
    """

    def __init__(
        self,
        config: TrainConfig,
        videos: int = 2,
        images: int = 2,
        ctx: DistContext | None = None,
        change: Callable[[VJEPA], None] = lambda model: None,
        parallel: str = "ddp",
    ) -> None:
        """Build what a run builds before its first step.

        Args:
            config: the run.
            videos: videos of a step in this process.
            images: images of a step in this process.
            ctx: the processes of the run; one by default.
            change: called with the model before it is on the device.
            parallel: "ddp", "fsdp" or "hsdp".
        """
        self.config, self.ctx = config, ctx or DistContext(CUDA)
        with real_tensors("cpu" if config.lora_rank else "meta"):
            self.model = VJEPA(config.model)
            change(self.model)
            self.model.pack_masks = bool(config.pack_masks)
            prepare_model(self.model, config, CUDA, compiled=False, sharded=parallel != "ddp")
        to_fake_cuda(self.model)
        if parallel != "ddp":
            with unset_fake_temporarily():
                mesh = device_mesh(parallel, self.ctx)
            apply_fsdp(self.model, mesh, training_dtype(config, CUDA))
            self.ctx.sharded = True
        self.optimizer: AdamW = build_optimizer(self.model, config.optim)
        self.data = step_data(config, videos, images)
        self.steps = 0
        _begin(self.optimizer)

    def step(self) -> dict[str, Any]:
        """Take the next step."""
        self.steps += 1
        return train_step(self.model, self.optimizer, self.data, self.config, LATE_STEP + self.steps, self.ctx)

    def log_step(self, after: Callable[[dict[str, Any]], None] = lambda metrics: None) -> OperatorLog:
        """The log of the next step.

        Args:
            after: called with the metrics of the step, in the log.
        """
        with OperatorLog(autocast=self.config.precision != "fp32") as log:
            after(self.step())
        return log


def _begin(optimizer: AdamW) -> None:
    """Create what the first step of a run creates: the moments, and the constants of `normalize`."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    normalize(torch.empty(1, 3, 1, 1, 1, dtype=torch.uint8, device=CUDA))


@contextmanager
def one_of_eight() -> Iterator[DistContext]:
    """The first of eight processes on two machines, of which the others do not exist."""
    with ExitStack() as stack:
        with unset_fake_temporarily():
            stack.enter_context(fake_group(8))
        yield DistContext(CUDA, 0, 8, 4)


def distilled_config() -> tuple[TrainConfig, ModelConfig]:
    """A run that distills, and the sizes of its frozen teacher."""
    teacher = dataclasses.replace(SIZES, width=96)
    return step_config(model=distillation_config(SIZES, teacher)), teacher


def count_step(config: TrainConfig, videos: int, images: int) -> OperatorLog:
    """Kernels of an uncompiled step of the package, those of optimizer and teacher apart."""
    run = FakeRun(config, videos, images)
    log = OperatorLog(autocast=True)
    with log, _phases(log, run.optimizer, run.model):
        run.step()
    return log


def count_reference_step(config: TrainConfig, videos: int, images: int) -> OperatorLog:
    """Kernels of the same step of the executable specification, on the same masks."""
    from tests.numerics import reference

    with real_tensors():
        model = reference.System(config.model)
    to_fake_cuda(model)
    optimizer = reference.optimizer(model, lr=config.optim.lr)
    data, log = step_data(config, videos, images), OperatorLog(autocast=True)

    _begin(optimizer)
    with log, _phases(log, optimizer, model):
        for batch in data.batches:
            batch = batch.to(CUDA)
            with autocast(config, CUDA):
                losses = model(normalize(batch.pixels), batch.masks, config.optim.context_weight)
            (losses[0] * batch.weight).backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(0.999)
    return log


@contextmanager
def _phases(log: OperatorLog, optimizer: AdamW, model: nn.Module) -> Iterator[None]:
    """Count what the optimizer and the teacher's update do in groups of their own."""
    steps = {"optimizer": (optimizer, "step"), "teacher": (model, "update_teacher")}

    def within(group: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            with log.in_phase(group):
                return call(*args)

        return run

    for group, (owner, name) in steps.items():
        setattr(owner, name, within(group, getattr(owner, name)))
    yield
    for owner, name in steps.values():
        delattr(owner, name)
