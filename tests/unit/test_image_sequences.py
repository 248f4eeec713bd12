"""Folders of numbered images: reported where they are read one by one, and read as videos by a pattern."""

import logging
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

import tubelet
from tests.helpers.heads import tiny_encoder
from tests.helpers.media import indexed_image, read_index
from tubelet.data.sample_index import version_of
from tubelet.data.sources import list_media
from tubelet.data.stacks import is_stack, read_stack_frames, read_stack_info
from tubelet.data.stacks.image_sequence import looks_like_frames
from tubelet.errors import ConfigError, DataError, DecodeError, MissingFileError
from tubelet.tasks.common.cache import FeatureCache
from tubelet.view.viewed_files import find_files


def write_frames(folder: Path, numbers: range | list = range(1, 11), name: str = "{:06d}.png") -> Path:
    folder.mkdir(parents=True)
    for index, number in enumerate(numbers):
        Image.fromarray(indexed_image(index, 32)).save(folder / name.format(number))
    return folder


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        ([f"{i:06d}.png" for i in range(0, 60, 2)], "%06d.png"),
        ([f"cam1_{i:04d}_rgb.JPG" for i in range(10)], "cam1_%04d_rgb.JPG"),
        *((sorted(f"{i}.jpg" for i in range(count)), "%d.jpg") for count in (12, 120, 700, 30_000)),
        ([f"100%_{i:02d}.png" for i in range(10)], "100%%_%02d.png"),
        ([f"{1305031102.175 + i / 30:.6f}.png" for i in range(60)], "%f.png"),
        ([*(f"{i:06d}.png" for i in range(60)), "calibration.txt", "cover.png"], "%06d.png"),
        (sorted(f"{i:06d}.{suffix}" for i in range(60) for suffix in ("png", "txt")), "%06d.png"),
        ([f"{i:06d}.png" for i in range(7)], None),
        ([f"{i:06d}.txt" for i in range(60)], None),
        (sorted(f"{i}_{j:03d}.png" for i in range(6) for j in range(9)), None),
        ([f"{i:012d}.jpg" for i in np.sort(np.random.default_rng(0).choice(580_000, 1000, replace=False))], None),
        (sorted(f"{name}{i}.png" for name in "abcdefgh" for i in range(4)), None),
    ],
)
def test_names_that_count_at_regular_distances_look_like_frames(names: list[str], pattern: str | None) -> None:
    found = looks_like_frames(names)
    assert (None if found is None else str(found)) == pattern


def test_folders_of_frames_are_reported_once_with_the_pattern_that_reads_them(tmp_path: Path) -> None:
    for number in range(3):
        write_frames(tmp_path / f"seq_{number}")
    for source, above in (("", "**"), ("seq_*", "seq_*/**"), ("seq_*/*.png", "seq_*"), ("**", "**")):
        media = list_media([str(tmp_path / source)])
        (note,) = media.notes
        assert len(media.images) == 30 and not media.videos
        assert note.startswith(f"3 folders look like frames of videos, such as {tmp_path}/seq_0: ")
        assert note.endswith(f"pass '{tmp_path}/{above}/%06d.png'")
        media = list_media([note.split("'")[1]])
        assert list(media.videos) == [f"{tmp_path}/seq_{number}" for number in range(3)] and not media.images
        assert media.has_stacks and "3 stacks of frames" in " ".join(media.notes)


def test_numbered_stacks_are_no_frames(tmp_path: Path) -> None:
    for number in range(8):
        tifffile.imwrite(tmp_path / f"{number}.tif", np.zeros((3, 16, 16), np.uint8), photometric="minisblack")
    assert "look" not in " ".join(list_media([str(tmp_path)]).notes)


def test_pages_report_folders_of_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_frames(tmp_path / "seq")
    with caplog.at_level(logging.INFO):
        assert len(find_files([str(tmp_path)], None)) == 10
    assert caplog.text.count("looks like frames") == 1
    (file,) = find_files([f"{tmp_path}/*/%d.png"], 5.0)
    assert (file.video, file.width, file.duration_s) == (True, 32, 2.0)


def test_frames_are_in_the_order_of_their_numbers_at_the_rate_of_the_caller(tmp_path: Path) -> None:
    folder = write_frames(tmp_path / "a", [8, 9, 10, 11, 100], "{}.png")
    (folder / "labels.txt").write_text("0")
    assert is_stack(folder) and read_stack_info(folder).fps is None
    with tubelet.Video(folder, stack_fps=10) as video:
        assert (video.info.duration_s, video.info.width) == (0.5, 32)
        (clip,) = video.clips([np.arange(5) / 10])
    assert [read_index(frame) for frame in clip.pixels] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("start", "step", "name", "fps"),
    [
        (99.95, 0.05, "{:.6f}.png", 20),
        (1403636579763555584, 50_000_003, "{}.png", 20),
        (1403636579763, 40, "{}.png", 25),
        (0, 50_000_000, "{:019d}.png", None),
    ],
)
def test_frames_named_by_times_have_a_rate(
    tmp_path: Path, start: float, step: float, name: str, fps: float | None
) -> None:
    folder = write_frames(tmp_path / "rgb", [start + i * step for i in range(6)], name)
    assert read_stack_info(folder).fps == (fps and pytest.approx(fps))
    assert read_index(read_stack_frames(folder, [2])[0]) == 2
    media = list_media([f"{folder}/{'%f' if isinstance(start, float) else '%d'}.png"])
    assert list(media.videos) == [str(folder)] and "missing between" not in " ".join(media.notes)


