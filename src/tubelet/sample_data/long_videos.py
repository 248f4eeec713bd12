"""Long videos of the sample set, and tables of labels for them.

A long video joins clips of one level in random order, each shortened to a random part of it, so that what the camera
does changes at times that are known to the frame and follow no rhythm. A level's videos are all in one split.

labels/{train,val}/NNNN.mp4   the long videos
labels/motion.csv             path, start_s, end_s, label: the motion of the camera; split; group: the level
labels/speed.csv              path, start_s, end_s; numbers from the poses of the camera; split, group
labels/objects.csv            path, start_s, end_s, label: classes of visible objects, joined by "|"; split, group
labels/segmentation.csv       path of an image, mask: a PNG of class indices; split, group
labels/segmentation.legend.csv  index, name
labels/depth.csv              path of an image, depth: a 16-bit PNG in millimeters, 0 where unknown; split, group
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tubelet.data.decode import read_frame_array
from tubelet.errors import ConfigError
from tubelet.io.files import write_directory_once
from tubelet.sample_data.layouts.frames import known_meters, to_millimeters, write_map
from tubelet.sample_data.media import H264, write_rows, write_video
from tubelet.sample_data.truth import (
    CLASSES,
    FIRST_OBJECT,
    UNITS_PER_METER,
    VOID,
    ClipTruth,
    SampleEntry,
    read_description,
    read_index,
    read_truth,
)

FOLDER = "labels"
SPLITS = ("train", "val")
MIN_CLIPS = 2  # of a long video; with fewer nothing changes in it
SMALLEST = 1 / 256  # of a frame; smaller objects are too few pixels to recognize
IGNORED = 255  # in masks: pixels that do not count
_SPEEDS = ("forward_m_per_s", "right_m_per_s", "turn_left_deg_per_s")
_H264 = H264 | {"g": "16"}  # quick to enter anywhere


@dataclass(frozen=True, kw_only=True)
class JoinedClip:
    """A part of a clip in a long video.

    Attributes:
        entry: the clip.
        first: first frame of the part, counted in the clip.
        start: first frame of the part, counted in the long video.
        frames: number of frames.
    """

    entry: SampleEntry
    first: int
    start: int
    frames: int


@dataclass(frozen=True, kw_only=True)
class LongVideo:
    """A long video.

    Attributes:
        path: the video, relative to the folder of the tables.
        split: "train" or "val".
        level: name of the level.
        clips: the clips, in order.
    """

    path: str
    split: str
    level: str
    clips: tuple[JoinedClip, ...]


def write_long_videos(root: str | Path, count: int) -> Mapping[str, int]:
    """Write long videos with tables of labels as ROOT/labels, which is renamed into place when it is complete.

    The same set and count give the same bytes.

    Args:
        root: folder of a rendered sample set.
        count: number of long videos, train and val together, divided as the clips are.

    Returns:
        What was written and how many; empty if the folder existed.

    Raises:
        ConfigError: if the set has too few clips, or the folder has another number of videos.
        MissingFileError: if there is no sample set.
        FileError: if the folder cannot be written.
    """
    root = Path(root)
    videos = plan_long_videos(root, count)
    out = root / FOLDER
    existing = len(list(out.glob("*/*.mp4")))
    if out.exists() and existing != count:
        raise ConfigError(
            f"{out}: has {existing} long videos, requested were {count}; delete it or choose another FOLDER"
        )
    return write_directory_once(out, lambda partial: _write(root, partial, videos), "choose another FOLDER") or {}


def plan_long_videos(root: Path, count: int) -> list[LongVideo]:
    """Distribute the clips of a sample set to long videos.

    Args:
        root: folder of a rendered sample set.
        count: number of long videos, train and val together.

    Raises:
        ConfigError: if the set has too few clips.
        MissingFileError: if there is no sample set.
    """
    parameters = read_description(root)["parameters"]
    levels = {split: _by_level(read_index(root, split)) for split in SPLITS}
    val = max(1, round(count * parameters["validation_share"])) if levels["val"] else 0
    videos = []
    for number, (split, requested) in enumerate((("train", count - val), ("val", val))):
        limit = sum(len(entries) // MIN_CLIPS for entries in levels[split].values())
        if not 1 <= requested <= limit and (requested or split == "train"):
            raise ConfigError(
                f"{count} long videos are {count - val} of train and {val} of val; expected 1 to {limit} of {split}, "
                f"with at least {MIN_CLIPS} clips of one level each; change --long-videos, or render more --clips"
            )
        rng = np.random.default_rng([parameters["seed"], 3, number])
        for k, (level, entries) in enumerate(_deal(levels[split], requested, rng)):
            clips = tuple(_join(entries, parameters["frames"], rng))
            videos.append(LongVideo(path=f"{split}/{k:04d}.mp4", split=split, level=level, clips=clips))
    return videos


def _by_level(entries: Sequence[SampleEntry]) -> dict[str, list[SampleEntry]]:
    """Level -> its clips, of levels with enough clips for a long video; levels with the most clips first."""
    ordered = sorted(entries, key=lambda entry: (entry.level, entry.media.name))
    levels = [(level, list(group)) for level, group in groupby(ordered, lambda entry: entry.level)]
    enough = [(level, clips) for level, clips in levels if len(clips) >= MIN_CLIPS]
    return dict(sorted(enough, key=lambda item: (-len(item[1]), item[0])))


def _deal(
    levels: Mapping[str, list[SampleEntry]], count: int, rng: np.random.Generator
) -> Iterator[tuple[str, list[SampleEntry]]]:
    """The clips of each long video, shuffled: those of a level, or a part of them if there are fewer levels."""
    numbers = dict.fromkeys(list(levels)[:count], 1)
    for _ in range(count - len(numbers)):
        divisible = [level for level, number in numbers.items() if len(levels[level]) // MIN_CLIPS > number]
        numbers[max(divisible, key=lambda level: len(levels[level]) / numbers[level])] += 1
    for level, number in numbers.items():
        order = rng.permutation(len(levels[level]))
        for part in np.array_split(order, number):
            yield level, [levels[level][k] for k in part]


def _join(entries: Sequence[SampleEntry], frames: int, rng: np.random.Generator) -> Iterator[JoinedClip]:
    start = 0
    for entry in entries:
        length = int(rng.integers(-(-frames // 2), frames + 1))
        yield JoinedClip(entry=entry, first=int(rng.integers(frames - length + 1)), start=start, frames=length)
        start += length


def _write(root: Path, out: Path, videos: Sequence[LongVideo]) -> dict[str, int]:
    """Write the videos and the tables of labels."""
    fps = Fraction(read_description(root)["parameters"]["fps"])
    for video in videos:
        write_video(out / video.path, _pixels(video), fps, options=_H264)
    truths = {clip.entry.truth: read_truth(clip.entry.truth) for video in videos for clip in video.clips}
    motions, speeds, objects = [], [], []
    for video in videos:
        for motion, same in groupby(video.clips, lambda clip: clip.entry.motion):
            run = list(same)
            frames = run[0].start, run[-1].start + run[-1].frames
            motions.append((video.path, *_seconds(*frames, fps), motion, video.split, video.level))
        for clip in video.clips:
            span = _seconds(clip.start, clip.start + clip.frames, fps)
            truth, shown = truths[clip.entry.truth], slice(clip.first, clip.first + clip.frames)
            speeds.append((video.path, *span, *_speeds(truth.pose[shown], fps), video.split, video.level))
            names = "|".join(visible_objects(truth, shown))
            objects.append((video.path, *span, names, video.split, video.level))
    spans, about = ("path", "start_s", "end_s"), ("split", "group")
    images = _write_maps(root, out)
    write_rows(out / "motion.csv", [(*spans, "label", *about), *motions])
    write_rows(out / "speed.csv", [(*spans, *_SPEEDS, *about), *speeds])
    write_rows(out / "objects.csv", [(*spans, "label", *about), *objects])
    return {"long videos": len(videos), "spans of one motion": len(motions), "masks and depth maps": images}


def _write_maps(root: Path, out: Path) -> int:
    """Write masks and depth maps of the images and their tables; returns the number of images."""
    masks: list[tuple[object, ...]] = [("path", "mask", "split", "group")]
    depths: list[tuple[object, ...]] = [("path", "depth", "split", "group")]
    for split in SPLITS:
        for entry in read_index(root, split, "images"):
            truth, name = read_truth(entry.truth), f"{split}/{entry.media.stem}.png"
            classes = truth.classes[0]
            write_map(out / "masks" / name, np.where(classes == VOID, IGNORED, classes).astype(np.uint8))
            write_map(out / "depth" / name, to_millimeters(known_meters(truth.depth[0])))
            path = f"../{split}/images/{entry.media.name}"
            masks.append((path, f"masks/{name}", split, entry.level))
            depths.append((path, f"depth/{name}", split, entry.level))
    write_rows(out / "segmentation.csv", masks)
    legend = [("index", "name"), *((k, name) for k, name in enumerate(CLASSES) if k != VOID)]
    write_rows(out / "segmentation.legend.csv", legend)
    write_rows(out / "depth.csv", depths)
    return len(masks) - 1


def _pixels(video: LongVideo) -> list[NDArray[np.uint8]]:
    frames: list[NDArray[np.uint8]] = []
    for clip in video.clips:
        frames += list(read_frame_array(clip.entry.media)[clip.first : clip.first + clip.frames])
    return frames


def _seconds(start: int, end: int, fps: Fraction) -> tuple[str, str]:
    return f"{float(start / fps):.6f}", f"{float(end / fps):.6f}"


def _speeds(pose: NDArray[np.float32], fps: Fraction) -> tuple[str, ...]:
    """Meters a second ahead and to the right, and degrees a second to the left, from the first to the last pose."""
    seconds = float((len(pose) - 1) / fps)
    yaw = np.unwrap(np.radians(pose[:, 3].astype(np.float64)))
    east, north = (pose[-1, :2] - pose[0, :2]).astype(np.float64) / UNITS_PER_METER / seconds
    ahead = east * np.cos(yaw[0]) + north * np.sin(yaw[0])
    right = east * np.sin(yaw[0]) - north * np.cos(yaw[0])
    turn = np.degrees(yaw[-1] - yaw[0]) / seconds
    return tuple(f"{value + 0.0:.4f}" for value in np.round((ahead, right, turn), 4))


def visible_objects(truth: ClipTruth, span: slice) -> list[str]:
    """The classes of objects that fill enough of the frame in at least half of the frames.

    Args:
        truth: what a clip shows.
        span: the frames to consider.
    """
    classes = truth.classes[span]
    areas = np.stack([(classes == k).mean((1, 2)) for k in range(FIRST_OBJECT, len(CLASSES))])
    return [CLASSES[FIRST_OBJECT + k] for k in np.flatnonzero((areas >= SMALLEST).mean(1) >= 0.5)]
