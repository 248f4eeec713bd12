"""Pre-training: load, step, log, save."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from rich.console import Console

from tubelet.checkpoint import load_training_state
from tubelet.config import TrainConfig
from tubelet.console import say, say_bad
from tubelet.data.loader import check_steps, mixes, samples_per_step
from tubelet.data.pool import check_recipes
from tubelet.data.sources import MediaList, list_media
from tubelet.device import has_bf16_units, training_dtype
from tubelet.files import describe_os_error
from tubelet.train.compilation import step_operations
from tubelet.train.guards import Guards, Past
from tubelet.train.health import Health, collapse_watch
from tubelet.train.initial import initial_model, initial_moments, load_guide
from tubelet.train.log import StepLog
from tubelet.train.monitor import CollapseWatch
from tubelet.train.optim import build_optimizer
from tubelet.train.parallel import World, join_world
from tubelet.train.progress import Curves, ProgressLine
from tubelet.train.saving import Saver
from tubelet.train.sharding import pick_parallel, place
from tubelet.train.signals import InterruptedRunError, StopSignals
from tubelet.train.state import RunFolder
from tubelet.train.step import prepare, train_step
from tubelet.train.stream import StepStream
from tubelet.types import Modality, StepData, TubeletError, printable
from tubelet.vjepa import VJEPA


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
    with join_world(config.guards.process_timeout_s) as world:
        return run_steps(config, Path(out), resume, console or Console(), world)


def run_steps(config: TrainConfig, out: Path, resume: bool, console: Console, world: World) -> Path:
    """What one of a run's processes does; see `train`."""
    console = console if world.is_first else Console(quiet=True)
    device = world.device
    for frames in (config.data.frames, config.data.image_frames):
        config.model.grid(frames, config.data.image_size, config.data.image_size)  # refuse what does not fit
    media = list_media(config.data.sources, config.data.allow_outside)
    check_recipes(media, config.data)
    check_steps(config, media, world.size)
    run = RunFolder(out, config, resume, writes=world.is_first, sources=summary(media))
    require_same_start(config, run, world)
    torch.manual_seed(config.seed)
    model, origin = initial_model(config, resumed=run.checkpoint is not None)
    world.require_same("the weights to start from in", origin and str(origin.path))
    parallel = pick_parallel(model, config, world)
    compiling = prepare(model, config, device, sharded=parallel != "ddp")
    place(model, parallel, config, world)
    guide = load_guide(config, device)
    if guide is not None:
        model.guides = (guide,)
    optimizer = build_optimizer(model, config.optim)
    start = load_training_state(run.checkpoint, model, optimizer) if run.checkpoint else 0
    beginning = initial_moments(origin, model, optimizer) if origin else None
    health, watch = Health(model, config, world), collapse_watch(config.model)
    guards = Guards(config, run, partial(say, console, style="yellow"))
    guards.restore(*world.on_first(partial(begin, run, start, watch)))
    curves = Curves(run.path, start, writes=world.is_first)
    announce(console, config, media, run, model, world, start, parallel)
    following = f"predicting the last level of {config.distil_from} ({guide.weights_id})" if guide else None
    for sentence in filter(None, (beginning, following, compiling)):
        say(console, sentence)
    stream = StepStream(config, media, world)
    stream.begin(start, guards.left_out())
    operations = step_operations(model, config)
    saver = Saver(run, start, config, model, optimizer, world)
    stop = None
    total_files = sum(media.count(modality) for modality in Modality)
    with StopSignals() as signals, ProgressLine(console, config.steps, start, world.peak_flops()) as progress, stream:
        log = StepLog(partial(write_row, run, guards, curves, progress), device)
        began = time.perf_counter()
        for step, data in stream:
            data, stop = world.agree(data, run.bad, signals.received)
            if stop:
                break
            waited = time.perf_counter() - stream.asked  # not for a checkpoint, or for the device
            report_bad_files(data, run, console, total_files, config.data.max_bad_share)
            looking = step % config.monitor_every == 0 or step + 1 == config.steps
            if looking:
                health.listen()
            metrics = train_step(model, optimizer, data, config, step, world)
            if looking:
                metrics |= health.figures(data.batches[0])
                for warning in watch.observe(metrics):
                    guards.alarm(step + 1, "collapse", warning)
            elapsed = time.perf_counter() - began
            began = time.perf_counter()
            metrics |= {"clips_per_s": config.batch_size / elapsed, "data_wait_share": waited / elapsed}
            metrics |= {"tflop_per_s": operations / elapsed / 1e12}
            metrics |= {"bad_files": len(run.bad), "short_clips": data.short_clips}
            log.add({"step": step + 1} | metrics)
            done = step + 1
            saving = done == config.steps or done % config.checkpoint_every == 0
            if saving:
                log.flush()
            if guards.spike:
                said = saver.settle()
                if (back := guards.go_back(saver.newest)) is not None and saver.newest:
                    log.drop()
                    load_training_state(saver.newest, model, optimizer)
                    watch = collapse_watch(config.model)
                    guards.restore(*world.on_first(partial(begin, run, back, watch)))
                    draw(partial(curves.go_back, back), curves, guards, back)
                    stream.begin(back, guards.left_out())
                    saving, saver.saved = False, back
                if said:
                    guards.alarm(saver.saved, "save", said)
            if saving and (said := saver.save(done, must=done == config.steps)):
                guards.alarm(done, "save", f"{said}; the run goes on, {saver.newest} is the last checkpoint")
        if stop:
            log.flush()
            if saver.saved != step and not guards.spike:
                saver.save(step, must=True)
        saver.finish()
        draw(curves.close, curves, guards, saver.saved)
        run.close()
        if stop:
            kept = f"{saver.newest} is written" if saver.newest else "there was nothing to save yet"
            said = f"{stop.name}: stopped after step {step} of {config.steps}; {kept}, continue with --resume"
            raise InterruptedRunError(said, stop)
    if saver.newest is None:
        raise TubeletError("the run has no steps")
    say(console, f"{config.steps} steps done; the model is in {saver.newest}", "bold")
    return saver.newest