@pytest.mark.parametrize(
    ("lines", "fps"),
    [
        ("0.0\n1.0e-01\n2.0e-01\n", 10),
        ("2011-09-26 13:02:25.964389445\n2011-09-26 13:02:26.014389445\n2011-09-26 13:02:26.064389445\n", 20),
        ("morning\nnoon\nnight\n", None),
        ("3.0\n2.0\n1.0\n0.0\n", None),
        ("", None),
    ],
)
def test_a_file_of_times_in_the_folder_or_above_it_states_the_rate(
    tmp_path: Path, lines: str, fps: float | None
) -> None:
    folder = write_frames(tmp_path / "data")
    version = version_of(str(folder))
    (tmp_path / "timestamps.txt").write_text(lines)
    assert read_stack_info(folder).fps == (fps and pytest.approx(fps))
    assert version_of(str(folder)) != version
    (folder / "times.txt").write_text("0\n0.25\n0.5\n0.75\n")
    assert read_stack_info(folder).fps == 4


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_frames_keep_their_depth(tmp_path: Path, suffix: str) -> None:
    values = np.arange(4 * 16 * 8, dtype=np.uint8 if suffix == "jpg" else np.uint16).reshape(4, 16, 8)
    for number, frame in enumerate(values):
        Image.fromarray(frame).save(tmp_path / f"{number}.{suffix}")
    read = read_stack_frames(tmp_path, [3, 0])
    assert read.dtype == values.dtype and read.shape == (2, 16, 8, 1)
    assert suffix == "jpg" or np.array_equal(read[..., 0], values[[3, 0]])
    if suffix == "png":
        with pytest.raises(DecodeError, match="type uint16, expected 8 bits"):
            tubelet.Video(tmp_path)


def test_a_folder_that_is_no_video_is_one_sentence(tmp_path: Path) -> None:
    def problem(folder: Path) -> str:
        with pytest.raises(DecodeError) as caught:
            read_stack_frames(folder, [0, 3])
        return caught.value.reason

    sizes = write_frames(tmp_path / "sizes")
    Image.fromarray(indexed_image(0, 48)).save(sizes / "000004.png")
    assert problem(sizes) == (
        "000004.png has 48 x 48 pixels of 3 channels in uint8, expected 32 x 32 pixels of 3 channels in uint8 as in "
        "000001.png"
    )
    other = write_frames(tmp_path / "other")
    (other / "cover.png").write_bytes(b"")
    assert "has 10 like 000001.png and 1 other image (cover.png); move" in problem(other)
    several = write_frames(tmp_path / "several", [1, 2], "1_{}.png")
    (several / "2_3.png").write_bytes(b"")
    assert "differ in more than one number (1_1.png, 2_3.png)" in problem(several)
    broken = write_frames(tmp_path / "broken")
    (broken / "000001.png").write_bytes(b"")
    assert problem(broken).startswith("000001.png: ")
    twice = write_frames(tmp_path / "twice", [1, 2])
    (twice / "0000001.png").write_bytes(b"")
    assert "0000001.png and 000001.png have the same number" in problem(twice)


def test_patterns_without_frames_are_one_sentence(tmp_path: Path) -> None:
    write_frames(tmp_path / "seq")
    with pytest.raises(MissingFileError, match="no folder has images with such names"):
        list_media([f"{tmp_path}/*/%07d.png"])
    with pytest.raises(ConfigError, match="has 2 numbers in the name of a frame, expected one"):
        list_media([f"{tmp_path}/seq/%d_%d.png"])
    with pytest.raises(ConfigError, match="read from a local disk"):
        list_media(["memory://seq/%06d.png"])


def test_missing_numbers_are_counted(tmp_path: Path) -> None:
    write_frames(tmp_path / "whole", range(0, 50, 5))
    write_frames(tmp_path / "gaps", [1, 2, 3, 6, 7, 8, 9, 11])
    notes = list_media([f"{tmp_path}/*/%06d.png"]).notes
    assert any(f"3 numbers missing between the frames of 1 folder, such as {tmp_path}/gaps" in note for note in notes)
    assert not any("missing between" in note for note in list_media([f"{tmp_path}/whole/%06d.png"]).notes)


def test_a_list_may_name_folders_of_frames_next_to_videos(tmp_path: Path) -> None:
    write_frames(tmp_path / "seq")
    table = tmp_path / "labels.csv"
    table.write_text("path,label\nseq,walk\nb.mp4,run\n")
    assert list(list_media([str(table)]).videos) == [f"{tmp_path}/seq", f"{tmp_path}/b.mp4"]
    table.write_text("path,label\nnone,walk\nb.mp4,run\n")
    with pytest.raises(DataError, match="line 2"):
        list_media([str(table)])


def test_a_folder_is_encoded_as_a_clip_and_any_changed_frame_is_a_new_version(tmp_path: Path) -> None:
    model = tiny_encoder()
    folder = write_frames(tmp_path / "seq")
    features = model.encode(folder, frames=4, fps=5, start=0.4)
    clip = np.stack([indexed_image(i, 32) for i in range(2, 6)])
    assert np.allclose(features.tokens, model.encode(clip, layout="THWC").tokens, atol=1e-5)
    cache, version = FeatureCache(tmp_path / "cache", model), version_of(str(folder))
    features_path = cache.path_for({}, [folder])
    (folder / "000005.png").write_bytes((folder / "000006.png").read_bytes())
    assert version_of(str(folder)) != version and cache.path_for({}, [folder]) != features_path
