"""Data sets in the variants found on people's disks: loaded, or refused with an error that names the difference."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.files import put
from tubelet import datasets
from tubelet.datasets import (
    ClassificationDataset,
    ade20k,
    cityscapes,
    davis,
    diving48,
    epic_kitchens,
    imagenet,
    kinetics,
    kitti,
    nyuv2,
    ssv2,
    video_folders,
    video_lists,
    voc2012,
    youtube_vos,
)
from tubelet.datasets.records import LabeledFile, drop_missing_files
from tubelet.errors import TubeletError


def write_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ones((8, 8), np.uint8)).save(path)
    return path


def add_system_files(root: Path) -> None:
    """Write what macOS, Windows and network storage add to every folder."""
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        for path in [path for path in folder.iterdir() if path.is_file()]:
            (folder / f"._{path.name}").write_bytes(b"\0\5\x16\7")
        put(folder / "Thumbs.db")
        put(folder / "@eaDir/x.jpg@SynoEAStream")
        put(folder / ".DS_Store")
    (root / "__MACOSX").mkdir()


# Something-Something v2


@pytest.mark.parametrize("folder", [ssv2.VIDEOS, "videos", f"{ssv2.VIDEOS}/{ssv2.VIDEOS}", "."])
@pytest.mark.parametrize("suffix", [".webm", ".mp4"])
@pytest.mark.parametrize("lists", ["labels/{}", "annotations/something-something-v2-{}", "{}"])
def test_something_something(folder, suffix, lists, tmp_path):
    root = tmp_path / "ssv2"
    video = put(root / folder / f"7{suffix}")
    put(root / f"{lists.format('labels')}.json", {"Holding something": "0"})
    for split in ("train", "validation"):
        put(root / f"{lists.format(split)}.json", [{"id": 7, "template": "Holding [something]"}])
    add_system_files(root)
    for data in (root, tmp_path):
        assert ssv2.SomethingSomethingV2.detect(data)
        assert ssv2.SomethingSomethingV2.load(data).train == [LabeledFile(path=video, label=0)]


@pytest.mark.parametrize("videos, name", [(ssv2.VIDEOS, "{}.csv"), ("clips", "ssv2_{}_paths.csv")])
def test_something_something_by_lists_of_paths(videos, name, tmp_path):
    video = put(tmp_path / videos / "7.webm")
    for split in ("train", "val"):
        put(tmp_path / name.format(split), f"{videos}/7.webm 0\n")
    found = ssv2.SomethingSomethingV2.load(tmp_path)
    assert found.test == [LabeledFile(path=video, label=0)]
    assert found.name == "Something-Something v2, validation" and found.list_format


# Kinetics

HEADER = "label,youtube_id,time_start,time_end,split\n"


@pytest.mark.parametrize(
    "train, val",
    [
        ("annotations/train.csv", "annotations/validate.csv"),
        ("annotations/kinetics_train.csv", "annotations/kinetics_val.csv"),
        ("train.csv", "validation.csv"),
        ("annotations/kinetics600_train.csv", "annotations/kinetics600_validate.csv"),
        ("kinetics700_2020/train.csv", "kinetics700_2020/validate.csv"),
        ("annotations/kinetics_700_2020_train.csv", "annotations/kinetics_700_2020_val.csv"),
    ],
)
@pytest.mark.parametrize(
    "name",
    ["{split}/run/{id}_000000_000010.mp4", "{split}/{id}.webm", "videos_{split}/{id}_0_10.mkv", "videos/{id}.mp4",
     "replacement/replacement_for_corrupted_k400/{id}_000000_000010.mp4"],
)  # fmt: skip
def test_kinetics(train, val, name, tmp_path):
    for split, path in (("train", train), ("val", val)):
        put(tmp_path / path, f"\ufeff{HEADER}run,{split}-a_,0,10.0,{split}\r\n")
    videos = {split: put(tmp_path / name.format(split=split, id=f"{split}-a_")) for split in ("train", "val")}
    add_system_files(tmp_path)
    assert kinetics.Kinetics.detect(tmp_path)
    found = kinetics.Kinetics.load(tmp_path)
    assert (found.train[0].path, found.test[0].path) == (videos["train"], videos["val"])


def test_video_folders_and_lists_of_mmaction(tmp_path):
    for split in ("train", "val"):
        put(tmp_path / f"{split}/riding a bike/a.mp4")
        put(tmp_path / f"{split}/run/b.mp4")
    folders = datasets.find(tmp_path, ClassificationDataset)
    assert folders.name == f"{tmp_path.name} (2 classes, video folders)"
    assert [(file.path.parent.name, file.label) for file in folders.train] == [
        ("riding a bike", 0),
        ("run", 1),
    ]
    for split in ("train", "val"):
        put(
            tmp_path / f"kinetics400_{split}_list_videos.txt",
            f"{split}/riding a bike/a.mp4 1\r\n{split}/run/b.mp4 0\r\n",
        )
    found = datasets.find(tmp_path, ClassificationDataset)
    assert [(file.path.name, file.label) for file in found.test] == [("a.mp4", 1), ("b.mp4", 0)]
    assert "separated" not in found.classes and "spaces" in found.list_format
    put(tmp_path / "kinetics400_val_list_videos.txt", "val/run/b.mp4 0\nval/riding a bike/a.mp4\n")
    with pytest.raises(TubeletError, match=r"val_list_videos\.txt: line 2, class number is ''"):
        datasets.find(tmp_path, ClassificationDataset)


def test_missing_list_of_a_split_is_an_error(tmp_path):
    put(tmp_path / "annotations/validate.csv", HEADER)
    with pytest.raises(TubeletError, match=r"no list of the train split; expected lists of videos"):
        video_lists.VideoLists.load(tmp_path)
    put(tmp_path / "annotations/train.csv", f"{HEADER}zumba, slow,abc,3,13,train\n")
    with pytest.raises(TubeletError, match=r"train\.csv: line 2 has 6 values, the header 5 columns"):
        kinetics.Kinetics.load(tmp_path)


def test_missing_file_with_another_suffix_is_named(tmp_path):
    put(tmp_path / "a.mp4")
    with pytest.raises(TubeletError, match=r"a\.webm: listed in the val split but missing \(found a\.mp4 instead\)"):
        drop_missing_files([LabeledFile(path=tmp_path / "a.webm", label=0)], "val", 0)


# Diving-48, EPIC-KITCHENS


@pytest.mark.parametrize("video", ["rgb/a.mp4", "rgb/a.avi", "videos/a.mp4", "Diving48_rgb/rgb/a.mp4", "a.mp4"])
@pytest.mark.parametrize("lists", ["", "annotations/"])
def test_diving(video, lists, tmp_path):
    put(tmp_path / f"{lists}{diving48.VOCABULARY}", [["Back"]])
    for name in (diving48.TRAIN, diving48.TEST):
        put(tmp_path / f"{lists}{name}", [{"vid_name": "a", "label": 0}])
    put(tmp_path / video)
    add_system_files(tmp_path)
    assert diving48.Diving48.detect(tmp_path) and diving48.Diving48.load(tmp_path).train[0].path == tmp_path / video


@pytest.mark.parametrize(
    "video",
    ["P01/videos/P01_01.MP4", "videos/P01/P01_01.mp4", "videos/P01_01.MP4", "P01_01.mkv",
     "EPIC-KITCHENS/P01/videos/P01_01.MP4", "videos/train/P01/P01_01.MP4"],
)  # fmt: skip
def test_epic_kitchens(video, tmp_path):
    root = tmp_path / "epic-kitchens-100-annotations-master"
    for kind in ("verb", "noun"):
        put(root / f"EPIC_100_{kind}_classes.csv", "id,key\n0,take\n")
    columns = "narration_id,participant_id,video_id,start_timestamp,narration,verb_class,noun_class"
    for name in (epic_kitchens.TRAIN, epic_kitchens.VALIDATION):
        put(root / name, f'{columns}\nP01_01_0,P01,P01_01,00:00:01.00,"take, then\nput",0,0\n')
    put(tmp_path / video)
    add_system_files(tmp_path)
    assert epic_kitchens.EpicKitchens100.detect(tmp_path)
    (segment,) = epic_kitchens.EpicKitchens100.load(tmp_path).train
    assert segment.path == tmp_path / video and segment.narration == "take, then\nput"


# ImageNet


@pytest.mark.parametrize("where", ["", "ILSVRC/Data/CLS-LOC", "imagenet"])
@pytest.mark.parametrize(
    "name, text",
    [
        ("LOC_val_solution.csv", "ImageId,PredictionString\nILSVRC2012_val_00000001,n01 1 2 3 4 n01 5 6 7 8\n"),
        ("val.txt", "ILSVRC2012_val_00000001.JPEG 1\n"),
        ("imagenet_2012_validation_synset_labels.txt", "n01\n"),
        ("val/val_annotations.txt", "ILSVRC2012_val_00000001.JPEG\tn01\t0\t32\t44\t62\n"),
        ("", ""),
    ],
)
def test_imagenet(where, name, text, tmp_path):
    root = tmp_path / where
    for identity in ("n00", "n01"):
        put(root / f"train/{identity}/{identity}_1.JPEG")
    image = put(root / f"val/{'' if name else 'n01/'}ILSVRC2012_val_00000001.JPEG")
    if name:
        put((root if "/" in name else tmp_path) / name, text)
    (root / "train/.ipynb_checkpoints").mkdir()
    add_system_files(root / "train")
    assert imagenet.ImageNet.detect(tmp_path)
    found = imagenet.ImageNet.load(tmp_path)
    assert found.test == [LabeledFile(path=image, label=1)] and len(found.train) == 2
    assert found.excluded == {"hidden files": 2}


def test_tiny_imagenet_and_a_flat_validation_folder_without_a_list(tmp_path):
    put(tmp_path / "train/n00/images/n00_0.JPEG")
    put(tmp_path / "val/images/val_0.JPEG")
    with pytest.raises(TubeletError, match=r"val/ has no folder for each class; expected .*LOC_val_solution\.csv"):
        imagenet.ImageNet.load(tmp_path)
    put(tmp_path / "val/val_annotations.txt", "val_0.JPEG\tn09\t0\t0\t1\t1\n")
    with pytest.raises(TubeletError, match=r"val_0\.JPEG has class n09, which has no folder in train/"):
        imagenet.ImageNet.load(tmp_path)
    put(tmp_path / "val/val_annotations.txt", "val_0.JPEG\tn00\t0\t0\t1\t1\n")
    assert imagenet.ImageNet.load(tmp_path).test[0].label == 0


# Sequences


@pytest.mark.parametrize("where", ["", "DAVIS", "DAVIS-2017-trainval-480p/DAVIS", "data/unpacked"])
def test_davis(where, tmp_path):
    root = tmp_path / where
    put(root / "ImageSets/2017/val.txt", "\ufeffbear\r\n")
    for i in range(3):
        write_image(root / f"JPEGImages/480p/bear/{i:05d}.jpg")
        write_image(root / f"Annotations/480p/bear/{i:05d}.png")
    add_system_files(root / "JPEGImages/480p/bear")
    found = davis.Davis2017.load(tmp_path)
    assert found is not None and len(found.sequences[0].frames) == 3


def test_incomplete_davis_is_refused(tmp_path):
    for kind in ("JPEGImages", "Annotations"):
        (tmp_path / kind / "Full-Resolution").mkdir(parents=True)
    put(tmp_path / "ImageSets/2017/test-dev.txt")
    with pytest.raises(TubeletError, match=r"no ImageSets/2017/val\.txt; expected DAVIS"):
        davis.Davis2017.load(tmp_path)
    put(tmp_path / "ImageSets/2017/val.txt", "bear\n")
    with pytest.raises(TubeletError, match="JPEGImages: no 480p, found Full-Resolution"):
        davis.Davis2017.load(tmp_path)


@pytest.mark.parametrize("where", ["valid", ".", "YouTube-VOS/valid", "val", "unpacked/valid"])
def test_youtube_vos(where, tmp_path):
    root = tmp_path / where
    put(root / "meta.json", {"videos": {"ab": {"objects": {"1": {"frames": ["00000"]}}}}})
    write_image(root / "JPEGImages/ab/00000.jpg")
    write_image(root / "Annotations/ab/00000.png")
    add_system_files(root / "JPEGImages/ab")
    found = youtube_vos.YouTubeVos.load(tmp_path)
    assert found is not None and len(found.sequences[0].frames) == 1


def test_youtube_vos_without_validation_split_is_refused(tmp_path):
    put(tmp_path / "train/meta.json")
    (tmp_path / "train/JPEGImages").mkdir()
    with pytest.raises(TubeletError, match="no valid/ next to train/"):
        youtube_vos.YouTubeVos.load(tmp_path)


@pytest.mark.parametrize("name", ["davis", "DAVIS_2017", "Davis 2017"])
def test_names_of_archive_folders_ignore_case_and_hyphens(name, tmp_path):
    put(tmp_path / "other/readme.md")
    put(tmp_path / "__MACOSX/DAVIS/readme.md")
    put(tmp_path / name / "ImageSets/2017/val.txt", "bear\n")
    for i in range(3):
        write_image(tmp_path / name / f"JPEGImages/480p/bear/{i:05d}.jpg")
        write_image(tmp_path / name / f"Annotations/480p/bear/{i:05d}.png")
    found = davis.Davis2017.load(tmp_path)
    assert found is not None and len(found.sequences[0].frames) == 3


# Dense targets


@pytest.mark.parametrize("where", ["", "ADEChallengeData2016", "ade/ADEChallengeData2016"])
def test_ade20k(where, tmp_path):
    for split in ("training", "validation"):
        write_image(tmp_path / where / f"images/{split}/a.jpg")
        write_image(tmp_path / where / f"annotations/{split}/a.png")
    add_system_files(tmp_path / where / "images/training")
    found = ade20k.Ade20k.load(tmp_path)
    assert found is not None and len(found.train) == 1 and found.excluded == {"hidden files": 1}


def test_full_release_of_ade20k_is_refused(tmp_path):
    write_image(tmp_path / "ADE20K_2021_17_01/images/ADE/training/work_place/a.jpg")
    with pytest.raises(TubeletError, match="full release of ADE20K; expected ADEChallengeData2016"):
        ade20k.Ade20k.load(tmp_path)


@pytest.mark.parametrize(
    "where",
    ["", "VOC2012", "VOCdevkit/VOC2012", "VOCtrainval_11-May-2012/VOCdevkit/VOC2012", "VOC2012_train_val", "a/b/c"],
)
def test_voc(where, tmp_path):
    for split in ("train", "val"):
        put(tmp_path / where / f"ImageSets/Segmentation/{split}.txt", "\ufeffa\r\n")
    write_image(tmp_path / where / "JPEGImages/a.jpg")
    write_image(tmp_path / where / "SegmentationClass/a.png")
    found = voc2012.PascalVoc2012.load(tmp_path)
    assert found is not None and len(found.train) == 1


@pytest.mark.parametrize(
    "images, labels",
    [("leftImg8bit", "gtFine"), ("leftImg8bit_trainvaltest/leftImg8bit", "gtFine_trainvaltest/gtFine"),
     ("cityscapes/leftImg8bit", "cityscapes/gtFine")],
)  # fmt: skip
def test_cityscapes(images, labels, tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / images / split / f"ulm/a{cityscapes.IMAGE_SUFFIX}")
        label = write_image(tmp_path / labels / split / f"ulm/a{cityscapes.LABEL_SUFFIX}")
    add_system_files(tmp_path / images / "train")
    found = cityscapes.Cityscapes.load(tmp_path)
    assert found is not None and len(found.train) == 1
    label.rename(label.with_name("a_gtFine_labelTrainIds.png"))
    with pytest.raises(TubeletError, match=r"missing, but a_gtFine_labelTrainIds\.png exists"):
        cityscapes.Cityscapes.load(tmp_path)


@pytest.mark.parametrize("where", ["", "nyu_depth_v2", "nyuv2", "unpacked"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_nyu(where, suffix, tmp_path):
    for split in ("sync", nyuv2.TEST):
        write_image(tmp_path / where / split / f"kitchen/rgb_00001{suffix}")
        write_image(tmp_path / where / split / "kitchen/sync_depth_00001.png")
        add_system_files(tmp_path / where / split / "kitchen")
    found = nyuv2.NyuDepthV2.load(tmp_path)
    assert found is not None and len(found.train) == len(found.test) == 1
    put(tmp_path / where / "nyu_train.txt", "kitchen/rgb_00001.jpg kitchen/sync depth.png 518.8 9\n")
    with pytest.raises(TubeletError, match="expected image, depth and optionally focal length"):
        nyuv2.NyuDepthV2.load(tmp_path)


@pytest.mark.parametrize("where, lists", [("", ""), ("kitti", ""), ("", "splits"), ("unpacked", "train_test_inputs")])
@pytest.mark.parametrize("images, suffix", [("raw", ".png"), ("raw_data", ".jpg"), (".", ".png")])
def test_kitti(where, lists, images, suffix, tmp_path):
    drive = "2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005"
    depth = "2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/0000000005.png"
    image = write_image(tmp_path / where / images / f"{drive}{suffix}")
    write_image(tmp_path / where / "data_depth_annotated/val" / depth)
    for split in ("train", "test"):
        put(tmp_path / where / lists / f"eigen_{split}_files_with_gt.txt", f"\ufeff{drive}.png {depth} 721.5\r\n")
    found = kitti.KittiEigen.load(tmp_path)
    assert found is not None and found.test[0].image == image


def test_hidden_files_of_folders_of_videos_are_left_out_and_counted(tmp_path):
    for name in ("train/a/0.mp4", "train/a/._0.mp4", "val/a/1.mp4"):
        put(tmp_path / name)
    found = video_folders.VideoFolders.load(tmp_path)
    assert [file.path.name for file in [*found.train, *found.test]] == ["0.mp4", "1.mp4"]
    assert sum(found.excluded.values()) == 1


def test_a_stray_image_makes_no_flat_validation_folder(tmp_path):
    for name in ("train/cat/0.jpg", "val/cat/1.jpg", "val/preview.jpg"):
        put(tmp_path / name)
    assert not imagenet.ImageNet.detect(tmp_path)
    assert [file.path.name for file in datasets.find(tmp_path, ClassificationDataset).test] == ["1.jpg"]


def test_an_empty_class_of_the_validation_split_hides_no_others(tmp_path):
    for name in ("train/a/0.mp4", "train/b/1.mp4", "val/b/2.mp4"):
        put(tmp_path / name)
    (tmp_path / "val/a").mkdir()
    assert [(file.path.name, file.label) for file in datasets.find(tmp_path, ClassificationDataset).test] == [
        ("2.mp4", 1)
    ]


def test_class_names_may_begin_with_digits(tmp_path):
    for split in ("train", "val"):
        put(tmp_path / f"{split}.csv", f"{split}.mp4,360 flip\n{split}2.mp4,kick\n")
        for name in (f"{split}.mp4", f"{split}2.mp4"):
            put(tmp_path / name)
    assert datasets.find(tmp_path, ClassificationDataset).classes == ("360 flip", "kick")
