"""KITTI's raw drives with the depth of its depth benchmark, in Eigen's split: PNG of 16 bits, 256 a metre.

    raw/2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005.png       (or without raw/)
    data_depth_annotated/{train,val}/2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/0000000005.png
    eigen_train_files_with_gt.txt, eigen_test_files_with_gt.txt                  the split, by its usual names

Lists have a picture, its depth and a focal length on each line; None stands for a picture without depth. Folders input/
and gt_depth/ with kitti_eigen_train.txt and kitti_eigen_test.txt are read as well.
"""

from pathlib import Path

from tubelet.datasets.depths import DepthDataset
from tubelet.datasets.locate import find_root
from tubelet.datasets.pairs import DenseSample, check_pairs, read_triples
from tubelet.errors import TubeletError

INSIDE = ("kitti",)
DEPTHS = ("data_depth_annotated/train", "data_depth_annotated/val", "data_depth_annotated", "gt_depth")
IMAGES = ("raw", "input", "raw_data", "kitti_raw", "kitti_raw_data", ".")
LISTS = {
    split: (f"eigen_{split}_files_with_gt.txt", f"kitti_eigen_{split}_files_with_gt.txt", f"kitti_eigen_{split}.txt")
    for split in ("train", "test")
}


def read(data: Path) -> DepthDataset | None:
    """The benchmark, or None if the folder is not one of KITTI's depth.

    Raises:
        TubeletError: if a list is missing, empty or malformed, or a file is missing.
    """
    root = find_root(data, INSIDE, ("data_depth_annotated",)) or find_root(data, INSIDE, ("gt_depth", "input"))
    if root is None:
        return None
    (train, _), (test, unknown) = _split(root, "train"), _split(root, "test")
    return DepthDataset(
        benchmark="KITTI Eigen",
        train=train,
        test=test,
        left_out={"test pictures without depth": unknown} if unknown else {},
        scale=256,
        max_depth=80,
        seen=(352, 1216),  # the benchmark's crop, where LiDAR reaches
        scored=(0.40810811, 0.03594771, 0.99189189, 0.96405229),  # Garg's crop
        height=352,
        crop=(1.0, 704 / 1216),
    )


def _split(root: Path, split: str) -> tuple[list[DenseSample], int]:
    """The pairs of a split, and how many of its pictures have no depth."""
    places = [root / folder / name for folder in (".", "splits", "train_test_inputs") for name in LISTS[split]]
    lists = [place for place in places if place.is_file()]
    if not lists:
        raise TubeletError(
            f"{root}: the list of Eigen's {split} split is missing, expected {' or '.join(LISTS[split])}"
        )
    folders = [root / name for name in DEPTHS if (root / name).is_dir()]
    images = next(root / name for name in IMAGES if (root / name).is_dir())
    pairs, unknown = [], 0
    for names in read_triples(lists[0]):
        if names[1] == "None":
            unknown += 1
            continue
        places = [folder / names[1] for folder in folders]
        target = next((place for place in places if place.is_file()), places[0])
        image = images / names[0]
        if not image.is_file() and image.with_suffix(".jpg").is_file():  # converted, as for monodepth2
            image = image.with_suffix(".jpg")
        if len(image.parts) < 4:
            raise TubeletError(f"{lists[0]}: {names[0]!r} names no drive, expected DATE/DRIVE/image_02/data/NUMBER.png")
        pairs.append(DenseSample(name=f"{image.parts[-4]}/{image.stem}", image=image, target=target))
    return check_pairs(pairs, split, root), unknown
