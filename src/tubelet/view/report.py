"""`tubelet report`: settings, metrics and feature maps of a run on one page."""

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from tubelet.checkpoint.run import list_checkpoints, load_vjepa
from tubelet.config import MODELS, ModelConfig, TrainConfig
from tubelet.data.sources import list_media
from tubelet.errors import DataError, DecodeError, MissingFileError, TubeletError
from tubelet.io.overwrite_checks import check_output
from tubelet.model.encoder import random_encoder
from tubelet.sample_data.truth import SampleEntry, read_index
from tubelet.tasks.common.extract import subsample_evenly
from tubelet.tasks.common.result import RANDOM_WEIGHTS, Result, read_result, read_suite_v1
from tubelet.train.run_directory import (
    CONFIG,
    read_alerts,
    read_bad_files,
    read_config,
    read_metrics,
)
from tubelet.view.feature_maps import (
    RANDOM,
    SEARCHED_CLIPS,
    TRAINED,
    Gallery,
    find_tracks,
    pca_strips,
    read_sample_clip,
    read_video_clip,
    track_object,
)
from tubelet.view.page import Line, chart, significant, write_page
from tubelet.vjepa import VJEPA

SHOWN_CLIPS, SHOWN_OBJECTS, SHOWN_BAD_FILES, SHOWN_ALERTS = 4, 2, 50, 50
POINTS = 500  # maximum points of a curve at the width of a page


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
    videos = _find_videos(data, config) if entries is None else []
    rows, bad, alerts = ([row for row, _ in read_metrics(run)], read_bad_files(run), read_alerts(run))
    model = load_vjepa(run)[0] if list_checkpoints(run) else None
    gallery = Gallery()
    values = _run_values(run, config, rows, model) | {
        **_evaluations(run, out.parent),
        "bad": bad,
        "alerts": alerts,
        "shown_bad": SHOWN_BAD_FILES,
        "shown_alerts": SHOWN_ALERTS,
        "strips": [],
        "tracked_objects": [],
        "unread": [],
        "own": entries is None and model is not None,
        "no_images_reason": "",
    }
    if model is None:
        values["no_images_reason"] = "The run has no checkpoint yet."
    elif entries is not None:
        values |= _sample_features(model, config, entries, gallery)
    elif videos:
        values |= _video_features(model, config, videos, gallery)
    else:
        values["no_images_reason"] = (
            "None of the run's source videos can be read here; pass a folder of videos with --data."
        )
    write_page("report.html", out, values | {"frames": gallery.frames})


def _run_values(run: Path, config: TrainConfig, rows: list[dict[str, Any]], model: VJEPA | None) -> dict[str, Any]:
    """Settings and metrics of a run, for the template."""
    return {
        "run": run.resolve().name,
        "config": config,
        "model_name": _model_name(config.model),
        "sizes": _parameters(model or VJEPA(config.model)),
        "steps": rows[-1]["step"] if rows else 0,
        "hours": _duration(sum(config.batch_size / row["clips_per_s"] for row in rows if row.get("clips_per_s"))),
        "last": rows[-1] if rows else None,
        "curves": _curves(rows) if rows else None,
    }


def _sample_features(model: VJEPA, config: TrainConfig, entries: list[SampleEntry], gallery: Gallery) -> dict[str, Any]:
    """Feature maps and tracked objects of a sample set."""
    size, frames, tubelet = config.data.image_size, config.data.frames, config.model.tubelet_size
    encoders = {TRAINED: model.teacher, RANDOM: random_encoder(config.model, config.seed)}
    chosen = subsample_evenly(entries, SHOWN_CLIPS)
    clips = [read_sample_clip(entry, size, frames, tubelet) for entry in chosen]
    tracks = find_tracks(subsample_evenly(entries, SEARCHED_CLIPS), config.model, size, frames, SHOWN_OBJECTS)
    return {
        "strips": pca_strips(clips, encoders, gallery),
        "tracked_objects": [track_object(track, encoders, gallery) for track in tracks],
    }


def _find_videos(data: Path | None, config: TrainConfig) -> Sequence[str]:
    """Videos of a folder, or those of the run's own sources that still exist.

    Raises:
        TubeletError: if `data` has no videos.
    """
    if data is None:
        try:
            return list_media(config.data.sources, config.data.allow_path).videos
        except TubeletError:
            return []  # the run may be from another machine
    videos = list_media((str(data),)).videos
    if not videos:
        raise DataError(f"{data}: no videos found, and not a sample set (dataset.json is missing)")
    return videos


