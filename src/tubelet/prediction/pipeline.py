"""Application of heads to a collection: media in, tables out."""

import copy
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tubelet.config import PredictConfig
from tubelet.config.fields import to_dict
from tubelet.data.bad_files import check_failed_fraction
from tubelet.data.clips import to_colors
from tubelet.data.model_frames import describe_outside
from tubelet.data.sample_index import build_index
from tubelet.data.sources import MediaList, list_media
from tubelet.data.storage import StorageError
from tubelet.data.worker_loader import require_main_guard, translate_worker_crash
from tubelet.errors import BadFile, ConfigError, DataError, escape_filename
from tubelet.grid import Modality
from tubelet.heads.head_file import Head, reduce_tokens
from tubelet.heads.window_grid import clip_steps
from tubelet.io.files import atomic_write, directory_lock
from tubelet.io.overwrite_checks import check_output
from tubelet.prediction.layout import WindowLayout
from tubelet.prediction.media_predictions import MediaPredictions
from tubelet.prediction.outputs import output_kind
from tubelet.prediction.outputs.base import FileScores, HeadOutput
from tubelet.prediction.score_table import ScoreTable
from tubelet.prediction.windows import CollectionWindows, WindowBatch, window_loader
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.fingerprint import hash_weights

logger = logging.getLogger(__name__)

BAD_FILES = "bad_files.jsonl"
SCORES = "_scores"
_NOT_FINITE = "scores are not finite (NaN or infinite); use another model, or fit the head again"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class HeadPredictions:
    """The predictions of one head.

    Attributes:
        name: name of the head.
        folder: where its tables are.
        output: what wrote them.
        table: the scores.
        number: which of the heads of the table it is.
        keys: the files and spans, in the order of the tables.
    """

    name: str
    folder: Path
    output: HeadOutput
    table: ScoreTable
    number: int
    keys: Sequence[str]

    def files(self) -> Iterator[FileScores]:
        """The scores of all files, in the order of the tables."""
        return self.table.read(self.keys, self.number, len(self.output.head.spec.classes))

    def media_predictions(self) -> Iterator[MediaPredictions]:
        """What videos, pages and ethograms show, in the order of the tables."""
        return map(self.output.media_predictions, self.files())


