"""Fitting of a head: label table and encoder in, head and its evaluation out."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from tubelet.checkpoint.native_clip import choose_clip
from tubelet.config import FitConfig
from tubelet.config.fields import require
from tubelet.data.stacks import is_stack, read_stack_info
from tubelet.data.stacks.reader import DEFAULT_FPS
from tubelet.data.worker_loader import require_main_guard, translate_worker_crash
from tubelet.errors import ConfigError
from tubelet.fitting.label_task import FitContext, LabelTask, Split, get_label_task
from tubelet.fitting.result import FitResult
from tubelet.fitting.rounds import Rounds
from tubelet.fitting.suggest import find_unlabeled, suggest_clips
from tubelet.fitting.training import check_networks
from tubelet.heads.head_file import Head, HeadInput
from tubelet.heads.training_files import file_ids
from tubelet.heads.window_grid import clip_steps
from tubelet.labels.checks import check_labels
from tubelet.labels.infer import infer_task
from tubelet.labels.records import EPISODES, LabelTable
from tubelet.labels.splits import fold_rows, row_units, split_rows
from tubelet.labels.table import read_labels
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.cache import FeatureCache, default_folder
from tubelet.tasks.common.extract import RESUME_HINT, Progress

logger = logging.getLogger(__name__)

FEW_FILES = 10
"""Held-out files of a class below which one split says too little, so that rows are held out in turn."""
FOLDS = 5


def read_label_table(
    path: Path, config: FitConfig, progress: Progress = lambda stage, done, total: None
) -> tuple[LabelTable, LabelTask]:
    """Read and check a label table, and decide what is learned from it.

    Args:
        path: the table.
        config: the settings, of which `task` wins over what the columns say.
        progress: called with a stage's name, what is done of it, and its total.

    Raises:
        LabelError: names every fault of the table.
        ConfigError: the task does not fit the table, or networks do not fit the task.
    """
    table = check_labels(
        read_labels(path),
        config.task,
        min_examples=config.min_examples,
        max_failed_fraction=config.max_failed_fraction,
        workers=max(1, config.workers),
        progress=partial(progress, "checking media"),
    )
    name, reason = (config.task, f"{config.task}, as requested") if config.task else infer_task(table)
    if name == "timeline" and table.format == EPISODES:
        raise ConfigError(f"{path}: an episode has its tasks from its start to its end; leave --task timeline out")
    logger.info("%s: %d rows, read as %s; task: %s", path, len(table.rows), table.format, reason)
    check_networks(name, config.networks)
    return table, get_label_task(name)


def fit_head(
    table: LabelTable,
    task: LabelTask,
    model: Backbone,
    source: str,
    config: FitConfig,
    *,
    cache: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> tuple[Head, FitResult]:
    """Fit a head to labels.

    Args:
        table: the labels, checked.
        task: what is learned.
        model: the encoder.
        source: argument of `tubelet.load` that it was loaded by.
        config: the settings.
        cache: folder of cached features; by default in the user's cache.
        progress: called with a stage's name, what is done of it, and its total.

    Raises:
        TubeletError: for settings that the task does not use, labels that cannot be split, and unreadable files.
    """
    require_main_guard()
    config.reject_unused(task.unused, task.name)
    images = all(seconds == 0 for seconds in table.durations_s.values())
    clips = head_input(task, model, config, images)
    if task.name not in ("segmentation", "depth"):  # which read frames by their times in the table
        table = retime_stacks(table, clips.fps)
    rounds = Rounds(progress)
    context = FitContext(
        task=task.name,
        table=table,
        splits=choose_splits(table, config),
        model=model,
        source=source,
        head_input=clips,
        config=config,
        cache=FeatureCache(cache or default_folder(), model),
        progress=rounds.progress,
        rounds=rounds,
    )
    with translate_worker_crash(RESUME_HINT):
        unlabeled = find_unlabeled(context) if config.suggest else None
        head, result = task.fit(context)
        rows = table.rows if len(context.splits) > 1 else [table.rows[i] for i in context.splits[0][0]]
        head.training_files = file_ids({row.path for row in rows})
        if unlabeled is not None:
            result = replace(result, suggestions=suggest_clips(context, head, unlabeled))
    return head, result


def head_input(task: LabelTask, model: Backbone, config: FitConfig, images: bool) -> HeadInput:
    """The clips of a head: the user's settings, and otherwise the encoder's own.

    Raises:
        ConfigError: if the sizes do not divide into patches and time steps.
    """
    clip = choose_clip(model.name, model.native_clip, config.image_size, config.frames, config.fps)
    size, frames, fps = clip.image_size, 1 if images else clip.frames, clip.fps
    if images:
        require(not config.causal, "causal", "is True, but the labeled files are images, which have no time; remove it")
    step_s = model.config.tubelet_size / fps
    steps = max(1, frames // model.config.tubelet_size)
    stride_steps = max(1, round(task.stride_clips * steps))
    if config.causal and task.name == "timeline":  # a window for each time step
        require(
            config.stride_s is None or abs(config.stride_s - step_s) < 1e-6,
            "stride_s",
            f"is {config.stride_s}, expected {step_s:g}, the seconds of a time step, for causal timelines; remove it",
        )
        stride_steps = 1
    result = HeadInput(
        image_size=size,
        frames=frames,
        fps=fps,
        stride_s=config.stride_s or stride_steps * step_s,
        levels=config.levels,
        cells=task.cells,
        causal=config.causal,
    )
    model.config.grid(frames, size, size)
    if not images:
        clip_steps(result, model.config.tubelet_size)
    return result


def retime_stacks(table: LabelTable, fps: float) -> LabelTable:
    """A checked table with times at the rate of clips, for stacks without a frame rate.

    Clips take the frames of such a stack one by one, at whatever rate; `check_labels` has them at `DEFAULT_FPS`.
    """
    factor = DEFAULT_FPS / fps
    stacks = {
        path
        for path, seconds in table.durations_s.items()
        if factor != 1 and seconds and is_stack(path) and read_stack_info(path).fps is None
    }

    def scaled(seconds: float | None) -> float | None:
        return None if seconds is None else seconds * factor

    rows = [
        replace(row, start_s=scaled(row.start_s), end_s=scaled(row.end_s)) if row.path in stacks else row
        for row in table.rows
    ]
    durations = {path: s * factor if path in stacks else s for path, s in table.durations_s.items()}
    return replace(table, rows=tuple(rows), durations_s=durations)


def choose_splits(table: LabelTable, config: FitConfig) -> Sequence[Split]:
    """The rows to train on and to measure on: the table's own split, one by whole files and groups, or folds of those.

    Raises:
        LabelError: if the labels cannot be split.
    """
    if any(row.split for row in table.rows):
        return [split_rows(table, config.held_out_fraction, config.seed)]
    units = row_units(table)
    count = len(np.unique(units))
    if config.folds is None:
        train, held_out = split_rows(table, config.held_out_fraction, config.seed)
        files: Counter[str] = Counter()
        for _, label in {(table.rows[row].path, label) for row in held_out for label in table.rows[row].labels}:
            files[label] += 1
        least = min((files[name] for name in table.classes), default=len({table.rows[row].path for row in held_out}))
        if least >= FEW_FILES or count < 3:
            return [(train, held_out)]
    return fold_rows(table, config.folds or min(FOLDS, count), config.seed)
