"""NYU Depth v2 as networks for depth take it: pictures and depth in millimetres, PNG of 16 bits, at 640 x 480.

    sync/SCENE/rgb_00000.jpg, sync_depth_00000.png                 24,231 pairs for training
    official_splits/test/SCENE/rgb_00045.jpg, sync_depth_00045.png           654 pairs of the official test split
    nyudepthv2_train_files_with_gt.txt, nyudepthv2_test_files_with_gt.txt    the lists, optional

Lists have a pair and a focal length on each line. Without them all pairs in the two folders count. The layout in which
both lie in one folder beside nyu_train.txt and nyu_test.txt is read as well.
"""

from pathlib import Path

from tubelet.datasets.depths import DepthDataset
from tubelet.datasets.locate import find_root, matching
from tubelet.datasets.pairs import DenseSample, check_pairs, read_triples

TEST = "official_splits/test"
LISTS = {
    "train": ("nyudepthv2_train_files_with_gt.txt", "nyu_train.txt"),
    "test": ("nyudepthv2_test_files_with_gt.txt", "nyu_test.txt"),
}
INSIDE = ("nyu_depth_v2", "nyu", "nyuv2")


def read(data: Path) -> DepthDataset | None:
    """The benchmark, or None if the folder is not one of NYU Depth v2.

    Raises:
        TubeletError: if a list is empty or malformed, or a file is missing.
    """
    root = find_root(data, INSIDE, ("sync", TEST)) or find_root(data, INSIDE, ("nyu_train.txt", "nyu_test.txt"))
    if root is None:
        return None
    return DepthDataset(
        benchmark="NYUv2",
        train=_split(root, "train", "sync"),
        test=_split(root, "test", TEST),
        left_out={},
        scale=1000,
        max_depth=10,
        seen=None,
        scored=(45 / 480, 41 / 640, 471 / 480, 601 / 640),  # Eigen's crop
        height=480,
        crop=(416 / 480, 544 / 640),
    )


def _split(root: Path, split: str, folder: str) -> list[DenseSample]:
    files = root / folder if (root / folder).is_dir() else root
    lists = [root / name for name in LISTS[split] if (root / name).is_file()]
    if not lists:
        images = matching(files, "*/rgb_*.jpg") or matching(files, "*/rgb_*.png")
        pairs = [_pair(image, image.with_name(f"sync_depth_{image.stem[4:]}.png")) for image in images]
        return check_pairs(pairs, split, files)
    pairs = []
    for image, depth in read_triples(lists[0]):
        pairs.append(_pair(*(files / name.lstrip("/") for name in (image, depth))))
    return check_pairs(pairs, split, files)


def _pair(image: Path, target: Path) -> DenseSample:
    return DenseSample(name=f"{image.parent.name}/{image.stem}", image=image, target=target)
