"""Spans and weights in lists: what is drawn, and what is refused."""

import json
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.media import read_index, write_video
from tubelet.config import DataConfig, TrainConfig
from tubelet.data.clips import clip_times
from tubelet.data.decode import Video
from tubelet.data.loader import StepDataset, build_samplers
from tubelet.data.sample_index import build_index
from tubelet.data.sources import list_media
from tubelet.data.tables import parse_number
from tubelet.errors import DecodeError, TubeletError
from tubelet.grid import Modality


def listed(tmp_path, text, name="list.csv"):
    (tmp_path / name).write_text(text)
    return list_media([str(tmp_path / name)])


def test_one_file_with_several_spans_is_several_samples(tmp_path):
    media = listed(tmp_path, "path,start_s,end_s,weight\na.mp4,1,2.5,3\na.mp4,0:03.5,,1\nb.mp4,,,\na.mp4,1,2.5,3\n")
    assert [path.rsplit("/", 1)[1] for path in media.videos] == ["a.mp4", "a.mp4", "b.mp4"]
    index = build_index(media, Modality.VIDEO)
    assert [index.span(i) for i in range(3)] == [(1.0, 2.5), (3.5, None), None]
    assert index.weights().tolist() == [3, 1, 1]
    assert index.read(1).place.endswith("list.csv, line 3")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "quoted"])
def test_all_forms_of_lists_have_the_same_spans(kind, tmp_path):
    rows = [("a b.mp4", 1, 2.5, 3), ("c.mp4", 0.5, None, None), ("d.png", None, None, 2)]
    names = ("file_name", "start_s", "end_s", "weight")
    path = tmp_path / f"list.{kind.replace('quoted', 'csv')}"
    if kind == "jsonl":
        path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), path)
    else:
        mark, quote = ("\t" if kind == "tsv" else ","), '"' * (kind == "quoted")
        cells = [[quote + ("" if v is None else str(v)) + quote for v in row] for row in [names, *rows]]
        path.write_text("".join(mark.join(row) + "\n" for row in cells))
    media = list_media([str(path)])
    index = build_index(media, Modality.VIDEO)
    assert [index.span(i) for i in range(2)] == [(1.0, 2.5), (0.5, None)]
    assert index.weights().tolist() == [3, 1]
    assert media.image_rows.weight.tolist() == [2]


@pytest.mark.parametrize(
    "text, words",
    [
        ("path,start_s,end_s\na.mp4,0,1\na.mp4,2,2\n", "line 3: start_s is 2, not before end_s 2"),
        ("path,start_s\na.mp4,-1\n", "line 2: start_s is -1, expected from 0 on"),
        ("path,start_s\na.mp4,soon\n", "line 2: start_s is 'soon', expected seconds or h:mm:ss.mmm"),
        ("path,weight\na.mp4,heavy\n", "line 2: weight is 'heavy', expected a number"),
        ("path,weight\na.mp4,inf\n", "line 2: weight is inf, expected from 0 on"),
        ("path,weight\na.mp4,0\n", "every row has the weight 0"),
        ("path,end_s\na.mp4,2\nb.png,2\n", "line 3: an image has no start_s and end_s"),
        (
            "path,start_s,end_s,weight\na.mp4,0,1,3\nb.mp4,,,\na.mp4,0,1,2\n",
            "line 4: has the file and span of line 2, but the weight 2 instead of 3",
        ),
        ("path,start_s\nb.mp4,1\na.mp4,1,2\n", "line 3: 'a.mp4,1,2' has 3 values, more than the header has columns"),
    ],
)
def test_a_span_that_cannot_be_is_named_with_its_line(text, words, tmp_path):
    with pytest.raises(TubeletError) as error:
        listed(tmp_path, text)
    assert words in str(error.value)


def test_numbers_may_have_a_comma_where_semicolons_separate_columns_and_empty_cells_may_follow(tmp_path):
    media = listed(tmp_path, "path;start_s;weight\na.mp4;0,5;1,5;\nb.mp4;1;;;\n")
    assert media.video_rows.start_s.tolist() == [0.5, 1] and media.video_rows.weight.tolist() == [1.5, 1]


