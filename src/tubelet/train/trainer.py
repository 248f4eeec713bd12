"""Pre-training: set up a run, run its steps, rewind after a loss spike, close it."""

import logging
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console

from tubelet.checkpoint.registry import released_name
from tubelet.checkpoint.run import load_training_state, step_from_name
from tubelet.config import TrainConfig
from tubelet.console import output_error
from tubelet.data.bad_files import describe_failed_fraction
from tubelet.data.batch import StepData
from tubelet.data.batch_partition import samples_per_step
from tubelet.data.loader import check_steps
from tubelet.data.sample_index import check_shard_configs
from tubelet.data.sources import MediaList, list_media
from tubelet.data.storage import is_url
from tubelet.data.worker_loader import require_main_guard
from tubelet.errors import TrainingError
from tubelet.grid import Modality
from tubelet.io.files import directory_lock
from tubelet.io.overwrite_checks import check_output
from tubelet.launch import is_local_rank0
from tubelet.train.anomaly_guard import REMEDY, AnomalyGuard, LossHistory
from tubelet.train.checkpointer import Checkpointer
from tubelet.train.compilation import prepare_model, should_compile
from tubelet.train.data_monitor import DataMonitor, StepTimer
from tubelet.train.determinism import deterministic_algorithms
from tubelet.train.distributed import DistContext, init_distributed
from tubelet.train.evaluation import Evaluator, PeriodicEvaluation
from tubelet.train.feature_monitor import FeatureMonitor, collapse_detector
from tubelet.train.initialization import init_model, init_moments, load_frozen_teacher
from tubelet.train.metrics_buffer import MetricsBuffer
from tubelet.train.optim import build_optimizer
from tubelet.train.packing import device_memory, should_pack
from tubelet.train.progress import ProgressLine, StageNotice
from tubelet.train.run_directory import RunDirectory
from tubelet.train.sharding import pick_parallel, to_device_or_shard, training_bytes
from tubelet.train.signals import InterruptedRunError, StopSignals
from tubelet.train.sinks import MetricSink, SinkGroup
from tubelet.train.startup import log_startup, sample_checksums, source_summary
from tubelet.train.step import train_step
from tubelet.train.step_cost import step_cost
from tubelet.train.step_stream import StepStream

logger = logging.getLogger(__name__)

# On CUDA, metrics of a step whose features are monitored are emitted this many steps late: the eigenvalues of a ViT-L
# take one core 0.9 s (eight levels of 0.11 s).
MONITOR_DELAY = 8


def train(
    config: TrainConfig,
    out: str | Path,
    resume: bool = False,
    console: Console | None = None,
    sinks: Sequence[type[MetricSink]] = (),
    evaluate: Evaluator | None = None,
) -> Path:
    """Pre-train a model in the run directory `out`; its messages go to the logger `tubelet`.

    Args:
        config: The run.
        out: The run directory, for checkpoints, metrics and the list of bad files.
        resume: Continue the run in `out` from its newest checkpoint, exactly as if it had never stopped.
        console: Terminal for a progress bar; None shows none.
        sinks: Classes of further metric sinks, besides those that `config.sinks` names.
        evaluate: Computes metrics of the teacher every `config.eval_every` steps; `tasks.suite.teacher_evaluator`
            makes one.

    Returns:
        The newest checkpoint.

    Raises:
        TubeletError: for anything that a user can fix or cause: empty sources, too many bad files, a full disk, a stop
            signal.
    """
    require_main_guard()
    check_output(Path(out), "run", [*config.data.sources, config.init_from, config.distill_from])
    with (
        init_distributed(config.guards.process_timeout_s) as ctx,
        Trainer(config, Path(out), ctx, resume=resume, console=console, sinks=sinks, evaluate=evaluate) as trainer,
    ):
        return trainer.train()


