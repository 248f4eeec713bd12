"""Sharding as a command, killed and taken up again, and training from what it writes."""

import dataclasses
import json
import time

import psutil
import pytest

from tests.helpers.commands import run_tubelet
from tests.helpers.launcher import start_tubelet
from tests.helpers.media import write_image, write_text, write_video
from tests.helpers.training import rows, start_training, tiny_config, train_quietly
from tubelet.config import ShardConfig
from tubelet.data.loader import StepDataset
from tubelet.data.shards.writer import write_shards
from tubelet.data.sources import list_media
from tubelet.errors import TubeletError
from tubelet.grid import Modality

RECIPE = ShardConfig(size=48, fps=8, segment_s=1)


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    for i in range(6):
        write_video(folder / f"{i}.mp4")
        write_image(folder / f"{i}.png", index=i)
    return folder


@pytest.fixture(scope="module")
def folder(media, tmp_path_factory):
    out = tmp_path_factory.mktemp("shards") / "out"
    write_shards([str(media)], out, RECIPE, workers=1, shard_mb=0.02)
    return out


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def wait_for(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.005)


@pytest.mark.slow
def test_sharding_that_was_killed_continues_to_the_same_bytes_and_leaves_no_process_behind(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(6):
        write_video(videos / f"{i}.mp4", frames=75, size=96)
    write_text(videos / "text.mp4")
    recipe = (
        "--size",
        64,
        "--fps",
        12,
        "--segment-s",
        1,
        "--shard-mb",
        0.03,
        "--max-failed-fraction",
        0.2,
        "--workers",
        2,
    )
    out = tmp_path / "killed"
    process = start_tubelet(("shard", videos, "--out", out, *recipe), tmp_path / "log")
    wait_for(lambda: len(list(out.glob("shard-*.json"))) >= 2)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.join()
    assert not (out / "index.jsonl").exists()
    assert len(workers) >= 2
    assert not psutil.wait_procs(workers, timeout=120)[1]
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*.json")}
    tars = {name: (out / name).with_suffix(".tar").stat().st_mtime_ns for name in finished}
    with pytest.raises(TubeletError, match="these shards are incomplete, run `tubelet shard` again"):
        list_media([str(out)])
    again = run_tubelet("shard", videos, "--out", out, *recipe)
    text = again.stdout
    assert again.returncode == 0, again.stderr
    assert "36 video segments and 0 images" in text and "1 bad files" in text and "text.mp4: " in text
    assert tars == {name: (out / name).with_suffix(".tar").stat().st_mtime_ns for name in finished}
    undisturbed = tmp_path / "undisturbed"
    write_shards(
        [str(videos)],
        undisturbed,
        ShardConfig(size=64, fps=12.0, segment_s=1.0),
        workers=1,
        shard_mb=0.03,
        max_failed_fraction=0.2,
    )
    assert contents(out) == contents(undisturbed)


def test_a_command_that_cannot_continue_ends_with_one_sentence(folder, media, tmp_path):
    done = run_tubelet("shard", media, "--out", folder, "--size", "32")
    err = done.stderr
    assert done.returncode == 1
    assert err.count("\n") == 1 and "size: 48 -> 32" in err and "choose another --out" in err


def test_a_run_from_a_url_that_was_killed_resumes_to_the_losses_of_one_from_the_folder(folder, tmp_path):
    train_quietly(tiny_config(folder, steps=12), tmp_path / "whole")
    config, run = tiny_config(folder.resolve().as_uri(), steps=12, data={"workers": 1}), tmp_path / "run"
    process = start_training(config, run)
    wait_for(lambda: len(rows(run)) >= 6)
    process.kill()
    process.join()
    train_quietly(config, run, resume=True)
    assert [row["step"] for row in rows(run)] == list(range(1, 13))
    for ours, theirs in zip(rows(run), rows(tmp_path / "whole"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
        assert ours["bad_files"] == ours["short_clips"] == 0


def test_an_epoch_of_shards_and_files_shows_every_sample_once(folder, media):
    config = tiny_config(folder, steps=25, batch_size=2)
    config = dataclasses.replace(
        config, data=dataclasses.replace(config.data, sources=(str(folder), str(media / "0.mp4")))
    )
    dataset = StepDataset(config, list_media(config.data.sources))
    seen = [dataset.samplers[Modality.VIDEO].sample_at(visit)[1] for visit in range(25)]
    assert sorted(seen) == list(range(25))
    step = dataset[0]
    assert [(batch.modality, len(batch.pixels)) for batch in step.batches] == [("video", 1), ("image", 1)]


def test_damaged_members_are_named_and_counted_like_bad_files(media, tmp_path):
    out = tmp_path / "out"
    write_shards([str(media / "*.mp4")], out, RECIPE, workers=1)
    members = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()[1:]]
    tar = out / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    for member in members[:3]:
        data[member["offset"] + member["size"] // 2] ^= 0xFF
    tar.write_bytes(data)
    config = tiny_config(out, steps=8, data={"max_failed_fraction": 0.5})
    train_quietly(config, tmp_path / "run")
    named = [json.loads(line) for line in (tmp_path / "run" / "bad_files.jsonl").open()]
    assert {row["path"] for row in named} == {f"{out}/{tar.name}:{member['name']}" for member in members[:3]}
    assert all("checksum" in row["reason"] for row in named)
    with pytest.raises(TubeletError, match=r"of 24 files \(\d+ %\) cannot be read.*--max-failed-fraction"):
        train_quietly(tiny_config(out, steps=8), tmp_path / "strict")


def test_shards_that_vanish_stop_the_run_with_one_sentence_instead_of_counting_as_bad(media, tmp_path):
    out = tmp_path / "out"
    write_shards([str(media / "*.mp4")], out, RECIPE, workers=1)
    config = tiny_config(out, data={"workers": 1})
    dataset = StepDataset(config, list_media(config.data.sources))
    (out / "shard-000000.tar").rename(tmp_path / "elsewhere.tar")
    step = dataset[0]
    assert step.bad == [] and "shard-000000.tar: cannot be read (No such file or directory)" in step.failure


def test_a_higher_rate_than_shards_hold_is_refused_before_anything_is_written(folder, tmp_path):
    with pytest.raises(TubeletError, match="--fps 9 is more than the 8 frames per second of these shards"):
        train_quietly(tiny_config(folder, data={"fps": 9.0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
