"""Lists of spans as sources of commands: what they read lies in the spans, at the times of the video."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.helpers.heads import tiny_encoder, tiny_head
from tests.helpers.media import write_image, write_video
from tubelet.cli.embed import _summary
from tubelet.config import EmbedConfig, PredictConfig
from tubelet.data.part_table import parts
from tubelet.embed.collection import embed_collection
from tubelet.errors import DataError
from tubelet.prediction.pipeline import predict_collection
from tubelet.view.dense_table import read_dense_table

SMALL = EmbedConfig(image_size=32, frames=4, fps=12, batch_size=4, workers=0, dense=True, max_failed_fraction=0.5)
FAST = replace(SMALL, fps=24)
QUICK = PredictConfig(batch_size=4, workers=0)
ROWS = ("a.mp4,1,2", "a.mp4,2.5,", "b.mp4,,", "c.png,,")


@pytest.fixture(scope="module")
def model():
    return tiny_encoder()


@pytest.fixture
def folder(tmp_path):
    write_video(tmp_path / "a.mp4", frames=48, size=32)
    write_video(tmp_path / "b.mp4", frames=12, size=32)
    write_image(tmp_path / "c.png", size=32)
    return tmp_path


def write_list(folder, rows=ROWS):
    (folder / "list.csv").write_text("\n".join(["path,start_s,end_s", *rows]) + "\n")
    return str(folder / "list.csv")


def read_rows(table):
    rows = pd.concat([pd.read_parquet(part) for part in parts(table)], ignore_index=True)
    rows["name"] = [path.rsplit("/", 1)[1] for path in rows["path"]]
    return rows.sort_values(["name", "start_s"], ignore_index=True)


def test_clips_of_a_table_lie_in_the_spans_and_equal_those_of_the_video(model, folder):
    out = folder / "out/table"
    made = embed_collection(model, [write_list(folder)], out, SMALL)
    rows = read_rows(out)
    spans = rows[["name", "span_start_s", "span_end_s", "start_s", "end_s"]].values.tolist()
    expected = [("a.mp4", 1, 2, s, s + 0.25) for s in (1, 4 / 3, 5 / 3)]
    expected += [("a.mp4", 2.5, np.nan, s, s + 0.25) for s in np.linspace(2.5, 4 - 1 / 3, 5)]
    expected += [("b.mp4", np.nan, np.nan, s, s + 0.25) for s in (0, 1 / 3, 2 / 3)]
    expected += [("c.png", np.nan, np.nan, 0, 0)]
    assert made.files == 4 and made.rows == len(expected) and made.repeating == 0
    assert _summary(made, False) == f"4 new spans ({len(expected)} clips)"
    for found, row in zip(spans, expected, strict=True):
        assert found[0] == row[0]
        np.testing.assert_allclose(found[1:], row[1:], atol=1e-6)
    for row in rows[rows["name"] == "a.mp4"].itertuples():
        features = model.encode(row.path, resize=32, frames=4, fps=12, start=row.start_s)
        np.testing.assert_allclose(row.pooled, features.pooled[0].numpy(), atol=2e-3)
    with pytest.raises(DataError, match="has spans of videos, and --serve shows whole videos"):
        read_dense_table(out, [], 8)


def test_a_table_of_spans_continues_row_by_row(model, folder):
    out = folder / "out/table"
    embed_collection(model, [write_list(folder, ROWS[:1])], out, SMALL)
    made = embed_collection(model, [write_list(folder)], out, SMALL)
    assert (made.before, made.rows) == (1, 9)
    made = embed_collection(model, [str(folder / "b.mp4"), str(folder / "c.png")], out.with_name("fast"), FAST)
    assert (made.entry, made.repeating) == ("file", 1)
    assert _summary(made, False).endswith("1 with fewer frames a second than --fps, which repeat")
    made = embed_collection(model, [write_list(folder, [*ROWS[:1], "a.mp4,3,9"])], out, SMALL)
    assert (made.before, made.rows, made.bad, made.truncated) == (1, 0, 1, 0)
    assert '#t=3,9", "reason": ' in (out / "_bad_files.jsonl").read_text()
    write_video(folder / "a.mp4", frames=36, size=32)
    made = embed_collection(model, [write_list(folder)], out, SMALL)
    assert (made.before, made.changed, made.rows) == (2, 2, 3 + 2)
    rows = read_rows(out)
    assert not rows.duplicated(["path", "span_start_s", "clip_index"]).any() and len(rows) == 9


@pytest.mark.parametrize("task", ["classification", "timeline"])
def test_predictions_lie_in_the_spans(model, folder, task):
    head = tiny_head(model, task)
    out = folder / "out"
    made = predict_collection(model, {"head": head}, [write_list(folder, ROWS[:3])], out, QUICK)
    rows = pd.read_parquet(out / "predictions.parquet")
    inside = rows[rows["path"] == str(folder / "a.mp4")]
    assert made.files == 3 and inside["start_s"].min() == 1
    assert (((inside["start_s"] >= 1) & (inside["end_s"] <= 2)) | (inside["start_s"] >= 2.5)).all()
    assert 3.5 < inside["end_s"].max() < 4.001
    summary = pd.read_csv(out / "summary.csv")
    assert {path.rsplit("/", 1)[1] for path in summary["path"]} == {"a.mp4#t=1,2", "a.mp4#t=2.5", "b.mp4"}
    (shown, other) = made.media_predictions()
    assert shown.duration_s == pytest.approx(4, abs=1e-3) and other.duration_s == pytest.approx(1, abs=1e-3)
    predict_collection(model, {"head": head}, [write_list(folder, [*ROWS[:3], "a.mp4,0,1"])], out, QUICK)
    more = pd.read_parquet(out / "predictions.parquet")
    assert more["start_s"].min() == 0 and len(more) > len(rows)
    if task == "classification":
        scores = [item for item in made.heads[0].files() if item.file.start_s == 1]
        (own,) = [np.concatenate([rows.scores for rows in item.rows]) for item in scores]
        whole = folder / "whole"
        write_video(folder / "cut.mp4", frames=48, size=32)
        cut = predict_collection(model, {"head": head}, [str(folder / "cut.mp4")], whole, QUICK)
        (item,) = cut.heads[0].files()
        every = np.concatenate([rows.scores for rows in item.rows])
        np.testing.assert_allclose(own, every[3:6], rtol=1e-4)
