"""Small healthy inputs of every kind that the package reads, for the mutators to damage."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import tifffile
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.helpers.annotations import BORIS, BORIS_EVENTS, CVAT, ELAN, LABEL_STUDIO, VIA3, instances
from tests.helpers.dicom_files import write_dicom
from tests.helpers.media import indexed_image, write_image, write_rotated, write_variable_rate, write_video
from tubelet.checkpoint.gguf import write_encoder_gguf
from tubelet.checkpoint.native_clip import NativeClip
from tubelet.checkpoint.run import save_checkpoint
from tubelet.checkpoint.vjepa2_1 import write_released
from tubelet.config import DataConfig, ModelConfig, PredictorConfig, ShardConfig, TrainConfig, to_dict
from tubelet.data.part_table import rows_to_table
from tubelet.data.shards.writer import write_shards
from tubelet.embed.table import FORMAT as TABLE_FORMAT
from tubelet.sample_data.truth import CLASSES, FORMAT, MOTIONS, NAME, save_arrays
from tubelet.vjepa import VJEPA

# 128 wide, as ViT-pico is: a .pt file does not tell how many heads it has.
SIZES = ModelConfig(
    width=128,
    depth=6,
    heads=4,
    levels=(1, 2, 4, 5),
    patch_size=2,
    predictor=PredictorConfig(width=96, depth=1, heads=4),
)
_NARROW = PredictorConfig(width=8, depth=1, heads=2)
SMALL = ModelConfig(width=8, depth=2, heads=2, levels=(0, 1), patch_size=2, predictor=_NARROW)


def write_seeds(folder: Path) -> Path:
    """A folder for each kind, with its healthy inputs; nothing is written if it is there."""
    if folder.is_dir():
        return folder
    partial = folder.with_suffix(".partial")
    for kind, write in SEEDS.items():
        (partial / kind).mkdir(parents=True, exist_ok=True)
        write(partial / kind)
    return partial.rename(folder)


def _videos(folder: Path) -> None:
    tiny = {"frames": 16, "size": 32, "gop": 8}
    write_video(folder / "h264.mp4", **tiny)
    write_video(folder / "front.mp4", container_options={"movflags": "faststart"}, **tiny)
    write_video(folder / "fragments.mp4", container_options={"movflags": "frag_keyframe+empty_moov"}, **tiny)
    write_rotated(folder / "rotated.mov", 90, **tiny)
    write_variable_rate(folder / "variable.mkv", frames=16, size=32)
    write_video(folder / "vp9.webm", codec="libvpx-vp9", bframes=0, **tiny)
    write_video(folder / "mpeg4.avi", codec="mpeg4", bframes=0, **tiny)
    write_video(folder / "mjpeg.mov", codec="mjpeg", bframes=0, frames=6, size=32)
    write_video(folder / "mpeg2.ts", codec="mpeg2video", fps=25, **tiny)
    write_video(folder / "h264.ts", **tiny)


def _images(folder: Path) -> None:
    write_image(folder / "still.jpg", orientation=6, size=32)
    write_image(folder / "still.png", size=32)
    write_image(folder / "still.webp", size=32)
    write_image(folder / "still.tif", size=32)
    Image.fromarray(indexed_image(5, 32)).save(folder / "progressive.jpg", progressive=True)
    Image.fromarray(indexed_image(5, 32)).convert("P").save(folder / "palette.png", transparency=0)


def _stacks(folder: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (4, 16, 16)).astype(np.uint16)
    np.save(folder / "a.npy", values)
    np.savez_compressed(folder / "a.npz", values)
    tifffile.imwrite(folder / "plain.tif", values, photometric="minisblack", metadata=None)
    tifffile.imwrite(folder / "packed.tif", values, photometric="minisblack", compression="zlib")
    tifffile.imwrite(folder / "imagej.tif", values, imagej=True, metadata={"axes": "TYX", "finterval": 0.1})
    tifffile.imwrite(folder / "ome.tif", values, ome=True, metadata={"axes": "ZYX"})
    write_dicom(folder / "a.dcm", values, FrameTime=40, RescaleSlope=2, RescaleIntercept=-1024, WindowWidth=400)


def _manifests(folder: Path) -> None:
    (folder / "header.csv").write_text('path,label\na.mp4,1\nb/c.mkv,2\n"d, e.jpg",3\n')
    (folder / "spaces.csv").write_text("a.mp4 1\nb/c.mkv 2\n")
    (folder / "rows.jsonl").write_text('{"path": "a.mp4", "label": 1}\n{"path": "b/c.jpg", "more": [1, {"x": null}]}\n')


def _configs(folder: Path) -> None:
    (folder / "config.json").write_text(
        json.dumps(to_dict(TrainConfig(data=DataConfig(sources=("videos",)))), indent=1)
    )
    (folder / "run.yaml").write_text(
        "model: vit-pico\nsteps: 9\ndata:\n  sources: [videos]\n  fps: 4\noptim: {lr: 1e-4}\n"
    )


def _checkpoints(folder: Path) -> None:
    torch.manual_seed(0)
    model = VJEPA(SMALL)
    config = replace(TrainConfig(), model=SMALL)
    run = folder.parent / "run"
    save_checkpoint(run, 3, model.state_dict(), config, keep=1).rename(folder / "a.safetensors")
    write_encoder_gguf(folder / "a.gguf", model.teacher.state_dict(), SMALL, "a", NativeClip(16, 4))


def _released(folder: Path) -> None:
    torch.manual_seed(0)
    model = VJEPA(SIZES)
    parts = {"student": model.student, "predictor": model.predictor, "teacher": model.teacher}
    write_released(folder / "a.pt", SIZES, {part: module.bfloat16().state_dict() for part, module in parts.items()})


def _indices(folder: Path) -> None:
    videos = folder.parent / "videos"
    videos.mkdir()
    write_video(videos / "a.mp4", frames=24, size=32)
    write_image(videos / "b.png", size=32)
    out = folder.parent / "shards"
    write_shards([str(videos)], out, ShardConfig(size=16, fps=6, segment_s=1), workers=1)
    for name in ("index.jsonl", "shard-000000.tar"):
        (out / name).rename(folder / name)


def _truths(folder: Path) -> None:
    import numpy as np

    shape = (2, 8, 8)
    save_arrays(
        folder / "a.npz",
        {
            "classes": np.ones(shape, np.uint8),
            "depth_codes": np.ones(shape, np.uint8),
            "depth_steps": np.ones((3, 256), np.float32),
            "instances": np.ones(shape, np.uint16),
            "pose": np.zeros((2, 5), np.float32),
            "motion": np.array(1),
            "tracks": np.zeros((2, 4, 2), np.float32),
            "visible": np.ones((2, 4), bool),
            "camera": np.ones(4, np.float32),
            "level": np.array("MAP01"),
        },
    )


def _json(folder: Path) -> None:
    documents = {
        "evaluation": {
            "checkpoint": "run/checkpoints/step-000000002.safetensors", "step": 2, "data": "set", "seed": 0,
            "clips": {"train": 4, "val": 2}, "features": ["trained", "random", "raw patches"],
            "tasks": [{"name": "depth", "metric": "RMSE", "higher_is_better": False, "details": {"R2": {"trained": 1}},
                       "values": {"trained": 0.5, "random": 0.7, "raw patches": None}}],
        },
        "result": {
            "task": "knn", "benchmark": "ImageNet", "data": "set", "model_id": "a-teacher-00", "protocol": "x",
            "metrics": {"top-1": 0.5}, "beside": {"random weights": {"top-1": 0.1}}, "units": {"top-1": "%"},
            "counts": {"classes": 3}, "skipped": [], "details": {}, "examples": [{"name": "a", "score": None}],
        },
        "dataset": {
            "name": NAME, "format": FORMAT, "classes": list(CLASSES), "motions": list(MOTIONS),
            "parameters": {"clips": 1, "images": 1, "seed": 0, "size": 64, "frames": 8, "fps": 7,
                           "validation_share": 0.2},
            "counts": {"train": {"videos": 1, "images": 1}}, "dropped": {"too dark": 3},
            "files": {split: {"videos": [{"file": "000000.mp4", "level": "MAP01", "motion": "still"}],
                              "images": [{"file": "000000.png", "level": "MAP01"}]} for split in ("train", "val")},
        },
        "transformers": {
            "model_type": "vjepa2", "patch_size": 16, "hidden_size": 64, "num_hidden_layers": 4, "mlp_ratio": 4,
            "num_attention_heads": 2, "tubelet_size": 2, "in_chans": 3, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        },
        "header": {"format": "tubelet-checkpoint-1", "step": "3", "config": "{}", "files": {"header.json": 9}},
        "settings": {
            "format": TABLE_FORMAT, "model": "run", "model_id": "a", "config_hash": "0", "weights": "teacher-0",
            "image_size": 32, "frames": 4, "fps": 4.0, "stride_s": None, "dense": False, "levels": False,
        },
        "plan": {"recipe": asdict(ShardConfig()), "shard_mb": 1024, "files": 2, "source_size": 9, "sources": "ab"},
        "note": {"size": 0, "bad": [{"path": "a.mp4", "reason": "x"}], "members": [
            {"shard": "shard-000000.tar", "name": "00000000-0000.mp4", "offset": 512, "size": 9, "crc32": 1,
             "modality": "video", "source": "a.mp4", "start_s": 0.0, "duration_s": 1.0, "fps": 4.0, "width": 16,
             "height": 16}]},
        "labels": {"Holding something": "0", "Dropping something": "1"},
        "train": [{"id": "1", "template": "Holding [something]"}],
        "diving": [{"vid_name": "a_0001", "label": 0, "start_frame": 0, "end_frame": 48}],
        "vocabulary": [["Back", "15som"], ["Front", "FREE"]],
        "meta": {"videos": {"a": {"objects": {"1": {"frames": ["00000"]}}}}},
        "foreign": {"_via_settings": {"ui": {}}, "_via_img_metadata": {"a.jpg": {"regions": [{"attributes": {}}]}}},
    }  # fmt: skip
    for name, content in documents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def _json_lines(folder: Path) -> None:
    rows = [{"step": step, "loss": 0.5, "lr": 1e-3, "clips_per_s": 9.0, "effective_rank": 5.0} for step in range(1, 4)]
    alerts = [
        {"step": 2, "kind": "spike", "message": "a spike", "batches": 3},
        {"step": 3, "kind": "save", "message": "full"},
    ]
    files = {"metrics": rows, "alerts": alerts, "bad_files": [{"path": "a.mp4", "reason": "is cut off"}]}
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


def _tables(folder: Path) -> None:
    import numpy as np
    import pyarrow.parquet as pq

    row = {
        "path": "a.mp4", "modality": "video", "size_bytes": 9, "changed_s": 1.0, "clip_index": 0, "clips": 2,
        "start_s": 0.0, "end_s": 1.0, "times": np.zeros(2), "grid": np.array([2, 2, 2], np.int32), "model_id": "a",
        "config_hash": "0",
        "pooled": np.ones(8, np.float16),
    }  # fmt: skip
    table = rows_to_table([row, row | {"clip_index": 1}, row | {"path": "b.png", "clips": 1}], {"format": TABLE_FORMAT})
    pq.write_table(table, folder / "part-000000.parquet", compression="zstd")
    whole = folder.parent / "table"
    whole.mkdir()
    (whole / "_settings.json").write_bytes((folder.parent / "json" / "settings.json").read_bytes())
    pq.write_table(table, whole / "part-000000.parquet")


def _tensors(folder: Path) -> None:
    save_file({"tokens": torch.ones(2, 3, 4), "pooled": torch.ones(2, 4)}, folder / "features.safetensors")
    layer = "blocks.0.attention.qkv"
    adapters = {f"{layer}.lora_A.weight": torch.ones(2, 8), f"{layer}.lora_B.weight": torch.ones(24, 2)}
    save_file(adapters, folder / "adapter.safetensors")
    torch.save({"head": torch.nn.Linear(2, 2).state_dict(), "step": 3, "version": 2}, folder / "state.pt")


def _labels(folder: Path) -> None:
    (folder / "spans.csv").write_text(
        "path,start_s,end_s,label,speed,split,group\na.mp4,0,1:02.5,walk|run,1.5,train,m1\nb.mp4,3,4,rest,-2,val,m2\n"
    )
    (folder / "masks.csv").write_text("path;mask;weight\na.jpg;a.png;1,5\nb.jpg;b.png;2\n")
    (folder / "rows.jsonl").write_text('{"path": "a.mp4", "label": ["x", "y"]}\n{"path": "b.mp4", "start_frame": 3}\n')
    (folder / "via.json").write_text(json.dumps(VIA3))
    (folder / "project.boris").write_text(json.dumps(BORIS))
    (folder / "events.tsv").write_text(BORIS_EVENTS)
    (folder / "a.eaf").write_text(ELAN)
    (folder / "cvat.xml").write_text(CVAT)
    (folder / "tasks.json").write_text(json.dumps(LABEL_STUDIO))
    (folder / "coco.json").write_text(instances())


SEEDS = {
    "video": _videos,
    "image": _images,
    "manifest": _manifests,
    "config": _configs,
    "checkpoint": _checkpoints,
    "released": _released,
    "index": _indices,
    "truth": _truths,
    "json": _json,
    "jsonl": _json_lines,
    "parquet": _tables,
    "tensors": _tensors,
    "labels": _labels,
    "stack": _stacks,
}
