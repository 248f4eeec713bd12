"""LeRobot data sets of versions 2.0, 2.1 and 3.0 on a local disk or behind a URL, without the lerobot package.

`meta/info.json` has the version, the features and the template of the videos' paths. In version 2 each episode has a
file for each camera, and `meta/episodes.jsonl` lists the episodes. In version 3 a file holds several episodes, and the
tables in `meta/episodes` have the file and the timestamps of each episode for each camera.
"""

import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tubelet.data.size_limits import MANIFEST_BYTES
from tubelet.data.storage import StorageError, exists, fetch, find, is_url, size_of
from tubelet.data.tables import decode_list
from tubelet.errors import DataError, TubeletError
from tubelet.io.arrays import read_parquet
from tubelet.io.text import file_error, parse_json, read_bytes, read_json

INFO = "meta/info.json"
METADATA = r"/meta/(?:info\.json|episodes\.jsonl|episodes/chunk-\d+/file-\d+\.parquet)$"
"""Pattern of the files that a data set is found by: a folder without `INFO` is a damaged one."""
_TEMPLATE = re.compile(r"(?:[^{}]|\{\w+(?::0?\d{1,2}d)?\})+", re.ASCII)
_REMEDY = "download the data set again"
_VERSION_2 = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_VERSION_3 = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


@dataclass(frozen=True)
class EpisodeVideo:
    """What one camera recorded of one episode.

    Attributes:
        path: the file, absolute, or its URL.
        camera: name of the camera, a feature of the data set.
        episode: number of the episode, from 0.
        tasks: descriptions of what is done in it.
        start_s: start of the episode in the file, in seconds.
        end_s: end of the episode in the file, in seconds; None for the end of the file.
    """

    path: str
    camera: str
    episode: int
    tasks: tuple[str, ...]
    start_s: float = 0.0
    end_s: float | None = None


