"""The sample set as KITTI's depth: a level is a drive, depth is as sparse as a laser's, 256 a meter.

Depth is known below the upper third, in every other row and every fourth column. Images are smaller than KITTI's, so
that readers do not cut them as they cut KITTI's own. As in Eigen's test split, some images have no depth: every
twentieth.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tubelet.sample_data.layouts.frames import frames_of, write_image, write_map

FOCAL_LENGTH = 721.5377
DATE = "2011_09_26"
WITHOUT_DEPTH = 20


def write_kitti(root: Path, out: Path) -> Mapping[str, int]:
    """Write the layout; see `LAYOUTS`."""
    counts, drives = {}, list[str]()
    for split, name, folder in (("train", "train", "train"), ("val", "test", "val")):
        numbers: Counter[str] = Counter()
        lines = []
        for frame in frames_of(root, split):
            if frame.level not in drives:
                drives.append(frame.level)
            drive = f"{DATE}_drive_{drives.index(frame.level) + 1:04d}_sync"
            image = f"{DATE}/{drive}/image_02/data/{numbers[drive]:010d}.png"
            depth = f"{drive}/proj_depth/groundtruth/image_02/{numbers[drive]:010d}.png"
            write_image(out / "raw" / image, frame.pixels)
            if name == "test" and frame.number % WITHOUT_DEPTH == WITHOUT_DEPTH - 1:
                depth = "None"
            else:
                sparse = np.zeros(frame.meters.shape, np.uint16)
                laser = (slice(len(sparse) // 3, None, 2), slice(None, None, 4))
                sparse[laser] = np.clip(np.rint(256 * frame.meters[laser]), 0, 65535)
                write_map(out / "data_depth_annotated" / folder / depth, sparse)
            lines.append(f"{image} {depth} {FOCAL_LENGTH}\n")
            numbers[drive] += 1
        (out / f"eigen_{name}_files_with_gt.txt").write_text("".join(lines), encoding="utf-8")
        counts[f"{name} images"] = len(lines)
        counts[f"{name} drives"] = len(numbers)
    return counts
