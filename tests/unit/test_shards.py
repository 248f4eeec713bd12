import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.helpers.decoding import decode_clips, video_info
from tests.helpers.media import (
    flip_bytes,
    read_index,
    variable_times,
    write_image,
    write_rotated,
    write_text,
    write_video,
)
from tests.helpers.worker_jobs import map_without_torch
from tubelet.config import DataConfig, ShardConfig
from tubelet.data import storage
from tubelet.data.batch import MediaBytes
from tubelet.data.decode import read_frames
from tubelet.data.images import read_image
from tubelet.data.sample_index import Sample, build_index, check_shard_configs
from tubelet.data.sampler import epoch_order
from tubelet.data.shards import writer
from tubelet.data.shards.reader import open_shards
from tubelet.data.shards.transcode import EncodedSegment, scaled_size, transcode
from tubelet.data.shards.writer import write_shards
from tubelet.data.sources import list_media
from tubelet.data.storage import StorageError
from tubelet.errors import DecodeError, TubeletError
from tubelet.grid import Modality
from tubelet.train.startup import source_summary

RECIPE = ShardConfig(size=48, fps=6, segment_s=2)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Four videos of 4 s at 12 frames a second and three images, all of 64 px."""
    folder = tmp_path_factory.mktemp("sources")
    for i in range(4):
        write_video(folder / f"{i}.mp4")
    for i in range(3):
        write_image(folder / f"{i}.png", index=70 + i)
    return folder


@pytest.fixture
def folder(sources, tmp_path):
    """Shards of the sources, two segments of each video."""
    out = tmp_path / "shards"
    write_shards([str(sources)], out, RECIPE, workers=1, shard_mb=0.02)
    return out


def segments_of(path, recipe=RECIPE, modality=Modality.VIDEO) -> list[EncodedSegment]:
    return list(transcode(Sample(str(path)), modality, recipe))


def frame_at(media, second: float) -> int:
    return read_index(decode_clips(media, [np.array([second])])[0].pixels[0])


def clip_at(media, times) -> list[int]:
    return [read_index(pixels) for pixels in decode_clips(media, [np.asarray(times)])[0].pixels]


# Order


def test_an_epoch_is_a_permutation_that_depends_on_nothing_but_its_seed():
    group = np.repeat(np.arange(20), 50)
    order = epoch_order(group, (0, 1), window=100)
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(order, epoch_order(group, (0, 1), window=100))
    assert not np.array_equal(order, epoch_order(group, (0, 2), window=100))


def test_members_of_a_shard_stay_near_each_other_and_yet_neighbors_come_from_several():
    group = np.random.default_rng(0).permutation(np.repeat(np.arange(40), 100))
    order = epoch_order(group, (3,), window=200)
    span = [np.ptp(np.flatnonzero(group[order] == shard)) for shard in range(40)]
    assert max(span) < 100 + 2 * 200
    assert np.mean(group[order][1:] != group[order][:-1]) > 0.4


def test_files_only_are_in_an_order_of_pure_chance():
    assert np.array_equal(epoch_order(np.arange(9), (5,)), np.random.default_rng((5,)).permutation(9))


# Cutting


def test_every_moment_of_the_recipe_shows_the_same_frame_as_the_source(tmp_path):
    videos = {
        "steady.mp4": {},
        "pyramid.mkv": {"bframes": 5, "gop": 48},
        "variable.mp4": {"times": list(variable_times())},
        "early_start.mp4": {"times": [-0.5 + i / 12 for i in range(48)]},
        "broadcast.ts": {"gop": 30},
        "guessed.avi": {"codec": "mpeg4", "bframes": 0},
    }
    for name, options in videos.items():
        path = write_video(tmp_path / name, **options)
        duration = video_info(path).duration_s
        found = segments_of(path, ShardConfig(fps=6, segment_s=1.5, crf=10))
        assert sum(segment.duration_s for segment in found) == pytest.approx(duration)
        for segment in found:
            moments = np.arange(int(np.ceil(segment.duration_s * 6 - 1e-3))) / 6
            assert clip_at(MediaBytes(name, segment.data), moments) == clip_at(path, segment.start_s + moments), name


def test_a_frame_keeps_its_own_time_between_the_moments_of_the_recipe(tmp_path):
    path = write_video(
        tmp_path / "video.mp4", fps=5
    )  # a frame begins at 0.2 s; moments of 6 a second are at 0.17, 0.33
    segment = segments_of(path, ShardConfig(fps=6, segment_s=20))[0]
    assert np.allclose(read_frames(MediaBytes("video", segment.data)).times, np.arange(48) / 5, atol=1e-4)
    assert [frame_at(MediaBytes("video", segment.data), t) for t in (0.19, 0.2, 0.39, 0.4)] == [0, 1, 1, 2]


def test_segments_are_equal_and_at_least_as_long_as_asked(tmp_path):
    path = write_video(tmp_path / "video.mp4", frames=60)  # 5 s
    found = segments_of(path, ShardConfig(fps=6, segment_s=1.5))
    assert [segment.start_s for segment in found] == pytest.approx([0, 10 / 6, 20 / 6])
    assert [segment.duration_s for segment in found] == pytest.approx([10 / 6] * 3, abs=1e-2)
    assert len(segments_of(path, ShardConfig(fps=6, segment_s=9))) == 1


def test_an_image_that_stands_still_longer_than_a_segment_is_still_a_video(tmp_path):
    path = write_video(tmp_path / "video.mp4", frames=3, times=[0.0, 5.0, 10.0])
    found = segments_of(path, ShardConfig(fps=4, segment_s=2))
    assert [clip_at(MediaBytes("video", p.data), [0, 1.0, 1.9]) for p in found[:3]] == [[0] * 3, [0] * 3, [0, 1, 1]]


def test_what_a_recipe_cannot_use_is_a_bad_file(tmp_path):
    for frames, fps, words in ((1, 2, "has 1 frame"), (2, 12, "lasts 0.167 s, less than two frames at 4 fps")):
        path = write_video(tmp_path / "video.mp4", frames=frames, fps=fps)
        with pytest.raises(DecodeError, match=rf"video\.mp4: {words}"):
            segments_of(path, ShardConfig(fps=4))
    np.save(tmp_path / "deep.npy", np.zeros((8, 32, 32), np.uint16))
    with pytest.raises(DecodeError, match=r"deep\.npy: has 1 channel of uint16, shards have 8-bit RGB; train on"):
        segments_of(tmp_path / "deep.npy", ShardConfig(fps=4))


def test_images_shrink_to_the_size_and_never_grow(tmp_path):
    assert scaled_size(720, 1280, 256, multiple=2) == (256, 456)
    assert scaled_size(1280, 720, 256, multiple=2) == (456, 256)
    assert scaled_size(101, 75, 256, multiple=2) == (100, 76)
    segment = segments_of(write_rotated(tmp_path / "video.mp4", 90, frames=24))[0]
    info = video_info(MediaBytes("video", segment.data))
    assert (info.width, info.height, info.rotation) == (segment.width, segment.height, 0) == (48, 48, 0)
    image = segments_of(write_image(tmp_path / "still.png", index=77, size=96), modality=Modality.IMAGE)[0]
    assert read_image(MediaBytes("still", image.data)).shape == (48, 48, 3)
    assert read_index(read_image(MediaBytes("still", image.data))) == 77


def test_colors_survive_being_cut(tmp_path):
    path = write_video(tmp_path / "video.mp4", frames=24, codec_options={"crf": "5"})
    segment = segments_of(path, ShardConfig(fps=12, crf=5))[0]
    before, after = read_frames(path).pixels.float(), read_frames(MediaBytes("video", segment.data)).pixels.float()
    assert (before - after).abs().mean() < 4 and (before.mean((0, 1, 2)) - after.mean((0, 1, 2))).abs().max() < 2


# Reading


def test_a_video_in_memory_is_read_as_from_its_file_and_errors_carry_its_name(sources, tmp_path):
    path = sources / "0.mp4"
    blob = MediaBytes("tar:video", path.read_bytes())
    assert read_frames(blob).pixels.equal(read_frames(path).pixels)
    assert clip_at(blob, [0.5, 3.0]) == [6, 36]
    damaged = flip_bytes(path, tmp_path / "damaged.mp4", 3).read_bytes()
    for data, words in (
        (b"", "is empty"),
        (blob.data[:3000], "moov"),
        (damaged, "corrupt"),
        (b"text" * 99, "not a media"),
    ):
        with pytest.raises(DecodeError, match=f"^tar:video: .*{words}"):
            read_frames(MediaBytes("tar:video", data))
    with pytest.raises(DecodeError, match=r"^tar:still: not an image"):
        read_image(MediaBytes("tar:still", b"text" * 99))


def test_members_are_where_the_index_has_them_and_any_tar_tool_reads_them(folder):
    found = open_shards(folder)
    assert len(found.shards) > 1 and len(found.members) == 4 * 2 + 3
    lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()[1:]]
    for place, line in enumerate(lines):
        with tarfile.open(folder / line["shard"]) as tar:
            assert tar.extractfile(line["name"]).read() == found.read(place).data
        if line["modality"] == "video":
            assert frame_at(found.read(place), 1.0) == round(12 * (line["start_s"] + 1.0))
        else:
            assert read_index(read_image(found.read(place))) == 70 + int(Path(line["source"]).stem)


@pytest.mark.parametrize("protocol", ["file", "memory"])
def test_shards_are_read_from_a_url(protocol, folder):
    import fsspec

    url = folder.resolve().as_uri()
    if protocol == "memory":
        url = f"memory://{folder.name}"
        for path in folder.iterdir():
            fsspec.filesystem("memory").pipe_file(f"/{folder.name}/{path.name}", path.read_bytes())
    near, far = open_shards(folder), open_shards(url)
    assert all(near.read(k).data == far.read(k).data for k in range(len(near.members)))
    assert far.title(0).startswith(url)


def test_a_member_that_is_not_what_was_written_is_named_with_its_shard(folder):
    found = open_shards(folder)
    tar = folder / found.shards[found.members["shard"][2]]
    data = bytearray(tar.read_bytes())
    data[found.members["offset"][2] + 100] ^= 1
    tar.write_bytes(data)
    with pytest.raises(DecodeError, match=r"shard-\d{6}\.tar:\d{8}-\d{4}\.\w+: corrupt: its checksum"):
        found.read(2)
    tar.write_bytes(data[: found.members["offset"][2] + 100])
    with pytest.raises(DecodeError, match="truncated: has 100 bytes"):
        found.read(2)


def test_a_shard_that_is_missing_or_short_is_an_error_at_the_start(folder):
    tar = folder / "shard-000001.tar"
    tar.write_bytes(tar.read_bytes()[:-512])
    with pytest.raises(TubeletError, match=r"shard-000001\.tar: has \d+ bytes, expected \d+"):
        open_shards(folder)
    tar.unlink()
    with pytest.raises(TubeletError, match=r"shard-000001\.tar: is missing"):
        open_shards(folder)


def test_an_index_that_cannot_be_right_is_named_with_its_line(folder):
    path = folder / "index.jsonl"
    header, first, *rest = path.read_text().splitlines()
    far = json.dumps(json.loads(first) | {"offset": 10**9})
    bare = json.dumps({k: v for k, v in json.loads(first).items() if k != "offset"})
    worded = json.dumps(json.loads(first) | {"crc32": "none"})
    newer = json.dumps(json.loads(header) | {"tubelet_shards": 99})
    cases = {
        "line 1: is not JSON": ["{", first, *rest],
        "line 1: has no valid tubelet_shards": ["{}", first, *rest],
        "format 99": [newer, first, *rest],
        "line 2: is not JSON": [header, first[:40], *rest],
        "line 2: has no valid offset": [header, bare, *rest],
        "line 2: has no valid crc32": [header, worded, *rest],
        "line 2: .* is not within shard": [header, far, *rest],
        "truncated: has 1 of 11 members": [header, first],
    }
    for words, lines in cases.items():
        path.write_text("\n".join(lines))
        with pytest.raises(TubeletError, match=rf"index\.jsonl.*{words}"):
            open_shards(folder)


def test_what_fails_in_passing_is_tried_again_and_what_does_not_exist_is_not(folder, monkeypatch):
    found = open_shards(folder.resolve().as_uri())
    real, calls, pauses = storage._range, [], []
    monkeypatch.setattr(storage.time, "sleep", pauses.append)

    def failing(times: int, error: Exception):
        calls.clear()
        pauses.clear()

        def remote(url, start, end):
            calls.append(url)
            if len(calls) <= times:
                raise error
            return real(url, start, end)

        monkeypatch.setattr(storage, "_range", remote)

    failing(3, TimeoutError("too slow"))
    assert len(found.read(0).data) == found.members["size"][0]
    assert pauses == [0.5, 1.0, 2.0]
    failing(99, RuntimeError("the bucket is on fire"))
    with pytest.raises(StorageError, match=r"shard-\d+\.tar: cannot be read \(the bucket is on fire\)"):
        found.read(0)
    assert len(calls) == storage.ATTEMPTS
    failing(99, FileNotFoundError())
    with pytest.raises(StorageError, match="does not exist"):
        found.read(0)
    assert not pauses


def test_a_url_of_nothing_or_of_no_known_storage_is_an_error():
    for url, words in (("memory://nowhere", ": no such file"), ("nosuch://bucket", "/index.*Protocol not known")):
        with pytest.raises(TubeletError, match=f"{url}{words}"):
            list_media([url])


# Mixing


def test_files_and_shards_mix_and_every_sample_has_its_own_name(folder, sources):
    media = list_media([str(sources / "1.mp4"), str(folder), f"{folder}/"])
    index = build_index(media, Modality.VIDEO)
    assert len(index) == media.count(Modality.VIDEO) == 1 + 8
    assert media.count(Modality.IMAGE) == len(build_index(media, Modality.IMAGE)) == 3
    assert len({index.name(k) for k in range(9)}) == 9
    assert index.read(0) == Sample(str(sources / "1.mp4"))
    member = index.read(5)
    assert member.media.name == index.name(5) and member.end_s == pytest.approx(2.0)


def test_a_run_that_asks_for_more_than_shards_hold_is_refused(folder):
    media = list_media([str(folder)])
    fine = {"image_size": 48, "frames": 8, "fps": 4.0}
    check_shard_configs(media, DataConfig(**fine))
    for change, words in (
        ({"fps": 8.0}, "--fps 8 is more than the 6 frames per second"),
        ({"frames": 9}, "span 2.25 s, more than the 2 s segments"),
        ({"image_size": 64}, "--image-size 64 is more than the 48 pixels"),
    ):
        with pytest.raises(TubeletError, match=f"shards: .*{words}.*shard the sources again with --"):
            check_shard_configs(media, DataConfig(**(fine | change)))


# Writing


def test_a_folder_is_used_again_only_for_the_same_shards(folder, sources, tmp_path):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write_shards([str(sources)], folder, RECIPE, workers=1, shard_mb=0.02).reused
    made = write_shards([str(sources / "0.mp4")], folder, RECIPE, workers=1, shard_mb=0.02)
    assert (made.added, made.gone, made.videos) == (0, 6, 8)
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    for change, words in (
        (([str(sources)], folder, ShardConfig(size=32, fps=6, segment_s=2)), "size: 48 -> 32"),
        (([str(folder)], tmp_path / "twice", RECIPE), "is already a folder of shards"),
        (([str(sources)], sources, RECIPE), "contains other files"),
    ):
        with pytest.raises(TubeletError, match=words):
            write_shards(*change, workers=1, shard_mb=0.02)


def test_another_process_writes_the_same_bytes_without_torch(folder, sources, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "process_map", map_without_torch)
    write_shards([str(sources)], tmp_path / "again", RECIPE, workers=1, shard_mb=0.02)
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").glob("*.tar")} == {
        path.name: path.read_bytes() for path in folder.glob("*.tar")
    }


def copied(folder, out, *names):
    out.mkdir()
    for name in names:
        shutil.copy(folder / name, out / name)
    return out


def test_files_that_are_added_become_further_shards_and_the_old_ones_stay(sources, tmp_path, caplog):
    media, out = copied(sources, tmp_path / "media", "0.mp4", "1.mp4", "0.png"), tmp_path / "shards"
    settings = {"workers": 1, "shard_mb": 0.02}
    first = write_shards([str(media)], out, RECIPE, **settings)
    assert (first.reused, first.added, first.videos, first.images) == (False, 0, 4, 1)
    index = (out / "index.jsonl").read_text().splitlines()[1:]
    before, summary = (
        {path.name: path.read_bytes() for path in out.glob("*.tar")},
        source_summary(list_media([str(out)])),
    )
    shutil.copy(sources / "2.mp4", media / "-1.mp4")  # first in the listing
    shutil.copy(sources / "1.png", media / "1.png")
    (media / "0.png").rename(tmp_path / "gone.png")
    (media / "text.mp4").write_text("no video")
    grown = write_shards([str(media)], out, RECIPE, max_failed_fraction=0.5, **settings)
    assert (grown.reused, grown.added, grown.gone, grown.bad) == (True, 3, 1, 1)
    assert (grown.videos, grown.images) == (6, 2) and "0.png; their members stay" in caplog.text
    assert source_summary(list_media([str(out)])) != summary  # which a run reports when it is resumed
    assert (out / "index.jsonl").read_text().splitlines()[1 : 1 + len(index)] == index
    assert {name: (out / name).read_bytes() for name in before} == before
    shards = open_shards(out)
    assert len(shards.shards) == grown.shards == first.shards + 1 and len(set(shards.members["name"])) == 8
    assert [len(shards.read(row).data) for row in range(8)] == shards.members["size"].tolist()
    assert not list(out.glob("shard-*.json")) and not (out / "plan.json").exists()
    assert write_shards([str(media)], out, RECIPE, **settings).added == 0
    shutil.copy(sources / "3.mp4", media / "text.mp4")  # mended: tried again
    mended = write_shards([str(media)], out, RECIPE, **settings)
    assert (mended.added, mended.bad, mended.videos) == (1, 0, 8)
    shutil.copy(sources / "3.mp4", media / "0.mp4")
    with (media / "0.mp4").open("ab") as file:
        file.write(b"more")
    with pytest.raises(TubeletError, match=r"0\.mp4 changed since it was sharded \(size \d+ -> \d+\)"):
        write_shards([str(media)], out, RECIPE, **settings)
    with pytest.raises(TubeletError, match="size: 48 -> 32"):
        write_shards([str(media)], out, ShardConfig(size=32, fps=6, segment_s=2), **settings)
    (out / "sources.jsonl").unlink()  # shards of an earlier version
    with pytest.raises(TubeletError, match="without which no files can be added"):
        write_shards([str(media)], out, RECIPE, **settings)


@pytest.mark.parametrize("others", [False, True])
def test_an_addition_that_is_interrupted_leaves_the_old_shards_and_is_continued(sources, tmp_path, monkeypatch, others):
    media, out = copied(sources, tmp_path / "media", "0.mp4", "0.png"), tmp_path / "shards"
    settings = {"workers": 1, "shard_mb": 1e-6}
    write_shards([str(media)], out, RECIPE, **settings)
    for name in ("1.mp4", "1.png"):
        shutil.copy(sources / name, media / name)
    for step in ("_write_index", "write_lines"):
        with monkeypatch.context() as patch:
            patch.setattr(writer, step, interrupt(step, getattr(writer, step)))
            with pytest.raises(KeyboardInterrupt):
                write_shards([str(media)], out, RECIPE, **settings)
        assert len(open_shards(out).members) == 3 and list_media([str(out)]).count(Modality.VIDEO) == 2
    assert (out / "shard-000003.tar").exists()
    if others:
        (media / "1.png").unlink()
    made = write_shards([str(media)], out, RECIPE, **settings)
    assert (made.added, made.shards, made.images) == ((1, 3, 1) if others else (2, 4, 2))
    assert len(list(out.glob("*.tar"))) == made.shards and not list(out.glob("shard-*.json"))
    anew = write_shards([str(media)], tmp_path / "anew", RECIPE, **settings)
    assert (made.videos, made.images, made.size) == (anew.videos, anew.images, anew.size)


def interrupt(step, write):
    """A kill before the index is written, or right before it replaces the old one."""

    def stopped(path, *arguments):
        if step == "_write_index" or path.name == "index.jsonl":
            raise KeyboardInterrupt
        write(path, *arguments)

    return stopped


def test_spans_and_weights_of_lists_are_in_the_shards(tmp_path):
    write_video(tmp_path / "a.mp4")
    (tmp_path / "list.csv").write_text("path,start_s,end_s,weight\na.mp4,1,3.1,3\na.mp4,3.5,,1\na.mp4,3,9,\n")
    settings = {"workers": 1, "max_failed_fraction": 0.5}
    made = write_shards([str(tmp_path / "list.csv")], tmp_path / "out", RECIPE, **settings)
    assert (made.videos, made.bad) == (2, 1)
    (bad,) = map(json.loads, (tmp_path / "out/bad_files.jsonl").open())
    assert bad["path"].endswith("a.mp4#t=3,9") and "list.csv, line 4: end_s is 9, after" in bad["reason"]
    shards = open_shards(tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/index.jsonl").open()][1:]
    found = sorted((row["start_s"], row["duration_s"], row["weight"]) for row in rows)
    np.testing.assert_allclose(found, [(1, 2.1, 3), (3.5, 0.5, 1)], atol=1e-6)
    for number, row in enumerate(rows):
        times = np.arange(3) / 6
        assert clip_at(shards.read(number), times) == clip_at(tmp_path / "a.mp4", row["start_s"] + times)
    assert sorted(build_index(list_media([str(tmp_path / "out")]), Modality.VIDEO).weights()) == [1, 3]
    with (tmp_path / "list.csv").open("a") as file:
        file.write("a.mp4,0,1,2\n")
    grown = write_shards([str(tmp_path / "list.csv")], tmp_path / "out", RECIPE, **settings)
    assert (grown.added, grown.videos, grown.bad) == (1, 3, 1)
    (tmp_path / "list.csv").write_text("path,start_s,end_s,weight\na.mp4,1,3.1,4\n")
    with pytest.raises(TubeletError, match=r"a\.mp4#t=1,3\.1 changed since it was sharded \(weight 3\.0 -> 4\.0\)"):
        write_shards([str(tmp_path / "list.csv")], tmp_path / "out", RECIPE, **settings)


def test_a_file_that_breaks_off_leaves_nothing_in_its_shard(sources, tmp_path, caplog):
    late = flip_bytes(write_video(tmp_path / "late.mp4", frames=120), tmp_path / "damaged.mp4", 1, count=2)
    write_text(tmp_path / "text.mp4")
    manifest = tmp_path / "list.csv"
    manifest.write_text(f"{late}\ntext.mp4\ngone.mp4\n" + "".join(f"{sources / str(i)}.mp4\n" for i in range(4)))
    given = {"workers": 1, "allow_path": [str(sources)]}
    made = write_shards([str(manifest)], tmp_path / "out", RECIPE, max_failed_fraction=0.5, **given)
    named = [record.args[0] for record in caplog.records if record.msg == "bad file %s"]
    assert made.bad == 3 and made.videos == 8
    rows = [json.loads(line) for line in (tmp_path / "out" / "bad_files.jsonl").open()]
    assert {Path(row["path"]).name for row in rows} == {"damaged.mp4", "text.mp4", "gone.mp4"}
    assert [(file.path, file.reason) for file in named] == [(row["path"], row["reason"]) for row in rows]
    with tarfile.open(tmp_path / "out" / "shard-000000.tar") as tar:
        assert len(tar.getnames()) == 8
    with pytest.raises(TubeletError, match=r"of 7 files \(\d+ %\) cannot be read, more than the 5 %"):
        write_shards([str(manifest)], tmp_path / "strict", RECIPE, **given)


def test_a_transparent_image_becomes_a_jpeg(tmp_path):
    Image.new("RGBA", (64, 96), (200, 10, 10, 128)).save(tmp_path / "still.png")
    segment = segments_of(tmp_path / "still.png", modality=Modality.IMAGE)[0]
    assert (segment.width, segment.height) == (48, 72) and segment.data[:2] == b"\xff\xd8"
