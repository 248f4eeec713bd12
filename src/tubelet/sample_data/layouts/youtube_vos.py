"""The sample set as YouTube-VOS's validation set: masks only where objects begin, some of them later in the clip."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tubelet.data.palette_png import write_indexed
from tubelet.sample_data.layouts.frames import write_image
from tubelet.sample_data.layouts.objects import object_clips

_APART = 5  # frames are numbered as in a video of which every fifth was annotated


def write_youtube_vos(root: Path, out: Path) -> Mapping[str, int]:
    """Write valid/meta.json, valid/JPEGImages and valid/Annotations."""
    videos, objects = {}, 0
    for clip in object_clips(root, only_first=False):
        names = [f"{_APART * t:05d}" for t in range(len(clip.frames))]
        for name, pixels in zip(names, clip.frames, strict=True):
            write_image(out / "valid" / "JPEGImages" / clip.name / f"{name}.jpg", pixels)
        masks = out / "valid" / "Annotations" / clip.name
        masks.mkdir(parents=True)
        for t in sorted(set(clip.first.values())):
            new = [number for number, first in clip.first.items() if first == t]
            labels = clip.labels[t]
            write_indexed(masks / f"{names[t]}.png", np.where(np.isin(labels, new), labels, 0))
        videos[clip.name] = {
            "objects": {
                str(number): {"category": clip.classes[number], "frames": names[first:]}
                for number, first in clip.first.items()
            }
        }
        objects += len(clip.first)
    (out / "valid").mkdir(exist_ok=True)
    (out / "valid" / "meta.json").write_text(json.dumps({"videos": videos}, indent=1) + "\n", encoding="utf-8")
    return {"sequences": len(videos), "objects": objects}