def require_same_start(config: TrainConfig, run: RunFolder, world: World) -> None:
    """Make sure that all processes begin the same run; none writes before all have looked.

    Raises:
        TubeletError: if they do not.
    """
    world.require_same("the setting", str(config))
    world.require_same("the sources", run.sources)
    world.require_same("the checkpoint", str(run.checkpoint))


def summary(media: MediaList) -> str:
    """One line for what the sources hold: counts, and a checksum of all names."""
    files = media.videos + media.images + [folder.root for folder in media.shards]
    counted = ", ".join(f"{media.count(modality)} {modality}s" for modality in Modality)
    return f"{counted}, checksum {crc32(chr(10).join(map(printable, files)).encode()):08x}"


def begin(run: RunFolder, step: int, watch: CollapseWatch) -> tuple[Past, list[dict[str, Any]]]:
    """Begin, or begin again, after some steps; returns the rows and the alarms before, for the guards."""
    past = Past()

    def seen(row: dict[str, Any]) -> None:
        past.add(row)
        watch.observe(row)

    run.begin(step, seen)
    return past, run.alarms


def write_row(run: RunFolder, guards: Guards, curves: Curves, progress: ProgressLine, row: dict[str, Any]) -> None:
    """One step's metrics, past the guards, to the run's file, to TensorBoard and to the screen.

    Raises:
        TubeletError: if the guards give up.
    """
    guards.observe(row)
    run.log(row)
    draw(partial(curves.add, row), curves, guards, row["step"])
    if run.unwritten and not guards.told_unwritten:
        guards.say(f"step {row['step']}: {run.unwritten_reason}; the rows are kept in memory until there is room")
    guards.told_unwritten = bool(run.unwritten)
    progress.show(row)
    guards.check(row["step"])


def draw(work: Callable[[], None], curves: Curves, guards: Guards, step: int) -> None:
    """Let TensorBoard's curves end, not the run, where they cannot be written."""
    try:
        work()
    except OSError as error:
        curves.writer = None
        guards.alarm(step, "tensorboard", f"curves for TensorBoard end here: {describe_os_error(error)}")


def report_bad_files(data: StepData, run: RunFolder, console: Console, total: int, max_share: float) -> None:
    """Name each bad file once; stop when there are too many.

    Raises:
        TubeletError: if more than `max_share` of all files are bad, or the step could not be made.
    """
    for file in run.add_bad(data.bad):
        say_bad(console, file)
    share = len(run.bad) / total
    if share > max_share:
        raise TubeletError(
            f"{len(run.bad)} of {total} files ({100 * share:.0f} %) cannot be read, more than the "
            f"{100 * max_share:.0f} % that --max-bad-share allows; they are listed in {run.path / 'bad_files.jsonl'}"
        )
    if data.failure:
        raise TubeletError(data.failure)


def announce(
    console: Console,
    config: TrainConfig,
    media: MediaList,
    run: RunFolder,
    model: VJEPA,
    world: World,
    start: int,
    parallel: str,
) -> None:
    """Say what is about to happen, and everything about it that a person might not expect."""
    student, predictor = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (model.student, model.predictor))
    counts = samples_per_step(config, media)
    members = sum(len(folder.members) for folder in media.shards)
    say(
        console,
        f"{media.count(Modality.VIDEO)} videos, {media.count(Modality.IMAGE)} images"
        + (f" ({members} of them in shards)" if members else "")
        + "; each step takes "
        + " and ".join(f"{count} {modality}s" for modality, count in counts.items()),
    )
    for modality, mix in mixes(config, media).items():
        if shares := mix.shares():
            parts = (f"{100 * share:.2f} % from {config.data.sources[i]}" for i, share in shares.items())
            say(console, f"{modality}s: {', '.join(parts)}")
    if media.ignored:
        say(
            console,
            f"left out: {', '.join(f'{count} {suffix} files' for suffix, count in sorted(media.ignored.items()))}",
        )
    grid = config.model.grid(config.data.frames, config.data.image_size, config.data.image_size)
    device = world.device
    dtype = training_dtype(config, device)
    say(
        console,
        f"student {student:.1f} M parameters, predictor {predictor:.1f} M; clips of "
        f"{config.data.frames} frames at {config.data.image_size} px are {grid} = {grid.tokens} tokens; "
        f"{str(dtype).removeprefix('torch.')} on {device}"
        + (f", {world.size} processes by {parallel}" if world.size > 1 else ""),
    )
    if dtype is torch.bfloat16 and not has_bf16_units(device):
        say(console, f"this {device} has no bf16 units: --precision fp32 would be many times faster", "yellow")
    for change in run.changed:
        say(console, f"changed since this run began: {change}", "yellow")
    if start:
        say(console, f"continuing after step {start} from {run.checkpoint}")
