"""Embed a collection of videos and images into a table of features."""

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelet.checkpoint.native_clip import choose_clip
from tubelet.config import EmbedConfig
from tubelet.data.bad_files import check_failed_fraction
from tubelet.data.model_frames import describe_outside
from tubelet.data.part_table import SPAN
from tubelet.data.sources import list_media
from tubelet.data.storage import StorageError
from tubelet.data.worker_loader import require_main_guard, translate_worker_crash
from tubelet.embed.clips import CollectionClips, EmbedBatch, clip_loader
from tubelet.embed.table import FeatureTable
from tubelet.errors import BadFile, escape_filename
from tubelet.grid import Modality
from tubelet.io.files import atomic_write, directory_lock
from tubelet.io.overwrite_checks import check_output
from tubelet.pretrained.backbone import Backbone

logger = logging.getLogger(__name__)

BAD_FILES = "_bad_files.jsonl"
_NOT_FINITE = "features are not finite (NaN, or above 65,504) and cannot be compared; use another model"


@dataclass(frozen=True)
class EmbedSummary:
    """Counts of a call of `embed_collection`.

    Attributes:
        files: files of the collection, or spans of them.
        entry: "file" or "span": what all numbers are of.
        rows: rows written by this call.
        new: files without rows before it, or with some of them only, that are complete now.
        before: files that were complete before it.
        changed: files that changed since they were embedded; their rows were replaced.
        gone: files with rows that no longer exist; their rows were removed with `EmbedConfig.prune`.
        bad: files that could not be read.
        truncated: those of `bad` that are readable up to some point; they have no rows.
        short: videos too short for the requested rate.
        repeating: videos with a lower rate than requested, whose frames are repeated.
        outside: files whose first clip has nearly all values outside of the model's window.
    """

    files: int
    entry: str
    rows: int
    new: int
    before: int
    changed: int
    gone: int
    bad: int
    truncated: int
    short: int
    repeating: int
    outside: int


