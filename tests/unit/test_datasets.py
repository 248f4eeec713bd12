"""Layouts of labeled data sets in their standard form, and errors for malformed ones."""

import sys
from pathlib import Path

import pytest

from tests.helpers.files import put
from tubelet import datasets
from tubelet.datasets import (
    AnticipationDataset,
    ClassificationDataset,
    DepthDataset,
    SegmentationDataset,
    TrackingDataset,
    VideoObjectDataset,
    diving48,
    epic_kitchens,
    imagenet,
    kinetics,
    layout,
    ssv2,
    video_lists,
)
from tubelet.datasets.records import LabeledFile, drop_missing_files
from tubelet.errors import TubeletError

NEW_LAYOUT = """
from tubelet.datasets import ClassificationDataset, Layout, ProbeProtocol

class Marked(Layout[ClassificationDataset]):
    record = ClassificationDataset
    expected = "marked videos (marker.txt)"

    @staticmethod
    def detect(root):
        return (root / "marker.txt").exists()

    @staticmethod
    def load(root):
        return ClassificationDataset(name="marked", classes=(), train=[], test=[], protocol=ProbeProtocol())
"""


def test_a_new_file_is_all_that_a_data_set_needs(tmp_path, monkeypatch):
    put(tmp_path / "package/marked_videos.py", NEW_LAYOUT)
    put(tmp_path / "data/marker.txt")
    assert datasets.layouts_of(ClassificationDataset)  # registers the layouts of the package for good
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(tmp_path / "package")])
    monkeypatch.setattr(layout, "_LAYOUTS", list(layout._LAYOUTS))
    layout._import_modules.cache_clear()
    assert datasets.find(tmp_path / "data", ClassificationDataset).name == "marked"
    del sys.modules["tubelet.datasets.marked_videos"]


def test_an_unknown_layout_lists_what_each_one_expects(tmp_path):
    put(tmp_path / "notes.txt")
    for record in (
        SegmentationDataset,
        DepthDataset,
        ClassificationDataset,
        AnticipationDataset,
        VideoObjectDataset,
        TrackingDataset,
    ):
        layouts = datasets.layouts_of(record)
        with pytest.raises(
            TubeletError, match=f"no {record.kind} data set found.*the directory holds notes.txt"
        ) as raised:
            datasets.find(tmp_path, record)
        assert layouts and all(one.expected in str(raised.value) for one in layouts)


def test_layouts_for_any_labels_are_tried_after_those_of_benchmarks(tmp_path):
    root = something(tmp_path)
    for split in ("train", "val"):
        put(root / f"{split}.csv", "a.mp4 0\n")
    assert datasets.find(root, ClassificationDataset).name == "Something-Something v2, validation"


def test_a_directory_of_two_data_sets_is_refused_with_the_names_of_both(tmp_path):
    something(tmp_path)
    put(tmp_path / diving48.VOCABULARY, [["Back"]])
    with pytest.raises(
        TubeletError, match=r"has the layouts of 2 data sets; expected the directory of one: Diving-48.*; Som"
    ):
        datasets.find(tmp_path, ClassificationDataset)


def test_labels_json_and_lists_of_other_data_sets_are_not_taken_for_theirs(tmp_path):
    put(tmp_path / "labels/labels.json", {"cat": 0})
    put(tmp_path / "labels/train.json", [{"file": "a.jpg", "class": "cat"}])
    assert not ssv2.SomethingSomethingV2.detect(tmp_path)
    for split in ("train", "val"):
        put(tmp_path / f"{split}.txt", f"n00/{split}_0.JPEG 0\n")
        put(tmp_path / f"{split}/n00/{split}_0.JPEG")
    assert not video_lists.VideoLists.detect(tmp_path)
    assert datasets.find(tmp_path, ClassificationDataset).name == "ImageNet (1 classes), validation"


