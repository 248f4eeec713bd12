"""Segments in time and squares along the long side."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.media import read_index, write_image, write_video
from tubelet.data.clips import crops_along, resize_center_crop, segment_times
from tubelet.data.decode import VideoInfo
from tubelet.tasks.common.clip_transforms import ClipView, ImageView, shown_frames
from tubelet.tasks.common.extract import Source


def info(duration_s: float) -> VideoInfo:
    return VideoInfo("x.mp4", duration_s, 12, 64, 64, 0)


def test_segments_go_from_the_start_of_a_video_to_its_end():
    clips, short = segment_times(info(10), frames=4, fps=2, segments=3)
    assert not short and np.allclose([clip[0] for clip in clips], [0, 4, 8]) and clips[2][-1] == 9.5
    (middle,), _ = segment_times(info(10), frames=4, fps=2, segments=1)
    assert middle[0] == 4


@pytest.mark.parametrize("duration_s, short", [(2.0, False), (1.5, True)])
def test_a_video_no_longer_than_a_segment_has_one(duration_s, short):
    clips, was_short = segment_times(info(duration_s), frames=4, fps=2, segments=8)
    assert len(clips) == 1 and was_short == short
    assert np.allclose(clips[0], np.arange(4) * duration_s / 4)


@pytest.mark.parametrize("upright", [False, True])
def test_squares_cover_the_long_side_from_end_to_end(upright):
    ramp = torch.arange(96, dtype=torch.uint8).view(1, 1, 96, 1).expand(2, 32, 96, 3)
    pixels = ramp.transpose(1, 2) if upright else ramp
    crops = crops_along(pixels.contiguous(), 32, 3)
    assert crops.shape == (3, 3, 2, 32, 32)
    along = crops[:, 0, 0, :, 0] if upright else crops[:, 0, 0, 0]
    assert along[:, 0].tolist() == [0, 32, 64] and along[2, -1] == 95
    assert torch.equal(crops[1], resize_center_crop(pixels.contiguous(), 32))


def test_a_square_image_has_one_view():
    assert crops_along(torch.zeros(2, 40, 40, 3, dtype=torch.uint8), 32, 3).shape[0] == 1


def test_a_segment_takes_every_so_many_frames_of_the_video(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", frames=60, fps=12)
    view = ClipView(size=64, frames=4, frame_step=3, segments=2, views=3)
    pixels = view(Source(files=(path,)))
    assert pixels.shape == (1, 2, 3, 4, 64, 64)
    seen = [[read_index(pixels[0, s, :, t].permute(1, 2, 0)) for t in range(4)] for s in range(2)]
    assert seen == [[0, 3, 6, 9], [48, 51, 54, 57]]
    assert list(shown_frames(view, Source(files=(path,)), 4)) == ["4.00 s", "4.25 s", "4.50 s", "4.75 s"]


def test_an_image_is_seen_without_its_margin(tmp_path: Path):
    path = write_image(tmp_path / "a.png", size=64)
    assert ImageView(size=56)(Source(files=(path,))).shape == (1, 1, 3, 1, 56, 56)
