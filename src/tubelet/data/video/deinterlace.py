"""Deinterlacing of frames by FFmpeg's bwdif, each with its neighbors."""

from fractions import Fraction
from typing import Any

from av.error import BlockingIOError, EOFError
from av.filter import Graph


def deinterlace(before: Any, frame: Any, after: Any) -> Any:
    """A frame without interlacing; its neighbors (None at the ends of a video) fill what its fields lack.

    It is the frame that the filter gives for it in a pass over the whole video.
    """
    frames = [other for other in (before, frame, after) if other is not None and _same_format(other, frame)]
    graph = Graph()
    graph.threads = 1
    source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame:deint=interlaced"), graph.add("buffersink"))
    graph.configure()
    for each in frames:
        graph.push(each)
    graph.push(None)
    filtered = []
    while True:
        try:
            filtered.append(graph.pull())
        except (BlockingIOError, EOFError):
            break
    result = filtered[frames.index(frame)]
    for name in ("color_trc", "color_primaries", "colorspace", "color_range"):
        setattr(result, name, getattr(frame, name))
    return result


def _same_format(one: Any, other: Any) -> bool:
    return (one.width, one.height, one.format.name) == (other.width, other.height, other.format.name)
