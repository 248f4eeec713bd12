"""The sample set as EPIC-KITCHENS-100: the clips of a level, one after the other, are a participant's video.

Each clip lasts two seconds of the video. Its action begins a second and a half into it: what the camera does is the
verb, the largest object of the clip the noun. An observer who stops a second earlier has therefore seen the first half
second of the same motion, and must tell what goes on; without that, clips that follow each other by chance would leave
nothing to anticipate but a level's habits. A clip without an object stays in the video and has no annotation.
"""

from collections.abc import Iterable, Mapping
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tubelet.data.decode import read_frame_array
from tubelet.sample_data.layouts.labels import NOTHING, dominant_object, in_words
from tubelet.sample_data.media import H264, write_rows, write_video
from tubelet.sample_data.truth import CLASSES, FIRST_OBJECT, MOTIONS, SampleEntry, read_description, read_index

CLIP_S = 2.0
ACTION_S = 1.5
_H264 = H264 | {"g": "16"}  # quick to enter anywhere
_COLUMNS = (
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp",
    "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns",
    "all_noun_classes",
)  # fmt: skip
_NOUNS = CLASSES[FIRST_OBJECT:]


def write_epic(root: Path, out: Path) -> Mapping[str, int]:
    """Write EPIC_100_*.csv and PXX/videos/PXX_01.MP4."""
    fps = Fraction(read_description(root)["parameters"]["frames"]) / Fraction(CLIP_S)
    write_rows(out / "EPIC_100_verb_classes.csv", _class_rows([in_words(motion) for motion in MOTIONS]))
    write_rows(out / "EPIC_100_noun_classes.csv", _class_rows(_NOUNS))
    counts, participants, silent = {}, 0, 0
    for split, name in (("train", "train"), ("val", "validation")):
        rows: list[tuple[object, ...]] = [_COLUMNS]
        for _, group in groupby(sorted(read_index(root, split), key=lambda e: (e.level, e.media)), lambda e: e.level):
            participants += 1
            entries = list(group)
            person = f"P{participants:02d}"
            frames: list[NDArray[np.uint8]] = []
            narrated = 0
            for number, entry in enumerate(entries):
                frames += list(read_frame_array(entry.media))
                noun = dominant_object(entry)
                if noun == NOTHING:
                    silent += 1
                    continue
                rows.append(_row(person, narrated, number * CLIP_S, entry, noun, fps))
                narrated += 1
            write_video(out / person / "videos" / f"{person}_01.MP4", frames, fps, "libx264", _H264)
        write_rows(out / f"EPIC_100_{name}.csv", rows)
        counts[f"{name} actions"] = len(rows) - 1
    return counts | {"videos": participants, "clips without an action": silent}


def _row(person: str, number: int, clip_start_s: float, entry: SampleEntry, noun: str, fps: Fraction) -> tuple:
    start, stop = clip_start_s + ACTION_S, clip_start_s + CLIP_S
    verb, noun_class = MOTIONS.index(entry.motion), _NOUNS.index(noun)
    return (
        f"{person}_01_{number}", person, f"{person}_01", _timestamp(start), _timestamp(start), _timestamp(stop),
        int(start * fps), int(stop * fps), f"{in_words(entry.motion)} {noun}", in_words(entry.motion), verb, noun,
        noun_class, str([noun]), str([noun_class]),
    )  # fmt: skip


def _class_rows(names: Iterable[str]) -> list[tuple[object, ...]]:
    return [("id", "key", "instances", "category"), *((i, name, str([name]), name) for i, name in enumerate(names))]


def _timestamp(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes) // 60:02d}:{int(minutes) % 60:02d}:{rest:05.2f}"
