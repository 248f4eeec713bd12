"""Nearest clips and regions of tables, also of those whose parts hold what cannot be compared."""

import json
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.helpers.commands import run_tubelet
from tests.helpers.media import write_image, write_video
from tubelet.data.part_table import rows_to_table
from tubelet.embed.regions import grow_box, region_weights
from tubelet.embed.search import common_folder, search
from tubelet.embed.table import FORMAT
from tubelet.errors import TubeletError
from tubelet.grid import Grid

SETTINGS = {"format": FORMAT, "model": "m", "model_id": "m", "weights": "w", "image_size": 8, "frames": 2, "fps": 4.0}
SETTINGS |= {"stride_s": None, "dense": False, "levels": False}


def model(query):
    features = SimpleNamespace(pooled=torch.tensor([query]), times=torch.tensor([[0.5, 1.5]]), grid=Grid(2, 1, 1))
    return SimpleNamespace(weights_id="w", model_id="m", encode=lambda *_, **__: features)


@pytest.fixture
def table(tmp_path):
    vectors = [[np.nan] * 4, [1, 0, 0, 0], [np.inf, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    rows = [
        {"path": f"{i}.png", "start_s": 0.0, "end_s": 1.0, "pooled": np.array(vector, np.float16)}
        for i, vector in enumerate(vectors)
    ]
    (tmp_path / "_settings.json").write_text(json.dumps(SETTINGS))
    pq.write_table(rows_to_table(rows, SETTINGS), tmp_path / "part-000000.parquet")
    return tmp_path


def test_rows_that_are_not_finite_hide_no_neighbors_and_are_counted(table, caplog):
    caplog.set_level(logging.INFO, "tubelet")
    with pytest.warns(UserWarning, match="3 of 5 rows have features without a direction"):
        hits = search(table, "a.png", 3, model([1.0, 0.0, 0.0, 0.0]))
    assert [hit.path for hit in hits] == ["1.png", "4.png"] and hits[0].similarity == pytest.approx(1)
    assert caplog.messages == ["query: a.png, time steps from 0.50 to 1.50 s"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ([np.nan] * 4, "have no direction .norm nan"),
        ([0.0] * 4, "have no direction .norm 0"),
        ([1.0] * 5, "vectors of 4 channels, expected 5 as of the model"),
    ],
)
def test_a_query_that_cannot_be_compared_is_refused(table, query, words):
    with pytest.raises(TubeletError, match=words):
        search(table, "a.png", 3, model(query))


def test_a_region_is_the_tokens_that_it_covers():
    weights = region_weights((45, 10, 10, 20), 40, 80, 4, 4, "a.png")  # the square begins at x = 20
    expected = np.zeros((4, 4))
    expected[1:3, 2:4] = 0.25
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_a_box_is_connected_to_the_best_token():
    similarities = np.zeros((4, 4), np.float32)
    similarities[1, 1], similarities[2, 1], similarities[3, 3], similarities[0, 0] = 1.0, 0.6, 0.9, 0.4
    assert grow_box(similarities, 40, 80) == (30, 10, 10, 20)


def test_a_region_finds_its_moment_and_place(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(3):
        path = write_video(tmp_path / f"{i}.mp4", frames=24, size=40)
        tokens = rng.normal(size=(2, 4, 4, 8))
        tokens[i % 2, i, 1] = 5 * np.eye(8)[0] + rng.normal(size=8) * 0.01
        rows.append({"path": str(path), "start_s": 0.0, "end_s": 1.0, "times": np.array([0.25, 0.75])})
        rows[-1] |= {"grid": np.array([2, 4, 4], np.int32), "pooled": tokens.mean((0, 1, 2)).astype(np.float16)}
        rows[-1] |= {"tokens": tokens.astype(np.float16).ravel()}
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "_settings.json").write_text(json.dumps(SETTINGS | {"dense": True}))
    pq.write_table(rows_to_table(rows, SETTINGS), tmp_path / "table" / "part-000000.parquet")
    tokens = np.stack([row["tokens"] for row in rows])[0].reshape(1, 2, 4, 4, 8)
    features = SimpleNamespace(
        map=torch.tensor(tokens), times=torch.tensor([[0.25, 0.75]]), grid=SimpleNamespace(t=2, h=4, w=4)
    )
    query = SimpleNamespace(weights_id="w", model_id="m", encode=lambda *_, **__: features)
    shutil.copy(tmp_path / "0.mp4", tmp_path / "query.mp4")
    hits = search(tmp_path / "table", str(tmp_path / "query.mp4"), 3, query, at_s=0.3, box=(10, 0, 10, 10))
    assert [hit.similarity for hit in hits] == pytest.approx([1, 1, 1], abs=0.02)
    found = {hit.path[-5]: (hit.time_s, hit.box) for hit in hits}
    assert found == {"0": (0.25, (10, 0, 10, 10)), "1": (0.75, (10, 10, 10, 10)), "2": (0.25, (10, 20, 10, 10))}


def test_clips_that_overlap_the_query_are_left_out_or_its_whole_file(tmp_path, caplog):
    caplog.set_level(logging.INFO, "tubelet")
    (tmp_path / "_settings.json").write_text(json.dumps(SETTINGS))
    spans = [("a.mp4", 0.0), ("a.mp4", 0.9), ("a.mp4", 2.0), ("b.mp4", 0.0)]
    rows = [
        {
            "path": str(tmp_path / name),
            "start_s": start,
            "end_s": start + 0.75,
            "pooled": np.eye(4, dtype=np.float16)[i],
        }
        for i, (name, start) in enumerate(spans)
    ]
    pq.write_table(rows_to_table(rows, SETTINGS), tmp_path / "part-000000.parquet")
    query = model([1.0, 0.5, 0.2, 0.1])  # steps at 0.5 and 1.5 s: from 0 to 2 s
    hits = search(tmp_path, tmp_path / "a.mp4", 5, query)
    assert [(hit.path[-5:], hit.start_s) for hit in hits] == [("a.mp4", 2.0), ("b.mp4", 0.0)]
    assert "left out: 2 clips of the query's file, overlapping the query" in caplog.messages[-1]
    assert [hit.path[-5:] for hit in search(tmp_path, tmp_path / "a.mp4", 5, query, other_files=True)] == ["b.mp4"]
    assert caplog.messages[-1] == "left out: 3 clips of the query's file"
    assert len(search(tmp_path, tmp_path / "c.mp4", 5, query)) == 4


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((0, 0, 0, 5), "expected x,y,width,height of a region"),
        ((70, 0, 20, 5), "has 80 x 40 pixels"),
        ((0, 0, 15, 40), r"outside of the central square of a.png \(20,0,40,40\)"),
    ],
)
def test_a_region_that_is_not_in_the_table_is_refused(box, words):
    with pytest.raises(TubeletError, match=words):
        region_weights(box, 40, 80, 4, 4, "a.png")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--box", "1,2,3"], "--box is '1,2,3', expected x,y,width,height"),
        (["--box", "1,2,3,4"], "has no tokens"),
        (["--at", "-1"], "--at is -1.0, expected 0 to"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused(table, words, message, tmp_path):
    write_image(tmp_path / "a.png")
    done = run_tubelet("search", table, tmp_path / "a.png", *words)
    assert done.returncode == 1 and message in " ".join(done.stderr.split())


def test_an_image_has_no_moments(table, tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises(TubeletError, match="is an image, which has no moments"):
        search(table, tmp_path / "a.png", 3, model([1.0, 0, 0, 0]), at_s=1.0)
    with pytest.raises(TubeletError, match="people walking: no such file; search by an image or a video, words"):
        search(table, "people walking", 3, model([1.0, 0, 0, 0]))


def test_paths_have_a_common_folder():
    assert common_folder(["/a/b/c.mp4", "/a/d.mp4"]) == "/a/"
    assert common_folder(["s3://x/a.mp4", "s3://x/b/c.mp4"]) == "s3://x/"
    assert common_folder(["a.mp4", "/b.mp4"]) == ""
