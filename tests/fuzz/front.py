"""What the package does with an input that comes from outside, kind by kind, up to the first clip or tensor."""

import json
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import torch

from tests.fuzz.cli_values import run as run_command
from tests.fuzz.seeds import SMALL
from tubelet.checkpoint.adapters import apply_adapters
from tubelet.checkpoint.run import load_vjepa
from tubelet.checkpoint.sharded import read_header
from tubelet.checkpoint.transformers import _encoder_config, read_transformers_config
from tubelet.checkpoint.weights import LoadSpec
from tubelet.cli import COMMANDS
from tubelet.cli.command import parse
from tubelet.config import DataConfig, ShardConfig, TrainConfig
from tubelet.data.batch import MediaBytes
from tubelet.data.clips import center_clip_times, window_times
from tubelet.data.decode import Video, read_frames
from tubelet.data.images import read_image
from tubelet.data.shards.existing import check_plan
from tubelet.data.shards.reader import open_shards
from tubelet.data.shards.shard_file import ShardJob, read_marker
from tubelet.data.sources import list_media
from tubelet.datasets import diving48, sample_set, ssv2, youtube_vos
from tubelet.embed.search import search
from tubelet.embed.table import FORMAT, FeatureTable, read_settings
from tubelet.errors import DataError, TubeletError
from tubelet.heads.training_state import load_state
from tubelet.labels.checks import check_labels
from tubelet.labels.masks import read_mask
from tubelet.labels.records import LabelError, MaskShapes
from tubelet.labels.table import read_labels
from tubelet.model.encoder import Encoder
from tubelet.pretrained.convert import _metrics
from tubelet.pretrained.load import load_unplaced
from tubelet.sample_data.truth import read_index, read_truth
from tubelet.tasks.common.cache import read_features
from tubelet.tasks.common.pixel_features import read_slices
from tubelet.tasks.common.result import read_result, read_suite_v1
from tubelet.train.anomaly_guard import AnomalyGuard, LossHistory
from tubelet.train.collapse import CollapseDetector
from tubelet.train.run_directory import RunDirectory, read_config, read_metrics
from tubelet.view.report import _benchmark
from tubelet.view.run_curves import run_curves

SEEDS_FOLDER: list[Path] = []  # of the healthy inputs
SETTINGS_TEXT = json.dumps(
    {
        "format": FORMAT, "model": "run", "model_id": "a", "config_hash": "0", "weights": "teacher-0", "image_size": 32,
        "frames": 4, "fps": 4.0, "stride_s": None, "dense": False, "levels": False,
    }
)  # fmt: skip


def read(kind: str, path: Path, way: int) -> str:
    """Read an input as the package would; gives "read", or the reason why it is refused.

    Args:
        kind: of the input.
        path: the file; it may be moved.
        way: which of several ways, where there are several.
    """
    try:
        READERS[kind](path, way)
    except TubeletError as error:
        message = str(error)
        assert message.strip(), "a refusal gives no reason"
        assert "\n" not in message, f"a refusal is of several lines: {message!r}"
        return message.replace(str(path), "FILE").replace(str(path.parent), "FOLDER")
    return "read"


def _video(path: Path, way: int) -> None:
    media = path if way % 2 else MediaBytes("blob", path.read_bytes())
    if way % 5 == 0:
        read_frames(media)
        return

    with Video(media) as video:
        middle, _ = center_clip_times(video.info, 4, 4.0)
        windows, _ = window_times(video.info, 4, 4.0, None)
        video.clips([middle, windows[-1]])


def _image(path: Path, way: int) -> None:
    read_image(path if way % 2 else MediaBytes("blob", path.read_bytes()))


def _stack(path: Path, way: int) -> None:
    list_media([str(path)])
    with Video(path, full_depth=way % 2 == 0, window=(0, 4095)) as video:
        times = video.frame_times()
        video.clips([times[:4], times[-2:]])


def _manifest(path: Path, _: int) -> None:
    list_media([str(path)])


def _config(path: Path, way: int) -> None:
    if path.suffix == ".yaml" or way % 3 == 0:
        parse(COMMANDS["train"], "train", ["--config", str(path)])
        return
    read_config(path.rename(path.with_name("config.json")).parent)


def _model(path: Path, way: int) -> None:
    if way % 2:
        load_vjepa(path)
    else:
        load_unplaced(path, LoadSpec("teacher" if way % 3 else "student", predictor=way % 4 == 0))


def _index(path: Path, _: int) -> None:
    if path.suffix == ".jsonl":
        path = path.rename(path.with_name("index.jsonl"))
    shards = open_shards(path.parent)
    for place in {0, len(shards.members) - 1}:
        shards.read(place)


def _truth(path: Path, _: int) -> None:
    read_truth(path)


def _json(path: Path, _: int) -> None:
    """A document as each of its readers takes it; a foreign one as all of them do."""
    for name, reader in JSON_READERS.items():
        if path.stem in (name, "foreign"):
            reader(path)


def _renamed(path: Path, name: str) -> Path:
    target = path.with_name(name)
    if target != path:
        shutil.copy(path, target)
    return target


def _dataset(path: Path) -> None:
    data = _renamed(path, "dataset.json").parent
    for split in ("train", "val"):
        read_index(data, split)
        read_index(data, split, "images")
    sample_set.SampleSegmentation.load(data)


def _something(path: Path) -> None:
    healthy = {"labels": {"Holding something": "0"}, "train": [{"id": "1", "template": "Holding something"}]}
    for name, content in (healthy | {"validation": healthy["train"]}).items():
        target = path.parent / "labels" / f"{name}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(path.read_bytes() if path.stem in (name, "foreign") else json.dumps(content).encode())
    ssv2.SomethingSomethingV2.load(path.parent)


