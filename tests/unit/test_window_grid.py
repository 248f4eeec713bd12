"""The grid of windows over a video."""

import numpy as np
import pytest

from tubelet.heads.head_file import HeadInput
from tubelet.heads.window_grid import count_steps, iter_windows


@pytest.mark.parametrize("stride_s", [0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("duration_s", [0.3, 1.0, 2.0, 2.01, 3.7, 10.0, 61.3])
def test_each_time_step_belongs_to_one_window_that_sees_it(duration_s, stride_s):
    head_input = HeadInput(image_size=32, frames=8, fps=4, stride_s=stride_s)
    windows = list(iter_windows(duration_s, head_input, 2))
    owned = [window.start_step + step for window in windows for step in range(window.first, window.last)]
    assert owned == list(range(count_steps(duration_s, head_input, 2)))
    assert all(0 <= window.first < window.last <= 4 for window in windows)
    assert all(len(window.times) == 8 and window.times[-1] < duration_s for window in windows)
    assert all(np.diff(window.times).min() >= 0 for window in windows)


def test_the_last_window_ends_with_the_video_and_repeats_no_frame():
    head_input = HeadInput(image_size=32, frames=8, fps=4, stride_s=2.0)
    windows = list(iter_windows(5.0, head_input, 2))
    assert [window.start_step for window in windows] == [0, 4, 6]
    assert len(np.unique(windows[-1].times)) == 8 and windows[-1].times[-1] == pytest.approx(4.875)
