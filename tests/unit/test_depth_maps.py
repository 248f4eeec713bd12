"""Depth maps of label rows."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tubelet.errors import DataError, TubeletError
from tubelet.labels.depth_maps import read_depth
from tubelet.labels.records import LabelRow


def row(depth):
    return LabelRow(line=2, path=Path("a.png"), depth=depth)


@pytest.mark.parametrize(("name", "dtype"), [("a.png", np.uint16), ("a.tif", np.float32), ("a.tiff", np.uint16)])
def test_depth_is_read_as_it_is_stored_and_0_where_it_is_unknown(tmp_path, name, dtype):
    values = np.array([[0, 1500, 65535], [7, 0, 3]], dtype)
    Image.fromarray(values).save(tmp_path / name)
    found = read_depth(row(tmp_path / name))
    assert found.dtype == np.float32 and found.tolist() == values.tolist()


def test_numbers_that_are_no_depth_are_unknown(tmp_path):
    Image.fromarray(np.array([[np.nan, -1.0], [np.inf, 2.5]], np.float32)).save(tmp_path / "a.tif")
    assert read_depth(row(tmp_path / "a.tif")).tolist() == [[0, 0], [0, 2.5]]


def test_what_is_no_depth_map_is_refused(tmp_path):
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "gray8.png")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "colors.png")
    (tmp_path / "text.png").write_text("depth")
    Image.fromarray(np.zeros((99, 99), np.uint16)).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:60])
    for name, reason in [
        ("gray8.png", "has 8 bits, expected"),
        ("colors.png", "has 3 channels, expected"),
        ("text.png", "is no PNG and no TIFF"),
        ("cut.png", "unreadable depth map"),
        ("none.png", "missing depth map"),
    ]:
        with pytest.raises(TubeletError, match=reason) as caught:
            read_depth(row(tmp_path / name))
        assert name in str(caught.value)
    with pytest.raises(DataError, match="has no depth map"):
        read_depth(row(None))
