"""A collection of videos and images -> a table of their features."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tubelet.config import EmbedConfig
from tubelet.data.bad_files import check_bad_share
from tubelet.data.sources import list_media
from tubelet.data.storage import StorageError
from tubelet.data.worker_loader import require_main_guard, translate_worker_crash
from tubelet.embed.clips import ClipBatch, CollectionClips, clip_loader
from tubelet.embed.table import FeatureTable
from tubelet.errors import BadFile, escape_filename
from tubelet.grid import Modality
from tubelet.io.files import atomic_write, directory_lock
from tubelet.io.overwrite import check_output
from tubelet.pretrained.backbone import Backbone

BAD_FILES = "_bad_files.jsonl"
_NOT_FINITE = "its features are not finite (NaN, or above 65,504), so that they cannot be compared; use another model"


@dataclass(frozen=True)
class Summary:
    """What `embed_collection` did.

    Attributes:
        files: of the collection.
        rows: written now.
        before: files that were done before.
        changed: files that were embedded before, but had changed since; their old rows were replaced.
        bad: files that could not be read.
        broken: of these, videos that can be read up to some place only; they have no rows.
        short: videos too short for the rate that was asked for.
    """

    files: int
    rows: int
    before: int
    changed: int
    bad: int
    broken: int
    short: int


def embed_collection(
    model: Backbone,
    sources: Sequence[str],
    out: str | Path,
    config: EmbedConfig,
    name: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
    report: Callable[[BadFile], None] = lambda file: None,
    note: Callable[[str], None] = lambda sentence: None,
) -> Summary:
    """Encode all clips of some sources and write a row for each.

    Args:
        model: the encoder.
        sources: as for training.
        out: folder of the table; one that a stopped call left is continued, clip by clip.
        config: which clips, and what is kept.
        name: what `tubelet.load` was given, for `search` to load the same model.
        progress: called with files done and all files.
        report: called once with each file that cannot be read.
        note: called with how lists were read, and what was left out.

    Raises:
        StorageError: a source cannot be reached.
        TubeletError: too many files are bad, the table was made otherwise, it cannot be written, or a decoding process
            died.
    """
    require_main_guard()
    out = Path(out)
    check_output(out, "table", [*sources, name])
    model.config.grid(config.frames, config.image_size, config.image_size)  # refuse what does not fit
    media = list_media(sources, config.allow_path)
    for sentence in media.notes:
        note(escape_filename(sentence))
    kept = ("image_size", "frames", "fps", "stride_s", "dense", "levels")
    place = Path(name).expanduser()
    settings = {
        "model": str(place.resolve()) if name and place.exists() else name,
        "model_id": model.model_id,
        "config_hash": model.config_hash,
        "weights": model.weights_id,
    }
    with directory_lock(out):
        table = FeatureTable(out, settings | {key: getattr(config, key) for key in kept})
        clips = CollectionClips(media, config, table.done())
        with translate_worker_crash("the same command continues after what was written"):
            return _embed(model, table, clips, sum(map(media.count, Modality)), progress, report)


def _embed(
    model: Backbone,
    table: FeatureTable,
    clips: CollectionClips,
    total: int,
    progress: Callable[[int, int], None],
    report: Callable[[BadFile], None],
) -> Summary:
    """Encode what is not in the table yet, of so many files in all."""
    config = clips.config
    table.drop(clips.changed)
    ended = before = total - clips.left()
    bad: list[BadFile] = []
    made: Counter[str] = Counter()  # rows of each file
    short = 0
    progress(ended, total)
    try:
        for batch in clip_loader(clips):
            made.update(row["path"] for row in batch.rows)
            new = list(batch.bad)
            if batch.pixels is not None:
                rows = _rows(model, batch, batch.pixels, config)
                table.add(rows)
                named = {file.path for file in bad}
                new += [BadFile(path, _NOT_FINITE) for path in dict.fromkeys(_not_finite(rows)) if path not in named]
            if batch.failure is not None:
                raise StorageError(batch.failure)
            for file in new:
                bad.append(file)
                report(file)
            ended, short = ended + batch.ended, short + batch.short
            progress(ended, total)
            check_bad_share(bad, total, config.max_failed_fraction)
    finally:  # whatever happened, what was computed is kept, but for the beginnings of files that go no further
        names = {escape_filename(file.path) for file in bad}
        broken = {path for path in names if path in made or path in clips.done}
        listed = "".join(json.dumps(asdict(file)) + "\n" for file in bad)
        try:
            _keep(table, broken, listed)
        except RuntimeError:  # that a process died is said once, be it now
            _keep(table, broken, listed)
            raise
    kept = sum(count for path, count in made.items() if path not in broken)
    return Summary(total, kept, before, len(clips.changed), len(bad), len(broken), short)


def _keep(table: FeatureTable, broken: Collection[str], bad_files: str) -> None:
    table.drop(broken)
    table.flush()
    with atomic_write(table.path / BAD_FILES) as partial:
        partial.write_text(bad_files)


def _rows(model: Backbone, batch: ClipBatch, pixels: Tensor, config: EmbedConfig) -> list[dict[str, Any]]:
    """Encode a batch; a row for each clip."""
    features = model.encode(pixels)
    levels = features.levels if config.all_levels else features.levels[-1:]
    names = [f"_level{i}" for i in range(len(levels) - 1)] + [""]
    vectors = {f"pooled{name}": _half(level.float().mean(dim=1)) for name, level in zip(names, levels, strict=True)}
    if config.dense:
        vectors |= {f"tokens{name}": _half(level.flatten(1)) for name, level in zip(names, levels, strict=True)}
    grid = np.array(features.grid.shape, np.int32)
    rows = []
    for i, row in enumerate(batch.rows):
        times = row["times"].reshape(features.grid.t, -1)
        about = {key: row[key] for key in ("path", "modality", "size_bytes", "changed_s", "clip", "clips")}
        about |= {"start_s": float(times[0, 0]), "end_s": float(times[-1, -1]), "times": times.mean(axis=1)}
        about |= {"grid": grid, "model_id": model.model_id, "config_hash": model.config_hash}
        rows.append(about | {name: vector[i] for name, vector in vectors.items()})
    return rows


def _not_finite(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Paths of rows whose features hold NaN or infinity."""
    for row in rows:
        if not all(np.isfinite(x).all() for name, x in row.items() if name.startswith(("pooled", "tokens"))):
            yield row["path"]


def _half(x: Tensor) -> np.ndarray:
    return x.half().cpu().numpy()
