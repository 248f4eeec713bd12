"""What the package does with an input that comes from outside, kind by kind, up to the first clip or tensor."""

import shutil
from pathlib import Path

import numpy as np

from tubelet.checkpoint import load_vjepa
from tubelet.data.clips import centre_clip_times, window_times
from tubelet.data.decode import VideoInfo, read_clips, read_frames
from tubelet.data.images import read_image
from tubelet.data.sample.truth import read_truth
from tubelet.data.shards import open_shards
from tubelet.data.sources import list_media
from tubelet.pretrained.backbone import build
from tubelet.pretrained.weights import Wanted
from tubelet.train.state import read_config
from tubelet.types import Blob, TubeletError


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
        said = str(error)
        assert said.strip(), "a refusal gives no reason"
        assert "\n" not in said, f"a refusal is of several lines: {said!r}"
        return said.replace(str(path), "FILE").replace(str(path.parent), "FOLDER")
    return "read"


def _video(path: Path, way: int) -> None:
    media = path if way % 2 else Blob("blob", path.read_bytes())
    if way % 5 == 0:
        read_frames(media)
        return

    def choose(info: VideoInfo) -> list[np.ndarray]:
        middle, _ = centre_clip_times(info, 4, 4.0)
        windows, _ = window_times(info, 4, 4.0, None)
        return [middle, windows[-1]]

    read_clips(media, choose)


def _image(path: Path, way: int) -> None:
    read_image(path if way % 2 else Blob("blob", path.read_bytes()))


def _manifest(path: Path, _: int) -> None:
    list_media([str(path)])


def _config(path: Path, _: int) -> None:
    read_config(path.rename(path.with_name("config.json")).parent)


def _model(path: Path, way: int) -> None:
    if way % 2:
        load_vjepa(path)
    else:
        build(path, Wanted("teacher" if way % 3 else "student", predictor=way % 4 == 0))


def _index(path: Path, _: int) -> None:
    if path.suffix == ".jsonl":
        path = path.rename(path.with_name("index.jsonl"))
    shards = open_shards(path.parent)
    for place in {0, len(shards.members) - 1}:
        shards.read(place)


def _truth(path: Path, _: int) -> None:
    read_truth(path)


READERS = {
    "video": _video,
    "image": _image,
    "manifest": _manifest,
    "config": _config,
    "checkpoint": _model,
    "released": _model,
    "index": _index,
    "truth": _truth,
}


def place(kind: str, name: str, data: bytes, folder: Path, seeds: Path) -> Path:
    """Write an input where it can be read: alone in a folder, with the healthy tar beside an index."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / name
    if kind == "index":
        shutil.copy(seeds / "index" / "shard-000000.tar", folder)
    path.write_bytes(data)
    return path
