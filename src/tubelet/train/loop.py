"""Pre-training: the loop over a run's steps."""

import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from tubelet.config import TrainConfig
from tubelet.console import lost_output, open_console, say, say_bad
from tubelet.data.batch import StepData
from tubelet.data.workers import refuse_unguarded
from tubelet.errors import TubeletError
from tubelet.io.overwrite import check_output
from tubelet.train.guards import REMEDY
from tubelet.train.log import StepLog
from tubelet.train.parallel import World, join_world
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
    refuse_unguarded()
    check_output(Path(out), "run", [*config.data.sources, config.init_from, config.distil_from])
    with join_world(config.guards.process_timeout_s) as world:
        return run_steps(config, Path(out), resume, console or open_console(), world)


def run_steps(config: TrainConfig, out: Path, resume: bool, console: Console, world: World) -> Path:
    """What one of a run's processes does; see `train`."""
    console = console if world.is_first else Console(quiet=True)
    stop = problem = None
    with (
        begun(config, out, resume, console, world) as s,
        StopSignals() as signals,
        ProgressLine(console, config.steps, s.start, world.peak_flops()) as line,
        s.stream,
    ):
        log = StepLog(partial(write_row, s, line), world.device)
        began = time.perf_counter()
        for step, data in s.stream:
            data, stop = world.agree(data, s.run.met, signals.received)
            if stop:
                break
            waited = time.perf_counter() - s.stream.asked  # not for a checkpoint, or for the device
            if problem := report_bad_files(s, data, console):
                break
            done = step + 1
            looking = step % config.monitor_every == 0 or done == config.steps
            if looking:
                s.health.listen()
            metrics = train_step(s.model, s.optimizer, data, config, step, world)
            if looking:
                metrics |= s.health.figures(data.batches[0])
                for warning in s.watch.observe(metrics):
                    s.guards.alarm(done, "collapse", warning)
            elapsed, began = time.perf_counter() - began, time.perf_counter()
            metrics |= {
                "clips_per_s": config.batch_size / elapsed,
                "data_wait_share": waited / elapsed,
                "tflop_per_s": s.operations / elapsed / 1e12,
                "bad_files": len(s.run.bad),
                "short_clips": data.short_clips,
            }
            s.report_unsaved(done, s.saver.failure())
            log.add({"step": done} | metrics)
            saving = done == config.steps or done % config.checkpoint_every == 0
            if saving:
                log.flush()  # the guards judge a step before it is kept
            if s.guards.spike and s.rewind(log):
                continue
            if saving:
                s.report_unsaved(done, s.saver.save(done, must=done == config.steps))
        if stop or problem:
            log.flush()
            s.report_unsaved(step, s.saver.settle())
            if s.saver.saved != step and not s.guards.spike:
                s.saver.save(step, must=True)
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
    say(console, f"{config.steps} steps done{skipped}; the model is in {s.saver.newest}", "bold")
    return s.saver.newest


def write_row(s: Session, line: ProgressLine, row: dict[str, Any]) -> None:
    """One step's metrics, past the guards, to the run's file, to TensorBoard and to the screen.

    Raises:
        TubeletError: if the guards give up.
    """
    s.guards.observe(row)
    s.run.log(row)
    s.curves.add(row)
    s.guards.tell_unwritten(row["step"])
    line.show(row)
    s.guards.record_output(row["step"], lost_output(line.console))
    s.guards.check(row["step"])


def report_bad_files(s: Session, data: StepData, console: Console) -> str | None:
    """Name each bad file once.

    Returns:
        why the run must stop, if so: more than --max-bad-share of all files are bad, or the step could not be made.
    """
    for file in s.run.add_bad(data.bad):
        say_bad(console, file)
    share, allowed = len(s.run.met) / s.files, s.config.data.max_bad_share
    if share > allowed:
        return (
            f"{len(s.run.met)} of {s.files} files ({100 * share:.0f} %) cannot be read, more than the "
            f"{100 * allowed:.0f} % that --max-bad-share allows, with which --resume goes on; they are listed in "
            f"{s.run.path / 'bad_files.jsonl'}"
        )
    return data.failure