@dataclass(frozen=True)
class PredictSummary:
    """Counts of a call of `predict_collection`.

    Attributes:
        files: files of the collection that heads were applied to.
        before: those that were complete before it, and not read again.
        changed: files that changed since; their rows were replaced.
        bad_files: files that could not be read, with the reasons.
        truncated: how many of them are readable up to some point; they have no rows.
        ignored: images that were not read, since a head takes videos.
        outside: files whose first clip has nearly all values outside of the model's window.
        heads: the predictions of each head.
        media: the files of the sources.
    """

    files: int
    before: int
    changed: int
    bad_files: Sequence[BadFile]
    truncated: int
    ignored: int
    outside: int
    heads: Sequence[HeadPredictions]
    media: MediaList

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all labels of all heads, each once."""
        specs = [head.output.head.spec for head in self.heads]
        labels = [spec.classes for spec in specs if spec.task not in ("regression", "depth")]
        return tuple(dict.fromkeys(name for names in labels for name in names))

    def media_predictions(self, limit: int | None = None) -> list[MediaPredictions]:
        """What videos, pages and ethograms show of each file, of all heads and spans.

        Args:
            limit: largest number of files; None for all.
        """
        predictions: dict[str, MediaPredictions] = {}
        for head in self.heads:
            for each in head.media_predictions():
                if each.path not in predictions and len(predictions) == limit:
                    break
                before = predictions.get(each.path)
                predictions[each.path] = each if before is None else _merged(before, each)
        return [_located(each) for each in predictions.values()]


def _merged(a: MediaPredictions, b: MediaPredictions) -> MediaPredictions:
    """The predictions of two heads for a file."""
    overlays = sorted([*a.overlays, *b.overlays], key=lambda overlay: overlay.time_s)
    return replace(a, labels=[*a.labels, *b.labels], curves=[*a.curves, *b.curves], overlays=overlays)


def _located(each: MediaPredictions) -> MediaPredictions:
    file = Path(each.path)
    return replace(each, file=file if file.exists() else None)


@dataclass(frozen=True)
class _Pass:
    """Heads that share the encoding of the same windows.

    Attributes:
        model: the encoder.
        layout: the windows.
        outputs: name -> output of each head.
    """

    model: Backbone
    layout: WindowLayout
    outputs: dict[str, HeadOutput]


@dataclass(frozen=True)
class _PassResult:
    """What a pass read, see `PredictSummary`."""

    before: int
    changed: set[str]
    truncated: set[str]
    outside: set[str]


def predict_collection(
    model: Backbone,
    heads: Mapping[str, Head],
    sources: Sequence[str],
    out: str | Path,
    config: PredictConfig,
    inputs: Sequence[str] = (),
    progress: Progress = lambda done, total: None,
) -> PredictSummary:
    """Apply heads to all files of some sources, and write their tables.

    Videos are read in one pass and in memory that does not depend on their length. Heads whose clips are equal share
    one encoding.

    Args:
        model: the encoder that the heads were trained on.
        heads: name -> head. The tables of a single head are in `out`, those of several in `out/NAME`.
        sources: sources, as for training.
        out: folder of the tables; an interrupted call is continued.
        config: settings.
        inputs: further inputs of the command, such as head files, which are never overwritten.
        progress: called with the number of completed files and of all files, for each pass.

    Raises:
        StorageError: a source cannot be reached.
        TubeletError: too many files are bad, the folder has predictions of other heads, it cannot be written, or a
            decoding process died.
    """
    require_main_guard()
    out = Path(out)
    check_output(out, "predictions", [*sources, *inputs])
    passes = _plan_passes(model, heads, out, config)
    media = list_media(sources, config.allow_path)
    for message in media.notes:
        logger.info(escape_filename(message))
    read = {modality for each in passes for modality in each.layout.modalities}
    if not (files := sum(map(media.count, read))):
        count = media.count(Modality.IMAGE)
        images = f"{count} image{'s' * (count != 1)}"
        raise DataError(f"{', '.join(sources[:3])}: no videos, which a head takes, but {images}; pass videos")
    bad: dict[str, BadFile] = {}
    with directory_lock(out):
        ids = {"" if len(heads) == 1 else name: _head_id(head) for name, head in heads.items()}
        tables = [
            ScoreTable(out / SCORES / f"pass-{number}", _settings(each, ids)) for number, each in enumerate(passes)
        ]
        try:
            with translate_worker_crash("run the same command again to continue"):
                results = [
                    _run_pass(each, table, media, config, bad, progress)
                    for each, table in zip(passes, tables, strict=True)
                ]
        finally:
            with atomic_write(out / BAD_FILES) as partial:
                partial.write_text(
                    "".join(json.dumps(asdict(bad[path])) + "\n" for path in sorted(bad)), encoding="utf-8"
                )
        found = [
            _write_tables(name, number, each, table, media)
            for each, table in zip(passes, tables, strict=True)
            for number, name in enumerate(each.outputs)
        ]
    check_failed_fraction(bad.values(), files, config.max_failed_fraction, finished=True)
    return PredictSummary(
        files=files,
        before=min(result.before for result in results),
        changed=len(set[str]().union(*(result.changed for result in results))),
        bad_files=[bad[path] for path in sorted(bad)],
        truncated=len(set[str]().union(*(result.truncated for result in results))),
        outside=len(set[str]().union(*(result.outside for result in results))),
        ignored=0 if Modality.IMAGE in read else media.count(Modality.IMAGE),
        heads=found,
        media=media,
    )


def _plan_passes(model: Backbone, heads: Mapping[str, Head], out: Path, config: PredictConfig) -> list[_Pass]:
    """The heads, grouped by what they can share.

    Raises:
        ConfigError: if a head was trained on another encoder, or a setting does not fit it.
    """
    if not heads:
        raise ConfigError("no head; pass at least one head file")
    encoders: dict[str, Backbone] = {}
    passes: dict[tuple[str, WindowLayout], _Pass] = {}
    for name, head in heads.items():
        encoder = head.adapt(model)
        encoder = encoders.setdefault(encoder.weights_id, encoder)
        layout = WindowLayout.of_head(head.spec, encoder.config.tubelet_size)
        clips = layout.clips
        if clips.frames > 1 and config.causal != clips.causal:
            raise ConfigError(
                f"the head {name} was fitted with causal {clips.causal}, found {config.causal}; "
                + ("pass --causal (causal=True)" if clips.causal else "fit it with --causal, or leave --causal out")
            )
        encoder.config.grid(clips.frames, clips.image_size, clips.image_size)  # raises if the sizes do not fit
        clip_steps(clips, layout.tubelet)  # raises if the stride does not fit
        folder = out if len(heads) == 1 else out / name
        if head.training or head.target_mean.device != encoder.device:
            head = copy.deepcopy(head).to(encoder.device).eval()  # the caller's stays as it is
        output = output_kind(head.spec.task)(head, folder, config, layout)
        key = (encoder.weights_id, layout.shareable)
        each = passes.get(key, _Pass(encoder, layout.shareable, {}))
        both = replace(
            each.layout, stretched=each.layout.stretched or layout.stretched, padded=each.layout.padded or layout.padded
        )
        passes[key] = _Pass(encoder, both, each.outputs | {name: output})
    for each in passes.values():
        clips = each.layout.clips
        logger.info(
            f"one pass over the files for {', '.join(each.outputs)}: {clips.frames} frames of {clips.image_size} "
            f"pixels at {clips.fps:g} a second, every {clips.stride_s:g} s"
        )
    return list(passes.values())


def _settings(each: _Pass, heads: Mapping[str, str]) -> dict[str, Any]:
    """The settings that scores depend on, compared with those of an existing table; `heads` has the heads' hashes."""
    clips = {name: getattr(each.layout.clips, name) for name in ("image_size", "frames", "fps", "stride_s")}
    precision = {"dtype": str(each.model.dtype).removeprefix("torch."), "int8": each.model.int8}
    return {"weights": each.model.weights_id, **precision, **clips, "heads": heads}


