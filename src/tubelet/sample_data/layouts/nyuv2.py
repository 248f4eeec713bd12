"""The sample set as NYU Depth v2: a level is a scene, depth is in millimeters, 32 units of the game about a meter."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tubelet.sample_data.layouts.frames import frames_of, to_millimeters, write_image, write_map

FOCAL_LENGTH = 518.8579  # what the benchmark's own lists say of every image


def write_nyuv2(root: Path, out: Path) -> Mapping[str, int]:
    """Write the layout; see `LAYOUTS`."""
    base, counts = out / "nyu_depth_v2", {}
    for split, name, folder in (("train", "train", "sync"), ("val", "test", "official_splits/test")):
        numbers: Counter[str] = Counter()
        lines = []
        for frame in frames_of(root, split):
            scene = frame.level.lower()
            image, depth = (f"{scene}/{what}{numbers[scene]:05d}" for what in ("rgb_", "sync_depth_"))
            write_image(base / folder / f"{image}.jpg", frame.pixels)
            write_map(base / folder / f"{depth}.png", to_millimeters(frame.meters))
            lines.append(f"/{image}.jpg /{depth}.png {FOCAL_LENGTH}\n")
            numbers[scene] += 1
        (base / f"nyudepthv2_{name}_files_with_gt.txt").write_text("".join(lines), encoding="utf-8")
        counts[f"{name} images"] = len(lines)
        counts[f"{name} scenes"] = len(numbers)
    return counts
