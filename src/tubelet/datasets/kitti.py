"""KITTI raw drives with the maps of its depth benchmark, in Eigen's split: 16-bit PNG, 256 units per meter.

    raw/2011_09_26/2011_09_26_drive_0001_sync/image_02/data/0000000005.png       (or without raw/)
    data_depth_annotated/{train,val}/2011_09_26_drive_0001_sync/proj_depth/groundtruth/image_02/0000000005.png
    eigen_train_files_with_gt.txt, eigen_test_files_with_gt.txt                  the split

Each line of a list has an image, its depth map and a focal length; None stands for an image without depth. Folders
input/ and gt_depth/ with kitti_eigen_train.txt and kitti_eigen_test.txt are also supported.
"""

from pathlib import Path

from tubelet.datasets.annotations import read_image_depth_pairs
from tubelet.datasets.layout import Layout
from tubelet.datasets.locate import find_root
from tubelet.datasets.records import DenseSample, DepthDataset, check_samples
from tubelet.errors import DataError, MissingFileError

ARCHIVES = ("kitti",)
DEPTHS = ("data_depth_annotated/train", "data_depth_annotated/val", "data_depth_annotated", "gt_depth")
IMAGES = ("raw", "input", "raw_data", "kitti_raw", "kitti_raw_data", ".")
LISTS = {
    split: (f"eigen_{split}_files_with_gt.txt", f"kitti_eigen_{split}_files_with_gt.txt", f"kitti_eigen_{split}.txt")
    for split in ("train", "test")
}


class KittiEigen(Layout[DepthDataset]):
    """KITTI depth in Eigen's split, with the crops of Garg et al. and of the depth benchmark."""

    record = DepthDataset
    expected = "KITTI (data_depth_annotated, or gt_depth and input)"

    @staticmethod
    def detect(root: Path) -> bool:
        return _root(root) is not None

    @staticmethod
    def load(root: Path) -> DepthDataset:
        root = _root(root) or root
        (train, _), (test, without_depth) = _split(root, "train"), _split(root, "test")
        return DepthDataset(
            name="KITTI Eigen",
            train=train,
            test=test,
            excluded={"test images without depth": without_depth} if without_depth else {},
            units_per_meter=256,
            max_depth=80,
            input_crop=(352, 1216),  # crop of the benchmark, the region that LiDAR reaches
            eval_crop=(0.40810811, 0.03594771, 0.99189189, 0.96405229),  # Garg's crop
            input_height=352,
            train_crop=(1.0, 704 / 1216),
        )


def _root(root: Path) -> Path | None:
    return find_root(root, ARCHIVES, ("data_depth_annotated",)) or find_root(root, ARCHIVES, ("gt_depth", "input"))


def _split(root: Path, split: str) -> tuple[list[DenseSample], int]:
    """Samples of a split, and the number of its images without depth."""
    places = [root / folder / name for folder in (".", "splits", "train_test_inputs") for name in LISTS[split]]
    lists = [path for path in places if path.is_file()]
    if not lists:
        raise MissingFileError(f"{root}: no list of Eigen's {split} split; expected {' or '.join(LISTS[split])}")
    folders = [root / name for name in DEPTHS if (root / name).is_dir()]
    images = next(root / name for name in IMAGES if (root / name).is_dir())
    samples, without_depth = [], 0
    for names in read_image_depth_pairs(lists[0]):
        if names[1] == "None":
            without_depth += 1
            continue
        places = [folder / names[1] for folder in folders]
        target = next((path for path in places if path.is_file()), places[0])
        image = images / names[0]
        if not image.is_file() and image.with_suffix(".jpg").is_file():  # converted, as for monodepth2
            image = image.with_suffix(".jpg")
        if len(image.parts) < 4:
            raise DataError(f"{lists[0]}: image {names[0]!r}, expected DATE/DRIVE/image_02/data/NUMBER.png")
        samples.append(DenseSample(name=f"{image.parts[-4]}/{image.stem}", image=image, target=target))
    return check_samples(samples, split, root), without_depth
