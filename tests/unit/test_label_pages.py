"""Masks and depth maps in TIFF files with a page for each frame."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests.helpers.media import write_image, write_video
from tubelet.data.images import read_image
from tubelet.data.palette_png import read_indexed
from tubelet.datasets.annotations import read_gray_png
from tubelet.errors import DataError, DecodeError
from tubelet.fitting.features import read_row_clips, span_of
from tubelet.fitting.pixel_inputs import row_samples
from tubelet.fitting.run import retime_stacks
from tubelet.heads.head_file import HeadInput
from tubelet.labels.checks import check_labels
from tubelet.labels.depth_maps import read_depth
from tubelet.labels.masks import read_mask
from tubelet.labels.records import LabelError
from tubelet.labels.table import read_labels
from tubelet.tasks.common.extract import Source

FRAMES = 6


@pytest.fixture
def folder(tmp_path):
    """A stack whose page t has the value 1000 + t, a mask file with the class t % 3, and a depth file with t + 0.5."""
    shape = np.ones((1, 16, 24))
    pages = np.arange(FRAMES)[:, None, None] * shape
    write(tmp_path / "cells.tif", (1000 + pages).astype(np.uint16))
    write(tmp_path / "masks.tif", (pages % 3).astype(np.uint8))
    write(tmp_path / "depth.tif", (pages + 0.5).astype(np.float32))
    write(tmp_path / "short.tif", (pages % 3).astype(np.uint8)[:4])
    Image.fromarray(np.ones((16, 24), np.uint8)).save(tmp_path / "one.png")
    return tmp_path


def write(path, pages):
    tifffile.imwrite(path, pages, photometric="minisblack")


def checked(folder, text, task="segmentation"):
    (folder / "labels.csv").write_text(text)
    return check_labels(read_labels(folder / "labels.csv"), task, min_examples=1)


def faults_of(folder, text, task="segmentation"):
    with pytest.raises(LabelError) as caught:
        checked(folder, text, task)
    return caught.value.faults


def classes_of(table):
    return [int(read_mask(row)[0, 0]) for row in table.rows]


def test_a_row_has_the_page_of_its_frame(folder):
    table = checked(
        folder, "path,start_frame,mask\ncells.tif,1,masks.tif\ncells.tif,5,masks.tif\ncells.tif,3,one.png\n"
    )
    assert classes_of(table) == [1, 2, 1] and [row.page for row in table.rows] == [1, 5, None]
    table = checked(folder, "path,start_s,mask\ncells.tif,0.6,masks.tif\ncells.tif,1.25,masks.tif\n")
    assert [row.page for row in table.rows] == [2, 5]  # at 4 frames a second


def test_files_of_equal_length_label_every_frame(folder):
    table = checked(folder, "path,mask\ncells.tif,masks.tif\n")
    assert classes_of(table) == [0, 1, 2, 0, 1, 2] and table.classes == ("0", "1", "2")
    samples = row_samples(table)
    assert [sample.name for sample in samples][:2] == ["cells.tif, frame 0", "cells.tif, frame 1"]
    assert [sample.time_s for sample in samples] == [0, 0.25, 0.5, 0.75, 1, 1.25]
    table = checked(folder, "path,start_frame,end_frame,mask\ncells.tif,2,5,masks.tif\n")
    assert [row.page for row in table.rows] == [2, 3, 4]


def test_videos_may_have_masks_and_stacks_depth_maps_of_a_page_for_each_frame(folder):
    write_video(folder / "a.mp4", frames=FRAMES)
    write(folder / "of_video.tif", np.arange(FRAMES)[:, None, None] % 3 * np.ones((64, 64), np.uint8))
    assert classes_of(checked(folder, "path,mask\na.mp4,of_video.tif\n")) == [0, 1, 2, 0, 1, 2]
    table = checked(folder, "path,start_frame,depth\ncells.tif,4,depth.tif\n", "depth")
    assert read_depth(table.rows[0])[0, 0] == 4.5


def test_files_with_another_number_of_pages_are_refused(folder):
    write_image(folder / "a.png")
    text = "path,start_frame,mask\ncells.tif,2,short.tif\na.png,,masks.tif\ncells.tif,9,masks.tif\n"
    assert faults_of(folder, text) == (
        "line 2: short.tif has 4 pages, cells.tif 6 frames; expected a page for each frame",
        "line 3: masks.tif has 6 pages, a.png 1 frame; expected a page for each frame",
        "line 4: start_frame is 9, beyond the 6 frames of cells.tif",
    )


def test_faults_of_all_pages_are_reported_once(folder):
    (folder / "legend.csv").write_text("index,name\n0,background\n1,cell\n")
    assert faults_of(folder, "path,mask\ncells.tif,masks.tif\n") == (
        "line 2: masks.tif has values without an entry in the legend: 2 (768 pixels)",
    )
    (fault,) = faults_of(folder, "path,mask\ncells.tif,one.png\n")
    assert fault.startswith("line 2: is about a stack without start_frame; add the column: the page")


def test_readers_of_a_single_page_refuse_several(folder):
    masks = folder / "masks.tif"
    for read, error in ((read_gray_png, DataError), (read_indexed, DecodeError)):
        with pytest.raises(error, match="has 6 pages, expected 1"):
            read(masks)
    (folder / "unnamed").write_bytes((folder / "cells.tif").read_bytes())
    with pytest.raises(DecodeError, match="has 6 pages, expected 1"):
        read_image(str(folder / "unnamed"), full_depth=True)


@pytest.mark.parametrize("fps", [2.0, 4.0, 8.0])
def test_labels_of_clips_are_about_their_frames_at_any_rate(folder, fps):
    write(folder / "long.tif", np.arange(24, dtype=np.uint8)[:, None, None] * np.ones((16, 16), np.uint8))
    text = "path,start_frame,end_frame,label\nlong.tif,0,12,x\nlong.tif,12,24,y\n"
    table = retime_stacks(checked(folder, text, "classification"), fps)
    clips = HeadInput(image_size=16, frames=4, fps=fps, stride_s=4 / fps)
    for row, first in zip(table.rows, (0, 12), strict=True):
        pixels = read_row_clips(Source(files=(row.path,), part=span_of(row, table)), clips)
        assert pixels[:, 0, :, 0, 0].flatten().tolist() == list(range(first, first + 12))
    assert table.durations_s[folder / "long.tif"] == 24 / fps
