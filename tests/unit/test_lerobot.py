"""LeRobot data sets as sources and label tables; both versions are made here, of tiny videos."""

import json
from pathlib import Path

import fsspec
import pandas as pd
import pytest

from tests.helpers.lerobot import make_dataset
from tests.helpers.media import write_video
from tests.helpers.training import tiny_config, train_quietly
from tubelet.config import EmbedConfig, FitConfig
from tubelet.data.part_table import parts
from tubelet.data.sample_index import build_index
from tubelet.data.sources import list_media
from tubelet.embed.collection import embed_collection
from tubelet.errors import TubeletError
from tubelet.fitting.run import fit_head, read_label_table
from tubelet.grid import Modality
from tubelet.labels.table import read_labels
from tubelet.pretrained.load import load


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_episodes_of_all_cameras_are_samples_and_a_folder_or_glob_chooses_cameras(version, tmp_path):
    root = make_dataset(tmp_path / "robot", version)
    media = list_media([str(root)])
    assert media.count(Modality.VIDEO) == 6 and media.count(Modality.IMAGE) == 0
    assert any("3 episodes of the cameras observation.images.top, observation.images.wrist" in n for n in media.notes)
    spans = [build_index(media, Modality.VIDEO).span(i) for i in range(6)]
    assert spans == [(0.0, 1.0), (1.0, 2.0), (0.0, 1.0)] * 2 if version == "v3.0" else [None] * 6
    chosen = "videos/*wrist" if version == "v3.0" else "videos/*/*wrist"
    wrist = list_media([str(root / chosen)])
    assert wrist.count(Modality.VIDEO) == 3 and all("wrist" in path for path in wrist.videos)
    assert list_media([str(tmp_path)]).videos == media.videos  # found below a folder
    assert len(set(media.videos)) == (4 if version == "v3.0" else 6)


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
        list_media([str(root)])


def test_a_damaged_data_set_is_no_folder_of_plain_files(tmp_path):
    root = make_dataset(tmp_path / "robot", "v3.0")
    (root / "meta/info.json").write_text('{"codebase_version": "v3')
    for read in (lambda: list_media([str(tmp_path)]), lambda: read_labels(root)):
        with pytest.raises(TubeletError, match=r"meta/info\.json.*download the data set again"):
            read()
    (root / "meta/info.json").unlink()
    for read in (lambda: list_media([str(tmp_path)]), lambda: list_media([str(root / "videos")])):
        with pytest.raises(TubeletError, match=r"meta/info\.json: is missing"):
            read()
    (tmp_path / "other/meta").mkdir(parents=True)
    write_video(tmp_path / "other/a.mp4", frames=12)
    (tmp_path / "other/meta/info.json").write_text("no JSON, and no list of episodes")
    assert list_media([str(tmp_path / "other")]).count(Modality.VIDEO) == 1


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_data_set_behind_a_url_has_the_episodes_of_the_folder(version, tmp_path):
    root = make_dataset(tmp_path / "robot", version)
    url = f"memory:///{version}/robot"
    fsspec.filesystem("memory").put(f"{root}/", f"{url}/", recursive=True)
    near, far = list_media([str(root)]), list_media([url])
    assert [path.removeprefix(f"{url}/") for path in far.videos] == [
        str(Path(p).relative_to(root)) for p in near.videos
    ]
    spans = [[build_index(media, Modality.VIDEO).span(i) for i in range(6)] for media in (near, far)]
    assert spans[0] == spans[1] and any(f"{url}: LeRobot data set, 3 episodes" in note for note in far.notes)
    wrist = list_media([f"{url}/videos/{'*wrist' if version == 'v3.0' else '*/*wrist'}"])
    assert wrist.count(Modality.VIDEO) == 3 and not any("missing" in note for note in wrist.notes)
    assert list_media([f"memory://{version}"]).videos == far.videos
    with pytest.raises(TubeletError, match="labels are read from a local disk"):
        read_labels(url)
    fsspec.filesystem("memory").rm(far.videos[0])
    assert any("videos of episodes are missing" in note for note in list_media([url]).notes)
    fsspec.filesystem("memory").pipe(f"{url}/meta/info.json", b'{"codebase_version": "v1.6", "features": {"a": {}}}')
    with pytest.raises(TubeletError, match=rf"{url}/meta/info.json: names no video"):
        list_media([url])


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_training_features_and_a_head_of_a_data_set(version, tmp_path):
    root = make_dataset(tmp_path / "robot", version, ["push the block", "lift the block"] * 3)
    train_quietly(tiny_config(root, steps=2), tmp_path / "run")
    model = load(tmp_path / "run", device="cpu")
    made = embed_collection(
        model, [str(root)], tmp_path / "table", EmbedConfig(image_size=32, frames=4, fps=12, workers=0)
    )
    assert (made.files, made.rows, made.bad) == (12, 36, 0)
    table = pd.concat([pd.read_parquet(part) for part in parts(tmp_path / "table")])
    assert (table["end_s"] - table["span_start_s"].fillna(0) < 1).all() and table["path"].nunique() in (6, 12)
    config = FitConfig(networks=("linear",), epochs=2, learning_rates=(1e-2,), weight_decays=(0.0,), workers=0, folds=2)
    labels, task = read_label_table(root, config)
    assert task.name == "classification" and labels.durations_s
    _, result = fit_head(labels, task, model, str(tmp_path / "run"), config, cache=tmp_path / "cache")
    assert result.spec.classes == ("lift the block", "push the block")


def test_metadata_of_a_hugging_face_folder_is_a_list_and_a_label_table(tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "metadata.csv").write_text("file_name,label\na.png,cat\n")
    assert list_media([str(tmp_path / "metadata.csv")]).images == [str(tmp_path.resolve() / "a.png")]
    (row,) = read_labels(tmp_path / "metadata.csv").rows
    assert row.path.name == "a.png" and row.labels == ("cat",)
