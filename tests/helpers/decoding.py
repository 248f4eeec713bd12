"""Videos decoded in one call."""

from collections.abc import Iterator, Sequence

import numpy as np

from tubelet.data.containers import Media
from tubelet.data.decode import Frames, Video, VideoInfo


def video_info(media: Media) -> VideoInfo:
    """The properties of a video."""
    with Video(media) as video:
        return video.info


def decode_clips(media: Media, times: Sequence[np.ndarray]) -> list[Frames]:
    """The clips of a video at some times."""
    with Video(media) as video:
        return video.clips(times)


def stream_clips(media: Media, times: Sequence[np.ndarray]) -> Iterator[Frames]:
    """The clips of a video at some times, one by one."""
    with Video(media) as video:
        yield from video.stream(times)
