"""NYU Depth v2 as it is used to train depth networks: images and 16-bit PNG depth in millimeters, at 640 x 480.

    sync/SCENE/rgb_00000.jpg, sync_depth_00000.png                          24,231 training samples
    official_splits/test/SCENE/rgb_00045.jpg, sync_depth_00045.png          654 samples of the official test split
    nyudepthv2_train_files_with_gt.txt, nyudepthv2_test_files_with_gt.txt   the lists, optional

Each line of a list has an image, its depth map and a focal length. Without lists, all samples of the two folders are
used. Both splits in one folder next to nyu_train.txt and nyu_test.txt are also supported.
"""

from pathlib import Path

from tubelet.datasets.annotations import read_image_depth_pairs
from tubelet.datasets.layout import Layout
from tubelet.datasets.locate import find_root, glob_visible
from tubelet.datasets.records import DenseSample, DepthDataset, check_samples

TEST = "official_splits/test"
LISTS = {
    "train": ("nyudepthv2_train_files_with_gt.txt", "nyu_train.txt"),
    "test": ("nyudepthv2_test_files_with_gt.txt", "nyu_test.txt"),
}
ARCHIVES = ("nyu_depth_v2", "nyu", "nyuv2")


class NyuDepthV2(Layout[DepthDataset]):
    """NYU Depth v2 with Eigen's crop."""

    record = DepthDataset
    expected = "NYU Depth v2 (sync and official_splits/test, or nyu_train.txt and nyu_test.txt)"

    @staticmethod
    def detect(root: Path) -> bool:
        return _root(root) is not None

    @staticmethod
    def load(root: Path) -> DepthDataset:
        root = _root(root) or root
        return DepthDataset(
            name="NYUv2",
            train=_split(root, "train", "sync"),
            test=_split(root, "test", TEST),
            units_per_meter=1000,
            max_depth=10,
            input_crop=None,
            eval_crop=(45 / 480, 41 / 640, 471 / 480, 601 / 640),  # Eigen's crop
            input_height=480,
            train_crop=(416 / 480, 544 / 640),
        )


def _root(root: Path) -> Path | None:
    return find_root(root, ARCHIVES, ("sync", TEST)) or find_root(root, ARCHIVES, ("nyu_train.txt", "nyu_test.txt"))


def _split(root: Path, split: str, folder: str) -> list[DenseSample]:
    files = root / folder if (root / folder).is_dir() else root
    lists = [root / name for name in LISTS[split] if (root / name).is_file()]
    if lists:
        pairs = [
            (files / image.lstrip("/"), files / depth.lstrip("/")) for image, depth in read_image_depth_pairs(lists[0])
        ]
    else:
        images = glob_visible(files, "*/rgb_*.jpg") or glob_visible(files, "*/rgb_*.png")
        pairs = [(image, image.with_name(f"sync_depth_{image.stem[4:]}.png")) for image in images]
    samples = [DenseSample(name=f"{im.parent.name}/{im.stem}", image=im, target=target) for im, target in pairs]
    return check_samples(samples, split, files)
