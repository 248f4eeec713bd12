"""The page of a search: the query and its results, which play."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tubelet.data.decode import Video
from tubelet.data.stacks import is_image_file
from tubelet.embed.regions import Box, frame_size
from tubelet.embed.search import Hit
from tubelet.errors import TubeletError
from tubelet.view.page import write_page
from tubelet.view.thumbnails import make_thumbnail

_SIDE = 320  # pixels of the longer side of a player
_QUERY_S = 2.0  # seconds of the query around its moment


def write_search_page(
    hits: Sequence[Hit], query: str, out: Path, at_s: float | None, box: Box | None, fps: float
) -> None:
    """Write the results of a search as one file that needs no other.

    Args:
        hits: the results.
        query: the query's file.
        out: the page.
        at_s: moment of the query in seconds; None for the middle of the video.
        box: region of the query.
        fps: frames per second of the table's clips, at which stacks without a rate are shown.

    Raises:
        FileError: if the page cannot be written.
    """
    values = {
        "query": _query(query, at_s, box, fps),
        "name": Path(query).name,
        "at_s": at_s,
        "box": box,
        "hits": [_result(hit, fps) for hit in hits],
    }
    write_page("search.html", out, values)


def _query(query: str, at_s: float | None, box: Box | None, fps: float) -> dict[str, Any]:
    """The player of the query."""
    if is_image_file(query):
        return _player(query, 0.0, 0.0, box, fps)
    with Video(query, stack_fps=fps, display=True) as video:
        middle = video.info.duration_s / 2 if at_s is None else at_s
        start = max(0.0, middle - _QUERY_S / 2)
        return _player(query, start, min(video.info.duration_s, start + _QUERY_S), box, fps)


def _result(hit: Hit, fps: float) -> dict[str, Any]:
    """The player of a result, and what is known of it."""
    return {"hit": hit, "name": Path(hit.path).name, **_player(hit.path, hit.start_s, hit.end_s, hit.box, fps)}


def _player(path: str, start_s: float, end_s: float, box: Box | None, fps: float) -> dict[str, Any]:
    """A span of a file as a clip, with a region in percent of its frames."""
    region = None
    if box is not None:
        try:
            height, width = frame_size(path)
        except TubeletError:
            pass  # the thumbnail has the fault
        else:
            x, y, w, h = box
            region = [round(100 * part, 2) for part in (x / width, y / height, w / width, h / height)]
    return {"media": make_thumbnail(Path(path), start_s, end_s, _SIDE, fps), "region": region}
