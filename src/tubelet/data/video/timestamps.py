"""Presentation timestamps of frames, computed from packets rather than from the container's header."""

import re
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush, heapreplace
from typing import Any

import numpy as np

from tubelet.data.video.container_header import Edit
from tubelet.errors import DecodeError

# Largest number of frames that decoders delay to reorder them; a field may be a packet of its own.
MAX_REORDER_DELAY = 16
PACKETS_AHEAD = 2 * MAX_REORDER_DELAY
_HMS = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")
# Timestamps of MPEG streams have 33 bits; a later one that is nearer going back is before.
_WRAP = 2**33
# Timestamps that go back by less between two packets are jitter, not a new time base.
_UNSTEADY_S = 1.0
# MPEG streams show each frame for less than a second; above so many seconds FFmpeg, too, assumes a new time base.
# Corrupt packets nearby are the evidence: the counters of a concatenated recording restart.
_JUMP_S = 10.0
_NEARBY = 4
# MPEG-1 and MPEG-2 have a constant frame rate: a gap is always a new time base.
_CONSTANT_RATE = ("mpeg1video", "mpeg2video")
# Consecutive packets of one timestamp that are an error: fields and layers of one frame are fewer.
_REPEATS = 8


def parse_hms(text: str) -> float | None:
    """The seconds of a time like 00:01:04.500, as Matroska writes it; None for anything else."""
    if not (match := _HMS.fullmatch(text)):
        return None
    hours, minutes, seconds = (float(part) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def pts_or_dts(packet: Any) -> Any:
    """A packet's presentation timestamp in ticks, else its decoding timestamp; None if it has neither."""
    return packet.dts if packet.pts is None else packet.pts


@dataclass(frozen=True)
class PacketTable:
    """All packets of a video stream, read once.

    Attributes:
        times: (N,) int64 ticks at which frames begin to be shown, ascending, each once.
        end: tick at which the last frame stops being shown.
        keyframes: (K,) int64 ticks of keyframes, ascending.
        complete: whether each packet has a presentation timestamp.
        breaks: number of jumps that were corrected.
    """

    times: np.ndarray
    end: int
    keyframes: np.ndarray
    complete: bool
    breaks: int


class TimestampOrderCheck:
    """Checks that the presentation timestamps of packets have one order."""

    def __init__(self) -> None:
        self.highest: list[int] = []
        self.latest = -(2**63)
        self.last: int | None = None
        self.repeats = 0

    def fault(self, packet: Any) -> tuple[str, int] | None:
        """What is wrong with the timestamp of the next packet of the file, and the tick before it, if anything."""
        now = packet.pts
        if now is None or packet.is_discard:
            return None
        self.repeats = self.repeats + 1 if now == self.last else 1
        self.last = now
        if self.repeats == _REPEATS:
            return "repeat", now
        # Whatever is decoded before a keyframe is shown before it, and no decoder reorders over more frames.
        full = len(self.highest) > MAX_REORDER_DELAY
        if (packet.is_keyframe and now < self.latest) or (full and now < self.highest[0]):
            return "go back", self.latest
        if full:
            heapreplace(self.highest, now)
        else:
            heappush(self.highest, now)
        self.latest = max(now, self.latest)
        return None


class TimestampCorrector:
    """Corrects timestamps that jump where recordings were concatenated: the second continues the first."""

    def __init__(self, tick: Fraction, codec: str) -> None:
        self.tick = tick
        self.constant_rate = codec in _CONSTANT_RATE
        self.since_damage = _NEARBY
        self.offset = self.breaks = 0
        self.step = round(Fraction(1, 25) / tick)
        self.last: int | None = None

    def correct(self, packet: Any) -> None:
        """Correct the timestamps of the next packet of the file in place."""
        stamp = packet.pts if packet.dts is None else packet.dts
        self.since_damage = 0 if packet.is_corrupt else self.since_damage + 1
        if stamp is None:
            return
        now = int(stamp) + self.offset
        if self.last is not None:
            step = now - self.last
            step -= _WRAP if step > _WRAP // 2 else 0
            back = step < 0 and (packet.is_keyframe or step * self.tick < -_UNSTEADY_S)
            ahead = step * self.tick > _JUMP_S and (self.constant_rate or self.since_damage < _NEARBY)
            if back or ahead:
                self.offset += self.last + self.step - now
                self.breaks += 1
                now = self.last + self.step
            elif step > 0:
                self.step = step
        self.last = now
        if self.offset:
            packet.pts = None if packet.pts is None else packet.pts + self.offset
            packet.dts = None if packet.dts is None else packet.dts + self.offset


def read_table(packets: Iterable[Any], corrector: TimestampCorrector | None) -> PacketTable:
    """The table of a whole stream; `corrector` is the one of its packets, if any."""
    times: list[int] = []
    keyframes: list[int] = []
    complete, last, length = True, -(2**63), 0
    for packet in packets:
        time = pts_or_dts(packet)
        complete &= packet.pts is not None or bool(packet.is_discard)
        if packet.is_discard or time is None:
            continue
        times.append(time)
        if packet.is_keyframe:
            keyframes.append(time)
        if time >= last:
            last, length = time, packet.duration or 0
    begins = np.unique(np.array(times, dtype=np.int64))
    if not length and len(begins) > 1:  # live streams do not have it for the last frame
        length = int(np.median(np.diff(begins)))
    keys = np.unique(np.array(keyframes, dtype=np.int64))
    return PacketTable(begins, last + length, keys, complete, corrector.breaks if corrector else 0)


@dataclass(frozen=True)
class EditTimeline:
    """The presentation of an edit list.

    Attributes:
        shown: (N,) int64 ticks of the presentation at which frames begin to be shown, ascending.
        media: (N,) int64 ticks of these frames in the media.
        edit: (N,) int64 numbers of their edits; within one, `media` ascends.
        end: tick of the presentation at which the last frame stops being shown.
    """

    shown: np.ndarray
    media: np.ndarray
    edit: np.ndarray
    end: int


def needs_edit_timeline(edits: Sequence[Edit]) -> bool:
    """Whether an edit list is more than FFmpeg supports: a pause first, then one continuous part of the media."""
    edits_left = list(edits)
    while edits_left and edits_left[0].begin is None:
        edits_left.pop(0)
    return len(edits_left) > 1 or any(edit.rate != 1 for edit in edits_left)


def edit_timeline(path: str, edits: Sequence[Edit], table: PacketTable, tick: Fraction) -> EditTimeline:
    """The frames that an edit list presents, and when.

    Args:
        path: name of the video, for messages.
        edits: the edit list.
        table: packets of the media.
        tick: seconds of a tick.

    Raises:
        DecodeError: the list presents no frame, or plays at another speed.
    """
    shown: list[np.ndarray] = []
    media: list[np.ndarray] = []
    at, end, times = Fraction(0), 0, table.times
    for edit in edits:
        length = edit.length_s / tick
        if edit.begin is not None:
            if edit.rate not in (0, 1):
                rate = float(edit.rate)
                raise DecodeError(
                    path, f"has an edit list that plays at {rate:g} times the speed, expected 1; re-encode it"
                )
            if edit.rate == 0:  # one frame, all the time
                kept = times[max(0, int(np.searchsorted(times, edit.begin, side="right")) - 1) :][:1]
                begins = np.full(len(kept), round(at))
            else:
                kept = times[(times >= edit.begin) & (times < edit.begin + round(length))]
                begins = kept - edit.begin + round(at)
            media.append(kept)
            shown.append(begins)
            available = length if edit.rate == 0 else min(length, Fraction(max(0, table.end - edit.begin)))
            end = round(at + available) if len(kept) else end
        at += length
    if not sum(map(len, media)):
        raise DecodeError(path, "has an edit list that shows none of its frames; re-encode it without the list")
    numbers = np.repeat(np.arange(len(media)), [len(part) for part in media])
    return EditTimeline(np.concatenate(shown), np.concatenate(media), numbers, end)


def packets_until(packets: Iterator[Any], last: int, timed: bool) -> Iterator[Any]:
    """Packets up to the one after which all frames that begin at or before tick `last` are complete."""
    beyond = 0
    for packet in packets:
        yield packet
        time = pts_or_dts(packet)
        beyond += time is not None and time > last
        # No frame is shown before it is decoded: after this decoding timestamp, all frames are later.
        if beyond >= PACKETS_AHEAD or (timed and packet.dts is not None and packet.dts > last):
            return


def mark_required(packets: Iterator[Any], targets: Sequence[int]) -> Iterator[tuple[Any, bool]]:
    """Each packet, and whether its frame is shown at some of `targets`, ascending ticks.

    A packet's frame is shown until the next one begins, which is known a few packets later. From a packet without a
    presentation timestamp on, all are required.
    """
    waiting: deque[Any] = deque()
    times: list[int] = []
    decoded = -(2**63)
    blind = False
    for packet in packets:
        waiting.append(packet)
        blind = blind or (packet.pts is None and not packet.is_discard)
        if packet.pts is not None and not packet.is_discard:
            insort(times, packet.pts)
        decoded = decoded if packet.dts is None else packet.dts
        while waiting and (blind or _end_is_known(waiting, times, decoded)):
            first = waiting.popleft()
            yield first, blind or _is_shown(first, times, targets)
            while times and waiting and not blind and len(times) > 4 * PACKETS_AHEAD:
                times.pop(0)
    for first in waiting:
        yield first, blind or _is_shown(first, times, targets)


def _end_is_known(waiting: Sequence[Any], times: list[int], decoded: int) -> bool:
    """Whether the later packets determine when the frame of the first one stops being shown."""
    first = waiting[0]
    if first.is_discard or len(waiting) > PACKETS_AHEAD:
        return True
    index = bisect_right(times, first.pts)
    return index < len(times) and times[index] <= decoded


def _is_shown(packet: Any, times: list[int], targets: Sequence[int]) -> bool:
    if packet.is_discard:
        return False
    begin = bisect_left(targets, packet.pts)
    if begin == len(targets):
        return False
    index = bisect_right(times, packet.pts)
    return index == len(times) or targets[begin] < times[index]


def reorder_by_pts(frames: Iterator[Any]) -> Iterator[Any]:
    """Frames in presentation order with ascending timestamps, where FFmpeg guessed these in decoding order."""
    waiting: deque[Any] = deque()
    times: list[int] = []
    for frame in frames:
        waiting.append(frame)
        heappush(times, frame.pts)
        if len(waiting) > MAX_REORDER_DELAY:
            yield _retimed(waiting.popleft(), heappop(times))
    while waiting:
        yield _retimed(waiting.popleft(), heappop(times))


def _retimed(frame: Any, pts: int) -> Any:
    frame.pts = pts
    return frame