def _diving(path: Path) -> None:
    healthy = {"vocab": [["Back"]], "V2_train": [{"vid_name": "a", "label": 0}]}
    for name, content in (healthy | {"V2_test": healthy["V2_train"]}).items():
        own = {"vocabulary": "vocab", "diving": "V2_train"}.get(path.stem)
        target = path.with_name(f"Diving48_{name}.json")
        target.write_bytes(path.read_bytes() if own in (name, None) else json.dumps(content).encode())
    diving48.Diving48.load(path.parent)


def _note(path: Path) -> None:
    job = ShardJob(path.parent, 0, (), ShardConfig())
    job.shard.write_bytes(b"")
    shutil.copy(path, job.marker)
    read_marker(job)


def _vos(path: Path) -> None:
    _renamed(path, "meta.json")
    (path.parent / "JPEGImages").mkdir(exist_ok=True)
    youtube_vos.YouTubeVos.load(path.parent)


PLAN = {"recipe": {}, "shard_mb": 1.0, "sources": "", "files": 1, "source_size": 1}
JSON_READERS = {
    "evaluation": lambda path: (read_suite_v1(path), _metrics(_renamed(path, "evaluation.json").parent)),
    "result": lambda path: _benchmark(read_result(path), path, path.parent),
    "dataset": _dataset,
    "transformers": lambda path: _encoder_config(path, read_transformers_config(path)),
    "header": lambda path: read_header(_renamed(path, "header.json").parent),
    "settings": lambda path: read_settings(_renamed(path, "_settings.json").parent),
    "plan": lambda path: check_plan(path, {"recipe": {}, "shard_mb": 1.0, "sources": "", "files": 1, "source_size": 1}),
    "note": _note,
    "labels": _something,
    "train": _something,
    "diving": _diving,
    "vocabulary": _diving,
    "meta": _vos,
}


def _json_lines(path: Path, _: int) -> None:
    for name in ("metrics", "alerts", "bad_files"):
        if path.stem not in (name, "rows"):
            (path.parent / f"{name}.jsonl").write_text("")
    config = TrainConfig(data=DataConfig(sources=("videos",)))
    run, past, watch = RunDirectory(path.parent, config, resume=True), LossHistory(), CollapseDetector(8)
    rows = [row for row, _ in read_metrics(path.parent)]
    run.restore(10**6, lambda row: (past.add(row), watch.observe(row)))
    guard = AnomalyGuard(config, run)
    guard.restore(past, run.alerts)
    guard.skipped_batches()
    sum(config.batch_size / row["clips_per_s"] for row in rows if row.get("clips_per_s"))
    if rows:
        run_curves(rows)


def _parquet(path: Path, way: int) -> None:
    settings = SETTINGS_TEXT
    (path.parent / "_settings.json").write_text(settings)
    if path.stem != "part-000000":
        path = path.rename(path.with_name("part-000000.parquet"))
    if way % 2:
        known = json.loads(settings)
        kept = (
            "image_size",
            "frames",
            "fps",
            "stride_s",
            "dense",
            "levels",
            "model",
            "model_id",
            "config_hash",
            "weights",
        )
        table = FeatureTable(path.parent, {key: known[key] for key in kept})
        table.done()
        table.drop(["a.mp4"])
        return
    pooled = SimpleNamespace(pooled=torch.ones(1, 8), times=None)
    model = SimpleNamespace(weights_id="teacher-0", model_id="a", encode=lambda *_, **__: pooled)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search(path.parent, "query.png", 3, model)


def _tensors(path: Path, _: int) -> None:
    if path.suffix == ".pt":
        load_state(path, {"head": torch.nn.Linear(2, 2)}, torch.device("cpu"))
    elif path.stem == "features":
        read_features(path)
        read_slices(path, ("tokens", "pooled"), 1)
    else:
        apply_adapters(Encoder(SMALL), path.rename(path.with_name("adapter_model.safetensors")).parent)


def _command_line(path: Path, _: int) -> None:
    given = json.loads(path.read_bytes())
    folder = path.parent / "here"
    folder.mkdir()
    run_command(given["words"], given["invalid"], SEEDS_FOLDER[0], folder)


def _labels(path: Path, way: int) -> None:
    """A label table or annotation file, with the masks that are stored as shapes."""
    try:
        table = read_labels(path)
    except LabelError as error:
        faults = list(error.faults)
    else:
        faults = [fault for _, fault in table.faults]
        for row in table.rows:
            if isinstance(row.mask, MaskShapes):
                read_mask(row)
        if way % 2:
            try:
                check_labels(table)
            except LabelError as error:
                faults += error.faults
    assert not [fault for fault in faults if "\n" in fault or not fault.strip()], "a fault is not one line"
    if faults:
        raise DataError(faults[0])


READERS = {
    "video": _video,
    "image": _image,
    "manifest": _manifest,
    "config": _config,
    "checkpoint": _model,
    "released": _model,
    "index": _index,
    "truth": _truth,
    "json": _json,
    "jsonl": _json_lines,
    "parquet": _parquet,
    "tensors": _tensors,
    "cli": _command_line,
    "labels": _labels,
    "stack": _stack,
}


def place(kind: str, name: str, data: bytes, folder: Path, seeds: Path) -> Path:
    """Write an input where it can be read: in a folder of its own, an index with its healthy tar file."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / name
    SEEDS_FOLDER[:] = [seeds.resolve()]
    if kind == "index":
        shutil.copy(seeds / "index" / "shard-000000.tar", folder)
    path.write_bytes(data)
    return path