def test_a_huge_class_number_among_few_is_refused(tmp_path):
    put(tmp_path / "train.csv", "a.mp4 0\nb.mp4 999999999\n")
    put(tmp_path / "val.csv", "c.mp4 0\n")
    with pytest.raises(
        TubeletError, match=r"train\.csv and .*val\.csv: class number 999999999, but only 2 class numbers"
    ):
        video_lists.VideoLists.load(tmp_path)
    put(tmp_path / "train.csv", "a.mp4 0\nb.mp4 999\n")
    assert len(video_lists.VideoLists.load(tmp_path).classes) == 1000
    root = kitchen(tmp_path / "kitchen")
    put(next(root.rglob(epic_kitchens._CLASS_FILES["verb"][0])), "id,key\n0,take\n88888888,open\n")
    with pytest.raises(TubeletError, match=r"verb_classes\.csv: class number 88888888, but only 2"):
        epic_kitchens.EpicKitchens100.load(root)


def something(root: Path, folder: str = "labels", old: str = "") -> Path:
    put(root / ssv2.VIDEOS / "7.webm")
    entry = {"id": "7", "label": "putting a cup on a table", "template": "Putting [something] on a surface"}
    put(root / folder / f"{old}labels.json", {"Holding something": "1", "Putting something on a surface": "0"})
    put(root / folder / f"{old}train.json", [entry])
    put(root / folder / f"{old}validation.json", [entry | {"id": "8", "template": "Holding [something]"}])
    return root


@pytest.mark.parametrize("folder, old", [("labels", ""), (".", "something-something-v2-")])
def test_something_something(tmp_path, folder, old):
    root = something(tmp_path, folder, old)
    assert ssv2.SomethingSomethingV2.detect(root)
    found = ssv2.SomethingSomethingV2.load(root)
    assert found.classes == ("Putting something on a surface", "Holding something")
    assert found.train == [LabeledFile(path=root / ssv2.VIDEOS / "7.webm", label=0)]
    assert found.test[0].label == 1 and found.test[0].path.name == "8.webm"


def test_kinetics_by_its_official_annotations(tmp_path):
    header = "label,youtube_id,time_start,time_end,split\n"
    put(tmp_path / "annotations/train.csv", f'{header}"zumba, slow",abc,3,13,train\nabseiling,d-f,0,10,train\n')
    put(tmp_path / "annotations/val.csv", f'{header}"zumba, slow",g_h,7,17,val\nabseiling,xyz,7,17,val\n')
    here = [
        put(tmp_path / "train/zumba, slow/abc_000003_000013.mp4"),
        put(tmp_path / "train/abseiling/d-f_000000_000010.mkv"),
        put(tmp_path / "val/g_h_000007_000017.mp4"),
    ]
    assert kinetics.Kinetics.detect(tmp_path)
    found = kinetics.Kinetics.load(tmp_path)
    assert found.classes == ("abseiling", "zumba, slow")
    assert found.train == [LabeledFile(path=here[0], label=1), LabeledFile(path=here[1], label=0)]
    assert found.test[0] == LabeledFile(path=here[2], label=1)
    assert found.test[1].path == tmp_path / "val/abseiling/xyz_000007_000017.mp4"  # where it should be


@pytest.mark.parametrize("separator", [" ", ","])
def test_video_lists_of_paths_and_class_numbers(tmp_path, separator):
    put(tmp_path / "train.csv", f"train/riding a bike/a.mp4{separator}1\n/far/away/b.mp4{separator}0\n")
    put(tmp_path / "val.csv", f"val/riding a bike/c.mp4{separator}1\n")
    found = video_lists.VideoLists.load(tmp_path)
    assert found.train[0] == LabeledFile(path=tmp_path / "train/riding a bike/a.mp4", label=1)
    assert found.train[1].path == Path("/far/away/b.mp4") and found.classes == ("away", "riding a bike")


def test_video_lists_of_paths_and_class_names(tmp_path):
    put(tmp_path / "train.csv", "path,label\na.mp4,zumba\nb.mp4,riding a bike\n")
    put(tmp_path / "val.csv", "path,label\nc.mp4,zumba\n")
    found = datasets.find(tmp_path, ClassificationDataset)
    assert found.classes == ("riding a bike", "zumba") and found.test[0].label == 1
    put(tmp_path / "val.csv", "path,label\nc.mp4,run\n")
    with pytest.raises(TubeletError, match=r"c\.mp4 has class run, of which .*train\.csv has no video"):
        datasets.find(tmp_path, ClassificationDataset)
    put(tmp_path / "val.csv", "path,label\nc.mp4,\n")
    with pytest.raises(TubeletError, match=r"is '\w*', expected a non-negative integer"):
        datasets.find(tmp_path, ClassificationDataset)


