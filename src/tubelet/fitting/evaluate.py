"""Measuring a head on a label table of files that it was not trained on."""

import copy
import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tubelet.config import FitConfig
from tubelet.config.fields import nearest
from tubelet.data.worker_loader import require_main_guard, translate_worker_crash
from tubelet.errors import ConfigError, DataError
from tubelet.fitting.label_task import FitContext, LabelTask, get_label_task, label_task_names
from tubelet.fitting.result import HeadEvaluation
from tubelet.fitting.run import retime_stacks
from tubelet.heads.head_file import NO_LABEL, Head
from tubelet.heads.training_files import file_id
from tubelet.labels.checks import check_labels
from tubelet.labels.records import LabelTable
from tubelet.labels.table import read_labels
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.cache import FeatureCache, default_folder
from tubelet.tasks.common.extract import RESUME_HINT, Progress

logger = logging.getLogger(__name__)


def read_evaluation_table(
    head: Head, path: Path, config: FitConfig, progress: Progress = lambda stage, done, total: None
) -> LabelTable:
    """Read and check a label table that a head is to be measured on.

    All rows count, whatever the column `split` says.

    Args:
        head: the head, whose task and classes the table must have.
        path: the table.
        config: the settings of reading.
        progress: called with a stage's name, what is done of it, and its total.

    Returns:
        the table, with the classes or targets of the head in the head's order.

    Raises:
        LabelError: names every fault of the table.
        ConfigError: the head cannot be measured on labels, or not on these.
    """
    _task_of(head)
    read = read_labels(path)
    table = check_labels(
        replace(read, rows=[replace(row, split="") for row in read.rows]),
        head.spec.task,
        to_train=False,
        max_failed_fraction=config.max_failed_fraction,
        workers=max(1, config.workers),
        progress=partial(progress, "checking media"),
    )
    images = all(seconds == 0 for seconds in table.durations_s.values())
    if images != (head.spec.input.frames == 1):
        found, expected = ("images", "videos") if images else ("videos", "images")
        raise ConfigError(f"{path}: labels {found}, but the head was trained on {expected}; use another table")
    names = tuple(name for name in head.spec.classes if name != NO_LABEL)
    if head.spec.task != "regression":
        _require_names(path, "class", table.classes, names, "the head does not know; its classes are", "rename it")
        return replace(table, classes=names)
    _require_names(path, "target", names, table.targets, "the table lacks; its columns are", "rename the column")
    order = [table.targets.index(name) for name in names]
    rows = [replace(row, values=tuple(row.values[k] for k in order)) for row in table.rows]
    return replace(table, rows=rows, targets=names)


def _task_of(head: Head) -> LabelTask:
    """The task of a head.

    Raises:
        ConfigError: there is no way to measure it on labels.
    """
    task, clips = get_label_task(head.spec.task), head.spec.input
    if task.evaluate is None:
        supported = [name for name in label_task_names() if get_label_task(name).evaluate is not None]
        raise ConfigError(f"the head is for {task.name}; heads for {', '.join(supported)} can be evaluated on labels")
    if (clips.resize, clips.views, clips.padded) != (None, 1, False):
        raise ConfigError(
            "the head was imported, with clips of its own; heads of `tubelet fit` can be evaluated on labels"
        )
    return task


def _require_names(
    path: Path, kind: str, needed: Sequence[str], known: Sequence[str], problem: str, remedy: str
) -> None:
    """Refuse a table with names that are not known, or without names that are needed."""
    if missing := next((name for name in needed if name not in known), None):
        hint = nearest(missing, known)
        raise ConfigError(
            f"{path}: has the {kind} {missing!r:.100}, which {problem} {', '.join(known)}{hint}; {remedy}"
        )


def evaluate_on_labels(
    head: Head,
    table: LabelTable,
    model: Backbone,
    config: FitConfig,
    *,
    include_training_files: bool = False,
    cache: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> HeadEvaluation:
    """Measure a head on a table, by the metrics and intervals of `fit`.

    Args:
        head: the head.
        table: the table of `read_evaluation_table`.
        model: the encoder that the head was trained on, as `tubelet.load` returns it.
        config: the settings of reading.
        include_training_files: whether files that the head was trained on are measured too, which flatters it.
        cache: folder of cached features; by default in the user's cache.
        progress: called with a stage's name, what is done of it, and its total.

    Raises:
        ConfigError: for another encoder than the head's.
        DataError: the head was trained on all files.
        TubeletError: for unreadable files.
    """
    require_main_guard()
    task = _task_of(head)
    model = head.adapt(model)
    if not head.training_files:
        logger.warning("the head does not name its training files; make sure that none of them is in %s", table.path)
    trained = [path for path in table.durations_s if file_id(path) in head.training_files]
    left_out = [] if include_training_files else trained
    if len(left_out) == len(table.durations_s):
        raise DataError(
            f"{table.path}: the head was trained on all of its files, so that nothing is left to measure; label other "
            "files, or pass --include-training-files (include_training_files=True)"
        )
    skipped = set(left_out)
    table = replace(table, rows=[row for row in table.rows if row.path not in skipped])
    if table.classes and not any(row.labels for row in table.rows):
        raise DataError(
            f"{table.path}: no label is left after {len(left_out)} files that the head was trained on, so that there "
            "is nothing to find; label other files"
        )
    context = FitContext(
        task=task.name,
        table=retime_stacks(table, head.spec.input.fps),
        splits=(),
        model=model,
        source=head.spec.encoder.source,
        head_input=head.spec.input,
        config=config,
        cache=FeatureCache(cache or default_folder(), model),
        progress=progress,
    )
    head = copy.deepcopy(head).to(model.device).eval()  # the caller's stays as it is
    assert task.evaluate is not None
    with translate_worker_crash(RESUME_HINT):
        found = task.evaluate(context, head)
    included = bool(trained) and include_training_files
    what = "training files among them" if included else "training files left out"
    return replace(
        found, counts={**found.counts, what: len(trained)}, left_out=left_out, includes_training_files=included
    )
