"""One open video: which packets to decode for the frames shown at some times, from the file's start or from within."""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from itertools import pairwise
from typing import Any, NamedTuple

import av
import numpy as np

from tubelet.data.containers import Media
from tubelet.data.limits import check_duration, check_gap, check_picture
from tubelet.data.suffixes import MATROSKA, MP4
from tubelet.data.video.image import Converter
from tubelet.data.video.stream import JOINED_FORMATS, TIMED_FORMATS, VideoStream
from tubelet.data.video.timestamps import (
    REORDER,
    PacketTable,
    Program,
    clock_seconds,
    needed,
    needs_program,
    program_of,
    read_table,
    time_of,
    until,
)
from tubelet.errors import DecodeError

# Of these formats an index tells where to enter; the packets of all others are read through once.
_INDEXED_FORMATS = (MP4, MATROSKA)
# A header that is believed if the packets do not contradict it by more, in seconds and as a share of the length.
_DOUBT_S, _DOUBT = 1.0, 0.1
# Seconds that a frame is shown on average, and bytes a second, from which on all packets are read before a length is
# believed: what is that sparse is small, too.
_SPARSE_S, _SPARSE_BYTES = 10.0, 2_000


class Shown(NamedTuple):
    """A decoded frame, at how many of the requested times it is shown, and from which second on."""

    frame: Any
    repeats: int
    begins_s: float
    before: Any = None
    after: Any = None


@dataclass(frozen=True)
class Facts:
    """What is known of an open video; see `VideoInfo`."""

    duration_s: float
    fps: float
    frames: int | None


class _AgainError(Exception):
    """What was assumed of a stream does not hold: its frames are to be decoded once more, now without assuming it."""


