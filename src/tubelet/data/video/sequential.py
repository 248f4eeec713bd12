"""Clips of a video that can be entered only at its start: one pass over it, which serves all of them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tubelet.data.limits import check_clip

# Passes over the pictures of a video at the times given, (T,) seconds, as height x width pixels, or as they are if they
# all are of one size: each (H, W, 3) uint8, the second from which it is shown, and at how many of the times it is.
Scan = Callable[[np.ndarray, tuple[int, int] | None], Iterator[tuple[np.ndarray, float, int]]]


def in_one_pass(path: str, scan: Scan, clips: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The pictures of each clip.

    Args:
        path: the video's name, for errors.
        scan: of the video.
        clips: the times (T,) of each, ascending, as are their first and last ones from clip to clip.

    Yields:
        (T, H, W, 3) uint8 and (T,) the seconds from which they are shown. What several clips show is held once.

    Raises:
        DecodeError: the video cannot be read to the last clip, or a clip would take too much memory.
    """
    moments = np.unique(np.concatenate(clips))
    places = [np.searchsorted(moments, times) for times in clips]
    held: deque[tuple[np.ndarray, float]] = deque()  # of moments[end - len(held) : end]
    end = now = 0
    for picture, second, repeats in scan(moments, None):
        check_clip(path, max(map(len, clips)), picture.shape[1], picture.shape[0])
        held.extend([(picture, second)] * repeats)
        end += repeats
        while now < len(clips) and places[now][-1] < end:
            begin = end - len(held)
            pictures, seconds = zip(*(held[place - begin] for place in places[now]), strict=True)
            yield np.stack(pictures), np.array(seconds)
            now += 1
        while held and now < len(clips) and places[now][0] > end - len(held):
            held.popleft()
