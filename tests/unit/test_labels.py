"""Label tables: reading, inference of the task, and the faults that are found before anything is computed."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.helpers.commands import run_tubelet
from tests.helpers.media import variable_times, write_image, write_variable_rate, write_video
from tests.helpers.worker_jobs import map_without_torch
from tubelet.config import FitConfig
from tubelet.data.tables import parse_time
from tubelet.errors import DataError
from tubelet.fitting.run import read_label_table
from tubelet.labels import media_facts
from tubelet.labels.checks import check_labels
from tubelet.labels.infer import infer_task
from tubelet.labels.masks import read_mask
from tubelet.labels.records import LabelError
from tubelet.labels.table import COLUMNS, read_labels
from tubelet.prediction.label_output import LABEL_COLUMNS
from tubelet.prediction.predictions import Predictions
from tubelet.prediction.records import Prediction


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """Two videos of four seconds at 12 frames a second, one of variable rate, and two images of 64 x 64."""
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "a.mp4")
    write_video(folder / "b.mp4")
    write_variable_rate(folder / "vfr.mkv")
    write_image(folder / "a.jpg")
    write_image(folder / "b.jpg", index=6)
    return folder


def write(media, text, name="labels.csv", **options):
    path = media / name
    path.write_text(text, **options)
    return path


def faults_of(path, task=None, **options):
    with pytest.raises(LabelError) as caught:
        check_labels(read_labels(path), task, **options)
    assert caught.value.exit_code == 2
    return caught.value.faults


# Reading

ROWS = [("a.mp4", 0.5, 1.25, "walk"), ("b.mp4", 62.5, 63, "läuft")]


def as_text(separator, decimal="."):
    lines = [separator.join(("path", "start_s", "end_s", "label"))]
    lines += [
        separator.join(str(cell).replace(".", decimal) if i in (1, 2) else str(cell) for i, cell in enumerate(row))
        for row in ROWS
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (as_text(",").encode(), "CSV separated by commas, UTF-8"),
        (as_text(";", ",").replace("\n", "\r\n").encode("utf-8-sig"), "CSV separated by semicolons, UTF-8"),
        (as_text("\t").replace("\n", "\r\n").encode("utf-16"), "CSV separated by tabs, UTF-16"),
        (
            ("\n\n" + as_text(",").replace("62.5", "1:02.5").replace("63", "0:01:03.000")).encode(),
            "CSV separated by commas, UTF-8",
        ),
        (as_text(",").replace("path,", "Path,").replace("label", "Label").encode(), "CSV separated by commas, UTF-8"),
    ],
    ids=["plain", "excel", "utf-16", "clock", "capitals"],
)  # fmt: skip
def test_separator_encoding_and_line_ends_are_found(tmp_path, content, form):
    (tmp_path / "labels.csv").write_bytes(content)
    table = read_labels(tmp_path / "labels.csv")
    found = [(row.path.name, row.start_s, row.end_s, *row.labels) for row in table.rows]
    assert found == ROWS and not table.faults
    assert table.format == form
    assert table.classes == ("läuft", "walk") and table.columns == ("path", "start_s", "end_s", "label")


def test_the_default_csv_of_excel_is_an_error_with_its_line(tmp_path):
    (tmp_path / "labels.csv").write_bytes(as_text(";", ",").replace("\n", "\r\n").encode("cp1252"))
    with pytest.raises(DataError, match=r"labels.csv, line 3: is not UTF-8 text \(byte 0xe4\); .* Save As > CSV UTF-8"):
        read_labels(tmp_path / "labels.csv")


def test_csv_parquet_and_json_lines_give_the_same_rows(tmp_path):
    columns = dict(zip(("path", "start_s", "end_s", "label"), map(list, zip(*ROWS, strict=True)), strict=True))
    columns["weight"] = [float("nan"), 2.0]  # pandas writes gaps as NaN
    pq.write_table(pa.table(columns), tmp_path / "labels.parquet")
    lines = [json.dumps(dict(zip(columns, row, strict=False))) for row in ROWS]
    (tmp_path / "labels.jsonl").write_text("\n".join(lines))  # the last line counts without a line feed, too
    (tmp_path / "labels.csv").write_text(as_text(","))
    csv, parquet, jsonl = (read_labels(tmp_path / f"labels.{suffix}") for suffix in ("csv", "parquet", "jsonl"))
    for table in (parquet, jsonl):
        assert [(row.path, row.start_s, row.end_s, row.labels) for row in table.rows] == [
            (row.path, row.start_s, row.end_s, row.labels) for row in csv.rows
        ]
    assert parquet.rows[0].line == 1 and parquet.row_kind == "row" and not parquet.faults
    assert [row.weight for row in parquet.rows] == [1.0, 2.0]
    assert len({csv.digest, parquet.digest, jsonl.digest}) == 3


def test_several_labels_lists_and_gaps(tmp_path):
    (tmp_path / "l.jsonl").write_text(
        '{"path": "a.mp4", "label": ["x", "y"], "speed": 1.5}\n{"path": "b.mp4", "label": null, "speed": 2}\n'
        '{"path": "/c.mp4", "label": "y | z", "speed": -1e-2, "weight": 2, "group": 7, "split": "val"}\n'
    )
    table = read_labels(tmp_path / "l.jsonl")
    assert [row.labels for row in table.rows] == [("x", "y"), (), ("y", "z")]
    assert [row.values for row in table.rows] == [(1.5,), (2.0,), (-0.01,)] and table.targets == ("speed",)
    assert table.rows[2].path == Path("/c.mp4") and table.rows[0].path == tmp_path / "a.mp4"
    assert (table.rows[2].weight, table.rows[2].group, table.rows[2].split) == (2.0, "7", "val")


def test_columns_of_text_are_not_used_and_logged(tmp_path, caplog):
    (tmp_path / "l.csv").write_text("path,label,massk,note\na.mp4,x,heavy,good\n")
    with caplog.at_level(logging.WARNING, "tubelet"):
        assert read_labels(tmp_path / "l.csv").targets == ()
    assert "massk of the labels is not used" in caplog.text and "(nearest: 'mask')" in caplog.text


def test_suggestions_without_a_label_are_reported(tmp_path, caplog):
    (tmp_path / "l.csv").write_text("path,label,answer,answer_score\na.mp4,x,y,0.5\nb.mp4,,y,0.5\nc.mp4,,x,0.4\n")
    with caplog.at_level(logging.WARNING, "tubelet"):
        read_labels(tmp_path / "l.csv")
    assert caplog.text.count("2 suggestions have no label, the first in line 3") == 1


def test_words_that_are_near_a_column_are_numbers_to_predict(tmp_path):
    (tmp_path / "l.csv").write_text("path,start_x,end_x,height\na.mp4,1,2,3\n")
    assert read_labels(tmp_path / "l.csv").targets == ("start_x", "end_x", "height")


def test_numbers_beside_labels_may_have_gaps(media):
    """As in a table of predictions with rows that were added by hand."""
    text = "path,start_s,end_s,label,score,temperature\na.mp4,0,2,x,0.91,12\na.mp4,2,4,y,,\nb.mp4,0,4,x,0.5,13\n"
    table = check_labels(read_labels(write(media, text)), min_examples=1)
    task, reason = infer_task(table)
    assert task == "timeline" and "the numbers in temperature are not used" in reason
    full = text.replace("y,,", "y,0.1,1")
    assert check_labels(read_labels(write(media, full)), "regression").targets == ("score", "temperature")


@pytest.mark.parametrize(("dialect", "separator"), [("comma", ","), ("semicolon", ";")])
def test_predictions_that_were_completed_by_hand_are_a_label_table_of_fit(media, dialect, separator):
    spans = [(0.125, 2.5, "läuft"), (2.5, 4.0, "x")]
    rows = [
        Prediction(path=str(media / "a.mp4"), start_s=start_s, end_s=end_s, label=label, score=0.5)
        for start_s, end_s, label in spans
    ]
    path = media / "predictions.csv"
    Predictions(columns=LABEL_COLUMNS, records=rows).to_csv(path, dialect)
    assert path.read_bytes().startswith(b"\xef\xbb\xbfpath" + separator.encode())
    with path.open("a") as file:
        file.writelines(separator.join(["b.mp4", *row.split()]) + separator + "\n" for row in ("0 2 x", "2 4 läuft"))
    table, task = read_label_table(path, FitConfig(workers=0))
    assert task.name == "timeline" and table.targets == ("score",)
    assert [(row.start_s, row.end_s, *row.labels) for row in table.rows] == [*spans, (0, 2, "x"), (2, 4, "läuft")]


def test_predictions_for_images_have_no_span(media):
    text = "path,start_s,end_s,label,score\na.jpg,0.000,0.000,x,0.9\nb.jpg,0.000,0.000,y,0.8\n"
    table = check_labels(read_labels(write(media, text)), min_examples=1)
    assert [(row.start_s, row.end_s) for row in table.rows] == [(None, None)] * 2


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1.5", 1.5), ("0:01.250", 1.25), ("90:00", 5400), ("1:02:03.5", 3723.5), ("1:60:00", None), ("0:60", None),
     ("1e400", None), ("nan", None), ("x", None), ("1,5", None)],
)  # fmt: skip
def test_times(text, seconds):
    assert parse_time(text) == seconds


# The task


@pytest.mark.parametrize(
    ("text", "task", "words"),
    [
        ("path,label\na.mp4,x\nb.mp4,y\n", "classification", "each file has one class"),
        ("path,label\na.mp4,x|y\nb.mp4,y\n", "multilabel", "line 2"),
        ("path,label\na.mp4,x\na.mp4,y\nb.mp4,y\nb.mp4,x\n", "multilabel", "line 2"),
        ("path,speed,turn\na.mp4,1,2\nb.mp4,3,4\n", "regression", "regression of speed, turn"),
        ("path,start_s,end_s,label\na.mp4,0,2,x\na.mp4,2,4,y\nb.mp4,0,1,x\nb.mp4,1,2,y\n", "timeline", "75%"),
        ("path,start_s,end_s,label\na.mp4,0,1,x\nb.mp4,0,1,y\n", "classification", "cover only 25%"),
        ("path,start_s,end_s,label\na.mp4,0,.5,x\nb.mp4,0,.5,y\nvfr.mkv,,,\n", "timeline", "line 4 is a whole video"),
        ("path,start_s,end_s,label\na.mp4,0,1,x\nb.mp4,0,1,y\nvfr.mkv,,,y\n", "classification", "line 4 is about a"),
        ("path,start_s,end_s,label\na.mp4,0,1,x\na.mp4,0.5,1,y\n", "multilabel", "--task timeline"),
        ("path,label,speed\na.mp4,x,1\nb.mp4,y,2\n", "classification", "speed are not used (--task regression)"),
        ("path,mask,label\na.jpg,a.png,x\n", "segmentation", "masks"),
        ("path,depth\na.jpg,a.png\n", "depth", "depth maps"),
    ],
)
def test_the_task_is_inferred_and_explained(media, text, task, words):
    table = read_labels(write(media, text, "task.csv"))
    if task not in ("segmentation", "depth"):
        table = check_labels(table, min_examples=1)
    found, reason = infer_task(table)
    assert found == task and reason.startswith(task) and words in reason


# Checks


def test_times_are_completed_from_frames_moments_and_lengths(media):
    text = (
        "path,start_frame,end_frame,start_s,end_s,label\n"
        "vfr.mkv,3,10,,,x\nvfr.mkv,40,48,,,x\na.mp4,0,6,,,x\na.mp4,,,2,,y\nb.mp4,,,0.1,,y\nb.mp4,,,3,4.05,y\n"
    )
    table = check_labels(read_labels(write(media, text)))
    times = variable_times()
    length = table.durations_s[media / "vfr.mkv"]
    assert np.allclose(
        [(row.start_s, row.end_s) for row in table.rows],
        [(times[3], times[10]), (times[40], length), (0, 0.5), (1.5, 2.5), (0, 0.6), (3, 4)],
        atol=1.5e-3,  # Matroska counts milliseconds
    )
    assert all(row.start_frame is None for row in table.rows) and table.durations_s[media / "a.mp4"] == 4.0


def test_a_video_without_times_and_label_is_a_span_of_nothing_in_a_timeline(media):
    text = "path,start_s,end_s,label\na.mp4,0,1,x\na.mp4,2,3,x\nb.mp4,,,\n"
    for task in (None, "timeline"):
        table = check_labels(read_labels(write(media, text)), task)
        assert (table.rows[2].start_s, table.rows[2].end_s, table.rows[2].labels) == (0, 4, ())
    (fault,) = faults_of(write(media, text + "a.mp4,,,\n"))
    assert fault.startswith("line 5: says that there is nothing in a.mp4, but line 2 has x there; fill start_s")


def test_rows_of_one_span_are_joined_for_several_labels(media):
    text = "path,start_s,end_s,label\na.mp4,0,1,x\na.mp4,0,1,y\nb.mp4,0,1,y\nb.mp4,1,2,x\n"
    table = check_labels(read_labels(write(media, text)), "multilabel")
    assert [row.labels for row in table.rows] == [("x", "y"), ("y",), ("x",)]


WRONG = {
    "missing file": (
        "path,label\nno.mp4,x\nno.mp4,x\na.mp4,x\nb.mp4,y\na.jpg,y\n",
        None,
        [
            "line 2: .*no.mp4: does not exist .also line 3.",
        ],
    ),
    "moments that are none": (
        "path,start_s,end_s,label\na.mp4,0,abc,x\na.mp4,1,2,x\nb.mp4,0,1,y\nb.mp4,1,2,y\n",
        None,
        ["^line 2: end_s is 'abc'"],
    ),
    "unreadable file": (
        "path,label\nbad.mp4,x\na.mp4,x\nb.mp4,y\na.jpg,y\n",
        None,
        [
            "line 2: .*bad.mp4: ",
        ],
    ),
    "URL": (
        "path,label\nhttps://x.org/a.mp4,x\na.mp4,x\nb.mp4,x\na.jpg,y\nb.jpg,y\n",
        None,
        [
            "line 2: path .* is a URL",
        ],
    ),
    "no path": (
        "path,label\n,x\na.mp4,x\nb.mp4,x\na.jpg,y\nb.jpg,y\n",
        None,
        [
            "line 2: path is empty",
        ],
    ),
    "beyond the end": (
        "path,start_s,end_s,label\na.mp4,1,5,x\na.mp4,4,4.5,x\nb.mp4,0,1,y\nb.mp4,2,3,y\n",
        None,
        [
            "line 2: ends at 5 s, beyond the end of a.mp4 at 4.000 s",
            "line 3: starts at 4 s, at or after the end",
        ],
    ),
    "decimal points as separators": (
        "path;start_s;end_s;label\na.mp4;0;1263;x\na.mp4;1263;4000;y\nb.mp4;0;500;x\nb.mp4;500;6000;y\n",
        None,
        [
            "^line 2: 5 of 6 times are far beyond .* such as 1263 s in a.mp4 of 4.000 s: a spreadsheet may have read",
            "^line 5: ends at 6 s, beyond the end",
        ],
    ),
    "frames beyond": (
        "path,start_frame,end_frame,label\na.mp4,0,49,x\na.mp4,48,50,x\na.mp4,48,,x\nb.mp4,0,9,y\nb.mp4,9,12,y\n",
        None,
        [
            "line 2: end_frame is 49, beyond the 48 frames",
            "line 3: end_frame is 50",
            "line 4: starts at 4 s, at or after",
        ],
    ),
    "order": (
        "path,start_s,end_s,label\na.mp4,2,2,x\na.mp4,3,1,x\nb.mp4,0,1,y\nb.mp4,2,3,y\n",
        None,
        [
            "line 2: starts at 2 s, at or after its own end at 2 s",
            "line 3: ",
        ],
    ),
    "not numbers": (
        "path,start_s,end_s,label,weight\na.mp4,nan,2,x,1\na.mp4,0,-1,x,-2\nb.mp4,zero,1,y,\nb.mp4,,3,y,1\n",
        None,
        [
            "line 2: start_s is 'nan'",
            "line 3: end_s is -1",
            "line 3: weight is '-2'",
            "line 4: start_s is 'zero'",
            "line 5: has an end and no start",
        ],
    ),
    "image with a span": (
        "path,start_s,end_s,label\na.jpg,0,1,x\na.mp4,0,1,x\nb.mp4,0,1,y\nb.mp4,2,3,y\n",
        None,
        [
            "line 2: has a start at 0 s, but a.jpg is an image",
        ],
    ),
    "overlap": (
        "path,start_s,end_s,label\na.mp4,0,2,x\na.mp4,1.5,3,y\nb.mp4,0,1,x\nb.mp4,1,2,y\n",
        "classification",
        ["line 3: y from 1.5 to 3 s overlaps x from 0 to 2 s of line 2"],
    ),
    "several labels": (
        "path,label\na.mp4,x|y\nb.mp4,x\na.jpg,y\n",
        "classification",
        ["line 2: has the labels x and y, expected one"],
    ),
    "two classes of a file": (
        "path,label\na.mp4,x\na.mp4,y\nb.mp4,x\na.jpg,y\n",
        "classification",
        ["line 3: labels the same file or span y, line 2 x"],
    ),
    "few examples": (
        "path,label\na.mp4,x\nb.mp4,x\na.jpg,y\n",
        None,
        [
            "line 4: class y has 1 example, expected at least 2",
        ],
    ),
    "misspelled class": (
        "path,label\na.mp4,outdoor\nb.mp4,outdoor\na.jpg,outdor\nvfr.mkv,inside\nb.jpg,inside\n",
        None,
        ["line 4: class outdor has 1 example, expected at least 2 .nearest: 'outdoor'."],
    ),
    "words for times": (
        "path,start_s,end_s,label\na.mp4,five,2,x\na.mp4,0,2,x\nb.mp4,0,1,y\nb.mp4,2,3,y\n",
        "timeline",
        ["line 2: start_s is 'five'"],
    ),
    "one class": (
        "path,label\na.mp4,x\nb.mp4,x\n",
        None,
        [
            "column label: has one class, x, .* .the task is classification, because each file has one class.$",
        ],
    ),
    "empty label of a span": (
        "path,start_s,end_s,label\na.mp4,0,1,x\na.mp4,2,3,x\nb.mp4,0,1,y\nb.mp4,2,2.5,y\nvfr.mkv,0,1,\n",
        None,
        ["^line 6: label is empty; .* .the task is classification, because .* --task timeline.$"],
    ),
    "a whole file among spans": (
        "path,start_s,end_s,label\na.mp4,0,1,x\na.mp4,2,3,x\nb.mp4,,,\nvfr.mkv,,,y\na.jpg,,,y\n",
        None,
        ["^line 4: label is empty; .* .the task is classification, because .*, and line 5 is about a whole file"],
    ),
    "empty label": (
        "path,label\na.mp4,x\nb.mp4,x\na.jpg,y\nb.jpg,y\nvfr.mkv,\n",
        None,
        [
            "line 6: label is empty",
        ],
    ),
    "group on both sides": (
        "path,label,split,group\na.mp4,x,train,m1\nb.mp4,x,val,m1\na.jpg,y,train,m2\nb.jpg,y,test,m3\n",
        None,
        [
            "line 3: group m1 is in val, and in train at line 2",
        ],
    ),
    "file on both sides": (
        "path,start_s,end_s,label,split\na.mp4,0,1,x,train\na.mp4,1,2,x,val\nb.mp4,0,1,y,train\nb.mp4,2,3,y,train\n",
        None,
        [
            "line 3: file .*a.mp4 is in val, and in train at line 2",
        ],
    ),
    "unknown split": (
        "path,label,split\na.mp4,x,train\nb.mp4,x,valid\na.jpg,y,\nb.jpg,y,val\n",
        None,
        [
            "line 3: split is 'valid', expected one of train, val, test .nearest: 'val'.",
            "line 4: split is empty",
        ],
    ),
    "one side": (
        "path,label,split\na.mp4,x,train\nb.mp4,x,train\na.jpg,y,train\nb.jpg,y,train\n",
        None,
        [
            "column split: all rows are train, expected some val",
        ],
    ),
    "duplicate": (
        "path,label\na.mp4,x\nb.mp4,x\na.mp4,x\na.jpg,y\nb.jpg,y\n",
        None,
        [
            "line 4: repeats line 2",
        ],
    ),
    "contradiction": (
        "path,speed\na.mp4,1\nb.mp4,2\na.mp4,3\n",
        None,
        [
            "line 4: is about the same file or span as line 2",
        ],
    ),
    "target gaps": (
        "path,speed\na.mp4,1\nb.mp4,fast\na.jpg,nan\nb.jpg,\nvfr.mkv,3\n",
        None,
        [
            "line 3: speed is 'fast', expected a number",
            "line 4: speed is 'nan'",
            "line 5: speed is empty",
        ],
    ),
    "target gaps beside labels": (
        "path,label,speed\na.mp4,x,1\nb.mp4,x,\na.jpg,y,\nb.jpg,y,2\nvfr.mkv,y,3\n",
        "regression",
        ["^line 3: speed is empty, expected a number as in the other rows .also line 4.$"],
    ),
    "one fault of many rows": (
        "path,label\na.mp4,x\na.jpg,x\nb.mp4,y\nb.jpg,y\n" + ",x\n" * 5,
        None,
        ["^line 6: path is empty, expected a media file .also lines 7, 8, 9 and 1 more.$"],
    ),
    "no column": (
        "path,label\na.mp4,x\nb.mp4,x\na.jpg,y\nb.jpg,y\n",
        "timeline",
        ["header: timeline needs columns start_s"],
    ),
    "no numbers": (
        "path,label\na.mp4,x\nb.mp4,x\na.jpg,y\nb.jpg,y\n",
        "regression",
        ["header: regression needs a column of numbers"],
    ),
    "nothing to learn": (
        "path,split\na.mp4,train\nb.mp4,val\n",
        None,
        [
            "has nothing to learn",
        ],
    ),
    "misnomers": (
        "path,start,stop,class\na.mp4,0,1,x\na.mp4,1,2,x\nb.mp4,0,1,y\nb.mp4,1,2,y\n",
        None,
        [
            "^header: unknown columns; rename start to start_s, stop to end_s, class to label$",
        ],
    ),
    "misnomers and missing files": (
        "video,onset,end,behavior\n" + "".join(f"no{i}.mp4,0,1,{'xy'[i % 2]}\n" for i in range(4)),
        None,
        [
            "^header: unknown columns; rename video to path, onset to start_s, end to end_s, behavior to label$",
            "^line 2: 4 of 4 files do not exist, such as .*no0.mp4; paths in the table are relative to its folder, /",
        ],
    ),
    "misspelled column": (
        "path,massk\na.mp4,x\nb.mp4,y\n",
        None,
        ["header: column 'massk' is unknown .nearest: 'mask'.; rename it"],
    ),
    "labels under any name": (
        "file;start;end;species;note\na.mp4;0;1;fox;\na.mp4;1;2;fox;\nb.mp4;0;1;owl;\nb.mp4;1;9;owl;\n",
        None,
        [
            "^header: unknown columns; rename file to path, start to start_s, end to end_s, species to label$",
            "^line 5: ends at 9 s",
        ],
    ),
    "labels in one of several columns": (
        "path,species,note\na.mp4,fox,far\nb.mp4,owl,near\n",
        None,
        ["^header: has no column label; rename the one of species, note that has the classes to label$"],
    ),
    "misspelled columns beside labels": (
        "path,label,strat_s,ends,groups,wieght\na.mp4,x,0,1,1,1\na.mp4,y,1,2,1,1\nb.mp4,x,0,1,2,1\nb.mp4,y,1,2,2,1\n",
        None,
        [
            "^header: unknown columns; rename strat_s to start_s, ends to end_s, groups to group, wieght to weight$",
        ],
    ),
    "twice": (
        "path,label,label\na.mp4,x,y\nb.mp4,x,y\na.jpg,y,x\nb.jpg,y,x\n",
        None,
        [
            "header: column 'label' is there twice",
        ],
    ),
    "both times": (
        "path,start_s,start_frame,end_s,label\na.mp4,0,0,1,x\na.mp4,1,,2,x\nb.mp4,0,,1,y\nb.mp4,1,,2,y\n",
        None,
        [
            "line 2: has both start_s and start_frame",
        ],
    ),
    "cells": (
        "path,label\na.mp4,x,1\nb.mp4\na.jpg,y\nb.jpg,y\na.mp4,x\nb.mp4,x\n",
        None,
        [
            "line 2 has 3 values, the header 2",
            "line 3 has fewer values",
        ],
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_table_is_one_list_of_its_faults(media, name):
    text, task, expected = WRONG[name]
    (media / "bad.mp4").write_bytes(b"no video")
    faults = faults_of(write(media, text), task)
    unmatched = [words for words in expected if not any(re.search(words, fault) for fault in faults)]
    assert not unmatched, faults
    assert len(faults) == len(expected), faults


@pytest.mark.parametrize("name", WRONG)
def test_fit_refuses_a_wrong_table_before_anything_is_computed_or_written(media, tmp_path, name):
    text, task, _ = WRONG[name]
    (media / "bad.mp4").write_bytes(b"no video")
    path = write(media, text)
    faults = faults_of(path, task)
    options = ["--task", task] if task else []
    done = run_tubelet("fit", path, "--model", "no-model", "--out", tmp_path / "head.safetensors", *options)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert [line.strip() for line in lines[-len(faults) :]] == list(faults)
    assert not list(tmp_path.iterdir())


def test_a_few_unreadable_files_may_be_left_out(media, caplog):
    (media / "bad.mp4").write_bytes(b"no video")
    text = "path,label\nbad.mp4,x\na.mp4,x\nb.mp4,x\na.jpg,y\nb.jpg,y\n"
    with caplog.at_level(logging.WARNING, "tubelet"):
        table = check_labels(read_labels(write(media, text)), max_failed_fraction=0.2)
    assert len(table.rows) == 4 and "bad.mp4" in caplog.text and "its rows are left out" in caplog.text
    for wrong in (text.replace("b.jpg", "no.jpg"), text.replace("b.jpg,y\n", "")):
        assert faults_of(write(media, wrong), max_failed_fraction=0.2)


def test_all_faults_are_in_one_list_by_line(media):
    text = "path,start_s,end_s,label\nno.mp4,0,1,x\na.mp4,soon,1,x\na.mp4,0,9,x\nb.mp4,0,1,y\nb.mp4,0.5,2,x\n"
    faults = faults_of(write(media, text), "classification")
    assert [fault.split(":")[0] for fault in faults] == ["line 2", "line 3", "line 4", "line 5", "line 6"]


def test_missing_files_are_one_fault_that_names_the_folder_with_files_of_these_names(tmp_path):
    (tmp_path / "cam").mkdir()
    for i in range(1, 6):
        (tmp_path / "cam" / f"{i}.mp4").touch()
    table = "path,label\n" + "".join(f"{i}.mp4,x\n" for i in range(6))
    (fault,) = (fault for fault in faults_of(write(tmp_path, table)) if "exist" in fault)
    assert fault.startswith(f"line 3: 6 of 6 files do not exist, such as {tmp_path}/1.mp4; 5 of these names are in")
    assert fault.endswith(f"{tmp_path}: write cam/1.mp4 for 1.mp4, or move the table there")
    (fault,) = (fault for fault in faults_of(write(tmp_path, "path,label\n1.mp4,x\n")) if "exist" in fault)
    assert "1.mp4: does not exist; 1 of these names is in" in fault


def test_a_single_moment_is_counted_in_the_singular(media, caplog):
    table = "path,start_s,end_s,label\na.mp4,0,1,x\na.mp4,1,,y\nb.mp4,0,1,y\nb.mp4,1,2,x\n"
    with caplog.at_level("INFO"):
        check_labels(read_labels(write(media, table)))
    assert "1 label has no end: it is a span of 1 s around its time" in caplog.text


def test_an_error_shows_its_faults_on_lines_of_their_own(media):
    with pytest.raises(LabelError) as caught:
        check_labels(read_labels(write(media, "path,label\nno\x1b.mp4,x\nno.mp4,x\n")))
    first, *others = str(caught.value).split("\n")
    assert (
        first.endswith("labels.csv: 4 faults; nothing was computed")
        and len(others) == 4
        and "\x1b" not in str(caught.value)
    )


@pytest.mark.parametrize("text", ["", "path,label\n", "name_of,label\na.mp4,x\n"])
def test_a_table_without_rows_or_paths_is_an_error(media, text):
    with pytest.raises(LabelError):
        read_labels(write(media, text))


def test_media_may_be_opened_by_several_processes_which_do_not_import_torch(media, monkeypatch):
    monkeypatch.setattr(media_facts, "process_map", map_without_torch)
    text = "path,label\n" + "".join(
        f"{name},{label}\n" for name, label in (("a.mp4", "x"), ("b.mp4", "x"), ("a.jpg", "y"), ("b.jpg", "y"))
    )
    done = []
    table = check_labels(read_labels(write(media, text)), workers=2, progress=lambda *numbers: done.append(numbers))
    assert len(table.durations_s) == 4 and done[-1] == (4, 4)


# Masks


def masks(media, values, size=64):
    for name, value in zip(("a", "b"), values, strict=True):
        mask = np.zeros((size, size), np.uint8)
        mask[:5, :7] = value
        Image.fromarray(mask).save(media / f"{name}.png")


def test_masks_have_the_names_of_a_legend(media):
    masks(media, (2, 255))
    path = write(media, "path,mask\na.jpg,a.png\nb.jpg,b.png\n", "masks.csv")
    for name, text in (
        ("masks.legend.csv", "index,name\n2,road\n0,sky\n255,void\n"),
        ("masks.legend.json", '{"0": "sky", "2": "road"}'),
    ):
        write(media, text, name)
        table = check_labels(read_labels(path))
        assert table.legend == {0: "sky", 2: "road"} and table.classes == ("sky", "road")
        assert read_mask(table.rows[0]).sum() == 2 * 35
        (media / name).unlink()
    assert check_labels(read_labels(path)).classes == ("0", "2")


def test_faults_of_masks(media):
    masks(media, (2, 3))
    Image.new("RGB", (64, 64)).save(media / "rgb.png")
    Image.new("L", (32, 64)).save(media / "narrow.png")
    write(media, "index,name\n0,sky\n2,road\n2,path\n300,x\n", "masks.legend.csv")
    text = "path,mask\na.jpg,a.png\nb.jpg,b.png\na.mp4,rgb.png\nb.mp4,narrow.png\nvfr.mkv,no.png\nno.jpg,a.png\n"
    faults = faults_of(write(media, text, "masks.csv"), "segmentation")
    (media / "masks.legend.csv").unlink()
    for words in (
        "masks.legend.csv, line 4: 2 'path' is there twice",
        "line 5: index is '300'",
        "line 3: b.png has values without an entry in the legend: 3 (35 pixels)",
        "line 4: .*rgb.png: PNG of mode RGB",
        "line 5: narrow.png has 32 x 64 pixels, b.mp4 64 x 64",
        "line 6: .*no.png: missing",
        "line 7: .*no.jpg: does not exist",
        "lines 4, 5, 6: are about a video without start_s",
    ):
        assert any(
            re.search(words.replace("(35", r"\(35").replace("pixels)", r"pixels\)"), fault) for fault in faults
        ), (words, faults)


def test_the_table_of_the_documentation_is_read(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "labels.md").read_text()
    ((name, text),) = re.findall(r'```csv title="(\S+)"\n(.*?)```', page, flags=re.DOTALL)
    (tmp_path / "videos").mkdir()
    for number in range(2):
        write_video(tmp_path / "videos" / f"{number}.mp4")
    (tmp_path / name).write_text(text)
    table = check_labels(read_labels(tmp_path / name))
    assert infer_task(table)[0] == "timeline" and table.rows[1].start_s == 1.5
    for column in COLUMNS:
        assert f"`{column}`" in page