class VideoReader(VideoStream):
    """One open video: its demuxer, its decoder, and where its time starts.

    A plain MP4 or Matroska file is entered at the keyframe before what is requested. Of any other file, and where a
    header is in doubt, the packets are read through first, which tells when each frame is shown.
    """

    def __init__(self, media: Media) -> None:
        super().__init__(media)
        self.edits = self.claims.edits.get(self.stream.id, ()) if self.format == MP4 else ()
        self.program: Program | None = None
        self.interlaced = self.skipping = False
        # Half a tick is what the container rounds to; more than a millisecond would find frames that are still to come.
        self.tolerance_s = min(float(self.tick) / 2, 1e-3) + 1e-9

    def prepare(self) -> Facts:
        """Decode the first frame and find out when the video starts and ends.

        Raises:
            DecodeError: the file cannot be read, or what it claims is contradicted by its packets.
        """
        self.timed = self.skipping = self.format in TIMED_FORMATS
        self.seekable = self.timed
        indexed = self.format in _INDEXED_FORMATS and not self.claims.fragmented
        if needs_program(self.edits):
            self.options = {"ignore_editlist": "1"}  # FFmpeg reads such lists otherwise than they are meant
            self._restart()
            self.program = program_of(self.path, self.edits, self._read_table(), self.tick)
            self._check_gaps(np.append(self.program.shown, self.program.end))
        elif not indexed:
            self._read_table()
        first = self._first_frame()
        self.display(first)
        self.interlaced = first.interlaced_frame
        self.first = first.pts
        self.start = int(self.program.shown[0]) if self.program else self.first
        if self.program is None and self.table is None and self._doubtful():
            self._read_table()
        facts = self._facts()
        check_duration(self.path, facts.duration_s)
        return facts

    def display(self, first: Any) -> None:
        """Set how frames are displayed by the first one."""
        aspect = self.stream.sample_aspect_ratio or self.decoder.sample_aspect_ratio
        check_picture(self.path, first.width, first.height)
        self.converter = Converter(self.path, first, aspect)
        height, width = self.converter.size
        check_picture(self.path, width, height)

    def _first_frame(self) -> Any:
        first = next(self._decoded((packet, True) for packet in self._packets()), None)
        if first is None:
            raise DecodeError(self.path, "has no frames: remove it")
        return first

    def _read_table(self) -> PacketTable:
        """Read all packets, and leave the demuxer at the start."""
        self._restart()
        self.table = table = read_table(self._packets(), self.clock)
        if not len(table.times):
            raise DecodeError(self.path, "has no frames, or none with a time: re-export or remove it")
        if self.format not in TIMED_FORMATS:
            # Where times are guessed, frames that change order get other ones after a seek than from the start.
            self.timed = table.complete and not self.decoder.has_b_frames
            self.skipping, self.seekable = False, self.timed or not self.decoder.has_b_frames
        self.joins = table.breaks
        self._check_gaps(table.times)
        self._restart()
        return table

    def _check_gaps(self, times: np.ndarray) -> None:
        """Refuse a video that shows one frame absurdly long; (N,) ascending ticks at which frames begin."""
        gaps = np.diff(times)
        if len(gaps):
            widest = int(gaps.argmax())
            begins_s = float(int(times[widest] - times[0]) * self.tick)
            check_gap(self.path, float(int(gaps[widest]) * self.tick), begins_s)

    def _facts(self) -> Facts:
        fps = self._claimed_fps()
        if self.program is not None:
            count = len(self.program.shown)
            duration_s = float((self.program.end - self.start) * self.tick)
            return Facts(duration_s, fps, count)
        claimed_s = self._claimed_s()
        if self.table is None:
            frames = self.stream.frames if self.format == MP4 else 0
            return Facts(claimed_s, fps, min(frames, self.claims.size) or None)
        count = int((self.table.times >= self.first).sum())
        measured_s = float((self.table.end - self.first) * self.tick)
        if measured_s <= 0 and count == 1 and fps > 0:
            measured_s = 1 / fps
        if measured_s <= 0:
            raise DecodeError(self.path, "has no duration: its header and its frames give no time")
        margin = max(_DOUBT_S, _DOUBT * measured_s)
        if self.format not in JOINED_FORMATS and claimed_s - measured_s > margin:
            raise DecodeError(
                self.path,
                f"truncated at {measured_s:.1f} s (its header promises {claimed_s:.1f} s): re-export or remove it",
            )
        if self.timed or self.format in JOINED_FORMATS or abs(measured_s - claimed_s) > margin:
            claimed_s = measured_s
        if self.joins or not 0 < fps <= 400:
            fps = count / measured_s
        return Facts(claimed_s, fps, count)

    def _claimed_fps(self) -> float:
        """Frames per second; FFmpeg's average is nonsense where a container counts ticks as frames."""
        average = float(self.stream.average_rate or 0)
        guessed = float(self.stream.guessed_rate or 0)
        return average if 0 < average <= 400 else guessed

    def _claimed_s(self) -> float:
        """Length of the video stream as the header gives it; 0 if it does not."""
        if self.stream.duration:
            length_s = self.stream.duration * self.tick
            presented_s = sum((edit.length_s for edit in self.edits if edit.begin is not None), Fraction(0))
            return float(min(length_s, presented_s) if presented_s else length_s)
        start_s = float(self.first * self.tick)
        if (end_s := clock_seconds(self.stream.metadata.get("DURATION", ""))) is not None:
            return end_s - start_s
        if self.container.duration and len(self.container.streams) == 1:
            return self.container.duration / av.time_base - start_s
        return 0.0

    def _doubtful(self) -> bool:
        """Whether little evidence, cheaply had, does not support the length that an indexed file claims."""
        claimed_s = self._claimed_s()
        if claimed_s <= 0:  # a recording that was never finished, or a header that speaks of the sound as well
            return True
        margin = max(_DOUBT_S, _DOUBT * claimed_s)
        if self.format == MP4:
            entries = self.stream.index_entries
            if not len(entries) or self.stream.frames * _SPARSE_S < claimed_s:
                return True
            last = entries[-1]
            # The last frame in the file begins not much before the end, even if it is not the last that is shown.
            over_s = float((last.timestamp - self.first) * self.tick) - claimed_s
            return over_s < -min(margin, 0.1 + REORDER / max(self._claimed_fps(), 1.0)) or (
                over_s > margin and not last.is_discard
            )
        if self.claims.size < _SPARSE_BYTES * claimed_s:
            return True
        self._seek(self.first + round(claimed_s / self.tick))
        end = max((time_of(p) + (p.duration or 0) for p in self._packets() if time_of(p) is not None), default=0)
        self._restart()
        return abs(float((end - self.first) * self.tick) - claimed_s) > margin

    def frames_at(self, times: np.ndarray) -> list[Shown]:
        """The frames shown at ascending `times` (T,) in seconds from the start, entering the file where they are."""
        found: list[Shown] = []
        for targets, shown in self._runs(self._ticks(times)):
            found += self._find(targets, shown)
        if len(times) > 1 and len(found) == 1:
            self._check_moving()
        return found

    def scan(self, times: np.ndarray) -> Iterator[Shown]:
        """As `frames_at`, one by one, in one pass from the start: however many there are, a few are in memory."""
        for targets, shown in self._runs(self._ticks(times)):
            served = 0
            while served < len(targets):
                self._restart()
                try:
                    for each in self._play(
                        targets[served:], self._packets(), None if shown is None else shown[served:]
                    ):
                        if each.repeats == len(times) > 1:
                            self._check_moving()
                        served += each.repeats
                        yield each
                except _AgainError:
                    continue  # from where it failed
                if served < len(targets):
                    raise DecodeError(self.path, "has no frames: remove it")

    def all_frames(self) -> Iterator[Shown]:
        """All frames of a file that has just been prepared."""
        if self.program is not None:
            yield from self.scan((self.program.shown - self.start) * float(self.tick))
            return
        self._restart()
        frames = self._decoded((packet, True) for packet in self._packets())
        before, frame = None, next(frames, None)
        while frame is not None:
            after = next(frames, None)
            yield Shown(frame, 1, self._seconds(frame), before, after)
            before, frame = frame, after

    def _ticks(self, times: np.ndarray) -> np.ndarray:
        """Ascending seconds from the start as ticks of the stream's clock; what is before the first frame shows it."""
        if len(times) == 0 or np.any(np.diff(times) < 0):
            raise ValueError(f"a clip needs ascending times, got {times}")
        return np.maximum(
            self.start, self.start + np.floor((times + self.tolerance_s) / float(self.tick)).astype(np.int64)
        )

    def _runs(self, targets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Targets as ascending ticks of the media, and when they are shown where an edit list decides it."""
        if self.program is None:
            yield targets, None
            return
        places = np.searchsorted(self.program.shown, targets, side="right") - 1
        edits = self.program.edit[places]
        bounds = [0, *(np.flatnonzero(np.diff(edits)) + 1).tolist(), len(places)]
        for begin, end in pairwise(bounds):
            part = places[begin:end]
            yield self.program.media[part], self.program.shown[part]

    def _check_moving(self) -> None:
        """Complain of a file that shows a single frame."""
        self._restart()
        hidden = visible = False
        for packet in self._packets():
            if visible and not packet.is_discard:
                return
            hidden |= packet.is_discard
            visible |= not packet.is_discard
        if hidden:
            raise DecodeError(
                self.path, "shows only 1 frame: its edit list and the durations of its frames disagree; re-encode it"
            )
        raise DecodeError(self.path, "has 1 frame; a video needs at least 2: save it as an image")

    def _find(self, targets: np.ndarray, shown: np.ndarray | None) -> list[Shown]:
        """The frames shown at `targets` (T,), in ticks of the stream."""
        back_s = 0.0
        ahead_s = self._frame_s() if self.interlaced else 0.0
        while True:
            offset = int(targets[0]) - round((back_s + ahead_s) / float(self.tick))
            from_start = offset < self.first or not self.seekable or not self._seek(offset)
            if from_start:
                self._restart()
            last = int(targets[-1]) + round(ahead_s / float(self.tick))
            packets = self._packets() if from_start else self._from_keyframe(self._packets(), int(targets[0]))
            try:
                found = list(self._play(targets, packets, shown, last))
            except _AgainError:
                self._restart()
                ahead_s = max(self._frame_s(), 2 * ahead_s) if self.interlaced else 0.0
                continue
            except DecodeError:
                # A stream that is renewed bit by bit has keyframes that are not whole: go back further.
                if from_start:
                    raise
                found = []
            if found and (from_start or self._entered_early_enough(found[0], targets)):
                return found
            if from_start:
                raise DecodeError(self.path, "has no frames: remove it")
            # The index is wrong or, as in MPEG-TS, there is none and the seek was a guess: go back further.
            back_s = 2 * back_s + 1.0

    def _entered_early_enough(self, first: Shown, targets: np.ndarray) -> bool:
        neighbors = first.before is not None or not first.frame.interlaced_frame
        return first.frame.pts <= targets[0] and neighbors

    def _frame_s(self) -> float:
        """About twice as long as a frame is shown."""
        return 2 / min(max(self._claimed_fps(), 1.0), 1000.0)

    def _play(
        self, targets: np.ndarray, packets: Iterator[Any], shown: np.ndarray | None, last: int | None = None
    ) -> Iterator[Shown]:
        """Decode packets to the frames shown at `targets`, ascending ticks.

        Args:
            targets: (T,).
            packets: from where decoding can begin; they are read up to those of tick `last`.
            shown: (T,) ticks at which the presentation shows the frames, where an edit list decides that.
            last: the last tick of which packets are needed.

        Raises:
            _AgainError: frames did not come as their packets had said.
        """
        wanted = targets.tolist()
        passed = _Counted(packets)
        chosen: Iterable[tuple[Any, bool]]
        bounded = until(iter(passed), wanted[-1] if last is None else last, self.timed)
        expected: list[int] | None = None
        if self.skipping and not self.interlaced:
            expected = []
            chosen = self._expecting(needed(bounded, wanted), expected)
        else:
            chosen = ((packet, True) for packet in bounded)
        served = 0
        for frame, repeats, before, after in self._select(self._decoded(chosen), wanted, passed):
            # A decoder may name its frames by other times than their packets', or withhold some that others left out
            # were to bring: nothing can be left out, and a decoder that once withheld is opened anew.
            if expected is not None and (not expected or heappop(expected) != frame.pts):
                self.skipping = False
                raise _AgainError
            if frame.interlaced_frame and (not self.interlaced or (after is None and not passed.ended)):
                self.interlaced = True
                raise _AgainError
            begins_s = self._seconds(frame)
            if shown is not None:
                begins_s = float((int(shown[served]) - self.start) * self.tick)
            yield Shown(frame, repeats, begins_s, before, after)
            served += repeats

    def _expecting(self, chosen: Iterable[tuple[Any, bool]], expected: list[int]) -> Iterator[tuple[Any, bool]]:
        """Note the times of the packets whose frames are needed."""
        for packet, wanted in chosen:
            if wanted and packet.pts is None:
                self.skipping = False
                raise _AgainError
            if wanted:
                heappush(expected, packet.pts)
            yield packet, wanted

    def _select(self, frames: Iterator[Any], targets: Sequence[int], passed: "_Counted") -> Iterator[tuple[Any, ...]]:
        """Of frames in the order they are shown, those shown at `targets`, how many each serves, and its neighbors."""
        served = 0
        before = shown = None
        for frame in frames:
            if shown is not None:
                if frame.pts <= shown.pts:
                    continue  # a clock that jumps back: the frame has no place in the order
                reached = bisect_left(targets, frame.pts)
                if reached > served:
                    yield shown, reached - served, before, frame
                    served = reached
                if served == len(targets):
                    return
            before, shown = shown, frame
        if shown is not None:
            if passed.ended:
                self._check_end(shown, targets[-1])
            yield shown, len(targets) - served, before, None

    def _check_end(self, final: Any, last: int) -> None:
        """Complain if the file's final frame is over long before a wanted tick that lies within the promised length."""
        if self.program is not None or self.table is not None:
            return
        end_s = float((final.pts + (final.duration or 0) - self.start) * self.tick)
        claimed_s = self._claimed_s()
        wanted_s = min(float((last - self.start) * self.tick), claimed_s)
        if wanted_s - end_s > max(_DOUBT_S, _DOUBT * claimed_s):
            raise DecodeError(
                self.path, f"ends at {end_s:.1f} s, its header promises {claimed_s:.1f} s: re-export or remove it"
            )


class _Counted:
    """Packets, and whether the file ended with them."""

    def __init__(self, packets: Iterator[Any]) -> None:
        self.packets = packets
        self.ended = False

    def __iter__(self) -> Iterator[Any]:
        yield from self.packets
        self.ended = True