class Trainer:
    """The training loop of one process of a run. A context manager: `setup` runs on entry, resources close on exit.

    Attributes:
        config: The settings of the run; sources are absolute paths after `setup`.
        ctx: The processes of the run.
        run: The run directory, locked against other processes.
        num_files: Number of files in the sources.
        start: Optimizer steps done before this process began.
        model: Student, predictor and teacher, on the device.
        optimizer: AdamW over student and predictor.
        flops_per_step: Floating-point operations of a step's matrix products, over all processes.
        stream: The data of the steps.
        checkpointer: Writer of checkpoints.
        feature_monitor: Computes effective rank and channel spread of features.
        collapse_detector: Compares those metrics with earlier ones and warns of a collapse.
        data_monitor: Compares the rate of the data workers with that of the device.
        guard: Handles skipped steps and loss spikes.
        evaluation: Evaluates the teacher every `eval_every` steps.
        sinks: Destinations of the metrics.
    """

    def __init__(
        self,
        config: TrainConfig,
        out: Path,
        ctx: DistContext,
        *,
        resume: bool = False,
        console: Console | None = None,
        sinks: Sequence[type[MetricSink]] = (),
        evaluate: Evaluator | None = None,
    ) -> None:
        """Store the arguments of `train`; `setup` does the work."""
        self.config, self.out, self.ctx, self.resume, self.extra_sinks = config, out, ctx, resume, sinks
        self.evaluate = evaluate
        self.console = console if ctx.is_rank0 else None
        self._resources = ExitStack()
        self._stage = StageNotice()

    def __enter__(self) -> "Trainer":
        with ExitStack() as undo:
            undo.callback(self._resources.close)
            self._resources.callback(self._stage.end)
            self._resources.enter_context(deterministic_algorithms(self.config.deterministic))
            self.setup()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()
        self.__dict__.pop("buffer", None)  # it refers back to the trainer, whose memory would wait for a collection

    def setup(self) -> None:
        """Lock the run directory and prepare everything up to the first step, or the next step of a resumed run.

        Raises:
            TubeletError: if sources, settings, weights and run directory are inconsistent, or the processes disagree.
        """
        ctx, device = self.ctx, self.ctx.device
        teacher = self._resolve_config()
        self._stage.begin("listing the files of the sources")
        media = list_media_once_per_machine(self.config, ctx)
        self.config = config = resolve_image_frames(self.config, media)
        check_shard_configs(media, config.data)
        check_steps(config, media, ctx.world_size)
        self.num_files = sum(map(media.count, Modality))
        ctx.run_on_rank0(self._lock)  # before any process reads the directory
        sample = sample_checksums(media) if ctx.is_rank0 else {}
        self.run = run = RunDirectory(
            self.out, config, self.resume, writes=ctx.is_rank0, sources=source_summary(media), sample=sample
        )
        self._assert_same_start()
        self._stage.begin("preparing the model")
        torch.manual_seed(config.seed)
        self.model, origin = init_model(config, resumed=run.checkpoint is not None)
        ctx.assert_equal_across_ranks("the initial weights in", origin and str(origin.path))
        if teacher is not None:
            self.model.frozen_teacher = (teacher,)
        parallel = pick_parallel(self.model, config, ctx)
        self.model.pack_masks = self._should_pack(media, parallel)
        cost = step_cost(self.model, config, samples_per_step(config, media))
        compiled = should_compile(config, cost, device)
        compiling = prepare_model(self.model, config, device, compiled, sharded=parallel != "ddp")
        to_device_or_shard(self.model, parallel, config, ctx)
        self.optimizer = build_optimizer(self.model, config.optim)
        self.start = load_training_state(run.checkpoint, self.model, self.optimizer) if run.checkpoint else 0
        initialized = init_moments(origin, self.model, self.optimizer) if origin else None
        self.flops_per_step = cost.flops
        self.stream = StepStream(config, media, ctx)
        self.checkpointer = Checkpointer(run, self.start, config, self.model, self.optimizer, ctx)
        self._resources.callback(self.checkpointer.close)
        self.feature_monitor = FeatureMonitor(self.model, config, ctx)
        self._resources.callback(self.feature_monitor.close)
        self.guard = AnomalyGuard(config, run)
        self.evaluation = PeriodicEvaluation(config, run, self.model, ctx, self.evaluate)
        self.sinks = SinkGroup(config.sinks, self.extra_sinks, run, self.start, self.guard.alert)
        self._resources.callback(self.sinks.close)
        self.data_monitor = DataMonitor(self.stream.workers, config.batch_size / ctx.world_size, self.guard.alert)
        self.buffer = MetricsBuffer(self._emit, device)
        self.progress = ProgressLine(self.console, config.steps, self.start, ctx.peak_flops())
        self._stage.end()  # before worker processes are forked
        self._restore(self.start)
        log_startup(config, media, run, self.model, ctx, self.start, parallel, cost.flops)
        packing = "all masks of a step go through the model in one pass" if self.model.pack_masks else None
        for message in filter(None, (initialized, packing, compiling)):
            logger.info(message)

    def train(self) -> Path:
        """Run the remaining steps.

        Returns:
            The newest checkpoint.

        Raises:
            TubeletError: see `tubelet.train.trainer.train`.
        """
        config, step, stop, problem = self.config, self.start, None, None
        with StopSignals(self._how_to_continue) as signals, self.progress, self.stream:
            timer = StepTimer(self.ctx.device)
            self._stage.begin("waiting for the first batch")
            for step, data in self.stream:
                if error := self.checkpointer.fatal_error():
                    data = replace(data, failure=data.failure or error)
                overdue = self.checkpointer.is_overdue()
                data, stop, overdue = self.ctx.sync_step_status(data, self.run.seen_bad, signals.received, overdue)
                if stop:
                    break
                timer.data_arrived(self.stream.requested_at)
                if step == self.start:
                    self._stage.begin("taking the first step, which is the slowest")
                if problem := self._report_bad_files(data):
                    break
                done = step + 1
                last = done == config.steps
                monitored = step % config.monitor_every == 0 or last
                if monitored:
                    self.feature_monitor.arm(data.batches[0].modality)
                metrics = train_step(self.model, self.optimizer, data, config, step, self.ctx)
                self._stage.end()
                if monitored:
                    metrics |= self.feature_monitor.compute(data.batches[0])
                metrics |= timer.lap(config.batch_size)
                metrics |= {
                    "data_seconds": data.seconds,
                    "tflop_per_s": self.flops_per_step * metrics["clips_per_s"] / config.batch_size / 1e12,
                    "bad_files": len(self.run.bad),
                    "short_clips": data.short_clips,
                }
                if evaluating := self.evaluation.is_due(done):
                    self._stage.begin(f"evaluating the teacher after step {done}")
                    metrics |= self.evaluation.compute(done)
                    self._stage.end()
                    timer.restart()
                self._report_failed_save(done, self.checkpointer.poll())
                self.buffer.add({"step": done} | metrics, delay=MONITOR_DELAY if monitored else 1)
                saving = evaluating or overdue or self.checkpointer.is_due(done)
                if saving:
                    self.buffer.flush()  # the guard must see a step before its checkpoint is written
                if self.guard.spike and self.rewind():
                    continue
                if saving:
                    self._save(done, required=last)
            if stop or problem:
                self._save_before_stopping(step)
            self.close()
        return self._result(step, stop, problem)

    def rewind(self) -> bool:
        """After a loss spike, go back to the last checkpoint and continue with other data, if the guard decides to.

        Returns:
            Whether the run was rewound.
        """
        problem = self.checkpointer.wait()
        checkpoint = self.checkpointer.newest
        back = self.guard.plan_rewind(checkpoint)
        if back is not None and checkpoint is not None:
            self.buffer.drop()
            load_training_state(checkpoint, self.model, self.optimizer)
            self._restore(back)
            self.sinks.rewind(back)
            self.checkpointer.saved = back
        self._report_failed_save(self.checkpointer.saved, problem)
        return back is not None

    def close(self) -> None:
        """Wait for the last checkpoint and write buffered metrics.

        Raises:
            TubeletError: if it cannot be written.
        """
        self._stage.begin("waiting for the checkpoint to be on the disk")
        self.checkpointer.wait(required=True)
        self._stage.begin("closing the metric sinks")
        self.sinks.close()
        self._stage.end()
        self.run.close()

    def _resolve_config(self) -> Any:
        """Make the config independent of the working directory; returns the frozen teacher of a distillation."""
        config = self.config
        sources = tuple(s if is_url(s) else str(Path(s).absolute()) for s in config.data.sources)
        eval_data = config.eval_data and str(Path(config.eval_data).absolute())
        init_from = config.init_from
        if init_from is not None and not released_name(init_from):
            init_from = str(Path(init_from).absolute())
        data = replace(config.data, sources=sources)
        config = replace(config, data=data, eval_data=eval_data, init_from=init_from)
        if (teacher := load_frozen_teacher(config, self.ctx.device)) is not None:
            config = replace(config, distill_weights=teacher.weights_id)
        self.config = config
        return teacher

    def _should_pack(self, media: MediaList, parallel: str) -> bool:
        """Whether all masks go through the model in one pass, given the memory of this process's device."""
        config, ctx = self.config, self.ctx
        shards = {"ddp": 1, "hsdp": ctx.local_world_size}.get(parallel, ctx.world_size)
        state = training_bytes(self.model) // shards
        counts = samples_per_step(config, media)
        return should_pack(config, self.model, counts, device_memory(ctx.device), ctx.world_size, state)

    def _lock(self) -> None:
        self._resources.enter_context(directory_lock(self.out))

    def _assert_same_start(self) -> None:
        """Check that all processes start the same run, before any of them writes."""
        self.ctx.assert_equal_across_ranks("the setting", str(self.config))
        self.ctx.assert_equal_across_ranks("the sources", self.run.sources)
        self.ctx.assert_equal_across_ranks("the checkpoint", str(self.run.checkpoint))

    def _restore(self, step: int) -> None:
        """Restore metrics, alerts and data to their state after `step` steps; later steps are recomputed."""
        history, detector = LossHistory(), collapse_detector(self.config.model)
        self.collapse_detector = detector

        def add(row: dict[str, Any]) -> None:
            history.add(row)
            detector.observe(row)

        def read() -> tuple[LossHistory, list[dict[str, Any]]]:
            self.run.restore(step, add)
            return history, self.run.alerts

        self.guard.restore(*self.ctx.run_on_rank0(read))
        self.evaluation.restore(step)
        self.stream.seek(step, self.guard.skipped_batches())

    def _emit(self, row: dict[str, Any]) -> None:
        """Pass the metrics of one step to the detectors, the guard, the sinks and the progress line.

        Raises:
            TubeletError: if the guard stops the run.
        """
        for warning in self.collapse_detector.observe(row):
            self.guard.alert(row["step"], "collapse", warning)
        self.guard.observe(row)
        self.data_monitor.observe(row, self.config.batch_size)
        self.sinks.log(row)
        self.guard.report_buffered_rows(row["step"])
        self.progress.show(row)
        self.guard.record_output(row["step"], output_error(self.console) if self.console else None)
        self.guard.check(row["step"])

    def _report_bad_files(self, data: StepData) -> str | None:
        """Log each bad file once.

        Returns:
            Why the run must stop, if it must: too many files are bad, or the step's data could not be made.
        """
        for file in self.run.add_bad(data.bad):
            logger.warning("bad file %s", file)
        bad, allowed = len(self.run.seen_bad), self.config.data.max_failed_fraction
        if bad > allowed * self.num_files:
            return (
                f"{describe_failed_fraction(bad, self.num_files, allowed)} (raise it to --resume); see the list in "
                f"{self.run.path / 'bad_files.jsonl'}"
            )
        return data.failure

    def _save(self, step: int, required: bool) -> None:
        """Save a checkpoint, in the background unless it is the best one so far."""
        self._stage.begin(f"saving the checkpoint of step {step}")
        self._report_failed_save(step, self.checkpointer.save(step, required=required))
        if (candidate := self.evaluation.candidate) is not None:
            self._report_failed_save(step, self.checkpointer.wait())
            newest = self.checkpointer.newest
            if newest is not None and step_from_name(newest) == candidate["step"]:
                self._report_failed_save(step, self.evaluation.keep_candidate(newest))
            self.evaluation.candidate = None  # also if its checkpoint could not be written: later weights differ
        self._stage.end()

    def _report_failed_save(self, step: int, problem: str | None) -> None:
        """Record an alert if a checkpoint could not be written."""
        if problem:
            newest = self.checkpointer.newest
            self.guard.alert(step, "save", f"{problem}; the run goes on, {newest} is the last checkpoint")

    def _save_before_stopping(self, step: int) -> None:
        self.buffer.flush()
        self._report_failed_save(step, self.checkpointer.wait())
        if self.checkpointer.saved != step and not self.guard.spike:
            self._stage.begin(f"saving the checkpoint of step {step}")
            self.checkpointer.save(step, required=True)

    def _result(self, step: int, stop: Any, problem: str | None) -> Path:
        """The newest checkpoint of a run that completed; raises an error for one that did not."""
        newest, steps = self.checkpointer.newest, self.config.steps
        if problem:
            raise TrainingError(problem + (f"; {newest} is written" if newest else ""))
        if stop:
            raise InterruptedRunError(
                f"{stop.name}: stopped after step {step} of {steps}{self._how_to_continue()}", stop
            )
        if newest is None:
            raise TrainingError("the run has no steps")
        if reason := self.guard.skipped_too_often():
            raise TrainingError(f"{reason}; the model is in {newest}: {REMEDY} for more --steps")
        skipped = f", {self.guard.history.skipped} of them skipped" if self.guard.history.skipped else ""
        logger.info("%d steps done%s; the model is in %s", steps, skipped, newest)
        return newest

    def _how_to_continue(self) -> str:
        """What remains of a run that is stopped, and the command that continues it."""
        newest = self.checkpointer.newest
        written = f"{newest} is written, continue" if newest else "no checkpoint is written, start again"
        return f"; {written} with: {shlex.join(['tubelet', 'train', '--out', str(self.out), '--resume'])}"


def list_media_once_per_machine(config: TrainConfig, ctx: DistContext) -> MediaList:
    """The files of the sources, listed once per machine by its local rank 0; other processes receive rank 0's list.

    Whether the machines list the same files is checked afterward, by `source_summary`.
    """
    lists = partial(list_media, config.data.sources, config.data.allow_path)
    listed = lists() if is_local_rank0() and not ctx.is_rank0 else None  # at the same time as rank 0
    received = ctx.run_on_rank0(lists)
    return listed or received


def resolve_image_frames(config: TrainConfig, media: MediaList) -> TrainConfig:
    """If the sources have no images, let the model encode images as repeated frames, by its video tokenizer.

    Otherwise it would encode them by an image tokenizer that was never trained. With `init_from`, the image tokenizer
    is already trained, and nothing changes.
    """
    if config.data.frames == 1 or config.data.image_frames > 1 or config.init_from or media.count(Modality.IMAGE):
        return config
    return replace(config, data=replace(config.data, image_frames=config.model.tubelet_size))
