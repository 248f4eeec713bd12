"""Heads applied to collections: the same scores as by hand, tables that survive kills, one pass, honest counts."""

import csv
import json
import multiprocessing
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

import tubelet
from tests.helpers.commands import run_tubelet
from tests.helpers.heads import tiny_encoder, tiny_head
from tests.helpers.media import write_image, write_truncated, write_video
from tests.helpers.training import processes
from tests.helpers.video_copies import write_edit_list_copy, write_variable_rate_copy
from tubelet.config import PredictConfig
from tubelet.data import part_table
from tubelet.data.clips import resize_center_crop
from tubelet.data.decode import Video
from tubelet.errors import ConfigError, DataError
from tubelet.heads.head_file import SpanRule, reduce_tokens
from tubelet.heads.window_grid import iter_windows
from tubelet.labels.table import read_labels
from tubelet.prediction import pipeline
from tubelet.prediction.layout import WindowLayout
from tubelet.prediction.outputs import spans as span_output
from tubelet.prediction.pipeline import predict_collection
from tubelet.prediction.records import NONE_OF_THESE
from tubelet.prediction.videos import unique_names
from tubelet.prediction.windows import decode_windows

QUICK = PredictConfig(batch_size=4, workers=0)
LENGTHS = (60, 3, 24, 9, 16, 40, 5)  # frames at 12 per second; batches are of 16 frames


@pytest.fixture(scope="module")
def model():
    return tiny_encoder()


