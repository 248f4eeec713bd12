"""The sample set as Diving-48: what the camera does is the dive."""

import json
from collections.abc import Mapping
from pathlib import Path

from tubelet.sample_data.layouts.labels import copy
from tubelet.sample_data.truth import MOTIONS, read_description, read_index


def write_diving48(root: Path, out: Path) -> Mapping[str, int]:
    """Write the three JSON files and rgb/*.mp4."""
    frames = read_description(root)["parameters"]["frames"]
    (out / "Diving48_vocab.json").write_text(
        json.dumps([motion.split("_") for motion in MOTIONS]) + "\n", encoding="utf-8"
    )
    counts = {}
    for split, name in (("train", "train"), ("val", "test")):
        entries = []
        for entry in read_index(root, split):
            identity = f"{split}_{entry.media.stem}"
            copy(entry, out / "rgb" / f"{identity}.mp4")
            label = MOTIONS.index(entry.motion)
            entries.append({"vid_name": identity, "label": label, "start_frame": 0, "end_frame": frames})
        (out / f"Diving48_V2_{name}.json").write_text(json.dumps(entries) + "\n", encoding="utf-8")
        counts[f"{name} videos"] = len(entries)
    return counts