def _video_features(model: VJEPA, config: TrainConfig, videos: Sequence[str], gallery: Gallery) -> dict[str, Any]:
    """Feature maps of videos without ground truth."""
    data, clips, unread = config.data, [], []
    for video in subsample_evenly(videos, SHOWN_CLIPS):
        try:
            clips.append(read_video_clip(video, data.image_size, data.frames, config.model.tubelet_size, data.fps))
        except DecodeError as error:
            unread.append(f"{video}: {error}")
    encoders = {TRAINED: model.teacher, RANDOM: random_encoder(config.model, config.seed)}
    return {"strips": pca_strips(clips, encoders, gallery) if clips else [], "unread": unread}


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
    """One row for another result: its first metric alone."""
    name = next(iter(result.metrics), "")
    values = {"this run": result.metrics} | dict(result.baselines) if name else {}
    return {
        "task": result.task,
        "benchmark": result.benchmark,
        "metric": name,
        "values": {
            model: f"{significant(own[name].value)} {own[name].unit}" for model, own in values.items() if name in own
        },
        "model": result.model_id,
        "page": quote(os.fsencode(os.path.relpath(path.with_name("page.html"), folder))),
    }


def _curves(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Charts by name."""
    monitored = [row for row in rows if "effective_rank" in row]
    smooth = {
        "loss": ("loss", "prediction_loss", "context_loss"),
        "speed": ("clips_per_s",),
        "wait": ("data_wait_fraction",),
    }
    names = {
        "loss": "total",
        "prediction_loss": "prediction",
        "context_loss": "context (unweighted by λ)",
        "clips_per_s": "clips/s",
        "data_wait_fraction": "share",
    }
    units = {"loss": "loss (L1)", "speed": "clips / s", "wait": "share of time"}
    charts: dict[str, Any] = {
        key: chart([line for name in keys for line in _smoothed(rows, name, names[name])], y=units[key],
                   size=(6.6, 3.0) if key == "loss" else (5.0, 2.0))
        for key, keys in smooth.items()
    }  # fmt: skip
    for key, name, unit in (
        ("grad_norm", "grad_norm", "gradient norm"),
        ("lr", "lr", "learning rate"),
        ("ema", "ema", "momentum"),
        ("weight", "context_weight", "λ"),
    ):
        logged = any(name in row for row in rows)  # runs of version 0.1 have no gradient norm
        charts[key] = chart([Line(unit, *_thinned(rows, name))], y=unit) if logged else None
    for key, figure, unit in (("rank", "effective_rank", "effective rank"), ("std", "channel_std", "channel std")):
        for who in ("teacher", "predictor"):
            lines = _levels(monitored, who, figure)
            charts[f"{who}_{key}"] = chart(lines, y=unit) if lines else None
    return charts


def _levels(rows: list[dict[str, Any]], who: str, figure: str) -> list[Line]:
    """A curve for each level of teacher or predictor, shallow to deep; the teacher's last level has no prefix."""
    names = sorted({name for row in rows for name in row if name.endswith("_" + figure) and name.startswith(who)})
    style = {"marker": "o", "markersize": 3} if len(rows) < 60 else {}
    if who == "teacher":
        names.append(figure)
    return [
        Line(f"level {level}", *_thinned([row for row in rows if name in row], name), style=style)
        for level, name in enumerate(names, start=1)
        if any(name in row for row in rows)
    ]


def _smoothed(rows: list[dict[str, Any]], name: str, label: str) -> list[Line]:
    """A faint curve, and its running mean over 1/50 of the run."""
    x, y = _thinned(rows, name)
    width = max(1, len(y) // 50)
    padded = np.pad(y, width, mode="edge")
    kernel = np.ones(2 * width + 1) / (2 * width + 1)
    return [Line(label, x, y, faint=True), Line(label, x, np.convolve(padded, kernel, mode="valid").tolist())]


def _thinned(rows: list[dict[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values, averaged in groups if there are more than POINTS."""
    size = max(1, len(rows) // POINTS)
    x = [rows[min(i + size // 2, len(rows) - 1)]["step"] for i in range(0, len(rows), size)]
    values = np.array([row.get(name) for row in rows], dtype=float)  # null, a value that was not finite, becomes nan
    return x, [_mean(values[i : i + size]) for i in range(0, len(rows), size)]


def _mean(values: np.ndarray) -> float:
    """Mean of finite values; nan, a gap in the curve, if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


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


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
