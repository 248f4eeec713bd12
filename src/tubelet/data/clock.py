"""When packets and frames are shown, where a container does not say it plainly."""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from heapq import heappop, heappush
from typing import Any

import numpy as np

# Decoders hold back at most so many frames to put them in order.
HELD_BACK = 16
_CLOCK = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


def clock_seconds(text: str) -> float | None:
    """The seconds of a time like 00:01:04.500, as Matroska writes it; None for anything else."""
    if not (clock := _CLOCK.fullmatch(text)):
        return None
    hours, minutes, seconds = (float(part) for part in clock.groups())
    return 3600 * hours + 60 * minutes + seconds


def time_of(packet: Any) -> Any:
    """When a packet's frame is shown, in ticks; else when it is decoded; None if neither is known."""
    return packet.dts if packet.pts is None else packet.pts


def shown_at(packets: Iterable[Any], targets: np.ndarray) -> set[int] | None:
    """Times of the packets whose frames are shown at `targets`, all in ticks; None where the packets do not tell."""
    shown = [packet.pts for packet in packets if not packet.is_discard]
    if not shown or None in shown:
        return None
    times = np.unique(shown)
    places = np.maximum(np.searchsorted(times, targets, side="right") - 1, 0)
    return set(times[places].tolist())


def in_order(frames: Iterator[Any]) -> Iterator[Any]:
    """Frames in the order they are shown, with times that ascend: the guessed ones are those of the decoding order."""
    waiting: deque[Any] = deque()
    times: list[int] = []
    for frame in frames:
        waiting.append(frame)
        heappush(times, frame.pts)
        if len(waiting) > HELD_BACK:
            yield _retimed(waiting.popleft(), heappop(times))
    while waiting:
        yield _retimed(waiting.popleft(), heappop(times))


def _retimed(frame: Any, pts: int) -> Any:
    frame.pts = pts
    return frame