def test_diving(tmp_path):
    put(tmp_path / diving48.VOCABULARY, [["Back", "15som"], ["Inward", "Dive"]])
    put(tmp_path / diving48.TRAIN, [{"vid_name": "-a_1", "label": 1, "start_frame": 0, "end_frame": 9}])
    put(tmp_path / diving48.TEST, [{"vid_name": "b_2", "label": 0, "start_frame": 0, "end_frame": 9}])
    found = diving48.Diving48.load(tmp_path)
    assert found.classes == ("Back 15som", "Inward Dive")
    assert found.train == [LabeledFile(path=tmp_path / "rgb" / "-a_1.mp4", label=1)]


def test_synsets_of_equal_names_get_unique_class_names(tmp_path):
    names = {"n02012849": "crane", "n03126707": "crane", "n01440764": "tench, Tinca tinca"}
    for identity in names:
        for split in ("train", "val"):
            put(tmp_path / split / identity / f"{split}.JPEG")
    put(tmp_path / imagenet.NAMES, "".join(f"{identity} {name}\n" for identity, name in names.items()))
    assert imagenet.ImageNet.load(tmp_path).classes == ("tench", "crane (n02012849)", "crane (n03126707)")


def test_imagenet(tmp_path):
    here = [put(tmp_path / f"train/n0{i}/n0{i}_1.JPEG") for i in range(2)]
    put(tmp_path / "val/n01/ILSVRC2012_val_00000001.JPEG")
    put(tmp_path / imagenet.NAMES, "n00 tench, Tinca tinca\nn01 goldfish, Carassius auratus\n")
    assert imagenet.ImageNet.detect(tmp_path)
    found = imagenet.ImageNet.load(tmp_path)
    assert found.classes == ("tench", "goldfish") and [f.path for f in found.train] == here
    assert found.test[0].label == 1


def test_image_folders(tmp_path):
    images = [put(tmp_path / f"data/{split}/{name}/a.png") for split in ("train", "valid") for name in ("cat", "dog")]
    found = datasets.find(tmp_path, ClassificationDataset)
    assert found.name == f"{tmp_path.name} (2 classes, image folders)" and found.classes == ("cat", "dog")
    assert found.test == [LabeledFile(path=images[2], label=0), LabeledFile(path=images[3], label=1)]
    put(tmp_path / "data/valid/bird/a.png")
    with pytest.raises(TubeletError, match=r"valid/bird: class without a folder in .*train"):
        datasets.find(tmp_path, ClassificationDataset)


COLUMNS = "narration_id,participant_id,video_id,start_timestamp,narration,verb_class,noun_class"


def kitchen(root: Path, row: str = "P01_01_0,P01,P01_01,00:01:02.50,open door,1,0") -> Path:
    for kind, names in (("verb", ("take", "open")), ("noun", ("door",))):
        rows = "".join(f"{i},{name},\"['{name}']\",c\n" for i, name in enumerate(names))
        put(root / f"annotations/EPIC_100_{kind}_classes.csv", f"id,key,instances,category\n{rows}")
    put(root / "annotations" / epic_kitchens.TRAIN, f"{COLUMNS}\n{row}\n")
    put(root / "annotations" / epic_kitchens.VALIDATION, f"{COLUMNS}\n{row}\n")
    return root


