"""What a run works with - its folder, model, optimiser and data, and what watches over them - from start to rewind."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.optim import Optimizer

from tubelet.checkpoint.run import load_training_state
from tubelet.config import TrainConfig
from tubelet.console import print_wrapped
from tubelet.data.batch_partition import samples_per_step
from tubelet.data.loader import build_samplers, check_steps, step_prefetch
from tubelet.data.sample_index import check_shard_configs
from tubelet.data.sources import MediaList, list_media
from tubelet.data.storage import is_url
from tubelet.device import has_bf16_units, training_dtype
from tubelet.errors import escape_filename
from tubelet.grid import Modality
from tubelet.io.files import directory_lock
from tubelet.launch import is_local_rank0
from tubelet.train.anomaly_guard import AnomalyGuard, LossHistory
from tubelet.train.checkpointer import Checkpointer
from tubelet.train.collapse import CollapseDetector
from tubelet.train.compilation import prepare_model, step_flops
from tubelet.train.distributed import DistContext
from tubelet.train.feature_monitor import FeatureMonitor, collapse_detector
from tubelet.train.initialization import init_model, init_moments, load_frozen_teacher
from tubelet.train.metrics_buffer import MetricsBuffer
from tubelet.train.optim import build_optimizer
from tubelet.train.progress import Curves
from tubelet.train.run_directory import RunDirectory
from tubelet.train.sharding import pick_parallel, to_device_or_shard
from tubelet.train.step_stream import StepStream
from tubelet.vjepa import VJEPA


@dataclass
class Session:
    """One process's part of a run that goes.

    Attributes:
        config: the run's settings.
        ctx: its processes.
        run: its folder.
        files: how many its sources hold.
        start: optimiser steps done before.
        model: student, predictor and teacher, on the device.
        optimizer: of student and predictor.
        operations: of one step, for the rate it is done at.
        stream: the data of its steps.
        saver: its checkpoints.
        health: looks at features.
        watch: what it saw of them so far.
        guards: what to do about numbers that go wrong.
        curves: for TensorBoard.
    """

    config: TrainConfig
    ctx: DistContext
    run: RunDirectory
    files: int
    start: int
    model: VJEPA
    optimizer: Optimizer
    operations: float
    stream: StepStream
    saver: Checkpointer
    feature_monitor: FeatureMonitor
    collapse_detector: CollapseDetector
    guards: AnomalyGuard
    curves: Curves

    def begin(self, step: int) -> None:
        """Take up metrics, alarms and data after `step` steps; those of later steps will be made anew."""

        past, self.collapse_detector = LossHistory(), collapse_detector(self.config.model)

        def seen(row: dict[str, Any]) -> None:
            past.add(row)
            self.collapse_detector.observe(row)

        def read() -> tuple[LossHistory, list[dict[str, Any]]]:
            self.run.begin(step, seen)
            return past, self.run.alarms

        self.guards.restore(*self.ctx.run_on_rank0(read))
        self.stream.begin(step, self.guards.skipped_batches())

    def rewind(self, log: MetricsBuffer) -> bool:
        """After a spike of the loss, go back to the last checkpoint and on with other data, if the guards say so."""
        problem = self.saver.wait()
        back = self.guards.plan_rewind(self.saver.newest)
        if back is not None and self.saver.newest is not None:
            log.drop()
            load_training_state(self.saver.newest, self.model, self.optimizer)
            self.begin(back)
            self.curves.plan_rewind(back)
            self.saver.saved = back
        self.report_failed_save(self.saver.saved, problem)
        return back is not None

    def report_failed_save(self, step: int, problem: str | None) -> None:
        """Raise an alarm about a checkpoint that could not be written, if one could not.

        Args:
            step: optimizer steps done.
            problem: why it could not be written.
        """
        if problem:
            self.guards.alert(step, "save", f"{problem}; the run goes on, {self.saver.newest} is the last checkpoint")

    def close(self) -> None:
        """Wait for the last checkpoint, and write whatever still waits.

        Raises:
            TubeletError: if it cannot be written.
        """
        self.saver.finish()
        self.curves.close(self.saver.saved)
        self.run.close()


@contextmanager
def begun(config: TrainConfig, out: Path, resume: bool, console: Console, ctx: DistContext) -> Iterator[Session]:
    """A run at the moment before its first step, or its next one; meanwhile no other process writes to its folder.

    Raises:
        TubeletError: if sources, settings, weights or the run's folder do not fit together, or the processes disagree.
    """
    device = ctx.device
    # A run is resumed from wherever, so its settings name its sources by whole paths.
    sources = tuple(s if is_url(s) else str(Path(s).expanduser().absolute()) for s in config.data.sources)
    config = replace(config, data=replace(config.data, sources=sources))
    if (teacher := load_frozen_teacher(config, device)) is not None:
        config = replace(config, distill_weights=teacher.weights_id)
    media = _list_media(config, ctx)
    check_shard_configs(media, config.data)
    check_steps(config, media, ctx.world_size)
    with ExitStack() as held:
        ctx.run_on_rank0(partial(_lock, held, out))  # before any process looks at the folder
        run = RunDirectory(out, config, resume, writes=ctx.is_rank0, sources=summary(media))
        assert_same_start(config, run, ctx)
        torch.manual_seed(config.seed)
        model, origin = init_model(config, resumed=run.checkpoint is not None)
        ctx.assert_equal_across_ranks("the weights to start from in", origin and str(origin.path))
        parallel = pick_parallel(model, config, ctx)
        compiling = prepare_model(model, config, device, sharded=parallel != "ddp")
        to_device_or_shard(model, parallel, config, ctx)
        following = None
        if teacher is not None:
            model.frozen_teacher = (teacher,)
            following = f"predicting the last level of {config.distill_from} ({config.distill_weights})"
        optimizer = build_optimizer(model, config.optim)
        start = load_training_state(run.checkpoint, model, optimizer) if run.checkpoint else 0
        beginning = init_moments(origin, model, optimizer) if origin else None
        guards = AnomalyGuard(config, run, partial(print_wrapped, console, style="yellow"))
        session = Session(
            config=config,
            ctx=ctx,
            run=run,
            files=sum(map(media.count, Modality)),
            start=start,
            model=model,
            optimizer=optimizer,
            operations=step_flops(model, config),
            stream=StepStream(config, media, ctx),
            saver=Checkpointer(run, start, config, model, optimizer, ctx),
            feature_monitor=FeatureMonitor(model, config, ctx),
            collapse_detector=collapse_detector(config.model),
            guards=guards,
            curves=Curves(run.path, start, partial(guards.alert, kind="tensorboard"), writes=ctx.is_rank0),
        )
        held.callback(session.saver.close)
        session.begin(start)
        announce(console, config, media, run, model, ctx, start, parallel)
        for sentence in filter(None, (beginning, following, compiling)):
            print_wrapped(console, sentence)
        yield session


def _lock(held: ExitStack, folder: Path) -> None:
    held.enter_context(directory_lock(folder))


def assert_same_start(config: TrainConfig, run: RunDirectory, ctx: DistContext) -> None:
    """Make sure that all processes begin the same run; none writes before all have looked.

    Raises:
        TubeletError: if they do not.
    """
    ctx.assert_equal_across_ranks("the setting", str(config))
    ctx.assert_equal_across_ranks("the sources", run.sources)
    ctx.assert_equal_across_ranks("the checkpoint", str(run.checkpoint))


def _list_media(config: TrainConfig, ctx: DistContext) -> MediaList:
    """What the sources hold: listed by the first process of each machine; all others receive it from the first of all.

    That the machines have found the same is for `assert_same_start` to compare.
    """
    lists = partial(list_media, config.data.sources, config.data.allow_path)
    own = lists() if is_local_rank0() and not ctx.is_rank0 else None  # at the same time as the first process
    received = ctx.run_on_rank0(lists)
    return own or received


def summary(media: MediaList) -> str:
    """One line for what the sources hold: counts, and a checksum of all names."""
    counted = ", ".join(f"{media.count(modality)} {modality}s" for modality in Modality)
    return f"{counted}, checksum {media.checksum():08x}"


def announce(
    console: Console,
    config: TrainConfig,
    media: MediaList,
    run: RunDirectory,
    model: VJEPA,
    ctx: DistContext,
    start: int,
    parallel: str,
) -> None:
    """Say what is about to happen, and everything about it that a person might not expect."""
    student, predictor = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (model.student, model.predictor))
    counts = samples_per_step(config, media)
    members = sum(len(folder.members) for folder in media.shards)
    print_wrapped(
        console,
        f"{media.count(Modality.VIDEO)} videos, {media.count(Modality.IMAGE)} images"
        + (f" ({members} of them in shards)" if members else "")
        + "; each step takes "
        + " and ".join(f"{count} {modality}s" for modality, count in counts.items()),
    )
    for modality, sampler in build_samplers(config, media).items():
        if shares := sampler.fractions():
            parts = (f"{100 * share:.2f} % from {config.data.sources[i]}" for i, share in shares.items())
            print_wrapped(console, f"{modality}s: {', '.join(parts)}")
    if config.data.frames > 1 and config.data.image_frames == 1 and not media.count(Modality.IMAGE):
        print_wrapped(
            console,
            "no images: the image tokenizer keeps its random weights; show pictures to this model as clips of one "
            "frame repeated, or add images to the sources",
            "yellow",
        )
    for note in media.notes:
        print_wrapped(console, escape_filename(note))
    grid = config.model.grid(config.data.frames, config.data.image_size, config.data.image_size)
    device = ctx.device
    dtype = training_dtype(config, device)
    print_wrapped(
        console,
        f"student {student:.1f} M parameters, predictor {predictor:.1f} M; clips of "
        f"{config.data.frames} frames at {config.data.image_size} px are {grid} = {grid.tokens} tokens; "
        f"{str(dtype).removeprefix('torch.')} on {device}"
        + (f", {ctx.world_size} processes by {parallel}" if ctx.world_size > 1 else ""),
    )
    if fewer := step_prefetch(config, media, ctx.rank, ctx.world_size).note:
        print_wrapped(console, fewer, "yellow")
    if dtype is torch.bfloat16 and not has_bf16_units(device):
        print_wrapped(
            console, f"this {device} has no bf16 units: --precision fp32 would be many times faster", "yellow"
        )
    for change in run.changed:
        print_wrapped(console, f"changed since this run began: {change}", "yellow")
    if start:
        print_wrapped(console, f"continuing after step {start} from {run.checkpoint}")
