"""Features of a collection: complete, continued after a crash, readable by others, searchable."""

import copy
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import psutil
import pytest
import torch
from PIL import Image

from tests.helpers.commands import run_tubelet
from tests.helpers.launcher import start_tubelet
from tests.helpers.media import indexed_image, write_video
from tests.helpers.training import tiny_config, train_quietly
from tubelet.checkpoint.native_clip import NativeClip
from tubelet.cli import main
from tubelet.config import EmbedConfig, vit_pico
from tubelet.data import part_table
from tubelet.data.decode import Video
from tubelet.data.part_table import parts
from tubelet.data.sources import list_media
from tubelet.embed import collection
from tubelet.embed.clip_vectors import read_clip_vectors
from tubelet.embed.clips import CollectionClips
from tubelet.embed.collection import embed_collection
from tubelet.embed.search import search
from tubelet.embed.table import FeatureTable, read_settings
from tubelet.errors import TubeletError
from tubelet.io.files import directory_lock
from tubelet.pretrained.load import load
from tubelet.train.run_directory import read_config

SMALL = EmbedConfig(image_size=32, frames=4, fps=12, batch_size=4, workers=0)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for i in range(5):
        write_video(folder / f"{i}.mp4", frames=24)
        Image.fromarray(indexed_image(40 * i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def run(videos, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    train_quietly(tiny_config(videos, steps=2), run)
    return run


@pytest.fixture(scope="module")
def model(run):
    return load(run, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="module")
def table(videos, run, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("tables") / "table"
    made = embed_collection(model, [str(videos)], out, SMALL, str(run))
    assert (made.files, made.bad, made.before, made.short) == (10, 0, 0, 0)
    return out


def rows(out):
    return pd.concat([pd.read_parquet(part) for part in parts(out)], ignore_index=True)


def test_each_clip_of_each_file_has_one_row(videos, model, table):
    found = rows(table)
    assert not found.duplicated(["path", "clip_index"]).any()
    assert found.groupby("path").size().equals(found.groupby("path")["clips"].first().astype("int64"))
    assert set(found["path"]) == {str(path.resolve()) for path in videos.iterdir()}
    assert (found[found["modality"] == "video"].groupby("path").size() > 1).all()
    assert set(found["model_id"]) == {model.model_id}


def test_a_row_holds_what_encoding_its_clip_gives(model, table):
    for row in rows(table).iloc[[0, 3, -1]].itertuples():
        start = None if row.modality == "image" else row.start_s
        features = model.encode(row.path, resize=32, frames=4, fps=12, start=start)
        np.testing.assert_allclose(row.pooled, features.pooled[0].numpy(), atol=2e-3)
        assert tuple(row.grid) == features.grid.shape
        np.testing.assert_allclose(row.times, features.times[0].numpy(), atol=1e-6)


def test_dense_rows_hold_all_tokens_of_all_levels_and_images_and_videos_share_a_table(videos, model, tmp_path):
    config = EmbedConfig(image_size=32, frames=4, fps=12, workers=0, dense=True, all_levels=True)
    embed_collection(model, [str(videos / "0.mp4"), str(videos / "0.png")], tmp_path / "table", config)
    for row in rows(tmp_path / "table").itertuples():
        start = None if row.modality == "image" else row.start_s
        features = model.encode(row.path, resize=32, frames=4, fps=12, start=start)
        maps = [np.asarray(getattr(row, name)).reshape(*row.grid, 24) for name in ("tokens_level0", "tokens")]
        for found, level in zip(maps, features.levels, strict=True):
            expected = level[0].unflatten(0, features.grid.shape).numpy()
            np.testing.assert_allclose(found.astype(np.float32), expected, atol=4e-3)


def test_pandas_polars_and_duckdb_read_the_same(table):
    pattern = f"{table}/part-*.parquet"
    expected = rows(table).sort_values(["path", "clip_index"])
    assert len(pd.read_parquet(table)) == len(expected)
    with_polars = pl.read_parquet(pattern).sort("path", "clip_index")
    with_duckdb = duckdb.sql(f"select * from '{pattern}' order by path, clip_index").df()
    for found in (np.stack(with_polars["pooled"].to_list()), np.stack(with_duckdb["pooled"])):
        np.testing.assert_array_equal(found.astype(np.float16), np.stack(expected["pooled"]))
    assert list(with_duckdb["start_s"]) == list(expected["start_s"]) == with_polars["start_s"].to_list()


def write_a_part_a_clip():
    """So that there is something to kill between."""
    part_table.PART_BYTES = 1


@pytest.mark.slow
def test_killed_twice_it_ends_with_every_row_once(videos, run, table, tmp_path):
    out = tmp_path / "table"
    words = f"embed {videos} --model {run} --out {out} --image-size 32 --frames 4 --fps 12 --batch-size 1".split()
    for _ in range(2):
        process = start_tubelet(words, tmp_path / "log", prepare=write_a_part_a_clip)
        before, deadline = len(parts(out)), time.monotonic() + 300
        while len(parts(out)) < before + 3 and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.join()
        psutil.wait_procs(family, timeout=120)
    killed_at = len(parts(out))
    assert killed_at < len(rows(table))
    done = run_tubelet(*words)
    assert done.returncode == 0, done.stderr
    key = ["path", "clip_index"]
    found, expected = (rows(o).sort_values(key, ignore_index=True) for o in (out, table))
    assert found[key].equals(expected[key])
    assert f"({len(expected) - killed_at} clips)" in done.stdout
    again = run_tubelet(*words)
    assert "0 new files (0 clips), 10 unchanged\n" in again.stdout


def test_a_bad_file_costs_only_itself_and_too_many_stop_the_command(videos, model, tmp_path, caplog):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.mp4").write_bytes(b"not a video")
    lenient = EmbedConfig(image_size=32, frames=4, fps=12, workers=0, max_failed_fraction=0.2)
    sources = [str(videos), str(tmp_path / "bad")]
    made = embed_collection(model, sources, tmp_path / "table", lenient)
    named = [record.args[0] for record in caplog.records if record.msg == "bad file %s"]
    assert (made.bad, made.files, [Path(file.path).name for file in named]) == (1, 11, ["x.mp4"])
    assert len(set(rows(tmp_path / "table")["path"])) == 10
    with pytest.raises(TubeletError, match=r"1 of 1 file \(100 %\) cannot be read, more than the 5 %"):
        embed_collection(model, [str(tmp_path / "bad")], tmp_path / "other", SMALL)
    (tmp_path / "bad" / "y.mp4").touch()
    with pytest.raises(TubeletError, match=r"x\.mp4: .*y\.mp4: .*; 2 of 12 files"):
        embed_collection(model, sources[::-1], tmp_path / "strict", SMALL)
    assert len(set(rows(tmp_path / "strict")["path"])) == 10


def test_a_video_that_breaks_half_way_leaves_no_rows_and_is_counted(videos, model, tmp_path):
    write_video(tmp_path / "0.mp4", frames=96)
    data = bytearray((tmp_path / "0.mp4").read_bytes())
    middle = len(data) * 7 // 10
    data[middle : middle + 200] = bytes(255 - byte for byte in data[middle : middle + 200])
    (tmp_path / "0.mp4").write_bytes(data)
    lenient = EmbedConfig(image_size=32, frames=4, fps=12, batch_size=2, workers=0, max_failed_fraction=0.5)
    media = list_media([str(tmp_path / "0.mp4")])
    clips = CollectionClips(media, NativeClip(32, 4, 12.0), lenient, vit_pico(), {})
    assert sum(len(batch.rows) for batch in clips) > 1  # so much of it can be read
    for _ in range(2):
        made = embed_collection(model, [str(videos / "1.mp4"), str(tmp_path / "0.mp4")], tmp_path / "table", lenient)
        assert (made.bad, made.truncated) == (1, 1)
        assert set(rows(tmp_path / "table")["path"]) == {str((videos / "1.mp4").resolve())}


def test_the_rows_of_a_file_that_changed_are_made_anew(model, tmp_path):
    folder, table = tmp_path / "videos", tmp_path / "table"
    folder.mkdir()
    for i in range(2):
        Image.fromarray(indexed_image(40 * i)).save(folder / f"{i}.png")
    embed_collection(model, [str(folder)], table, SMALL)
    before = rows(table).set_index("path")["pooled"]
    Image.fromarray(indexed_image(200)).save(folder / "1.png")
    made = embed_collection(model, [str(folder)], table, SMALL)
    assert (made.rows, made.before, made.changed) == (1, 1, 1)
    after = rows(table).set_index("path")["pooled"]
    same = [np.array_equal(before[path], after[path]) for path in sorted(before.index)]
    assert same == [True, False] and len(after) == 2
    made = embed_collection(model, [str(folder)], table, SMALL)
    assert (made.rows, made.changed) == (0, 0)


def test_rows_of_files_that_no_longer_exist_are_counted_and_removed_on_demand(videos, run, model, tmp_path, capsys):
    folder, table = tmp_path / "videos", tmp_path / "table"
    shutil.copytree(videos, folder, ignore=shutil.ignore_patterns("*.mp4"))
    embed_collection(model, [str(folder)], table, SMALL)
    made = embed_collection(model, [str(folder / "0.png")], table, SMALL)
    assert (made.gone, made.before) == (0, 1)  # those of other sources are there
    (folder / "0.png").rename(folder / "new.png")
    (folder / "1.png").unlink()
    words = f"embed {folder} --model {run} --out {table} --image-size 32 --frames 4 --fps 12".split()
    for prune, rest in (([], "2 gone (kept; --prune removes them)"), (["--prune"], "2 gone (their rows were removed)")):
        made = run_tubelet(*words, *prune)
        assert made.returncode == 0, made.stderr
        new = "0 new files (0 clips), 4 unchanged" if prune else "1 new file (1 clip), 3 unchanged"
        assert f"{table}: {new}, {rest}\n" in made.stdout
    assert {Path(path).name for path in rows(table)["path"]} == {"2.png", "3.png", "4.png", "new.png"}


def test_a_table_of_the_format_before_is_read_and_continued_in_todays(tmp_path):
    shutil.copytree(Path(__file__).parents[1] / "data" / "format-3-features", tmp_path / "table")
    table = tmp_path / "table"
    settings = read_settings(table)
    assert settings["format"] == 3 and "clip" in rows(table)
    assert len(read_clip_vectors(table).paths) == 3
    done = FeatureTable(table, settings | {"format": 4}).done()
    assert {Path(name).name: len(file.clip_indices) for name, file in done.items()} == {
        "0.mp4": 6,
        "0.png": 1,
        "1.png": 1,
    }
    assert read_settings(table) == settings | {"format": 4}
    assert "clip" not in rows(table) and list(rows(table).clip_index) == [*range(6), 0, 0]


def test_a_name_that_is_not_utf_8_is_embedded_once_and_can_be_found(model, tmp_path):
    folder, table = tmp_path / "videos", tmp_path / "table"
    folder.mkdir()
    name = os.fsdecode(os.fsencode(folder) + b"/caf\xe9.png")
    try:
        Image.fromarray(indexed_image(9)).save(name)
    except OSError:
        pytest.skip("this file system takes no such name")
    for expected in (1, 0):
        assert embed_collection(model, [str(folder)], table, SMALL).rows == expected
    shutil.copy(name, tmp_path / "query.png")
    assert search(table, name, model=model) == []  # the query itself
    (hit,) = search(table, tmp_path / "query.png", model=model)
    assert hit.path.endswith("caf\\udce9.png")


def test_a_decoding_process_that_dies_is_one_sentence_and_costs_no_row(videos, model, tmp_path):
    strangers = set(psutil.Process().children())

    def kill(done, total):
        for process in set(psutil.Process().children()) - strangers if done else ():
            process.kill()

    one_by_one = EmbedConfig(image_size=32, frames=4, fps=12, batch_size=1, workers=1)
    with pytest.raises(TubeletError, match=r"a worker process ended unexpectedly \(ended by SIGKILL\)"):
        embed_collection(model, [str(videos)], tmp_path / "table", one_by_one, progress=kill)
    before = len(rows(tmp_path / "table"))
    assert before > 0
    made = embed_collection(model, [str(videos)], tmp_path / "table", SMALL)
    found = rows(tmp_path / "table")
    assert len(found) == before + made.rows and not found.duplicated(["path", "clip_index"]).any()


def test_a_file_that_crashes_its_decoder_is_named(videos, model, tmp_path, monkeypatch):
    class Crashing(Video):
        def __init__(self, media, **options):
            if Path(media).name == "1.mp4":
                signal.raise_signal(signal.SIGSEGV)
            super().__init__(media, **options)

    monkeypatch.setattr("tubelet.data.model_frames.Video", Crashing)
    config = EmbedConfig(image_size=32, frames=4, fps=12, batch_size=1, workers=2)
    with pytest.raises(
        TubeletError,
        match=r"unexpectedly \(ended by SIGSEGV\) while reading \S+1\.mp4: the decoder crashed on this file",
    ):
        embed_collection(model, [str(videos)], tmp_path / "table", config)


def test_what_was_computed_is_kept_when_the_command_fails(videos, model, tmp_path, monkeypatch):
    calls = []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return make_rows(*arguments)

    make_rows = collection._rows
    monkeypatch.setattr(collection, "_rows", failing)
    with pytest.raises(KeyboardInterrupt):
        embed_collection(model, [str(videos)], tmp_path / "table", SMALL)
    assert len(rows(tmp_path / "table")) == 8


def test_other_settings_another_writer_and_a_foreign_folder_are_refused(videos, model, table, tmp_path):
    with pytest.raises(TubeletError, match=r"with other settings \(image_size: 32 -> 48"):
        embed_collection(model, [str(videos)], table, EmbedConfig(image_size=48, frames=4, fps=12, workers=0))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not touch")
    with pytest.raises(TubeletError, match="contains other files"):
        embed_collection(model, [str(videos)], tmp_path / "mine", SMALL)
    with (
        directory_lock(table),
        pytest.raises(TubeletError, match="another process is writing"),
        directory_lock(table),
    ):
        pass


def test_a_table_that_was_killed_before_its_settings_were_written_is_started_anew(videos, model, tmp_path):
    out = tmp_path / "table"
    out.mkdir()
    (out / "_settings.json.partial").write_text('{"format"')
    (out / ".lock").touch()
    assert embed_collection(model, [str(videos / "0.png")], out, SMALL).rows == 1
    assert search(out, shutil.copy(videos / "0.png", tmp_path), model=model)[0].path.endswith("0.png")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("[]", "expected an object"),
        ("{}", "its format is None"),
        ('{"format": 1}', "its format is 1, this version reads"),
        ('{"format": 99}', "its format is 99, this version reads .*; install the version that wrote it"),
    ],
)
def test_settings_of_something_else_are_one_clear_sentence(videos, model, tmp_path, settings, words):
    (tmp_path / "_settings.json").write_text(settings)
    (tmp_path / "part-000000.parquet").touch()
    with pytest.raises(TubeletError, match=words):
        search(tmp_path, videos / "2.png", model=model)


def test_a_model_that_was_trained_further_does_not_continue_its_table(videos, model, tmp_path):
    embed_collection(model, [str(videos / "0.png")], tmp_path / "table", SMALL)
    tuned = copy.deepcopy(model)
    tuned.blocks[0].mlp.fc1.weight.mul_(2)
    with pytest.raises(TubeletError, match="has features of another model; choose another --out"):
        embed_collection(tuned, [str(videos)], tmp_path / "table", SMALL)


def test_a_full_disk_is_named_and_leaves_no_half_of_a_part(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    (tmp_path / "table").mkdir()
    table = FeatureTable(tmp_path / "table", {})
    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    table.add([{"path": "a", "pooled": np.zeros(2, np.float16)}])
    with pytest.raises(TubeletError, match=r"part-000000.parquet: cannot be written \(the disk is full"):
        table.flush()
    assert [path.name for path in (tmp_path / "table").iterdir()] == ["_settings.json"]


def test_the_nearest_clip_to_a_copy_of_a_file_is_the_file(videos, table, run, tmp_path):
    for name in ("2.png", "3.png"):
        copied = shutil.copy(videos / name, tmp_path)
        hits = search(table, copied, top=3)
        assert len(hits) == 3
        assert hits[0].path == str((videos / name).resolve())
        assert hits[0].similarity >= hits[1].similarity >= hits[2].similarity
    done = run_tubelet("search", table, videos / "2.png", "--top", "2")
    words = " ".join(done.stdout.split())
    assert "left out: 1 clip of the query's file" in words and "3.png" in words and "│ 2.png" not in words


def test_a_table_is_continued_and_searched_by_a_model_that_moved(videos, run, table, tmp_path):
    shutil.copytree(run, tmp_path / "moved")
    moved = load(tmp_path / "moved", device="cpu")
    assert search(table, shutil.copy(videos / "2.png", tmp_path), model=moved)[0].path.endswith("2.png")
    assert embed_collection(moved, [str(videos)], table, SMALL, "elsewhere").rows == 0


def test_a_table_is_searched_only_by_the_model_that_made_it(videos, table, model, tmp_path):
    train_quietly(tiny_config(videos, steps=1, seed=1), tmp_path / "other")
    other = load(tmp_path / "other", device="cpu")
    with pytest.raises(TubeletError, match="pass the model of the table with --model"):
        search(table, videos / "2.png", model=other)
    with pytest.raises(TubeletError, match="not a table of features"):
        search(tmp_path, videos / "2.png", model=model)


def test_clips_are_by_default_those_that_a_run_was_trained_at(videos, run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sys, "argv", ["tubelet", "embed", str(videos), "--model", str(run), "--out", str(tmp_path / "t")]
    )
    main()
    settings = json.loads((tmp_path / "t" / "_settings.json").read_text())
    trained = read_config(run).data
    assert [settings[name] for name in ("image_size", "frames", "fps")] == [trained.image_size, trained.frames, 4.0]
