"""The files of a page of features."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tubelet.data.decode import Video
from tubelet.data.images import read_image
from tubelet.data.listed_rows import span_name
from tubelet.data.sample_index import build_index
from tubelet.data.sources import list_media
from tubelet.data.storage import is_url
from tubelet.errors import DataError, escape_filename
from tubelet.grid import Modality

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ViewedFile:
    """A file of the page, or a span of one.

    Attributes:
        path: the file.
        video: whether it is a video, not an image.
        height, width: size in pixels.
        duration_s: duration of the video or span in seconds, 0 for an image.
        span: start and end of the span as it is listed, in seconds of the video; None for a whole file.
        stack_fps: frames per second of a stack that states no rate.
    """

    path: Path
    video: bool
    height: int
    width: int
    duration_s: float
    span: tuple[float, float | None] | None = None
    stack_fps: float | None = None

    @property
    def name(self) -> str:
        """The name of the file, with the times of a span."""
        return self.path.name if self.span is None else span_name(self.path.name, *self.span)

    @property
    def bounds_s(self) -> tuple[float, float | None]:
        """Start and end in seconds of the video; None for its end."""
        return (0.0, None) if self.span is None else (self.span[0], self.span[0] + self.duration_s)


def find_files(sources: Sequence[str], fps: float | None) -> list[ViewedFile]:
    """The videos, spans of videos and images of some sources.

    Args:
        sources: folders, files, globs and lists.
        fps: frames per second of stacks that state no rate.

    Raises:
        DataError: if a file cannot be read, or is a shard or a URL.
    """
    media = list_media(sources)
    for note in media.notes:
        logger.info(escape_filename(note))
    if media.shards:
        raise DataError(f"{media.shards[0].root}: shards cannot be shown on a page; pass the videos they were made of")
    if urls := [name for name in (*media.videos, *media.images) if is_url(name)]:
        raise DataError(f"{urls[0]}: is a URL, and a page is made of files on this machine; copy it, and pass the copy")
    files = []
    index = build_index(media, Modality.VIDEO)
    for sample in range(len(index)):
        source = index.read(sample)
        with Video(source.media, stack_fps=fps, display=True) as video:
            info = source.limit(video.info)
        path = Path(index.name(sample))
        files.append(ViewedFile(path, True, info.height, info.width, info.duration_s, index.span(sample), fps))
    for name in media.images:
        height, width = read_image(name, display=True).shape[:2]
        files.append(ViewedFile(Path(name), False, height, width, 0.0))
    return files
