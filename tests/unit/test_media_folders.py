"""Folders of media with splits, metadata files and folders of classes as label tables and as sources."""

import json

import pytest
from PIL import Image

from tests.helpers.media import write_image
from tests.helpers.pixel_labels import segmentation_image
from tubelet.config import FitConfig
from tubelet.data.sources import list_media
from tubelet.fitting.run import choose_splits, read_label_table
from tubelet.labels.records import LabelError
from tubelet.labels.table import read_labels

SPLITS = {"train": 6, "validation": 2, "test": 2}


def make_folder(folder, layout, splits=SPLITS):
    """Images of two classes in folders of splits: with metadata in each, or at the top, or in folders of classes."""
    top = ["file_name,label"]
    for split, count in splits.items():
        rows = []
        for number in range(count):
            label = ("cat", "dog")[number % 2]
            name = f"{label}/{number}.png" if layout == "classes" else f"{number}.png"
            (folder / split / name).parent.mkdir(parents=True, exist_ok=True)
            write_image(folder / split / name, index=number, size=32)
            rows.append({"file_name": name, "label": label})
            top.append(f"{split}/{name},{label}")
        if layout == "csv":
            lines = ["file_name,label", *(f"{row['file_name']},{row['label']}" for row in rows)]
            (folder / split / "metadata.csv").write_text("\n".join(lines) + "\n")
        elif layout == "jsonl":
            (folder / split / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if layout == "top":
        (folder / "metadata.csv").write_text("\n".join(top) + "\n")
    return folder


@pytest.mark.parametrize("layout", ["csv", "jsonl", "top", "classes"])
def test_splits_of_a_folder_are_those_of_its_table(layout, tmp_path):
    table = read_labels(make_folder(tmp_path, layout))
    assert table.classes == ("cat", "dog") and "split" in table.columns
    found = [(row.path.relative_to(tmp_path).parts[0], row.split) for row in table.rows]
    assert sorted(found) == sorted(
        (name, {"validation": "val"}.get(name, name)) for name, n in SPLITS.items() for _ in range(n)
    )
    assert all(row.path.is_file() for row in table.rows)
    assert len(list_media([str(tmp_path)]).images) == 10


def test_a_head_is_measured_on_validation_and_test(tmp_path):
    config = FitConfig(workers=0)
    table, _ = read_label_table(make_folder(tmp_path / "media", "csv"), config)
    ((train, held_out),) = choose_splits(table, config)
    assert {table.rows[row].split for row in train} == {"train"}
    assert {table.rows[row].split for row in held_out} == {"val", "test"}


def test_a_single_split_is_divided_and_faults_name_the_split(tmp_path):
    table = read_labels(make_folder(tmp_path / "one", "csv", {"train": 4}))
    assert not any(row.split for row in table.rows)
    assert read_labels(make_folder(tmp_path / "plain", "classes", {".": 4})).classes == ("cat", "dog")
    folder = make_folder(tmp_path / "bad", "csv")
    (folder / "validation/0.png").unlink()
    with pytest.raises(LabelError) as error:
        read_label_table(folder, FitConfig(workers=0))
    assert "validation/metadata.csv, line 2" in str(error.value)
    (folder / "test/metadata.csv").write_text("file_name,age\n0.png,3\n")
    with pytest.raises(LabelError, match="1 fault") as error:
        read_labels(folder)
    assert "path, age and path, label; make them equal" in str(error.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabelError) as error:
        read_labels(tmp_path / "empty")
    assert "has no annotation file, metadata.csv or folders of classes" in str(error.value)


@pytest.mark.parametrize("name", ["file_name", "image_file_name"])
def test_images_with_masks_are_pixel_labels(name, tmp_path):
    for split in ("train", "test"):
        (tmp_path / split / "images").mkdir(parents=True)
        (tmp_path / split / "masks").mkdir()
        for i in range(2):
            image, mask = segmentation_image(i)
            Image.fromarray(image).save(tmp_path / split / "images" / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / split / "masks" / f"{i}.png")
        rows = [json.dumps({name: f"images/{i}.png", "mask_file_name": f"masks/{i}.png"}) for i in range(2)]
        (tmp_path / split / "metadata.jsonl").write_text("\n".join(rows))
    table, task = read_label_table(tmp_path, FitConfig(workers=0))
    assert task.name == "segmentation" and [row.split for row in table.rows] == ["test", "test", "train", "train"]
    assert table.rows[3].mask == tmp_path / "train" / "masks" / "1.png" and table.classes == ("0", "1", "2")


def test_folders_of_frames_in_folders_of_classes_are_reported(tmp_path, caplog):
    for folder in ("run/seq_0", "run/seq_1", "walk"):  # the last has numbered images of its own
        (tmp_path / folder).mkdir(parents=True)
        for number in range(8):
            write_image(tmp_path / folder / f"{number}.png", index=number, size=32)
    with caplog.at_level("INFO"):
        assert len(read_labels(tmp_path).rows) == 24
    assert f"2 folders look like frames of videos, such as {tmp_path}/run/seq_0: the images are labeled" in caplog.text
