"""Small healthy inputs of every kind that the package reads, for the mutators to damage."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from media import picture, write_image, write_rotated, write_variable_rate, write_video
from tubelet.checkpoint import save_checkpoint
from tubelet.config import DataConfig, ModelConfig, PredictorConfig, Recipe, TrainConfig, to_dict
from tubelet.data.make_shards import write_shards
from tubelet.data.sample.truth import save_arrays
from tubelet.released import write_released
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
    Image.fromarray(picture(5, 32)).save(folder / "progressive.jpg", progressive=True)
    Image.fromarray(picture(5, 32)).convert("P").save(folder / "palette.png", transparency=0)


def _manifests(folder: Path) -> None:
    (folder / "header.csv").write_text('path,label\na.mp4,1\nb/c.mkv,2\n"d, e.jpg",3\n')
    (folder / "spaces.csv").write_text("a.mp4 1\nb/c.mkv 2\n")
    (folder / "rows.jsonl").write_text('{"path": "a.mp4", "label": 1}\n{"path": "b/c.jpg", "more": [1, {"x": null}]}\n')


def _configs(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(to_dict(TrainConfig(data=DataConfig(sources=("films",)))), indent=1))


def _checkpoints(folder: Path) -> None:
    torch.manual_seed(0)
    model = VJEPA(SMALL)
    config = replace(TrainConfig(), model=SMALL)
    run = folder.parent / "run"
    save_checkpoint(run, 3, model.state_dict(), config, keep=1).rename(folder / "a.safetensors")


def _released(folder: Path) -> None:
    torch.manual_seed(0)
    model = VJEPA(SIZES)
    parts = {"student": model.student, "predictor": model.predictor, "teacher": model.teacher}
    write_released(folder / "a.pt", SIZES, {part: module.bfloat16().state_dict() for part, module in parts.items()})


def _indices(folder: Path) -> None:
    films = folder.parent / "films"
    films.mkdir()
    write_video(films / "a.mp4", frames=24, size=32)
    write_image(films / "b.png", size=32)
    out = folder.parent / "shards"
    write_shards([str(films)], out, Recipe(size=16, fps=6, segment_s=1), workers=1)
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
            "depth_steps": np.ones((2, 256), np.float32),
            "instances": np.ones(shape, np.uint16),
            "pose": np.zeros((2, 5), np.float32),
            "motion": np.array(1),
            "tracks": np.zeros((2, 4, 2), np.float32),
            "visible": np.ones((2, 4), bool),
            "camera": np.ones(4, np.float32),
            "level": np.array("MAP01"),
        },
    )


SEEDS = {
    "video": _videos,
    "image": _images,
    "manifest": _manifests,
    "config": _configs,
    "checkpoint": _checkpoints,
    "released": _released,
    "index": _indices,
    "truth": _truths,
}
