"""`tubelet report`: settings, metrics and feature maps of a run on one page."""

import dataclasses
import json
import math
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tubelet.checkpoint.run import list_checkpoints, load_vjepa, step_from_name
from tubelet.config import MODELS, ModelConfig, TrainConfig
from tubelet.console import duration
from tubelet.data.decode import read_frames
from tubelet.data.model_frames import open_frames
from tubelet.data.sample_index import SampleIndex, build_index
from tubelet.data.sources import list_media
from tubelet.errors import DataError, DecodeError, MissingFileError, TubeletError
from tubelet.grid import Modality
from tubelet.io.overwrite_checks import check_output
from tubelet.model.encoder import Encoder, random_encoder
from tubelet.sample_data.truth import SampleEntry, read_index
from tubelet.tasks.common.extract import subsample_evenly
from tubelet.tasks.common.result import RANDOM_WEIGHTS, Result, read_result, read_suite_v1
from tubelet.train.initialization import load_initial_teacher
from tubelet.train.run_directory import (
    CONFIG,
    read_alerts,
    read_bad_files,
    read_config,
    read_metrics,
)
from tubelet.view.feature_maps import (
    INITIAL,
    RANDOM,
    SEARCHED_CLIPS,
    TRAINED,
    Gallery,
    find_tracks,
    fine_size,
    pca_strips,
    read_sample_clip,
    read_video_clip,
    track_object,
)
from tubelet.view.page import count, json_block, significant, write_page
from tubelet.view.run_curves import run_curves
from tubelet.view.training_samples import training_strips
from tubelet.vjepa import VJEPA

SHOWN_CLIPS, SHOWN_OBJECTS, SHOWN_BAD_FILES, SHOWN_ALERTS = 4, 2, 50, 50


@dataclass(frozen=True)
class SuiteRow:
    """One row of the suite's table.

    Attributes:
        name: name of the metric.
        direction: the better direction.
        cells: of the model and each baseline, the value, its ratio to that of random weights, and whether it is best.
    """

    name: str
    direction: str
    cells: list[tuple[str, str, bool]]


def write_report(run: Path, data: Path | None, out: Path) -> None:
    """Write a run's report. The page names what the run does not have yet.

    Args:
        run: the run directory: config.json, metrics.jsonl, alerts.jsonl, checkpoints, evaluation/, bad_files.jsonl.
        data: source of the images: a sample set (its validation clips), or a folder of videos; None uses the run's own
            sources.
        out: the page, one self-contained file.

    Raises:
        TubeletError: if there is no run, one of its files is corrupt, `data` has no videos, or the page cannot be
            written.
    """
    if not (run / CONFIG).is_file():
        raise MissingFileError(
            f"{run}: not a run directory ({CONFIG} is missing); expected a folder that `tubelet train` wrote"
        )
    check_output(out, "page", [run, data])
    config = read_config(run)
    entries = read_index(data, "val", "videos") if data and (data / "dataset.json").is_file() else None
    videos = _find_videos(data, config) if entries is None else None
    rows, bad, alerts = ([row for row, _ in read_metrics(run)], read_bad_files(run), read_alerts(run))
    model = load_vjepa(run)[0] if list_checkpoints(run) else None
    gallery = Gallery(config.model.pixels)
    encoders, initial_problem = _encoders(run, model, config, rows) if model else ({}, "")
    values = _run_values(run, config, rows, alerts, model) | {
        **_evaluations(run, out.parent),
        "bad": bad,
        "alerts": alerts,
        "shown_bad": SHOWN_BAD_FILES,
        "shown_alerts": SHOWN_ALERTS,
        "size": 0,
        "strips": [],
        "training_strips": [],
        "training_problem": "",
        "tracked_objects": [],
        "initial_problem": initial_problem,
        "unread": [],
        "own": entries is None and model is not None,
        "no_images_reason": "",
    }
    if model is None:
        values["no_images_reason"] = "The run has no checkpoint yet."
    elif entries is not None:
        values |= _sample_features(encoders, config, entries, gallery)
    elif videos is None:
        values["no_images_reason"] = "The run's sources cannot be read here; pass a folder of videos with --data."
    elif len(videos):
        values |= _video_features(encoders, config, videos, gallery)
    else:
        values["no_images_reason"] = "The run's sources have no videos; pass a folder of videos with --data."
    if rows:
        values |= training_strips(config, rows[-1]["step"] - 1, gallery)
    write_page("report.html", out, values | {"frames": gallery.frames})


def _encoders(
    run: Path, model: VJEPA, config: TrainConfig, rows: list[dict[str, Any]]
) -> tuple[dict[str, Encoder], str]:
    """Encoders whose features are shown, and why the initial weights of a run with `init_from` are not among them.

    They are the teachers of the newest checkpoint, of the oldest that is kept, and of `init_from`, and a random one.
    """
    first, last = list_checkpoints(run)[0], list_checkpoints(run)[-1]
    encoders, problem = {TRAINED: model.teacher}, ""
    if first != last:
        encoders[f"{TRAINED} after {count(step_from_name(first))} steps"] = load_vjepa(first)[0].teacher
    if config.init_from:
        started = rows[0].get("time", math.inf) if rows else math.inf
        try:
            encoders[INITIAL] = load_initial_teacher(config, started)
        except TubeletError as error:
            problem = str(error)
    return encoders | {RANDOM: random_encoder(config.model, config.seed)}, problem