@pytest.fixture(scope="module")
def heads(model):
    return {
        "clips": tiny_head(model, "classification"),
        "spans": tiny_head(model, "timeline", input={"stride_s": 2 / 12}),
        "many": tiny_head(model, "multilabel", input={"stride_s": 2 / 12, "cells": 2}),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate(LENGTHS):
        write_video(folder / f"{number}.mp4", frames=frames, size=32)
    return folder


@pytest.fixture(scope="module")
def tables(model, heads, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("predictions") / "out"
    made = predict_collection(model, heads, [str(folder)], out, QUICK)
    assert (made.files, made.before, made.bad_files) == (len(LENGTHS), 0, [])
    return out


def table(folder, name=""):
    return pd.read_parquet(folder / name / "predictions.parquet")


def contents(out):
    """All tables of a folder, to the byte."""
    return {
        path.relative_to(out): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.suffix in (".csv", ".parquet", ".jsonl") and pipeline.SCORES not in path.parts
    }


def all_steps(model, head, path):
    """Scores of all time steps of a video when the network sees all of them at once."""
    with Video(path) as video:
        windows = list(iter_windows(video.info.duration_s, head.spec.input, 2))
        clips = [resize_center_crop(clip.pixels, 32) for clip in video.clips([window.times for window in windows])]
    tokens = reduce_tokens(model.encode(torch.stack(clips), resize=None), head.spec.input)
    steps = torch.cat([own[window.first : window.last] for own, window in zip(tokens, windows, strict=True)])
    return head(steps.unsqueeze(0))[0].numpy()


def test_a_video_is_decoded_once_to_the_frames_that_its_clips_show(folder, heads):
    layout = WindowLayout.of_head(heads["spans"].spec, 2)
    with Video(folder / "0.mp4") as video:
        found = list(decode_windows(video, layout, video.info.duration_s))
        expected = video.clips([window.times for window, _, _ in found])
    assert len(found) == layout.count(5.0) > 10
    for (_, stretched, pixels), clip in zip(found, expected, strict=True):
        assert not stretched and torch.equal(pixels[0], resize_center_crop(clip.pixels, 32))


def test_clips_have_the_scores_of_the_head_on_their_features(model, heads, folder, tables):
    head, rows = heads["clips"], table(tables, "clips")
    own = rows[rows["path"] == str(folder / "0.mp4")]
    assert list(own["start_s"]) == pytest.approx([i / 3 for i in range(15)])
    assert list(own["end_s"]) == pytest.approx([(i + 1) / 3 for i in range(15)])
    with Video(folder / "0.mp4") as video:
        clips = [own.times for own in iter_windows(5.0, head.spec.input, 2)]
        pixels = torch.stack([resize_center_crop(clip.pixels, 32) for clip in video.clips(clips)])
    scores = head(model.encode(pixels, resize=None))
    assert list(own["label"]) == [head.spec.classes[k] for k in scores.argmax(1)]
    np.testing.assert_allclose(own["score"], scores.max(1).values, rtol=1e-4)


def test_a_timeline_in_chunks_has_the_scores_of_the_whole_video(model, heads, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(span_output, "CHUNK_STEPS", 5)
    made = predict_collection(model, {"spans": heads["spans"]}, [str(folder)], tmp_path / "out", QUICK)
    found = {item.file.path: np.concatenate([rows.scores for rows in item.rows]) for item in made.heads[0].files()}
    assert heads["spans"].network.context == 3 and len(found) == len(LENGTHS)
    for path, scores in found.items():
        np.testing.assert_allclose(scores, all_steps(model, heads["spans"], path), rtol=1e-4, atol=1e-6)


def test_several_heads_have_the_tables_that_each_has_for_itself(model, heads, folder, tables, tmp_path):
    for name, head in heads.items():
        predict_collection(model, {name: head}, [str(folder)], tmp_path / name, QUICK)
        assert (tmp_path / name / "predictions.csv").read_text() == (tables / name / "predictions.csv").read_text()


def test_heads_of_equal_clips_share_one_encoding(model, heads, folder, tmp_path, monkeypatch):
    batches = []
    encode = model.dense_features
    monkeypatch.setattr(model, "dense_features", lambda pixels: batches.append(len(pixels)) or encode(pixels))
    both = {name: heads[name] for name in ("spans", "many")}
    predict_collection(model, both, [str(folder / "0.mp4"), str(folder / "1.mp4")], tmp_path / "out", QUICK)
    layout = WindowLayout.of_head(heads["spans"].spec, 2)
    # A video shorter than a clip is seen in two ways: at a higher rate, and with its last frame repeated.
    assert sum(batches) == layout.count(5.0) + 2
    assert set(table(tmp_path / "out", "many")["path"]) == set(map(str, (folder / "0.mp4", folder / "1.mp4")))


def test_the_csv_is_the_parquet_file_and_a_label_table(heads, tables):
    for name in heads:
        text = (tables / name / "predictions.csv").read_bytes()
        assert text.count(b"\r\n") == text.count(b"\n") and not text.startswith(b"\xef\xbb\xbf")
        rows = table(tables, name)
        printed = pd.read_csv(tables / name / "predictions.csv", keep_default_na=False)
        assert list(printed.columns) == list(rows.columns) == ["path", "start_s", "end_s", "label", "score"]
        assert list(printed["label"]) == list(rows["label"])
        np.testing.assert_allclose(printed["score"], rows["score"], atol=1e-4)
        labels = read_labels(tables / name / "predictions.csv")
        assert not labels.faults and [str(row.path) for row in labels.rows] == list(rows["path"])
        np.testing.assert_allclose([row.end_s for row in labels.rows], rows["end_s"], atol=6e-4)


def test_the_summary_has_seconds_and_bouts_of_each_label(tables):
    for name in ("clips", "spans"):
        rows, summary = table(tables, name), pd.read_csv(tables / name / "summary.csv")
        assert len(summary) == 3 * len(LENGTHS)
        for own in summary.itertuples():
            spans = rows[(rows["path"] == own.path) & (rows["label"] == own.label)].sort_values("start_s")
            gaps = spans["start_s"].to_numpy()[1:] > spans["end_s"].to_numpy()[:-1] + 1e-6
            assert own.bouts == (len(spans) > 0) + int(gaps.sum())
            assert own.seconds == pytest.approx((spans["end_s"] - spans["start_s"]).sum(), abs=1e-3)


def test_values_are_columns_and_a_table_that_is_not_ascii_says_so(model, folder, tmp_path):
    head = tiny_head(model, "regression", ("speed", "größe"))
    head.target_scale.fill_(10.0)
    predict_collection(model, {"head": head}, [str(folder / "0.mp4")], tmp_path / "out", QUICK)
    assert (tmp_path / "out" / "predictions.csv").read_bytes().startswith(b"\xef\xbb\xbfpath,")
    rows = table(tmp_path / "out")
    assert list(rows.columns) == ["path", "start_s", "end_s", "speed", "größe"] and len(rows) == 15
    summary = pd.read_csv(tmp_path / "out" / "summary.csv")
    np.testing.assert_allclose(summary["mean_value"], rows[["speed", "größe"]].mean(), rtol=1e-4)
    semicolon = replace(QUICK, csv_dialect="semicolon")
    predict_collection(model, {"head": head}, [str(folder / "0.mp4")], tmp_path / "out", semicolon)
    assert "." not in (tmp_path / "out" / "summary.csv").read_text().replace("0.mp4", "").replace(str(folder), "")
    labels = read_labels(tmp_path / "out" / "predictions.csv")
    assert labels.targets == ("speed", "größe") and not labels.faults
    np.testing.assert_allclose([row.values for row in labels.rows], rows[["speed", "größe"]], rtol=1e-5)
    np.testing.assert_allclose([row.end_s for row in labels.rows], rows["end_s"], atol=6e-4)


def test_an_image_head_takes_images_and_single_frames_of_videos(model, folder, tmp_path):
    head = tiny_head(model, "classification", input={"frames": 1, "fps": 4.0, "stride_s": 1.0})
    write_image(tmp_path / "a.png")
    made = predict_collection(
        model, {"head": head}, [str(folder / "0.mp4"), str(tmp_path / "a.png")], tmp_path / "out", QUICK
    )
    rows = table(tmp_path / "out")
    assert made.files == 2 and list(rows["end_s"]) == [1, 2, 3, 4, 5, 0]
    with Video(folder / "0.mp4") as video:
        (clip,) = video.clips([[2.5]])
    scores = head(model.encode(resize_center_crop(clip.pixels, 32).unsqueeze(0), resize=None))
    assert rows["score"][2] == pytest.approx(float(scores.max()), rel=1e-4)


def test_a_video_head_counts_the_images_that_it_does_not_read(model, heads, folder, tmp_path):
    write_image(tmp_path / "a.png")
    sources = [str(folder / "1.mp4"), str(tmp_path / "a.png")]
    made = predict_collection(model, {"head": heads["clips"]}, sources, tmp_path / "out", QUICK)
    assert (made.files, made.ignored) == (1, 1)


def test_thresholds_and_none_of_these_change_tables_without_reading_again(model, heads, folder, tmp_path, monkeypatch):
    head = heads["clips"]
    out, sources = tmp_path / "out", [str(folder)]
    predict_collection(model, {"head": head}, sources, out, QUICK)
    before = table(out)
    monkeypatch.setattr(model, "dense_features", None)
    high = float(before["score"].median())
    predict_collection(model, {"head": head}, sources, out, replace(QUICK, threshold=high))
    rows = table(out)
    assert list(rows["label"]) == [
        label if score >= high else "" for label, score in zip(before["label"], before["score"], strict=True)
    ]
    made = predict_collection(model, {"head": head}, sources, out, replace(QUICK, none_of_these=0.0))
    assert set(table(out)["label"]) == {NONE_OF_THESE}
    assert made.heads[0].output.counts["with 'none of these'"] == len(before)
    predict_collection(model, {"head": head}, sources, out, QUICK)
    assert table(out).equals(before)


def test_none_of_these_is_a_span_of_a_timeline_and_needs_a_model_of_the_training_features(
    model, heads, folder, tmp_path
):
    head = heads["spans"]
    config = replace(QUICK, none_of_these=0.0)
    predict_collection(model, {"head": head}, [str(folder / "0.mp4")], tmp_path / "out", config)
    (row,) = table(tmp_path / "out").itertuples()
    assert (row.label, row.start_s, row.end_s) == (NONE_OF_THESE, 0.0, 5.0)
    without = tiny_head(model, "timeline")
    without.novelty = None
    with pytest.raises(ConfigError, match="--none-of-these needs a head"):
        predict_collection(model, {"head": without}, [str(folder)], tmp_path / "other", config)
    assert not (tmp_path / "other").exists()


def test_a_threshold_leaves_time_without_a_label_where_classes_exclude_each_other(model, folder, tmp_path):
    everywhere = (SpanRule(on=0.0, off=0.0, min_length_s=0.0, max_gap_s=0.0),) * 3
    head = tiny_head(model, "timeline", exclusive=True, spans=everywhere, temperature=20.0)
    sources, out = [str(folder / "0.mp4")], tmp_path / "out"
    made = predict_collection(model, {"head": head}, sources, out, QUICK)
    (item,) = made.heads[0].files()
    middle = float(np.median(np.concatenate([rows.scores.max(1) for rows in item.rows])))
    before = table(out)
    predict_collection(model, {"head": head}, sources, out, replace(QUICK, threshold=middle))
    after = table(out)
    assert (before["end_s"] - before["start_s"]).sum() == pytest.approx(5.0)
    assert 1.0 < (after["end_s"] - after["start_s"]).sum() < 4.9 and after["score"].min() >= middle - 1e-6


def test_copies_at_variable_rate_and_with_an_edit_list_have_the_same_tables(model, heads, folder, tmp_path):
    (tmp_path / "a").mkdir()
    source = write_video(tmp_path / "a" / "video.mp4", frames=60, size=32)
    for name, write in (("b", write_variable_rate_copy), ("c", write_edit_list_copy)):
        (tmp_path / name).mkdir()
        write(source, tmp_path / name / "video.mp4")
    found = []
    for name in ("a", "b", "c"):
        copy = tmp_path / name / "video.mp4"
        predict_collection(model, {"head": heads["spans"]}, [str(copy)], tmp_path / name / "out", QUICK)
        found.append(table(tmp_path / name / "out").drop(columns="path"))
    assert len(found[0]) > 5
    assert found[0].equals(found[1]) and found[0].equals(found[2])


def test_a_bad_file_costs_only_itself_and_too_many_stop_the_command(model, heads, folder, tmp_path):
    good = tmp_path / "videos"
    shutil.copytree(folder, good)
    predict_collection(model, heads, [str(good)], tmp_path / "good", QUICK)
    (good / "5.bad.mp4").write_text("no video")
    write_truncated(good / "long.mp4", frames=200, size=32)
    write_truncated(good / "short.mp4", frames=12, size=32, keep=0.6)
    for _ in range(2):
        made = predict_collection(model, heads, [str(good)], tmp_path / "out", replace(QUICK, max_failed_fraction=0.5))
        assert [Path(file.path).name for file in made.bad_files] == ["5.bad.mp4", "long.mp4", "short.mp4"]
        listed = [json.loads(line) for line in (tmp_path / "out" / "bad_files.jsonl").read_text().splitlines()]
        assert [Path(row["path"]).name for row in listed] == ["5.bad.mp4", "long.mp4", "short.mp4"]
        for name in heads:
            assert set(table(tmp_path / "out", name)["path"]) == set(table(tmp_path / "good", name)["path"])
    with pytest.raises(DataError, match="max-failed-fraction"):
        predict_collection(model, heads, [str(good)], tmp_path / "strict", QUICK)
    for name in heads:
        assert set(table(tmp_path / "strict", name)["path"]) == set(table(tmp_path / "good", name)["path"])


def test_a_file_that_changed_is_read_again_and_counted(model, heads, folder, tmp_path):
    own = tmp_path / "videos"
    shutil.copytree(folder, own)
    sources, out = [str(own)], tmp_path / "out"
    predict_collection(model, heads, sources, out, QUICK)
    write_video(own / "4.mp4", frames=30, size=32)
    made = predict_collection(model, heads, sources, out, QUICK)
    assert made.changed == 1 and 0 < made.before < len(LENGTHS)
    predict_collection(model, heads, sources, tmp_path / "new", QUICK)
    assert contents(out) == contents(tmp_path / "new")


def predict_slowly(media, out):
    """Predict in a process that is killed: every row is written at once, and files take a while."""
    multiprocessing.set_start_method(None, force=True)  # as in a process that a shell started
    torch.set_num_threads(1)
    part_table.PART_BYTES = 0
    model = tiny_encoder()
    heads = {"spans": tiny_head(model, "timeline"), "many": tiny_head(model, "multilabel")}
    predict_collection(
        model, heads, [str(media)], out, PredictConfig(batch_size=4, workers=1), progress=lambda *_: time.sleep(0.1)
    )


def test_killed_three_times_the_tables_are_equal_to_the_byte(tmp_path, folder):
    torch.set_num_threads(1)
    model = tiny_encoder()
    heads = {"spans": tiny_head(model, "timeline"), "many": tiny_head(model, "multilabel")}
    config = PredictConfig(batch_size=4, workers=1)
    predict_collection(model, heads, [str(folder)], tmp_path / "undisturbed", config)
    out = tmp_path / "out"
    for kill in range(3):
        process = processes.Process(target=predict_slowly, args=(folder, out))
        before, deadline = len(list(out.rglob("part-*"))), time.monotonic() + 120
        process.start()
        while len(list(out.rglob("part-*"))) < before + 2 and process.is_alive():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert process.is_alive(), f"ended before kill {kill}"
        process.kill()
        process.join()
    made = predict_collection(model, heads, [str(folder)], out, config)
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert 0 < made.before < len(LENGTHS)


def test_another_head_or_a_foreign_folder_is_refused(model, heads, folder, tables, tmp_path):
    with pytest.raises(DataError, match="has scores of another head; choose another --out, or delete"):
        predict_collection(model, {"clips": heads["clips"]}, [str(folder)], tables, QUICK)
    (tmp_path / "mine.txt").write_text("a thesis")
    with pytest.raises(OSError, match="contains other files"):
        predict_collection(model, heads, [str(folder)], tmp_path, QUICK)
    with pytest.raises(ConfigError, match="was trained on the encoder"):
        predict_collection(tiny_encoder(seed=1), heads, [str(folder)], tmp_path / "out", QUICK)


def test_the_python_interface_gives_the_rows_of_the_table(model, heads, folder, tables, tmp_path):
    heads["spans"].save(tmp_path / "head.safetensors")
    head = tubelet.load_head(tmp_path / "head.safetensors")
    found = head.predict(folder / "0.mp4", model=model, workers=0, batch_size=4)
    rows = table(tables, "spans")
    rows = rows[rows["path"] == str(folder / "0.mp4")]
    assert len(found) == len(rows) > 5 and found[0].label == rows["label"][0]
    np.testing.assert_allclose(found.to_pandas()["start_s"], rows["start_s"])
    found.to_csv(tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(found)
    with pytest.raises(ConfigError, match="nearest: 'workers'"):
        head.predict(folder, model=model, worker=1)


def test_the_command_writes_tables_page_ethogram_and_videos(model, heads, folder, tmp_path):
    model.save_pretrained(tmp_path / "encoder")
    for name in ("spans", "clips"):
        heads[name].save(tmp_path / f"{name}.safetensors")
    words = [tmp_path / "spans.safetensors", tmp_path / "clips.safetensors", folder / "0.mp4", folder / "3.mp4"]
    words += ["--model", tmp_path / "encoder", "--out", tmp_path / "out", "--workers", 0, "--video"]
    done = run_tubelet("predict", *words)
    assert done.returncode == 0, done.stderr
    assert "2 files; 0 bad files" in done.stdout and "spans/predictions.csv: " in done.stdout
    assert "spans: Nothing was measured" in done.stdout and "clips: Nothing was measured" in done.stdout
    for name in ("page.html", "ethogram.png", "bad_files.jsonl", "clips/summary.csv", "videos/0.mp4", "videos/3.mp4"):
        assert (tmp_path / "out" / name).is_file(), name
    with Video(tmp_path / "out" / "videos" / "0.mp4") as video:
        assert video.info.duration_s == pytest.approx(5.0)
    drawn = (tmp_path / "out" / "videos" / "0.mp4").stat().st_mtime_ns
    assert "2 files (2 files were already complete)" in run_tubelet("predict", *words).stdout
    assert (tmp_path / "out" / "videos" / "0.mp4").stat().st_mtime_ns == drawn
    for words, message in (
        ([folder, "--out", tmp_path / "x"], "no head among the arguments"),
        ([tmp_path / "clips.safetensors", folder, "--out", tmp_path / "x"], "pass its place as model (--model, and"),
        ([tmp_path / "clips.safetensors", "--out", tmp_path / "x"], "no source among the arguments"),
        ([tmp_path / "encoder" / "model.safetensors", folder, "--out", tmp_path / "x"], "expected 'tubelet-head-1'"),
    ):
        done = run_tubelet("predict", *words)
        assert done.returncode != 0 and message in done.stderr.replace("\n", " "), done.stderr
        assert not (tmp_path / "x").exists()


def test_names_of_videos_are_told_apart_by_their_folders():
    paths = ["/a/b/1.mp4", "/a/c/1.mp4", "/a/2.mp4", "/x/s.tar:1.mp4"]
    names = unique_names(paths)
    assert len(set(names)) == 4 and names[2] == "2" and names[:2] == ["b_1", "c_1"]
    assert len(set(unique_names(["/a/1.mp4", "/a/1.mov"]))) == 2


def test_parquet_keeps_all_digits(tables):
    schema = pq.read_schema(tables / "spans" / "predictions.parquet")
    assert [str(field.type) for field in schema] == ["string", "double", "double", "string", "float"]