def embed_collection(
    model: Backbone,
    sources: Sequence[str],
    out: str | Path,
    config: EmbedConfig,
    name: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EmbedSummary:
    """Encode all clips of some sources and write a row for each.

    Args:
        model: the encoder.
        sources: sources, as for training.
        out: folder of the table; the table of an interrupted call is continued, clip by clip.
        config: settings of clips and features.
        name: argument of `tubelet.load` for this model, from which `search` loads it.
        progress: called with the number of completed files and of all files.

    Raises:
        StorageError: a source cannot be reached.
        TubeletError: too many files are bad, the table has other settings, it cannot be written, or a decoding process
            died.
    """
    require_main_guard()
    out = Path(out)
    check_output(out, "table", [*sources, name])
    clip = choose_clip(model.name, model.native_clip, config.image_size, config.frames, config.fps)
    model.config.grid(clip.frames, clip.image_size, clip.image_size)  # raises if the sizes do not fit
    media = list_media(sources, config.allow_path)
    for message in media.notes:
        logger.info(escape_filename(message))
    path = Path(name).expanduser()
    settings = {
        "model": str(path.resolve()) if name and path.exists() else name,
        "model_id": model.model_id,
        "config_hash": model.config_hash,
        "weights": model.weights_id,
        "dtype": str(model.dtype).removeprefix("torch."),
        "int8": model.int8,
    }
    with directory_lock(out):
        shared: dict[str, Any] = {"image_size": clip.image_size, "frames": clip.frames, "fps": clip.fps}
        shared |= {key: getattr(config, key) for key in ("stride_s", "causal", "dense")}
        table = FeatureTable(out, settings | shared | {"levels": config.all_levels})
        clips = CollectionClips(media, clip, config, model.config, table.done())
        with translate_worker_crash("run the same command again to continue"):
            return _embed(model, table, clips, sum(map(media.count, Modality)), progress)


def _embed(
    model: Backbone,
    table: FeatureTable,
    clips: CollectionClips,
    total: int,
    progress: Callable[[int, int], None],
) -> EmbedSummary:
    """Encode the clips that the table lacks; `total` counts all files."""
    config = clips.config
    table.drop(clips.changed | clips.gone if config.prune else clips.changed)
    finished = before = total - clips.remaining()
    bad: list[BadFile] = []
    row_counts: Counter[str] = Counter()  # rows of each file and span
    noted: Counter[str] = Counter()
    progress(finished, total)
    try:
        for batch in clip_loader(clips):
            row_counts.update(row["key"] for row in batch.rows)
            new = list(batch.bad)
            if batch.pixels is not None:
                rows = _rows(model, batch, batch.pixels, config)
                table.add(rows)
                named = {file.path for file in bad}
                broken = {source["key"]: None for source, row in zip(batch.rows, rows, strict=True) if not _finite(row)}
                new += [BadFile(key, _NOT_FINITE) for key in broken if key not in named]
            if batch.failure is not None:
                raise StorageError(batch.failure)
            for file in new:
                bad.append(file)
                logger.warning("bad file %s", file)
            for row in batch.rows:
                noted.update(name for name in ("short", "repeating", "outside") if row.get(name))
                if row.get("outside") and noted["outside"] == 1 and model.config.pixels is not None:
                    logger.warning("%s: %s", row["key"], describe_outside(model.config.pixels))
            finished += batch.ended
            progress(finished, total)
            check_failed_fraction(bad, total, config.max_failed_fraction, finished=False)
    finally:  # computed rows are kept after any error, except those of truncated files
        names = {escape_filename(file.path) for file in bad}
        truncated = {key for key in names if key in row_counts or key in clips.done}
        listed = "".join(json.dumps(asdict(file)) + "\n" for file in bad)
        try:
            _write(table, truncated, listed)
        except RuntimeError:  # the death of a worker is raised once, possibly here
            _write(table, truncated, listed)
            raise
    check_failed_fraction(bad, total, config.max_failed_fraction, finished=True)
    complete = sum(count for key, count in row_counts.items() if key not in truncated)
    changed = clips.changed - names
    return EmbedSummary(
        files=total,
        entry=clips.entry,
        rows=complete,
        new=total - before - len(changed) - len(names),
        before=before,
        changed=len(changed),
        gone=len(clips.gone),
        bad=len(bad),
        truncated=len(truncated),
        short=noted["short"],
        repeating=noted["repeating"],
        outside=noted["outside"],
    )


def _write(table: FeatureTable, truncated: Collection[str], bad_files: str) -> None:
    table.drop(truncated)
    table.flush()
    with atomic_write(table.path / BAD_FILES) as partial:
        partial.write_text(bad_files, encoding="utf-8")


def _rows(model: Backbone, batch: EmbedBatch, pixels: Tensor, config: EmbedConfig) -> list[dict[str, Any]]:
    """Rows of the table, one for each clip of a batch."""
    with torch.no_grad():
        features = model.dense_features(pixels)
    if config.causal:
        features = features.last_step()
    levels = features.levels if config.all_levels else features.levels[-1:]
    names = [f"_level{i}" for i in range(len(levels) - 1)] + [""]
    vectors = {f"pooled{name}": _half(level.float().mean(dim=1)) for name, level in zip(names, levels, strict=True)}
    if config.dense:
        vectors |= {f"tokens{name}": _half(level.flatten(1)) for name, level in zip(names, levels, strict=True)}
    grid = np.array(features.grid.shape, np.int32)
    rows = []
    for i, row in enumerate(batch.rows):
        times = row["times"].reshape(features.grid.t, -1)
        shared = {
            name: row[name] for name in ("path", "modality", "size_bytes", "changed_s", *SPAN, "clip_index", "clips")
        }
        shared |= {"start_s": float(times[0, 0]), "end_s": float(times[-1, -1])}
        shared["times"] = times[:, -1] if config.causal else times.mean(axis=1)
        shared |= {"grid": grid, "model_id": model.model_id, "config_hash": model.config_hash}
        rows.append(shared | {name: vector[i] for name, vector in vectors.items()})
    return rows


def _finite(row: dict[str, Any]) -> bool:
    """Whether the features of a row have neither NaN nor infinity."""
    return all(np.isfinite(x).all() for name, x in row.items() if name.startswith(("pooled", "tokens")))


def _half(x: Tensor) -> np.ndarray:
    return x.half().cpu().numpy()
