"""Log messages before the first step of a run: data, sizes, precision, and warnings."""

import logging
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import torch

from tubelet.checkpoint.run import FIRST_CHECKPOINT_S
from tubelet.config import TrainConfig
from tubelet.console import duration
from tubelet.data.batch_partition import samples_per_step
from tubelet.data.file_types import VIDEO_SUFFIXES
from tubelet.data.loader import build_samplers, step_prefetch
from tubelet.data.sources import MediaList
from tubelet.data.storage import is_url, suffix_of
from tubelet.device import has_bf16_units, training_dtype
from tubelet.errors import escape_filename
from tubelet.grid import Modality
from tubelet.train.distributed import DistContext
from tubelet.train.run_directory import RunDirectory
from tubelet.vjepa import VJEPA

logger = logging.getLogger(__name__)

SAMPLED_FILES, _SAMPLED_BYTES = 64, 4096
# FLOP/s of a laptop's CPU in training, by order of magnitude, and the duration from which on a run is too long for it.
_CPU_RATE, _LONG_S = 1e11, 86_400.0


def source_summary(media: MediaList) -> str:
    """A one-line summary of the sources: counts, and a checksum of all names."""
    counts = ", ".join(f"{media.count(modality)} {modality}s" for modality in Modality)
    return f"{counts}, checksum {media.checksum():08x}"


def sample_checksums(media: MediaList) -> dict[str, int]:
    """Checksums of size, beginning and end of an evenly spaced sample of the local files of the sources.

    A resumed run compares them, to detect files that were rewritten under the same names.
    """
    checksums = {}
    for files in (media.videos, media.images):
        for i in range(0, len(files), max(1, -(-2 * len(files) // SAMPLED_FILES))):
            with suppress(OSError):  # a bad file, which is reported when it is read
                if not is_url(files[i]):
                    checksums[escape_filename(files[i])] = _checksum(Path(files[i]))
    return checksums


def _checksum(path: Path) -> int:
    with path.open("rb") as file:
        size = path.stat().st_size
        head = file.read(_SAMPLED_BYTES)
        file.seek(max(0, size - _SAMPLED_BYTES))
        return crc32(file.read(_SAMPLED_BYTES), crc32(head, crc32(str(size).encode())))


def log_startup(
    config: TrainConfig,
    media: MediaList,
    run: RunDirectory,
    model: VJEPA,
    ctx: DistContext,
    start: int,
    parallel: str,
    flops: float,
) -> None:
    """Log the setup of a run, with warnings for what a user might not expect.

    Args:
        config: The run.
        media: Its files.
        run: The run directory.
        model: Student, predictor and teacher.
        ctx: The processes of the run.
        start: Optimizer steps done before.
        parallel: "ddp", "fsdp" or "hsdp".
        flops: Operations of a step.
    """
    _log_data(config, media)
    _log_model(config, model, ctx, parallel)
    cpu_s = (config.steps - start) * flops / _CPU_RATE / ctx.world_size
    if ctx.device.type == "cpu" and cpu_s > _LONG_S:
        logger.warning(
            "this run takes in the order of %s on a CPU (%s steps of %.1e operations, at %.0e a second); the time left "
            "is shown from the second step on. For a run of minutes: --model vit-pico --image-size 64 --frames 4 "
            '--batch-size 8 --steps 2500 (docs/data.md, "On a CPU")',
            *(duration(cpu_s), f"{config.steps - start:,}", flops, _CPU_RATE),
        )
    if reason := step_prefetch(config, media, ctx.rank, ctx.world_size).note:
        logger.warning(reason)
    for change in run.changed:
        logger.warning("changed since this run began: %s", change)
    if run.lost_steps:
        logger.warning(
            "%s has no checkpoint: starting at step 0, the %d steps before are lost (--checkpoint-every %d)",
            *(run.path, run.lost_steps, config.checkpoint_every),
        )
    elif run.resume and not start:
        logger.info("%s: nothing to resume; starting at step 0", run.path)
    if start:
        logger.info("continuing after step %d from %s", start, run.checkpoint)
    if run.checkpoint is None and config.steps > 1:
        logger.info(
            "the first checkpoint comes at step %d, or after %.0f min if that is earlier, and then every %d steps; a "
            "stop signal writes one, too",
            *(min(config.checkpoint_every, config.steps), FIRST_CHECKPOINT_S / 60, config.checkpoint_every),
        )
    if config.distill_from:
        logger.info("predicting the last level of %s (%s)", config.distill_from, config.distill_weights)


def _log_data(config: TrainConfig, media: MediaList) -> None:
    counts = samples_per_step(config, media)
    members = sum(len(folder.members) for folder in media.shards)
    stacks = sum(suffix_of(name) not in VIDEO_SUFFIXES for name in media.videos) if media.has_stacks else 0
    logger.info(
        "%d videos%s, %d images%s; each step takes %s",
        media.count(Modality.VIDEO),
        f" ({stacks} of them stacks of frames)" if stacks else "",
        media.count(Modality.IMAGE),
        f" ({members} of them in shards)" if members else "",
        " and ".join(f"{count} {modality}s" for modality, count in counts.items()),
    )
    for modality, sampler in build_samplers(config, media).items():
        if fractions := sampler.fractions():
            parts = (f"{100 * fraction:.2f} % from {config.data.sources[i]}" for i, fraction in fractions.items())
            logger.info("%ss: %s", modality, ", ".join(parts))
    if config.data.frames > 1 and not media.count(Modality.IMAGE):
        trained = (
            "by the video tokenizer, repeated" if config.data.image_frames > 1 else "by the initial image tokenizer"
        )
        logger.info("no images in the sources: the trained model encodes images %s", trained)
    for note in media.notes:
        logger.info(escape_filename(note))


def _log_model(config: TrainConfig, model: VJEPA, ctx: DistContext, parallel: str) -> None:
    student, predictor = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (model.student, model.predictor))
    frames, size = config.data.frames, config.data.image_size
    grid = config.model.grid(frames, size, size)
    dtype = training_dtype(config, ctx.device)
    logger.info(
        "student %.1f M parameters, predictor %.1f M; clips of %d frames at %d px are %s = %d tokens; %s on %s%s",
        student,
        predictor,
        frames,
        size,
        grid,
        grid.tokens,
        str(dtype).removeprefix("torch."),
        ctx.device,
        f", {ctx.world_size} processes by {parallel}" if ctx.world_size > 1 else "",
    )
    if dtype is torch.bfloat16 and not has_bf16_units(ctx.device):
        logger.warning("this %s has no bf16 units: --precision fp32 would be many times faster", ctx.device)
