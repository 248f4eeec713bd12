"""The sample set as Kinetics: what the camera does is the action."""

import csv
from collections.abc import Mapping
from pathlib import Path

from tubelet.sample_data.layouts.labels import copy, in_words
from tubelet.sample_data.truth import read_description, read_index


def write_kinetics(root: Path, out: Path) -> Mapping[str, int]:
    """Write annotations/*.csv, and the videos in a folder for each class as official downloads are sorted."""
    parameters = read_description(root)["parameters"]
    end = round(parameters["frames"] / parameters["fps"]) or 1
    (out / "annotations").mkdir()
    counts = {}
    for split in ("train", "val"):
        entries = read_index(root, split)
        with (out / "annotations" / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(("label", "youtube_id", "time_start", "time_end", "split"))
            for entry in entries:
                label, identity = in_words(entry.motion), f"{split}-{entry.media.stem}"
                rows.writerow((label, identity, 0, end, split))
                copy(entry, out / split / label / f"{identity}_{0:06d}_{end:06d}.mp4")
        counts[f"{split} videos"] = len(entries)
    return counts
