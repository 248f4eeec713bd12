"""Pre-training: the loop over a run's steps."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from tubelet.config import TrainConfig
from tubelet.console import open_console, output_error, print_wrapped, report_bad_file
from tubelet.data.batch import StepData
from tubelet.data.worker_loader import require_main_guard
from tubelet.errors import TubeletError
from tubelet.io.overwrite import check_output
from tubelet.train.anomaly_guard import REMEDY
from tubelet.train.distributed import DistContext, init_distributed
from tubelet.train.metrics_buffer import MetricsBuffer
from tubelet.train.progress import ProgressLine
from tubelet.train.session import Session, begun
from tubelet.train.signals import InterruptedRunError, StopSignals
from tubelet.train.step import train_step


def train(config: TrainConfig, out: str | Path, resume: bool = False, console: Console | None = None) -> Path:
    """Pre-train a model and leave it in the run folder `out`.

    Args:
        config: the whole run.
        out: the run's folder; its checkpoints, metrics and list of bad files go there.
        resume: continue the run in `out` from its newest checkpoint, exactly as if it had never stopped.
        console: where progress is shown.

    Returns:
        the newest checkpoint.

    Raises:
        TubeletError: for anything a person can mend: empty sources, too many bad files, a full disk, a stop signal.
    """
    require_main_guard()
    check_output(Path(out), "run", [*config.data.sources, config.init_from, config.distill_from])
    with init_distributed(config.guards.process_timeout_s) as ctx:
        return run_steps(config, Path(out), resume, console or open_console(), ctx)


def run_steps(config: TrainConfig, out: Path, resume: bool, console: Console, ctx: DistContext) -> Path:
    """What one of a run's processes does; see `train`."""
    console = console if ctx.is_rank0 else Console(quiet=True)
    stop = problem = None
    with (
        begun(config, out, resume, console, ctx) as s,
        StopSignals() as signals,
        ProgressLine(console, config.steps, s.start, ctx.peak_flops()) as line,
        s.stream,
    ):
        log = MetricsBuffer(partial(write_row, s, line), ctx.device)
        began = time.perf_counter()
        for step, data in s.stream:
            data, stop = ctx.sync_step_status(data, s.run.seen_bad, signals.received)
            if stop:
                break
            waited = time.perf_counter() - s.stream.requested_at  # not for a checkpoint, or for the device
            if problem := report_bad_files(s, data, console):
                break
            done = step + 1
            looking = step % config.monitor_every == 0 or done == config.steps
            if looking:
                s.feature_monitor.arm()
            metrics = train_step(s.model, s.optimizer, data, config, step, ctx)
            if looking:
                metrics |= s.feature_monitor.compute(data.batches[0])
                for warning in s.collapse_detector.observe(metrics):
                    s.guards.alert(done, "collapse", warning)
            elapsed, began = time.perf_counter() - began, time.perf_counter()
            metrics |= {
                "clips_per_s": config.batch_size / elapsed,
                "data_wait_fraction": waited / elapsed,
                "tflop_per_s": s.operations / elapsed / 1e12,
                "bad_files": len(s.run.bad),
                "short_clips": data.short_clips,
            }
            s.report_failed_save(done, s.saver.failure())
            log.add({"step": done} | metrics)
            saving = done == config.steps or done % config.checkpoint_every == 0
            if saving:
                log.flush()  # the guards judge a step before it is kept
            if s.guards.spike and s.rewind(log):
                continue
            if saving:
                s.report_failed_save(done, s.saver.save(done, required=done == config.steps))
        if stop or problem:
            log.flush()
            s.report_failed_save(step, s.saver.wait())
            if s.saver.saved != step and not s.guards.spike:
                s.saver.save(step, required=True)
        s.close()
    if problem:
        raise TubeletError(problem + (f"; {s.saver.newest} is written" if s.saver.newest else ""))
    if stop:
        kept = f"{s.saver.newest} is written" if s.saver.newest else "there was nothing to save yet"
        raise InterruptedRunError(
            f"{stop.name}: stopped after step {step} of {config.steps}; {kept}, continue with --resume", stop
        )
    if s.saver.newest is None:
        raise TubeletError("the run has no steps")
    if reason := s.guards.skipped_too_often():
        raise TubeletError(f"{reason}; the model is in {s.saver.newest}: {REMEDY} for more --steps")
    skipped = f", {s.guards.past.skipped} of them skipped" if s.guards.past.skipped else ""
    print_wrapped(console, f"{config.steps} steps done{skipped}; the model is in {s.saver.newest}", "bold")
    return s.saver.newest


def write_row(s: Session, line: ProgressLine, row: dict[str, Any]) -> None:
    """One step's metrics, past the guards, to the run's file, to TensorBoard and to the screen.

    Raises:
        TubeletError: if the guards give up.
    """
    s.guards.observe(row)
    s.run.log(row)
    s.curves.add(row)
    s.guards.report_buffered_rows(row["step"])
    line.show(row)
    s.guards.record_output(row["step"], output_error(line.console))
    s.guards.check(row["step"])


def report_bad_files(s: Session, data: StepData, console: Console) -> str | None:
    """Name each bad file once.

    Returns:
        why the run must stop, if so: more than --max-failed-fraction of all files are bad, or the step could not be
        made.
    """
    for file in s.run.add_bad(data.bad):
        report_bad_file(console, file)
    share, allowed = len(s.run.seen_bad) / s.files, s.config.data.max_failed_fraction
    if share > allowed:
        return (
            f"{len(s.run.seen_bad)} of {s.files} files ({100 * share:.0f} %) cannot be read, more than the "
            f"{100 * allowed:.0f} % that --max-failed-fraction allows, with which --resume goes on; they are listed in "
            f"{s.run.path / 'bad_files.jsonl'}"
        )
    return data.failure
