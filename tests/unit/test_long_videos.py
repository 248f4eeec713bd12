"""Long videos of the sample set, and their label tables."""

import csv
import itertools
import re
import shutil
from collections import defaultdict
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.helpers.commands import run_tubelet
from tests.helpers.video_copies import write_edit_list_copy, write_variable_rate_copy
from tubelet.data.decode import Video
from tubelet.errors import TubeletError
from tubelet.labels.checks import check_labels
from tubelet.labels.infer import infer_task
from tubelet.labels.table import read_labels
from tubelet.sample_data import CLASSES, MOTIONS, read_truth, write_long_videos, write_sample_data
from tubelet.sample_data.long_videos import plan_long_videos

FPS = 7


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def frames_of(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").astype(float) for frame in container.decode(video=0)]


def all_bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def seconds(row: dict[str, str]) -> tuple[float, float]:
    return float(row["start_s"]), float(row["end_s"])


@pytest.mark.parametrize("table", ["motion", "speed", "objects"])
def test_spans_of_a_table_cover_each_video_without_gaps(labeled_set: Path, table: str) -> None:
    spans = defaultdict(list)
    for row in rows_of(labeled_set / "labels" / f"{table}.csv"):
        spans[row["path"]].append(seconds(row))
    assert len(spans) == 6
    for path, found in spans.items():
        assert found[0][0] == 0
        assert [end for _, end in found[:-1]] == [start for start, _ in found[1:]]
        assert found[-1][1] == pytest.approx(len(frames_of(labeled_set / "labels" / path)) / FPS, abs=1e-6)


def test_frames_of_a_span_are_those_of_its_clip(labeled_set: Path) -> None:
    for video in plan_long_videos(labeled_set, 6):
        joined = frames_of(labeled_set / "labels" / video.path)
        assert len(joined) == sum(clip.frames for clip in video.clips)
        for clip in video.clips:
            assert 4 <= clip.frames <= 8
            own = frames_of(clip.entry.media)
            far = [np.abs(joined[clip.start] - frame).mean() for frame in own]
            if clip.entry.motion != "still":
                assert int(np.argmin(far)) == clip.first
            assert min(far) < 6  # compressed twice


def test_motion_is_that_of_the_clips_and_changes_at_the_end_of_a_span(labeled_set: Path) -> None:
    rows = defaultdict(list)
    for row in rows_of(labeled_set / "labels" / "motion.csv"):
        rows[row["path"]].append(row)
    for video in plan_long_videos(labeled_set, 6):
        for clip in video.clips:
            middle = (clip.start + clip.frames / 2) / FPS
            labels = [r["label"] for r in rows[video.path] if seconds(r)[0] <= middle < seconds(r)[1]]
            assert labels == [clip.entry.motion] == [MOTIONS[read_truth(clip.entry.truth).motion]]
        labels = [row["label"] for row in rows[video.path]]
        assert all(one != next_ for one, next_ in itertools.pairwise(labels))


def test_speeds_have_the_sign_of_the_motion(labeled_set: Path) -> None:
    columns = ("forward_m_per_s", "right_m_per_s", "turn_left_deg_per_s")
    expected = {"still": (0, 0, 0), "forward": (1, 0, 0), "backward": (-1, 0, 0), "strafe_right": (0, 1, 0)}
    expected |= {"strafe_left": (0, -1, 0), "turn_left": (0, 0, 1), "turn_right": (0, 0, -1)}
    speeds = rows_of(labeled_set / "labels" / "speed.csv")
    motion_of = {
        (video.path, round(clip.start / FPS, 6)): clip.entry.motion
        for video in plan_long_videos(labeled_set, 6)
        for clip in video.clips
    }
    assert len(speeds) == len(motion_of) == 24
    for row in speeds:
        values = np.array([float(row[name]) for name in columns])
        signs = np.where(np.abs(values) > (0.4, 0.4, 3.0), np.sign(values), 0)
        assert tuple(signs) == expected[motion_of[row["path"], float(row["start_s"])]]
    assert max(abs(float(row["forward_m_per_s"])) for row in speeds) < 14 / 32 * FPS + 0.5


def test_objects_are_classes_that_the_truth_shows(labeled_set: Path) -> None:
    rows = rows_of(labeled_set / "labels" / "objects.csv")
    assert len(rows) == 24
    named = {label for row in rows for label in row["label"].split("|") if label}
    assert named and named <= set(CLASSES[5:])
    assert any("|" in row["label"] for row in rows)


def test_no_level_is_in_both_splits(labeled_set: Path) -> None:
    rows = rows_of(labeled_set / "labels" / "motion.csv")
    levels = {split: {row["group"] for row in rows if row["split"] == split} for split in ("train", "val")}
    assert levels["train"] and levels["val"] and not levels["train"] & levels["val"]
    assert all(row["path"].startswith(f"{row['split']}/") for row in rows)


def test_same_set_and_number_give_the_same_bytes(sample_set: Path, labeled_set: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sample_set, tmp_path / "set")
    write_long_videos(root, 6)
    assert all_bytes(root / "labels") == all_bytes(labeled_set / "labels")


def test_an_existing_set_gets_long_videos_and_keeps_them(labeled_set: Path, sample_set: Path) -> None:
    before = all_bytes(labeled_set)
    assert write_long_videos(labeled_set, 6) == {}
    again = write_sample_data(labeled_set, clips=24, images=6, size=64, frames=8, seed=0)
    assert again["reused"] and all_bytes(labeled_set) == before
    assert not (sample_set / "labels").exists()


def test_another_number_of_long_videos_is_refused(labeled_set: Path) -> None:
    with pytest.raises(TubeletError, match="has 6 long videos, requested were 5; delete it"):
        write_long_videos(labeled_set, 5)


@pytest.mark.parametrize(("count", "found"), [(1, "0 of train and 1 of val"), (40, "32 of train and 8 of val")])
def test_a_number_that_the_clips_do_not_suffice_for_is_refused(sample_set: Path, count: int, found: str) -> None:
    with pytest.raises(TubeletError, match=re.escape(found) + ".*change --long-videos, or render more --clips"):
        write_long_videos(sample_set, count)
    assert not (sample_set / "labels").exists()


def test_command_writes_long_videos(sample_set: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sample_set, tmp_path / "set")
    words = ("sample-data", root, "--clips", 24, "--frames", 8, "--size", 64, "--long-videos", 3)
    for expected in ("3 long videos", "already complete"):
        done = run_tubelet(*words)
        assert done.returncode == 0, done.stderr
        assert expected in " ".join(done.stdout.split())


def test_copies_of_a_long_video_show_the_same_frames_at_the_same_times(labeled_set: Path, tmp_path: Path) -> None:
    source = labeled_set / "labels" / "val" / "0000.mp4"
    variable = write_variable_rate_copy(source, tmp_path / "variable.mp4")
    edited = write_edit_list_copy(source, tmp_path / "edited.mp4")
    pixels, durations = [], []
    for path in (source, variable, edited):
        with Video(path) as video:
            durations.append(video.info.duration_s)
            times = (np.arange(round(video.info.duration_s * FPS)) + 0.5) / FPS
            pixels.append(video.clips([times])[0].pixels.numpy())
    assert durations == pytest.approx([durations[0]] * 3, abs=0.02)
    assert (pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all()
    with av.open(str(variable)) as container:
        steps = np.diff([float(frame.time or 0) for frame in container.decode(video=0)])
    assert steps.min() < 0.5 * steps.max()


def test_masks_and_depth_maps_are_those_of_the_truth(labeled_set: Path) -> None:
    labels = labeled_set / "labels"
    names = {row["index"]: row["name"] for row in rows_of(labels / "segmentation.legend.csv")}
    assert list(names.values()) == list(CLASSES[1:])
    masks, depths = rows_of(labels / "segmentation.csv"), rows_of(labels / "depth.csv")
    assert len(masks) == len(depths) == 6
    for mask, depth in zip(masks, depths, strict=True):
        image = (labels / mask["path"]).resolve()
        assert image == (labels / depth["path"]).resolve() and image.is_file()
        truth = read_truth(labeled_set / mask["split"] / "truth" / "images" / f"{image.stem}.npz")
        assert truth.level == mask["group"] == depth["group"]
        classes = np.asarray(Image.open(labels / mask["mask"]))
        assert {names[str(k)] for k in np.unique(classes) if k != 255} <= set(CLASSES)
        assert (np.where(classes == 255, 0, classes) == truth.classes[0]).all()
        millimeters = np.asarray(Image.open(labels / depth["depth"]))
        assert millimeters.dtype == np.uint16
        known = np.isfinite(truth.depth[0])
        np.testing.assert_allclose(millimeters[known], 1000 / 32 * truth.depth[0][known], atol=0.51)
        assert not millimeters[~known].any()


@pytest.mark.parametrize(
    ("table", "task", "targets"),
    [
        ("motion", "timeline", 0),
        ("speed", "regression", 3),
        ("objects", "multilabel", 0),
        ("segmentation", "segmentation", 0),
        ("depth", "depth", 0),
    ],
)
def test_tables_are_label_tables_without_faults(labeled_set: Path, table: str, task: str, targets: int) -> None:
    read = read_labels(labeled_set / "labels" / f"{table}.csv")
    checked = check_labels(read, task, min_examples=1)
    assert len(checked.rows) == len(rows_of(labeled_set / "labels" / f"{table}.csv"))
    assert len(checked.targets) == targets
    if table == "segmentation":
        assert dict(checked.legend) == dict(enumerate(CLASSES[1:], start=1))
    if table != "objects":  # whose spans cover the videos, as those of a timeline do
        assert infer_task(checked)[0] == task
