import json
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tests.helpers.worker_jobs import map_without_torch
from tubelet import sample_data as sample
from tubelet.errors import TubeletError
from tubelet.sample_data import CLASSES, MOTIONS, SampleEntry, read_index, read_truth, write, write_sample_data
from tubelet.sample_data.level import Level, can_walk, is_sky, wad_directory
from tubelet.sample_data.truth import (
    CEILING,
    FLOOR,
    WALL,
    Camera,
    motion_of,
    project,
    save_arrays,
    unproject,
    wrapped_planes,
)
from tubelet.sample_data.write import split_levels

TINY = {"clips": 4, "images": 2, "size": 64, "frames": 4, "validation_share": 0.0, "workers": 1}


def frames_of(entry: SampleEntry) -> np.ndarray:
    with av.open(str(entry.media)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def all_entries(root: Path, kind: str) -> list[SampleEntry]:
    return [entry for split in ("train", "val") for entry in read_index(root, split, kind)]


def all_bytes(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def pose_line(steps: int, ahead: float = 0, right: float = 0, turn: float = 0, yaw: float = 90) -> np.ndarray:
    # At a yaw of 90 degrees ahead is +y and right is +x.
    k = np.arange(steps, dtype=np.float32)
    return np.stack([right * k, ahead * k, 0 * k, yaw + turn * k, 0 * k], axis=1)


def square_room(sky: bool, ceiling: float) -> Level:
    corners = np.array([[-100, -100], [-100, 100], [100, 100], [100, -100]], float)
    lines = np.concatenate([corners, np.roll(corners, -1, axis=0)], axis=1)
    return Level(
        name="room",
        lines=lines,
        front=np.zeros(4, np.int64),
        back=np.full(4, -1, np.int64),
        floors=np.zeros(1),
        ceilings=np.array([ceiling]),
        sky=np.array([sky]),
        solid=np.ones(4, bool),
        things=np.zeros((1, 2)),
        is_object=np.ones(1, bool),
    )


@pytest.mark.slow
def test_every_file_decodes_and_has_its_truth(sample_set: Path) -> None:
    description = json.loads((sample_set / "dataset.json").read_text())
    videos, images = all_entries(sample_set, "videos"), all_entries(sample_set, "images")
    assert (len(videos), len(images)) == (24, 6)
    assert sum(split["videos"] for split in description["counts"].values()) == 24
    for entry, pixels in [(e, frames_of(e)) for e in videos] + [
        (e, np.asarray(Image.open(e.media))[None]) for e in images
    ]:
        truth = read_truth(entry.truth)
        frames = 8 if entry.motion else 1
        assert pixels.shape == (frames, 64, 64, 3)
        assert truth.depth.shape == truth.classes.shape == truth.instances.shape == (frames, 64, 64)
        assert truth.pose.shape == (frames, 5)
        assert truth.tracks.shape[1:] == (frames, 2)
        assert truth.visible.shape == truth.tracks.shape[:2]
        assert truth.level == entry.level
        assert truth.classes.max() < len(CLASSES)
        assert ((truth.instances > 0) == (truth.classes >= CLASSES.index("monster"))).all()
        assert (np.isinf(truth.depth) == (truth.classes == CLASSES.index("sky"))).all()


def test_videos_are_h264_at_the_frame_rate(sample_set: Path) -> None:
    with av.open(str(read_index(sample_set)[0].media)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate == 7
        assert not container.streams.audio


def test_splits_share_no_level(sample_set: Path) -> None:
    seen = [
        {e.level for kind in ("videos", "images") for e in read_index(sample_set, s, kind)} for s in ("train", "val")
    ]
    assert seen[0] and seen[1] and not seen[0] & seen[1]
    full = split_levels(5, 0.2)
    assert not set(full["train"]) & set(full["val"])
    assert len(full["train"]) + len(full["val"]) == 68


def test_motion_label_agrees_with_pose(sample_set: Path) -> None:
    for entry in all_entries(sample_set, "videos"):
        truth = read_truth(entry.truth)
        assert MOTIONS[truth.motion] == entry.motion
        assert motion_of(truth.pose) == truth.motion


def test_motions_are_balanced(sample_set: Path) -> None:
    motions = [entry.motion for entry in read_index(sample_set, "train")]
    counts = [motions.count(name) for name in MOTIONS]
    assert max(counts) - min(counts) <= 1


def test_images_have_no_motion(sample_set: Path) -> None:
    assert all(read_truth(entry.truth).motion == -1 for entry in all_entries(sample_set, "images"))


@pytest.mark.parametrize(
    ("move", "name"),
    [
        ({}, "still"),
        ({"ahead": 5}, "forward"),
        ({"ahead": -5}, "backward"),
        ({"right": 5}, "strafe_right"),
        ({"right": -5}, "strafe_left"),
        ({"turn": 3}, "turn_left"),
        ({"turn": -3}, "turn_right"),
        ({"ahead": 5, "right": 5}, None),
        ({"ahead": 5, "turn": 3}, None),
    ],
)
def test_motion_names_the_dominant_component(move: dict[str, float], name: str | None) -> None:
    found = motion_of(pose_line(8, **move))
    assert (None if found is None else MOTIONS[found]) == name


def test_turning_through_zero_degrees_is_not_a_full_turn() -> None:
    pose = pose_line(8, turn=3, yaw=350)
    pose[:, 3] %= 360
    found = motion_of(pose)
    assert found is not None and MOTIONS[found] == "turn_left"


def test_project_inverts_unproject() -> None:
    camera = Camera(100, 120, 64, 64)
    pose = np.array([10, -20, 41, 33, 0], np.float32)
    pixels, depth = np.array([[3.5, 100.5], [90.0, 20.0]]), np.array([200.0, 640.0])
    back, back_depth = project(unproject(pixels, depth, pose, camera), pose[None], camera)
    np.testing.assert_allclose(back[:, 0], pixels, atol=1e-6)
    np.testing.assert_allclose(back_depth[:, 0], depth, atol=1e-6)


def test_tracked_points_keep_their_color_and_depth(sample_set: Path) -> None:
    kept, chance, depth_errors, seen = [], [], [], 0
    rng = np.random.default_rng(0)
    for entry in all_entries(sample_set, "videos"):
        truth, pixels = read_truth(entry.truth), frames_of(entry).astype(float)
        both = truth.visible[:, 0] & truth.visible[:, -1]
        seen += int(both.sum())
        x0, y0 = np.floor(truth.tracks[both, 0]).astype(int).T
        x1, y1 = np.floor(truth.tracks[both, -1]).astype(int).T
        if not len(x0):
            continue
        shuffled = rng.permutation(len(x1))
        kept.append(np.abs(pixels[0, y0, x0] - pixels[-1, y1, x1]).mean(1))
        chance.append(np.abs(pixels[0, y0, x0] - pixels[-1, y1[shuffled], x1[shuffled]]).mean(1))
        points = unproject(
            truth.tracks[both, 0].astype(float), truth.depth[0, y0, x0].astype(float), truth.pose[0], truth.camera
        )
        _, expected = project(points, truth.pose[-1:], truth.camera)
        depth_errors.append(np.abs(expected[:, 0] - truth.depth[-1, y1, x1]) / expected[:, 0])
    assert seen > 200
    assert np.concatenate(kept).mean() < 0.6 * np.concatenate(chance).mean()
    assert np.nanmedian(np.concatenate(depth_errors)) < 0.05


def test_floors_lie_at_one_height_below_the_camera(sample_set: Path) -> None:
    # The median floor of a view is the one that the player stands on: eyes are 41 units above it.
    heights = []
    for entry in all_entries(sample_set, "videos"):
        truth = read_truth(entry.truth)
        rows, columns = np.nonzero(truth.classes[0, -8:] == FLOOR)
        if len(rows) > 100:
            depth = truth.depth[0, -8:][rows, columns]
            below = (rows + 64 - 8 + 0.625 - truth.camera.cy) / truth.camera.fy
            heights.append(float(np.nanmedian(depth * below)))
    assert len(heights) >= 8
    assert np.median(heights) == pytest.approx(41, abs=2.5)


def test_most_clips_show_an_object(sample_set: Path) -> None:
    assert json.loads((sample_set / "dataset.json").read_text())["clips_with_object"] >= 0.6 * 24


@pytest.mark.slow
def test_same_seed_gives_the_same_bytes_without_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vizdoom")
    monkeypatch.setattr(write, "process_map", map_without_torch)
    write_sample_data(tmp_path / "a", seed=3, **TINY)
    write_sample_data(tmp_path / "b", seed=3, **TINY)
    assert all_bytes(tmp_path / "a") == all_bytes(tmp_path / "b")
    assert not (tmp_path / "a.partial").exists()


def test_a_set_that_is_there_is_reused_and_one_with_other_parameters_refused(sample_set: Path) -> None:
    before = all_bytes(sample_set)
    again = write_sample_data(sample_set, clips=24, images=6, size=64, frames=8, seed=0)
    assert again["reused"] and all_bytes(sample_set) == before
    with pytest.raises(TubeletError, match="other parameters"):
        write_sample_data(sample_set, clips=25, images=6, size=64, frames=8, seed=0)


def test_refuses_a_frame_rate_that_does_not_divide_35(tmp_path: Path) -> None:
    with pytest.raises(TubeletError, match="fps 8: must divide"):
        write_sample_data(tmp_path / "out", fps=8)
    assert not (tmp_path / "out").exists()


def test_refuses_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TubeletError, match="contains other files; name a new folder"):
        write_sample_data(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_refuses_a_size_that_cannot_be_rendered(tmp_path: Path) -> None:
    with pytest.raises(TubeletError, match="size 300"):
        write_sample_data(tmp_path / "out", size=300)


def test_reader_refuses_what_is_not_a_truth(tmp_path: Path) -> None:
    with pytest.raises(TubeletError, match="does not exist; generate the sample set again"):
        read_truth(tmp_path / "none.npz")
    save_arrays(tmp_path / "other.npz", {"a": np.zeros(3)})
    with pytest.raises(TubeletError, match="has no classes"):
        read_truth(tmp_path / "other.npz")


def test_without_vizdoom_the_package_imports_and_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in Path(sample.__file__).parent.glob("*.py"):
        assert not [line for line in source.read_text().splitlines() if line.startswith(("import viz", "from viz"))]
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(TubeletError, match="pip install vizdoom"):
        write_sample_data(tmp_path / "out", clips=4, workers=1)
    assert not (tmp_path / "out").exists()


def test_a_way_through_a_wall_is_not_walkable() -> None:
    room = square_room(sky=False, ceiling=128)
    assert can_walk(room, np.array([-50.0, 0]), np.array([50.0, 0]), 20)
    assert not can_walk(room, np.array([-50.0, 0]), np.array([90.0, 0]), 20)
    assert not can_walk(room, np.array([0.0, 0]), np.array([500.0, 0]), 20)


def test_a_ray_over_a_wall_under_open_sky_ends_in_the_sky() -> None:
    room = square_room(sky=True, ceiling=128)
    found = is_sky(room, np.array([0.0, 0, 41]), np.array([[1.0, 0]]), np.zeros(2, int), np.array([0.5, 1.0]), 0)
    assert found.tolist() == [False, True]  # at the wall the first is 91 high, the second 141


def test_planes_too_near_for_the_engines_byte_are_unknown_and_not_far_away():
    classes = np.full((2, 7, 2), FLOOR, np.uint8)
    classes[:, :3], classes[:, 3] = CEILING, WALL
    wraps = [[194, 194], [0, 6], [1, 7], [90, 90], [1, 9], [0, 140], [194, 194]]
    far = [[190, 190], [200, 200], [210, 210], [90, 90], [230, 230], [220, 220], [210, 210]]
    wrapped = wrapped_planes(np.array([wraps, far], np.uint8), classes)
    assert np.argwhere(wrapped).tolist() == [[0, 0, 0], [0, 0, 1], [0, 6, 0], [0, 6, 1]]


def test_levels_are_those_of_the_file_that_lies_there_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_wad(folder: Path, name: str) -> None:
        folder.mkdir()
        entries = [(name.encode(), 0, 0), (b"THINGS", 12, 4)]
        table = b"".join(struct.pack("<ii8s", at, size, entry) for entry, at, size in entries)
        (folder / "freedoom1.wad").write_bytes(struct.pack("<4sii", b"IWAD", len(entries), 12) + table)

    for name in ("E1M1", "E1M2"):
        write_wad(tmp_path / name, name)
    monkeypatch.setattr("tubelet.sample_data.level.wad_root", lambda: tmp_path / "link")
    for name in ("E1M1", "E1M2"):
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to(name)
        assert list(wad_directory("freedoom1.wad")) == [name]