def dataset_root(source: str) -> str | None:
    """The data set that a folder or file is in or is, absolute or a URL; None if there is none.

    Raises:
        DataError: its meta/info.json is damaged.
    """
    if not is_url(source):
        path = Path(source)
        return next((str(folder) for folder in (path, *path.parents) if is_dataset(str(folder))), None)
    scheme, _, rest = source.partition("://")
    parts = rest.rstrip("/").split("/")
    folders = ("/".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((url for folder in folders if folder and _is_remote_dataset(url := f"{scheme}://{folder}")), None)


def _is_remote_dataset(url: str) -> bool:
    try:
        return is_dataset(url)
    except StorageError:  # what is above the source need not be readable
        return False


def is_dataset(root: str) -> bool:
    """Whether a folder, or a URL with a meta/info.json, is a LeRobot data set.

    Raises:
        DataError: its meta/info.json is damaged or missing, but it has a list of episodes.
        StorageError: the URL cannot be reached.
    """
    if is_url(root):
        if not exists(f"{root}/{INFO}"):
            return False
        return "codebase_version" in parse_json(fetch(f"{root}/{INFO}"), f"{root}/{INFO}", dict[str, Any], _REMEDY)
    info = Path(root, INFO)
    listed = any(Path(root, "meta", name).exists() for name in ("episodes.jsonl", "episodes", "tasks.jsonl"))
    if listed and not info.exists() and Path(root, "videos").is_dir():
        raise DataError(f"{info}: is missing, and {root} has the episodes of a LeRobot data set; {_REMEDY}")
    try:
        return info.is_file() and "codebase_version" in read_json(info, dict[str, Any], _REMEDY)
    except (TubeletError, OSError):
        if listed:
            raise
        return False  # a file of this name that has nothing to do with LeRobot


def read_episodes(root: str) -> list[EpisodeVideo]:
    """The episodes of a data set, each once for each camera; camera by camera.

    Args:
        root: the folder, or its URL.

    Raises:
        DataError: it is of another version, has no videos, or its lists are damaged.
        StorageError: the URL cannot be reached.
    """
    if not is_url(root):
        return _read_episodes(Path(root))
    with tempfile.TemporaryDirectory(prefix="tubelet-lerobot-") as folder:
        copy = Path(folder, "copy").resolve()
        for file in find(f"{root}/meta")[0]:
            if file.endswith((INFO, "meta/episodes.jsonl")) or file.startswith(f"{root}/meta/episodes/"):
                _download(file, copy / file.removeprefix(f"{root}/"))
        try:
            episodes = _read_episodes(copy)
        except TubeletError as error:
            raise DataError(str(error).replace(str(copy), root)) from error
    return [replace(each, path=f"{root}/{Path(each.path).relative_to(copy).as_posix()}") for each in episodes]


def _download(url: str, path: Path) -> None:
    """Copy a list of a data set, whose name is below the folder of the copy."""
    size = size_of(url)
    if size > MANIFEST_BYTES or ".." in path.parts:
        raise DataError(f"{url}: has {size} bytes, expected a list of at most {MANIFEST_BYTES}; copy the data set")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(fetch(url))


def _read_episodes(root: Path) -> list[EpisodeVideo]:
    info = read_json(root / INFO, dict[str, Any], _REMEDY)
    version = str(info["codebase_version"])
    features = info.get("features")
    if not isinstance(features, dict):
        raise file_error(root / INFO, "has no features", _REMEDY)
    kinds = {name: each.get("dtype") for name, each in features.items() if isinstance(each, dict)}
    cameras = [name for name, kind in kinds.items() if kind == "video"]
    if not cameras:
        images = ", ".join(name for name, kind in kinds.items() if kind == "image")
        found = f"its cameras are images in Parquet files ({images})" if images else "it has no camera"
        raise file_error(root / INFO, f"names no video: {found}", "convert the data set to videos")
    if version.startswith("v2."):
        rows = _json_lines(root / "meta/episodes.jsonl")
    elif version.startswith("v3."):
        tables = sorted((root / "meta/episodes").rglob("*.parquet"))
        if not tables:
            raise file_error(root / "meta/episodes", "has no Parquet file", _REMEDY)
        rows = [row for table in tables for row in _episode_table(table, cameras)]
    else:
        raise file_error(root / INFO, f"has version {version!r:.40}, this version reads v2.0, v2.1 and v3.0", _REMEDY)
    template = info.get("video_path") or (_VERSION_2 if version.startswith("v2.") else _VERSION_3)
    chunk = info.get("chunks_size", 1000)
    if not _TEMPLATE.fullmatch(str(template)):
        raise file_error(root / INFO, f"has the video_path {template!r:.100}, expected names in braces", _REMEDY)
    try:
        return [
            _episode_video(root, str(template), row, camera, int(chunk), version.startswith("v3."))
            for camera in cameras
            for row in rows
        ]
    except (KeyError, ValueError, TypeError, IndexError, ZeroDivisionError) as error:
        reason = f"does not fit its list of episodes ({type(error).__name__}: {error})"
        raise file_error(root / INFO, reason, _REMEDY) from error


def _episode_video(
    root: Path, template: str, row: dict[str, Any], camera: str, chunk: int, several: bool
) -> EpisodeVideo:
    episode = int(row["episode_index"])
    fields: dict[str, Any] = {"video_key": camera, "episode_index": episode, "episode_chunk": episode // chunk}
    start_s, end_s = 0.0, None
    if several:
        fields |= {name: int(row[f"videos/{camera}/{name}"]) for name in ("chunk_index", "file_index")}
        start_s, end_s = (float(row[f"videos/{camera}/{name}"]) for name in ("from_timestamp", "to_timestamp"))
        if not 0 <= start_s < end_s:
            raise ValueError(f"episode {episode} is from {start_s:g} to {end_s:g} s of {camera}")
    path = root / template.format(**fields)
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{path} is outside of the data set")
    tasks = row.get("tasks") or ()
    tasks = (tasks,) if isinstance(tasks, str) else tuple(str(task) for task in tasks)
    return EpisodeVideo(str(path), camera, episode, tasks, start_s, end_s)


def _json_lines(path: Path) -> list[dict[str, Any]]:
    lines = decode_list(read_bytes(path, _REMEDY), path).split("\n")
    return [
        parse_json(line, f"{path}, line {number}", dict[str, Any], _REMEDY)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]


def _episode_table(path: Path, cameras: Sequence[str]) -> list[dict[str, Any]]:
    table = read_parquet(path, None, _REMEDY)
    parts = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
    column_names = ["episode_index", "tasks", *(f"videos/{camera}/{part}" for camera in cameras for part in parts)]
    rows: list[dict[str, Any]] = table.select([name for name in column_names if name in table.column_names]).to_pylist()
    return rows
