"""Clips of a video that can be decoded only from its start: one pass over it, which serves all of them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from tubelet.data.size_limits import check_clip

# See `Video.scan`.
Scan = Callable[[np.ndarray], Iterator[tuple[np.ndarray, float, int]]]


def decode_clips_sequentially(
    path: str, scan: Scan, clips: Sequence[np.ndarray]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Decode clips in one pass.

    Args:
        path: the video's name, for errors.
        scan: see `Video.scan`.
        clips: for each clip, (T,) ascending seconds; the first and the last ones ascend from clip to clip.

    Yields:
        (T, H, W, 3) uint8 and (T,) the seconds from which the frames are shown. A frame of several clips is in memory
        once.

    Raises:
        DecodeError: the video cannot be read to the last clip, or a clip would take too much memory.
    """
    times = np.unique(np.concatenate(clips))
    rows = [np.searchsorted(times, clip) for clip in clips]
    buffer: deque[tuple[np.ndarray, float]] = deque()  # of times[end - len(buffer) : end]
    end = now = 0
    for image, second, repeats in scan(times):
        check_clip(path, max(map(len, clips)), image.shape[1], image.shape[0])
        buffer.extend([(image, second)] * repeats)
        end += repeats
        while now < len(clips) and rows[now][-1] < end:
            begin = end - len(buffer)
            images, seconds = zip(*(buffer[row - begin] for row in rows[now]), strict=True)
            yield np.stack(images), np.array(seconds)
            now += 1
        while buffer and now < len(clips) and rows[now][0] > end - len(buffer):
            buffer.popleft()