@pytest.mark.parametrize("where", ["P01/videos/P01_01.MP4", "P01/P01_01.mp4", "EPIC-KITCHENS/P01/videos/P01_01.MP4"])
def test_epic_kitchens(tmp_path, where):
    video = put(kitchen(tmp_path) / where)
    assert epic_kitchens.EpicKitchens100.detect(tmp_path)
    found = epic_kitchens.EpicKitchens100.load(tmp_path)
    assert found.verbs == ("take", "open") and found.nouns == ("door",)
    (segment,) = found.train
    assert (segment.path, segment.start_s, segment.verb, segment.noun) == (video, 62.5, 1, 0)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda r: (r / "labels/train.json").unlink(), r"no labels/train\.json.*the directory holds 20bn"),
        (lambda r: put(r / "labels/train.json", "[{"), r"train\.json: is not JSON"),
        (lambda r: put(r / "labels/train.json", {}), r"train\.json: its content is {}, expected a list"),
        (
            lambda r: put(r / "labels/train.json", [{"id": "1"}]),
            r"json: \[0\]\.template is missing, expected a string",
        ),
        (lambda r: put(r / "labels/train.json", [{"id": "1", "template": "Eating"}]), r"unknown template 'Eating'"),
        (lambda r: put(r / "labels/labels.json", {"Holding something": "3"}), r"with gaps or duplicates"),
        (
            lambda r: put(r / "labels/labels.json", {"Holding something": "x"}),
            r"is 'x', expected a non-negative integer",
        ),
    ],
)
def test_malformed_something_something_is_refused(tmp_path, change, message):
    change(something(tmp_path))
    with pytest.raises(TubeletError, match=message):
        ssv2.SomethingSomethingV2.load(tmp_path)


@pytest.mark.parametrize(
    "row, message",
    [
        ("P01_01_0,P01,P01_01,0:62,open door,1,0", r"line 2: start_timestamp is '0:62'"),
        ("P01_01_0,P01,P01_01,00:01:02.50,open door,2,0", r"line 2 has verb class 2, expected 0 to 1"),
        ("P01_01_0,P01,P01_01,00:01:02.50,open door,1,-1", r"noun_class is '-1', expected a non-negative integer"),
        ("P01_01_0,P01,P01_01", r"line 2 has fewer values"),
    ],
)
def test_malformed_annotation_names_its_line(tmp_path, row, message):
    with pytest.raises(TubeletError, match=message):
        epic_kitchens.EpicKitchens100.load(kitchen(tmp_path, row))


def test_malformed_lists_are_refused(tmp_path):
    put(tmp_path / "train.csv", "a.mp4 0\n")
    put(tmp_path / "val.csv", "b.mp4 3\n")
    with pytest.raises(TubeletError, match=r"val\.csv: .*b\.mp4 has class 3, of which .*train\.csv has no video"):
        video_lists.VideoLists.load(tmp_path)
    put(tmp_path / "val.csv", "b.mp4\n")
    with pytest.raises(TubeletError, match=r"line 1 is 'b\.mp4', expected a path and a class"):
        video_lists.VideoLists.load(tmp_path)
    put(tmp_path / "images/train/n0/a.JPEG")
    put(tmp_path / "images/val/n1/a.JPEG")
    with pytest.raises(TubeletError, match=r"val/n1: class without a folder in .*train"):
        imagenet.ImageNet.load(tmp_path / "images")
    put(tmp_path / diving48.VOCABULARY, [["Back"]])
    put(tmp_path / diving48.TRAIN, [{"vid_name": "a", "label": 1}])
    with pytest.raises(TubeletError, match=rf"no {diving48.TEST}"):
        diving48.Diving48.load(tmp_path)
    put(tmp_path / diving48.TEST, [])
    with pytest.raises(TubeletError, match=r"a has class 1, but .* has 1 classes"):
        diving48.Diving48.load(tmp_path)


def test_missing_files_are_listed_and_too_many_are_an_error(tmp_path):
    files = [LabeledFile(path=put(tmp_path / f"{i}.mp4"), label=0) for i in range(3)]
    files.append(LabeledFile(path=tmp_path / "gone.mp4", label=0))
    there, gone = drop_missing_files(files, "train", 0.25)
    assert len(there) == 3 and [Path(file.path).name for file in gone] == ["gone.mp4"]
    with pytest.raises(TubeletError, match=r"gone\.mp4: listed in the train split but missing.*--max-failed-fraction"):
        drop_missing_files(files, "train", 0.0)
    with pytest.raises(TubeletError, match="the train split lists no files"):
        drop_missing_files([], "train", 1.0)