def _run_values(
    run: Path, config: TrainConfig, rows: list[dict[str, Any]], alerts: list[dict[str, Any]], model: VJEPA | None
) -> dict[str, Any]:
    """Settings and metrics of a run, for the template."""
    curves = run_curves(rows)
    moments = [{"step": alert["step"], "message": alert["message"]} for alert in alerts]
    return {
        "run": run.resolve().name,
        "run_path": shlex.quote(str(run)),
        "config": config,
        "model_name": _model_name(config.model),
        "sizes": _parameters(model or VJEPA(config.model)),
        "steps": rows[-1]["step"] if rows else 0,
        "hours": duration(sum(config.batch_size / row["clips_per_s"] for row in rows if row.get("clips_per_s"))),
        "last": rows[-1] if rows else None,
        "curves": curves,
        "plots": json_block("plots", {"curves": curves, "alerts": moments}),
    }


def _sample_features(
    encoders: dict[str, Encoder], config: TrainConfig, entries: list[SampleEntry], gallery: Gallery
) -> dict[str, Any]:
    """Feature maps and tracked objects of a sample set."""
    frames, tubelet = config.data.frames, config.model.tubelet_size
    chosen = subsample_evenly(entries, SHOWN_CLIPS)
    size = fine_size(config, min(read_frames(chosen[0].media).pixels.shape[1:3]))
    clips = [read_sample_clip(entry, size, frames, tubelet) for entry in chosen]
    tracks = find_tracks(subsample_evenly(entries, SEARCHED_CLIPS), config.model, size, frames, SHOWN_OBJECTS)
    return {
        "size": size,
        "strips": pca_strips(clips, encoders, gallery),
        "tracked_objects": [track_object(track, encoders, gallery) for track in tracks],
    }


def _find_videos(data: Path | None, config: TrainConfig) -> SampleIndex | None:
    """The videos and spans of a folder, list or shards, or of the run's own sources; None if these cannot be read.

    Raises:
        TubeletError: if `data` has no videos.
    """
    if data is None:
        try:
            return build_index(list_media(config.data.sources, config.data.allow_path), Modality.VIDEO)
        except TubeletError:
            return None  # the run may be from another machine
    index = build_index(list_media((str(data),)), Modality.VIDEO)
    if not len(index):
        raise DataError(f"{data}: no videos found, and not a sample set (dataset.json is missing)")
    return index


def _video_features(
    encoders: dict[str, Encoder], config: TrainConfig, videos: SampleIndex, gallery: Gallery
) -> dict[str, Any]:
    """Feature maps of some videos without ground truth."""
    data, clips, unread, size = config.data, [], [], 0
    for number in subsample_evenly(range(len(videos)), SHOWN_CLIPS):
        try:
            sample = videos.read(number)
            if not size:  # one for all clips, which share their colors
                with open_frames(sample.media, config.model.pixels, data.fps) as video:
                    size = fine_size(config, min(video.info.height, video.info.width))
            clips.append(read_video_clip(sample, size, data.frames, config.model, data.fps))
        except DecodeError as error:
            unread.append(f"{videos.name(number)}: {error}")
    return {"size": size, "strips": pca_strips(clips, encoders, gallery) if clips else [], "unread": unread}


def _evaluations(run: Path, folder: Path) -> dict[str, Any]:
    """The run's results: the suite's latest in a table, and a row for each of the others, linked from a folder."""
    paths = sorted(run.glob("evaluation/*/result.json"), key=lambda path: (path.stat().st_mtime, path))
    results = {path: read_result(path) for path in paths}
    suites = [result for result in results.values() if result.task == "suite"]
    first_version = run / "evaluation.json"
    if not suites and first_version.is_file():
        suites.append(read_suite_v1(first_version))
    others = [_benchmark(result, path, folder) for path, result in sorted(results.items()) if result.task != "suite"]
    return {
        "suite": suites[-1] if suites else None,
        "suite_rows": [_suite_row(suites[-1], name) for name in suites[-1].metrics] if suites else [],
        "suite_details": json.dumps(suites[-1].details, indent=1) if suites else "",
        "benchmarks": others,
    }


def _suite_row(suite: Result, name: str) -> SuiteRow:
    reference = suite.baselines.get(RANDOM_WEIGHTS, {}).get(name)
    cells = []
    for column, metrics in suite.columns.items():
        if name not in metrics:
            cells.append(("–", "", False))
            continue
        value = metrics[name].value
        compared = reference is not None and reference.value and column != RANDOM_WEIGHTS
        ratio = f"×{significant(value / reference.value)}" if compared and reference is not None else ""
        cells.append((significant(value), ratio, value == suite.best(name)))
    direction = "higher is better" if suite.metrics[name].higher_is_better else "lower is better"
    return SuiteRow(name, direction, cells)


def _benchmark(result: Result, path: Path, folder: Path) -> dict[str, Any]:
    """One row for another result: only its first metric."""
    name = next(iter(result.metrics), "")
    values = {"this run": result.metrics} | dict(result.baselines) if name else {}
    return {
        "task": result.task,
        "benchmark": result.benchmark,
        "metric": name,
        "values": {
            model: f"{significant(metrics[name].value)} {metrics[name].unit}"
            for model, metrics in values.items()
            if name in metrics
        },
        "model": result.model_id,
        "page": quote(os.fsencode(os.path.relpath(path.with_name("page.html"), folder))),
    }


def _parameters(model: VJEPA) -> dict[str, str]:
    return {
        part: f"{significant(sum(p.numel() for p in getattr(model, part).parameters()) / 1e6)} M"
        for part in ("student", "predictor")
    }


def _model_name(config: ModelConfig) -> str:
    """Family member of this architecture, for any patch size; a description if there is none."""
    for name, preset in MODELS.items():
        if dataclasses.replace(preset(), patch_size=config.patch_size, tubelet_size=config.tubelet_size) == config:
            return name
    return f"ViT of width {config.width}"
