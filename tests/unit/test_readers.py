"""Whatever a file that is not media holds, it is read as what was asked for or refused in one sentence."""

import json
import os
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from tubelet.data.tables import read_table
from tubelet.errors import TubeletError
from tubelet.io.arrays import ArraySpec, open_safetensors, read_npz, read_parquet, read_pt, read_safetensors
from tubelet.io.text import parse_json, read_json, read_jsonl, read_text


class Row(TypedDict):
    """A row of a test."""

    name: str
    step: int
    share: NotRequired[float]
    files: NotRequired[list[dict[str, int | None]]]


HEALTHY = {"name": "a", "step": 3, "share": 1, "files": [{"x": 1, "y": None}], "other": True}


def test_json_is_read_as_its_type_with_fields_that_are_not_known():
    assert parse_json(json.dumps(HEALTHY), "file", Row) == HEALTHY
    assert type(parse_json(b'{"name": "a", "step": 3, "share": 1}', "file", Row)["share"]) is float
    assert parse_json(b"\xef\xbb\xbf[1]", "file") == [1]  # a byte order mark
    assert parse_json('"\\udcff"', "file") == "\udcff"  # a byte of a path that is not UTF-8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "is not JSON"),
        (b"{", r"is not JSON \(Expecting property name"),
        (b"\xff\xfe[\x001\x00]\x00", r"is not UTF-8 text \(byte 0xff at 0\)"),
        (b"[1]\0", "contains a NUL character"),
        ('{"a": NaN}', "it holds NaN"),
        ("[-Infinity]", "it holds -Infinity"),
        ("[1e999]", "1e999, which is too large"),
        ("[" + "9" * 30 + "]", "a whole number of 100 bits"),
        ("1" * 5000, "is not JSON"),
        ("[" * 100_000, "is not JSON of at most 64 levels"),
        ("[" * 70 + "]" * 70, "more than 64 levels"),
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ('{"a": "\\u0000"}', "an invalid character"),
        ('{"\\ud800": 1}', "an invalid character"),
    ],
)
def test_what_is_no_strict_json_is_refused(text, words):
    with pytest.raises(TubeletError, match=rf"^FILE: .*{words}.*; copy it again") as error:
        parse_json(text, "FILE")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": "3"}, "step is '3', expected a whole number"),
        ({"step": True}, "step is True, expected a whole number"),
        ({"step": 3.0}, "step is 3.0, expected a whole number"),
        ({"share": "x"}, "share is 'x', expected a number"),
        ({"files": {}}, "files is {}, expected a list"),
        ({"files": [{"x": 1}, {"y": []}]}, r"files\[1\].y is \[\], expected a whole number or null"),
        ({"name": None}, "name is None, expected a string"),
    ],
)
def test_a_field_of_another_type_is_named_with_its_place(change, words, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(HEALTHY | change))
    with pytest.raises(TubeletError, match=rf"a\.json: {words}.*; delete it"):
        read_json(path, Row, "delete it")
    path.write_text(json.dumps({"name": "a"}))
    with pytest.raises(TubeletError, match="step is missing, expected a whole number"):
        read_json(path, Row)
    path.write_text("[]")
    with pytest.raises(TubeletError, match=r"its content is \[\], expected an object"):
        read_json(path, Row)


def test_lines_of_json_are_named_and_a_last_one_without_an_end_is_none(tmp_path):
    path = tmp_path / "a.jsonl"
    assert list(read_jsonl(path, Row, "x")) == []
    line = json.dumps({"name": "a", "step": 1}).encode() + b"\n"
    path.write_bytes(line + line + line[:9])
    assert [end for _, end in read_jsonl(path, Row, "x")] == [len(line), 2 * len(line)]
    path.write_bytes(line + b"\n" + line)
    with pytest.raises(TubeletError, match=r"a\.jsonl, line 2: is not JSON"):
        list(read_jsonl(path, Row, "x"))


