"""Windows of a video on a fixed grid: every time step of the video belongs to exactly one window.

Windows start at multiples of the stride, but the last one ends with the video. Of two windows that overlap, each owns
the half of the overlap that is nearer to its middle, where an encoder sees what comes before and after. Causal windows
own the steps at their end instead, and the first ones begin before the video, whose first frame is repeated. A video
can be read in one pass, and the same moment has the same features in training and in prediction.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from tubelet.errors import ConfigError
from tubelet.heads.head_file import HeadInput

_ROUNDING = 1e-3  # steps; durations are rounded to the time base of a container


@dataclass(frozen=True)
class Window:
    """A window of a video.

    Attributes:
        times: (frames,) float64 seconds at which frames are taken, in the middle of their intervals; after the end of
            the video the last frame is repeated.
        first: first time step that the window owns, counted in the window.
        last: time step after the last one that the window owns, counted in the window.
        start_step: the window's first time step, counted in the video; below 0 for causal windows at its start.
    """

    times: NDArray[np.float64]
    first: int
    last: int
    start_step: int


def step_seconds(head_input: HeadInput, tubelet: int) -> float:
    """Seconds of a time step.

    Args:
        head_input: the clips.
        tubelet: frames of a time step.
    """
    return tubelet / head_input.fps


def count_steps(duration_s: float, head_input: HeadInput, tubelet: int) -> int:
    """Number of time steps of a video, the last of which may be cut short by its end."""
    return max(1, ceil(duration_s / step_seconds(head_input, tubelet) - _ROUNDING))


def iter_windows(duration_s: float, head_input: HeadInput, tubelet: int) -> Iterator[Window]:
    """The windows that cover a video, in order.

    Args:
        duration_s: seconds of the video.
        head_input: the clips; the stride must be a whole number of time steps, at most the length of a clip.
        tubelet: frames of a time step.

    Raises:
        ConfigError: if the sizes do not divide.
    """
    steps, stride = clip_steps(head_input, tubelet)
    total, margin = count_steps(duration_s, head_input, tubelet), (steps - stride) // 2
    if head_input.causal:
        for owned in range(0, total, stride):
            end = min(owned + stride, total)
            times = frame_times((end - steps) * tubelet, head_input.frames, duration_s, head_input.fps)
            yield Window(times, owned - end + steps, steps, end - steps)
        return
    count = max(1, ceil((total - steps) / stride) + 1)
    owned = 0  # time steps that earlier windows own
    for k in range(count):
        start = min(k * stride, max(0, total - steps))
        times = frame_times(start * tubelet, head_input.frames, duration_s, head_input.fps)
        end = total if k == count - 1 else k * stride + margin + stride
        yield Window(times, owned - start, end - start, start)
        owned = end


def frame_times(first: int, count: int, duration_s: float, fps: float) -> NDArray[np.float64]:
    """(count,) seconds at which frames of the grid are taken, from frame `first` on.

    They are in the middle of the frames' intervals, where no rounding of timestamps changes which frame is shown, and
    stay before the end of the video. Before the first frame, where `first` is below 0, it is repeated.
    """
    latest = max(0.0, duration_s - _ROUNDING / fps)
    return np.minimum((np.maximum(first + np.arange(count), 0) + 0.5) / fps, latest)


def clip_steps(head_input: HeadInput, tubelet: int) -> tuple[int, int]:
    """Time steps of a clip, and from clip to clip.

    Raises:
        ConfigError: if they are not whole numbers, or clips leave gaps.
    """
    steps = head_input.frames / tubelet
    stride = head_input.stride_s / step_seconds(head_input, tubelet)
    if steps != round(steps) or abs(stride - round(stride)) > _ROUNDING or not 1 <= round(stride) <= steps:
        raise ConfigError(
            f"stride_s is {head_input.stride_s:g} s and clips have {head_input.frames} frames at {head_input.fps:g} a "
            f"second; expected a stride of whole time steps ({step_seconds(head_input, tubelet):g} s), at most the "
            f"{head_input.frames / head_input.fps:g} s of a clip"
        )
    return round(steps), round(stride)


def row_windows(
    start_s: float, end_s: float, duration_s: float, head_input: HeadInput, most: int = 4
) -> list[NDArray[np.float64]]:
    """The clips that a labeled span is seen in.

    Args:
        start_s: start of the span in seconds.
        end_s: end of the span in seconds.
        duration_s: seconds of the video.
        head_input: the clips.
        most: largest number of clips.

    Returns:
        For each clip (frames,) float64 seconds: side by side within the span, or one around the middle of a span that
        is shorter than a clip. A video that is shorter than a clip is seen as a whole, at a higher rate. Causal clips
        end with a span that is shorter, and before the video its first frame is repeated.
    """
    clip_s = head_input.frames / head_input.fps
    middles = np.arange(0.5, head_input.frames) / head_input.fps
    if duration_s < clip_s * (1 - 1e-6) and not head_input.causal:
        return [middles * (duration_s / clip_s)]
    count = int(np.clip(round((end_s - start_s) / clip_s), 1, most))
    room = max(0.0, (end_s - start_s) - clip_s)
    first = start_s if room else end_s - clip_s if head_input.causal else (start_s + end_s - clip_s) / 2
    starts = first + (np.arange(count) / max(1, count - 1) * room if count > 1 else np.array([room / 2]))
    if head_input.causal:
        return [np.maximum(start + middles, middles[0]) for start in np.minimum(starts, duration_s - clip_s)]
    starts = np.clip(starts, 0.0, duration_s - clip_s)
    return [start + middles for start in starts]