def test_many_digits_are_refused_in_time_proportional_to_their_number():
    start = time.process_time()
    assert parse_number("1" * 100_000 + "x") is None
    assert time.process_time() - start < 1


def test_the_first_of_several_sources_gives_the_weight(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "list.csv").write_text("path,weight\na.mp4,3\n")
    media = list_media([str(tmp_path / "list.csv"), str(tmp_path)])
    assert media.video_rows.weight.tolist() == [3]
    assert "1 file of several sources: the weight in the first of them counts" in media.notes


def test_lists_without_these_columns_are_drawn_as_before(tmp_path):
    plain = listed(tmp_path, "path,label\n" + "".join(f"{i}.mp4,x\n" for i in range(50)))
    equal = listed(tmp_path, "path,weight\n" + "".join(f"{i}.mp4,2\n" for i in range(50)), "equal.csv")
    assert plain.video_rows is None
    draws = [[index.name(s) for index, s in map(sampler_of(media).sample_at, range(120))] for media in (plain, equal)]
    assert draws[0] == draws[1]


def sampler_of(media):
    return build_samplers(TrainConfig(data=DataConfig(sources=("x",))), media)[Modality.VIDEO]


def test_rows_are_drawn_in_proportion_to_their_weights_in_every_epoch(tmp_path):
    weights = [0.5, 1, 1, 2.5, 5]
    media = listed(tmp_path, "path,weight\n" + "".join(f"{i}.mp4,{w}\n" for i, w in enumerate(weights)))
    sampler = sampler_of(media)
    drawn = np.array([sampler.sample_at(draw)[1] for draw in range(2000)]).reshape(-1, 5)
    expected = np.array(weights) / sum(weights)
    counts = np.stack([np.bincount(epoch, minlength=5) for epoch in drawn])
    assert (np.abs(counts - 5 * expected) < 1).all()
    assert np.abs(counts.sum(0) / 2000 - expected).max() < 0.01
    assert sampler_of(media).sample_at(1234)[1] == drawn.ravel()[1234]  # without those before


def test_clips_of_training_lie_in_the_span(tmp_path):
    write_video(tmp_path / "a.mp4", frames=48, fps=12)
    media = listed(tmp_path, "path,start_s,end_s\na.mp4,1,2\na.mp4,2,2.1\na.mp4,3,9\n")
    index = build_index(media, Modality.VIDEO)
    source = index.read(0)
    with Video(source.media) as video:
        info = source.limit(video.info)
        times, short = clip_times(info, 4, 8, np.random.default_rng(0))
        (clip,) = video.clips([source.start_s + times])
        assert not short and all(12 <= read_index(image) <= 24 for image in clip.pixels)
        assert clip_times(index.read(1).limit(video.info), 4, 8, np.random.default_rng(0))[1]  # as a short video
        with pytest.raises(DecodeError, match=r"list\.csv, line 4: end_s is 9, after the end of the video at 4\.000 s"):
            index.read(2).limit(video.info)


def test_a_step_counts_short_spans_and_replaces_those_outside_of_the_video(tmp_path):
    write_video(tmp_path / "a.mp4", frames=48, fps=12)
    media = listed(tmp_path, "path,start_s,end_s\na.mp4,2,2.1\na.mp4,3,9\n")
    data = DataConfig(sources=("x",), frames=4, fps=8, image_size=32, workers=1, max_failed_fraction=0.6)
    step = StepDataset(TrainConfig(data=data, batch_size=4), media)[0]
    assert step.failure is None and step.short_clips == 4
    reason = "line 3: end_s is 9, after the end of the video at 4.000 s; correct the line"
    assert [file.reason for file in step.bad] == [f"{tmp_path}/list.csv, {reason}"]


@pytest.mark.slow
def test_lines_are_read_at_the_speed_of_a_million_in_three_seconds_of_processor_time(tmp_path):
    lines = "".join(f"v/{i // 4:07d}.mp4,{i % 4},{i % 4 + 1},{1 + i % 3}\n" for i in range(200_000))
    (tmp_path / "list.csv").write_text("path,start_s,end_s,weight\n" + lines)
    began = time.process_time()
    media = list_media([str(tmp_path / "list.csv")])
    assert time.process_time() - began < 1.2  # 0.6 on a quiet machine
    assert len(media.videos) == 200_000