def test_text_and_tables(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfid,key\n1,a\n")
    assert read_table(path, ("id", "key")) == [(2, {"id": "1", "key": "a"})]
    for content, words in (
        (b"id\n1\n", "has no column key; found id"),
        (b"id,key\n1\n", "line 2 has fewer values"),
        (b"id,key\n1,\xff\n", "is not UTF-8"),
        (b'id,key\n1,"' + b"x" * 2**21 + b'"\n', "cannot be read as CSV"),
    ):
        path.write_bytes(content)
        with pytest.raises(TubeletError, match=words):
            read_table(path, ("id", "key"))
    with pytest.raises(TubeletError, match="larger than the limit of 10 bytes"):
        read_text(path, limit=10)
    with pytest.raises(TubeletError, match="is a folder, expected a file"):
        read_text(tmp_path)
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it: reading would never end
    for read in (read_text, read_json, read_safetensors, read_pt, lambda path: next(read_jsonl(path, Row, "x"))):
        for path in (tmp_path / "pipe", Path("/dev/zero")):
            with pytest.raises(TubeletError, match="is a device or pipe, expected a file"):
                read(path)
    with pytest.raises(TubeletError, match="does not exist"):
        read_text(tmp_path / "none")


def test_tensors_of_a_file_that_is_cut_or_foreign(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.ones(2, 3)}, path, metadata={"format": "f"})
    tensors, header = read_safetensors(path)
    assert tensors["x"].shape == (2, 3) and header == {"format": "f"}
    with open_safetensors(path) as file:
        assert file.entry("x", 1).tolist() == [1, 1, 1]
        for read in (lambda: file.tensor("y"), lambda: file.entry("x", 5), lambda: file.entry("y", 0)):
            with pytest.raises(TubeletError, match=r"a\.safetensors: cannot be read"):
                read()
    for content in (b"", path.read_bytes()[:-3], b"\xff" * 100, b'\x02\0\0\0\0\0\0\0{"'):
        path.write_bytes(content)
        with pytest.raises(TubeletError, match=r"a\.safetensors: cannot be read"):
            read_safetensors(path)
    with pytest.raises(TubeletError, match="is a folder"):
        read_safetensors(tmp_path)
    torch.save([1], tmp_path / "a.pt")
    with pytest.raises(TubeletError, match="holds list, expected a dictionary"):
        read_pt(tmp_path / "a.pt")


def test_arrays_fit_each_other(tmp_path):
    path, expected = tmp_path / "a.npz", {"x": ArraySpec("f", ("N", 2)), "y": ArraySpec("iu", ("N",))}
    np.savez(path, x=np.ones((3, 2)), y=np.ones(3, int))
    assert read_npz(path, expected, 2**20, "x")["y"].sum() == 3
    for arrays, words in (
        ({"x": np.ones((3, 2))}, "has no y"),
        ({"x": np.ones((3, 2)), "y": np.ones(4, int)}, r"y has shape \(4,\), expected \(3\)"),
        ({"x": np.ones((3, 1)), "y": np.ones(3, int)}, r"x has shape \(3, 1\), expected \(N, 2\)"),
        ({"x": np.ones((3, 2)), "y": np.ones(3)}, "y holds float64"),
        ({"x": np.array([{}], object), "y": np.ones(3, int)}, "cannot be read"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(TubeletError, match=words):
            read_npz(path, expected, 2**20, "x")


def test_tables_have_the_columns_that_are_read_and_no_more_than_memory_holds(tmp_path):
    path = tmp_path / "a.parquet"
    columns = {"path": "string", "clip": "int64", "pooled": "vector"}
    vectors = pa.array([[1.0, 2.0]] * 3, pa.list_(pa.float16(), 2))
    whole = {"path": ["a", "b", "c"], "clip": [0, 1, 2], "pooled": vectors}
    pq.write_table(pa.table(whole), path)
    assert read_parquet(path, columns, "x").column("path").to_pylist() == ["a", "b", "c"]
    assert read_parquet(path, {"clip": "int64"}, "x").num_columns == 1
    for change, words in (
        ({"path": [1, 2, 3]}, "column path is of type int64, expected string"),
        ({"clip": ["a", "b", "c"]}, "column clip is of type string, expected int64"),
        ({"clip": [0, None, 2]}, "column clip has 1 values that are null"),
        ({"pooled": [1.0, 2.0, 3.0]}, "column pooled is of type double, expected vector"),
        ({"path": ["x" * 70_000, "b", "c"]}, "column path has a text of 70000 bytes"),
        ({"path": None}, "has no columns 'path'"),
    ):
        table = {name: value for name, value in (whole | change).items() if value is not None}
        pq.write_table(pa.table(table), path)
        with pytest.raises(TubeletError, match=rf"a\.parquet: {words}"):
            read_parquet(path, columns, "x")
    path.write_bytes(b"PAR1" + b"\0" * 50)
    with pytest.raises(TubeletError, match="cannot be read as Parquet"):
        read_parquet(path, columns, "x")


@pytest.mark.parametrize("content", [b"[]", b"null", b"\0" * 50, b"\xff\xfe", b" {", b"x", b'{"step": 1}\n[[['])
def test_the_last_line_of_another_file_is_no_row_that_was_cut_short(content, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(TubeletError, match=r"line [12]: begins with .*, expected an object; x$"):
        list(read_jsonl(path, Any, "x"))
