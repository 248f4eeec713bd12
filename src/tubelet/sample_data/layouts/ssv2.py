"""The sample set as Something-Something v2: what the camera does is the action, the largest object the something."""

import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

from tubelet.data.decode import read_frame_array
from tubelet.sample_data.layouts.labels import dominant_object
from tubelet.sample_data.media import write_video
from tubelet.sample_data.truth import MOTIONS, read_description, read_index

_TEMPLATES = {
    "still": "Looking at [something]",
    "forward": "Moving forward past [something]",
    "backward": "Moving backward past [something]",
    "strafe_left": "Stepping left past [something]",
    "strafe_right": "Stepping right past [something]",
    "turn_left": "Turning left past [something]",
    "turn_right": "Turning right past [something]",
}
_VP9 = {"deadline": "realtime", "cpu-used": "8", "crf": "24", "b": "0", "auto-alt-ref": "0"}


def write_ssv2(root: Path, out: Path) -> Mapping[str, int]:
    """Write labels/*.json and 20bn-something-something-v2/*.webm, in VP9 as the benchmark's."""
    fps = Fraction(read_description(root)["parameters"]["fps"])
    labels = {_TEMPLATES[motion].replace("[", "").replace("]", ""): str(i) for i, motion in enumerate(MOTIONS)}
    (out / "labels").mkdir()
    (out / "labels" / "labels.json").write_text(json.dumps(labels, indent=1) + "\n", encoding="utf-8")
    counts, number = {}, 0
    for split, name in (("train", "train"), ("val", "validation")):
        entries = []
        for entry in read_index(root, split):
            number += 1
            video = out / "20bn-something-something-v2" / f"{number}.webm"
            write_video(video, list(read_frame_array(entry.media)), fps, "libvpx-vp9", _VP9)
            template, thing = _TEMPLATES[entry.motion], dominant_object(entry)
            label = template.replace("[something]", thing).lower()
            entries.append({"id": str(number), "label": label, "template": template, "placeholders": [thing]})
        (out / "labels" / f"{name}.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
        counts[f"{name} videos"] = len(entries)
    return counts
