"""The sample set as DAVIS 2017: the validation clips whose first frame shows objects, and a mask for every frame."""

from collections.abc import Mapping
from pathlib import Path

from tubelet.data.palette_png import write_indexed
from tubelet.sample_data.layouts.frames import write_image
from tubelet.sample_data.layouts.objects import object_clips


def write_davis(root: Path, out: Path) -> Mapping[str, int]:
    """Write JPEGImages/480p, Annotations/480p and ImageSets/2017/val.txt. The frames keep their size."""
    names, objects = [], 0
    for clip in object_clips(root, only_first=True):
        frames = [f"{t:05d}" for t in range(len(clip.frames))]
        masks = out / "Annotations" / "480p" / clip.name
        masks.mkdir(parents=True)
        for name, pixels, labels in zip(frames, clip.frames, clip.labels, strict=True):
            write_image(out / "JPEGImages" / "480p" / clip.name / f"{name}.jpg", pixels)
            write_indexed(masks / f"{name}.png", labels)
        names.append(clip.name)
        objects += len(clip.first)
    lists = out / "ImageSets" / "2017"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return {"sequences": len(names), "objects": objects}
