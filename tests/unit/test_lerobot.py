"""LeRobot data sets as sources and label tables; both versions are made here, of tiny videos."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.media import write_video
from tubelet.data.sample_index import build_index
from tubelet.data.sources import list_media
from tubelet.errors import TubeletError
from tubelet.grid import Modality
from tubelet.labels.table import read_labels

CAMERAS = ("observation.images.top", "observation.images.wrist")
TASKS = ("push the block", "lift the block", "push the block")
PATHS = {
    "v2.1": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "v3.0": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}


def make_dataset(root, version):
    """Three episodes of two cameras; in version 3 the first two are in one file."""
    features = {camera: {"dtype": "video", "shape": [64, 64, 3]} for camera in CAMERAS}
    features["action"] = {"dtype": "float32", "shape": [2]}
    info = {
        "codebase_version": version,
        "fps": 12,
        "chunks_size": 2,
        "video_path": PATHS[version],
        "features": features,
    }
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    rows = [{"episode_index": i, "tasks": [task], "length": 12} for i, task in enumerate(TASKS)]
    places = [(0, 0, 0.0, 1.0), (0, 0, 1.0, 2.0), (1, 0, 0.0, 1.0)]
    for camera in CAMERAS:
        for row, (chunk, file, start, end) in zip(rows, places, strict=True):
            number = row["episode_index"]
            place = {"episode_chunk": number // 2, "episode_index": number, "chunk_index": chunk, "file_index": file}
            path = root / PATHS[version].format(video_key=camera, **place)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_video(path, frames=24 if version == "v3.0" and not chunk else 12)
            names = ("chunk_index", "file_index", "from_timestamp", "to_timestamp")
            row |= {f"videos/{camera}/{name}": v for name, v in zip(names, (chunk, file, start, end), strict=True)}
    if version == "v3.0":
        (root / "meta/episodes/chunk-000").mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(rows), root / "meta/episodes/chunk-000/file-000.parquet")
    else:
        lines = [json.dumps({key: row[key] for key in ("episode_index", "tasks", "length")}) for row in rows]
        (root / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    return root.resolve()


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_episodes_of_all_cameras_are_samples_and_a_folder_or_glob_chooses_cameras(version, tmp_path):
    root = make_dataset(tmp_path / "robot", version)
    media = list_media([str(root)], spans=True)
    assert media.count(Modality.VIDEO) == 6 and media.count(Modality.IMAGE) == 0
    assert any("3 episodes of the cameras observation.images.top, observation.images.wrist" in n for n in media.notes)
    spans = [build_index(media, Modality.VIDEO).span(i) for i in range(6)]
    assert spans == [(0.0, 1.0), (1.0, 2.0), (0.0, 1.0)] * 2 if version == "v3.0" else [None] * 6
    chosen = "videos/*wrist" if version == "v3.0" else "videos/*/*wrist"
    wrist = list_media([str(root / chosen)], spans=True)
    assert wrist.count(Modality.VIDEO) == 3 and all("wrist" in path for path in wrist.videos)
    assert list_media([str(tmp_path)], spans=True).videos == media.videos  # found below a folder
    assert len(set(list_media([str(root)]).videos)) == (4 if version == "v3.0" else 6)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_tasks_are_the_classes_of_a_label_table_and_cameras_of_an_episode_stay_together(version, tmp_path):
    root = make_dataset(tmp_path / "robot", version)
    table = read_labels(root)
    assert table.classes == ("lift the block", "push the block") and len(table.rows) == 6
    assert {row.group for row in table.rows if row.labels == ("lift the block",)} == {"episode 1"}
    second = table.rows[1]
    assert (second.start_s, second.end_s) == ((1.0, 2.0) if version == "v3.0" else (None, None))
    assert all(row.path.is_file() for row in table.rows)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"codebase_version": "v1.6"}, "has version 'v1.6', this version reads v2.0, v2.1 and v3.0"),
        ({"features": {"observation.image": {"dtype": "image"}}}, "its cameras are images in Parquet files"),
        ({"video_path": "../{video_key}.mp4"}, "is outside of the data set"),
        ({"video_path": "{nothing}.mp4"}, "does not fit its list of episodes"),
        ({"video_path": "{episode_index:999999999d}.mp4"}, "expected names in braces"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_refused_with_its_reason(change, words, tmp_path):
    root = make_dataset(tmp_path / "robot", "v2.1")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | change))
    with pytest.raises(TubeletError, match=words):
        list_media([str(root)], spans=True)


def test_metadata_of_a_hugging_face_folder_is_a_list_and_a_label_table(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,cat\n")
    assert list_media([str(tmp_path / "metadata.csv")]).images == [str(tmp_path.resolve() / "a.png")]
    (row,) = read_labels(tmp_path / "metadata.csv").rows
    assert row.path.name == "a.png" and row.labels == ("cat",)