def _head_id(head: Head) -> str:
    """Hash of all of a head that its scores depend on."""
    names = ("task", "network", "options", "classes", "input", "exclusive", "temperature")
    settings = {name: value for name, value in to_dict(head.spec).items() if name in names}
    settings["input"] = {"causal": False} | head.spec.input.to_fields()  # as written before format 2
    text = json.dumps(settings, sort_keys=True) + hash_weights(head.state_dict())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _run_pass(
    each: _Pass, table: ScoreTable, media: MediaList, config: PredictConfig, bad: dict[str, BadFile], progress: Progress
) -> _PassResult:
    """Score the windows that the table lacks; bad files are added to `bad`."""
    done, incomplete = table.done()
    windows = CollectionWindows(media, each.layout, config, each.model.config, done)
    table.drop(windows.stale | incomplete)
    total = sum(map(media.count, each.layout.modalities))
    before = finished = total - windows.remaining()
    bad_elsewhere = set(bad)  # of another pass
    complete: set[str] = set()
    outside: set[str] = set()
    progress(finished, total)
    try:
        for batch in window_loader(windows):
            new = [*batch.bad, *_score_batch(each, table, batch, complete)]
            if batch.failure is not None:
                raise StorageError(batch.failure)
            for file in new:
                if file.path not in bad:
                    bad[file.path] = file
                    logger.warning("bad file %s", file)
            pixels = each.model.config.pixels
            if (found := {item.file.key for item in batch.windows if item.outside}) and pixels is not None:
                if not outside:
                    logger.warning("%s: %s", min(found), describe_outside(pixels))
                outside |= found
            finished += batch.ended
            progress(finished, total)
            check_failed_fraction(bad.values(), total, config.max_failed_fraction, finished=False)
    finally:  # what was computed is kept after any error, except for truncated files
        truncated = {escape_filename(path) for path in bad.keys() - bad_elsewhere} & complete
        try:
            _close(table, truncated)
        except RuntimeError:  # the death of a worker is raised once, possibly here
            _close(table, truncated)
            raise
    return _PassResult(before, windows.changed, truncated, outside)


def _close(table: ScoreTable, truncated: set[str]) -> None:
    table.drop(truncated)
    table.flush()


@torch.no_grad()
def _score_batch(run: _Pass, table: ScoreTable, batch: WindowBatch, made: set[str]) -> list[BadFile]:
    """Apply all heads to a batch; gives the files whose scores are not finite."""
    for file in batch.bad:
        for output in run.outputs.values():
            output.discard(escape_filename(file.path))
        table.discard(escape_filename(file.path))
    if batch.pixels is None:
        return []
    files = {item.file.key: item.file for item in batch.windows}
    views = [run.model.dense_features(pixels) for pixels in batch.pixels.unbind(1)]
    reduced: dict[tuple[tuple[int, ...], int], Tensor] = {}
    broken: set[str] = set()
    for number, output in enumerate(run.outputs.values()):
        clips = output.head.spec.input
        key = (clips.levels, clips.cells)
        if key not in reduced:
            reduced[key] = torch.stack([reduce_tokens(features, clips) for features in views], dim=1)
        accepted = [i for i, item in enumerate(batch.windows) if output.accepts(item)]
        items = [batch.windows[i] for i in accepted]
        pixels = batch.pixels[accepted, 0]
        if accepted and run.layout.whole:
            pixels = torch.stack([to_colors(each, run.model.config.pixels) for each in pixels])
        rows = list(output.score(reduced[key][accepted].flatten(0, 1), items, pixels)) if accepted else []
        for item in batch.windows:
            if item.number == item.file.windows - 1:
                rows += output.end(item.file)
        broken |= {each.key for each in rows if not np.isfinite(each.scores).all()}
        for each in rows:
            table.add_scores(files[each.key], number, each)
    made.update(files)
    for item in batch.windows:
        if item.number == item.file.windows - 1 and item.file.key not in broken:
            table.end_file(item.file, len(run.outputs))
    for name in broken:
        table.discard(name)
    return [BadFile(name, _NOT_FINITE) for name in sorted(broken)]


def _write_tables(name: str, number: int, each: _Pass, table: ScoreTable, media: MediaList) -> HeadPredictions:
    """Write the tables of a head from the scores of all files."""
    output = each.outputs[name]
    keys = [
        escape_filename(index.key(sample))
        for index in (build_index(media, modality) for modality in each.layout.modalities)
        for sample in range(len(index))
    ]
    output.ascii_paths = all(map(str.isascii, keys))
    predictions = HeadPredictions(name, output.folder, output, table, number, keys)
    output.write(predictions.files())
    return predictions
