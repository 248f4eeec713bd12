"""One open video: the packets to decode for the frames shown at some times, from a keyframe or the start."""

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
from tubelet.data.file_types import MATROSKA, MP4
from tubelet.data.size_limits import check_duration, check_frame_size, check_gap
from tubelet.data.video.image import Converter
from tubelet.data.video.stream import JOINED_FORMATS, TIMED_FORMATS, VideoStream
from tubelet.data.video.timestamps import (
    MAX_REORDER_DELAY,
    EditTimeline,
    PacketTable,
    edit_timeline,
    mark_required,
    needs_edit_timeline,
    packets_until,
    parse_hms,
    pts_or_dts,
    read_table,
)
from tubelet.errors import DecodeError

# Formats whose index says where to seek; of all others, the packets are read once when the file is opened.
_INDEXED_FORMATS = (MP4, MATROSKA)
# Difference between header and packets up to which the header is trusted, in seconds and as a fraction of the length.
_TOLERANCE_S, _TOLERANCE = 1.0, 0.1
# Average seconds of a frame, and bytes per second, beyond which all packets are read before a length is trusted: such
# sparse files are small, too.
_SPARSE_S, _SPARSE_BYTES = 10.0, 2_000
# Seconds up to which a pass decodes from the start, which is right in any file.
_NEAR_START_S = 4.0


class DecodedFrame(NamedTuple):
    """A decoded frame and its place in the timeline.

    Attributes:
        frame: the frame, a PyAV frame or (H, W, C) values.
        repeats: number of requested times at which it is shown.
        start_s: second from which it is shown.
        before: previous frame, for deinterlacing.
        after: next frame, for deinterlacing.
    """

    frame: Any
    repeats: int
    start_s: float
    before: Any = None
    after: Any = None


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video: its header's, as far as its packets agree.

    Attributes:
        path: the file, or the name of a `MediaBytes`.
        duration_s: duration of the video stream in seconds.
        fps: average number of frames per second.
        width: pixels of the displayed image: turned upright, with square pixels.
        height: pixels of the displayed image.
        rotation: degrees (0, 90, 180, 270) by which frames are rotated counter-clockwise to be upright.
        mirrored: whether left and right are swapped after the rotation.
        frames: upper bound of the number of frames; None if only reading the whole file would tell.
        channels: channels of the pixels that are read.
        bits: significant bits of their values.
        window: values that the file asks to show as black and as white; None if it states none.
    """

    path: str
    duration_s: float
    fps: float
    width: int
    height: int
    rotation: int
    mirrored: bool = False
    frames: int | None = None
    channels: int = 3
    bits: int = 8
    window: tuple[float, float] | None = None


class _RetryError(Exception):
    """An assumption about the stream is wrong: decode its frames again without it."""


class VideoReader(VideoStream):
    """One open video: its demuxer, its decoder, and the start of its time.

    In a plain MP4 or Matroska file, decoding starts at the keyframe before the requested time. Of any other file, and
    where a header is doubtful, all packets are read first, which gives the timestamps of all frames.
    """

    def __init__(self, media: Media, full_depth: bool = False) -> None:
        super().__init__(media)
        self.full_depth = full_depth
        self.edits = self.header.edits.get(self.stream.id, ()) if self.format == MP4 else ()
        self.timeline: EditTimeline | None = None
        self.interlaced = self.skipping = False
        # The container rounds to half a tick; more than a millisecond would find frames that are not shown yet.
        self.tolerance_s = min(float(self.tick) / 2, 1e-3) + 1e-9

    def prepare(self) -> VideoInfo:
        """Decode the first frame and find the start and the end of the video.

        Raises:
            DecodeError: the file cannot be read, or its packets contradict its header.
        """
        self.timed = self.skipping = self.format in TIMED_FORMATS
        self.seekable = self.timed
        indexed = self.format in _INDEXED_FORMATS and not self.header.fragmented
        if needs_edit_timeline(self.edits):
            self.options = {"ignore_editlist": "1"}  # FFmpeg misreads such lists
            self._restart()
            self.timeline = edit_timeline(self.path, self.edits, self._read_table(), self.tick)
            self._check_gaps(np.append(self.timeline.shown, self.timeline.end))
        elif not indexed:
            self._read_table()
        first = self._first_frame()
        self.display(first)
        self.interlaced = first.interlaced_frame
        self.first = first.pts
        self.start = int(self.timeline.shown[0]) if self.timeline else self.first
        if self.timeline is None and self.table is None and self._needs_packet_table():
            self._read_table()
        duration_s, fps, frames = self._measure()
        check_duration(self.path, duration_s)
        height, width = self.converter.size
        display = self.converter.display
        return VideoInfo(
            self.path,
            duration_s,
            fps,
            width,
            height,
            display.rotation,
            display.mirrored,
            frames,
            channels=self.converter.channels,
            bits=8 * self.converter.dtype.itemsize,
        )

    def display(self, first: Any) -> None:
        """Set how frames are displayed, by the first one."""
        aspect = self.stream.sample_aspect_ratio or self.decoder.sample_aspect_ratio
        check_frame_size(self.path, first.width, first.height)
        self.converter = Converter(self.path, first, aspect, self.full_depth)
        height, width = self.converter.size
        check_frame_size(self.path, width, height)

    def _first_frame(self) -> Any:
        first = next(self._decoded((packet, True) for packet in self._packets()), None)
        if first is None:
            raise DecodeError(self.path, "has no frames; remove it")
        return first

    def _read_table(self) -> PacketTable:
        """Read all packets, and rewind the demuxer."""
        self._restart()
        self.table = table = read_table(self._packets(), self.corrector)
        if not len(table.times):
            raise DecodeError(self.path, "has no frames with timestamps; re-export or remove it")
        if self.format not in TIMED_FORMATS:
            # Where FFmpeg guesses timestamps, reordered frames get other ones after a seek than from the start.
            self.timed = table.complete and not self.decoder.has_b_frames
            self.skipping, self.seekable = False, self.timed or not self.decoder.has_b_frames
        self.joins = table.breaks
        self._check_gaps(table.times)
        self._restart()
        return table

    def _check_gaps(self, times: np.ndarray) -> None:
        """Refuse a video with a frame of absurd duration; `times` is (N,) ascending ticks."""
        gaps = np.diff(times)
        if len(gaps):
            widest = int(gaps.argmax())
            begins_s = float(int(times[widest] - times[0]) * self.tick)
            check_gap(self.path, float(int(gaps[widest]) * self.tick), begins_s)

    def _measure(self) -> tuple[float, float, int | None]:
        """Duration in seconds, frames per second, and an upper bound of the number of frames, if known."""
        fps = self._header_fps()
        if self.timeline is not None:
            count = len(self.timeline.shown)
            duration_s = float((self.timeline.end - self.start) * self.tick)
            return duration_s, fps, count
        header_s = self._header_duration_s()
        if self.table is None:
            frames = self.stream.frames if self.format == MP4 else 0
            return header_s, fps, min(frames, self.header.size) or None
        count = int((self.table.times >= self.first).sum())
        measured_s = float((self.table.end - self.first) * self.tick)
        if measured_s <= 0 and count == 1 and fps > 0:
            measured_s = 1 / fps
        if measured_s <= 0:
            raise DecodeError(self.path, "has no duration: neither its header nor its frames have timestamps")
        margin = max(_TOLERANCE_S, _TOLERANCE * measured_s)
        if self.format not in JOINED_FORMATS and header_s - measured_s > margin:
            raise DecodeError(
                self.path,
                f"truncated at {measured_s:.1f} s (header says {header_s:.1f} s); re-export or remove it",
            )
        if self.timed or self.format in JOINED_FORMATS or abs(measured_s - header_s) > margin:
            header_s = measured_s
        if self.joins or not 0 < fps <= 400:
            fps = count / measured_s
        return header_s, fps, count

    def _header_fps(self) -> float:
        """Frames per second; FFmpeg's average is nonsense where a container counts ticks as frames."""
        average = float(self.stream.average_rate or 0)
        guessed = float(self.stream.guessed_rate or 0)
        return average if 0 < average <= 400 else guessed

    def _header_duration_s(self) -> float:
        """Duration of the video stream by the header; 0 if it is missing."""
        if self.stream.duration:
            length_s = self.stream.duration * self.tick
            presented_s = sum((edit.length_s for edit in self.edits if edit.begin is not None), Fraction(0))
            return float(min(length_s, presented_s) if presented_s else length_s)
        start_s = float(self.first * self.tick)
        if (end_s := parse_hms(self.stream.metadata.get("DURATION", ""))) is not None:
            return end_s - start_s
        if self.container.duration and len(self.container.streams) == 1:
            return self.container.duration / av.time_base - start_s
        return 0.0

    def _needs_packet_table(self) -> bool:
        """Whether a quick check does not confirm the duration in the header of an indexed file."""
        header_s = self._header_duration_s()
        if header_s <= 0:  # an unfinished recording, or a header of video and audio together
            return True
        margin = max(_TOLERANCE_S, _TOLERANCE * header_s)
        if self.format == MP4:
            entries = self.stream.index_entries
            if not len(entries) or self.stream.frames * _SPARSE_S < header_s:
                return True
            last = entries[-1]
            # The last frame in the file begins shortly before the end, even if it is not the last one shown.
            over_s = float((last.timestamp - self.first) * self.tick) - header_s
            return over_s < -min(margin, 0.1 + MAX_REORDER_DELAY / max(self._header_fps(), 1.0)) or (
                over_s > margin and not last.is_discard
            )
        if self.header.size < _SPARSE_BYTES * header_s:
            return True
        self._seek(self.first + round(header_s / self.tick))
        end = max((pts_or_dts(p) + (p.duration or 0) for p in self._packets() if pts_or_dts(p) is not None), default=0)
        self._restart()
        return abs(float((end - self.first) * self.tick) - header_s) > margin

    def frame_times(self) -> np.ndarray:
        """(N,) seconds from the start at which the frames begin to be shown; after `prepare`."""
        ticks = self.timeline.shown if self.timeline is not None else (self.table or self._read_table()).times
        return (ticks[ticks >= self.start] - self.start) * float(self.tick)

    def frames_at(self, times: np.ndarray) -> list[DecodedFrame]:
        """The frames shown at ascending `times` (T,) in seconds from the start, from the keyframe before them."""
        found: list[DecodedFrame] = []
        for targets, shown in self._edit_runs(self._ticks(times)):
            found += self._frames_near(targets, shown)
        if len(times) > 1 and len(found) == 1:
            self._require_several_frames()
        return found

    def scan(self, times: np.ndarray) -> Iterator[DecodedFrame]:
        """As `frames_at`, one by one in a pass, with a few frames in memory.

        The pass is from the start, or from the keyframe before times that are far from it.
        """
        for targets, shown in self._edit_runs(self._ticks(times)):
            delivered, seeking = 0, self.seekable and not self.joins
            while delivered < len(targets):
                rest, entered = targets[delivered:], delivered
                packets = self._packets_from(int(rest[0])) if seeking else None
                seeking = packets is not None
                if packets is None:
                    self._restart()
                    packets = self._packets()
                try:
                    for each in self._decode_targets(rest, packets, None if shown is None else shown[delivered:]):
                        if seeking and delivered == entered and not self._entered_early_enough(each, rest):
                            break
                        if each.repeats == len(times) > 1:
                            self._require_several_frames()
                        delivered += each.repeats
                        yield each
                except _RetryError:
                    continue  # from where it failed
                except DecodeError:
                    if not seeking:  # otherwise the keyframe may be incomplete
                        raise
                if delivered < len(targets) and not seeking:
                    raise DecodeError(self.path, "has no frames; remove it")
                seeking = False

    def _packets_from(self, target: int) -> Iterator[Any] | None:
        """Packets from the keyframe before a tick; None if it is near the start, or the file cannot be entered."""
        ahead_s = self._two_frames_s() if self.interlaced else 0.0
        offset = target - round(ahead_s / float(self.tick))
        if float((offset - self.first) * self.tick) < _NEAR_START_S or not self._seek(offset):
            return None
        return self._from_keyframe(self._packets(), target)

    def all_frames(self) -> Iterator[DecodedFrame]:
        """All frames, after `prepare`."""
        if self.timeline is not None:
            yield from self.scan((self.timeline.shown - self.start) * float(self.tick))
            return
        self._restart()
        frames = self._decoded((packet, True) for packet in self._packets())
        before, frame = None, next(frames, None)
        while frame is not None:
            after = next(frames, None)
            yield DecodedFrame(frame, 1, self._seconds(frame), before, after)
            before, frame = frame, after

    def _ticks(self, times: np.ndarray) -> np.ndarray:
        """Ascending seconds from the start as ticks of the stream; times before the first frame become its tick."""
        if len(times) == 0 or np.any(np.diff(times) < 0):
            raise ValueError(f"a clip needs ascending times, got {times}")
        return np.maximum(
            self.start, self.start + np.floor((times + self.tolerance_s) / float(self.tick)).astype(np.int64)
        )

    def _edit_runs(self, targets: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Targets as ascending ticks of the media, and the ticks of the presentation where there is an edit list."""
        if self.timeline is None:
            yield targets, None
            return
        indices = np.searchsorted(self.timeline.shown, targets, side="right") - 1
        edits = self.timeline.edit[indices]
        bounds = [0, *(np.flatnonzero(np.diff(edits)) + 1).tolist(), len(indices)]
        for begin, end in pairwise(bounds):
            part = indices[begin:end]
            yield self.timeline.media[part], self.timeline.shown[part]

    def _require_several_frames(self) -> None:
        """Raise an error if the file shows a single frame."""
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
        raise DecodeError(self.path, "has 1 frame, expected at least 2; save it as an image")

    def _frames_near(self, targets: np.ndarray, shown: np.ndarray | None) -> list[DecodedFrame]:
        """The frames shown at `targets` (T,), in ticks of the stream."""
        back_s = 0.0
        ahead_s = self._two_frames_s() if self.interlaced else 0.0
        while True:
            offset = int(targets[0]) - round((back_s + ahead_s) / float(self.tick))
            from_start = offset < self.first or not self.seekable or not self._seek(offset)
            if from_start:
                self._restart()
            last = int(targets[-1]) + round(ahead_s / float(self.tick))
            packets = self._packets() if from_start else self._from_keyframe(self._packets(), int(targets[0]))
            try:
                found = list(self._decode_targets(targets, packets, shown, last))
            except _RetryError:
                self._restart()
                ahead_s = max(self._two_frames_s(), 2 * ahead_s) if self.interlaced else 0.0
                continue
            except DecodeError:
                # A stream with intra refresh has incomplete keyframes: go back further.
                if from_start:
                    raise
                found = []
            if found and (from_start or self._entered_early_enough(found[0], targets)):
                return found
            if from_start:
                raise DecodeError(self.path, "has no frames; remove it")
            # The index is wrong or, as in MPEG-TS, missing, so the seek was a guess: go back further.
            back_s = 2 * back_s + 1.0

    def _entered_early_enough(self, first: DecodedFrame, targets: np.ndarray) -> bool:
        neighbors = first.before is not None or not first.frame.interlaced_frame
        return first.frame.pts <= targets[0] and neighbors

    def _two_frames_s(self) -> float:
        """About twice the duration of a frame, in seconds."""
        return 2 / min(max(self._header_fps(), 1.0), 1000.0)

    def _decode_targets(
        self, targets: np.ndarray, packets: Iterator[Any], shown: np.ndarray | None, last: int | None = None
    ) -> Iterator[DecodedFrame]:
        """Decode packets to the frames shown at `targets`, ascending ticks.

        Args:
            targets: (T,) ticks of the media.
            packets: packets from a keyframe on; they are read up to those of tick `last`.
            shown: (T,) ticks at which the presentation shows the frames, where there is an edit list.
            last: the last tick whose packets are required.

        Raises:
            _RetryError: the timestamps of frames differ from those of their packets.
        """
        ticks = targets.tolist()
        iterator = _PacketIterator(packets)
        chosen: Iterable[tuple[Any, bool]]
        bounded = packets_until(iter(iterator), ticks[-1] if last is None else last, self.timed)
        expected: list[int] | None = None
        if self.skipping and not self.interlaced:
            expected = []
            chosen = self._expecting(mark_required(bounded, ticks), expected)
        else:
            chosen = ((packet, True) for packet in bounded)
        delivered = 0
        for frame, repeats, before, after in self._select(self._decoded(chosen), ticks, iterator):
            # A decoder may change timestamps, or withhold frames when others are skipped: then nothing is skipped,
            # and the decoder is opened again.
            if expected is not None and (not expected or heappop(expected) != frame.pts):
                self.skipping = False
                raise _RetryError
            if frame.interlaced_frame and (not self.interlaced or (after is None and not iterator.ended)):
                self.interlaced = True
                raise _RetryError
            begins_s = self._seconds(frame)
            if shown is not None:
                begins_s = float((int(shown[delivered]) - self.start) * self.tick)
            yield DecodedFrame(frame, repeats, begins_s, before, after)
            delivered += repeats

    def _expecting(self, chosen: Iterable[tuple[Any, bool]], expected: list[int]) -> Iterator[tuple[Any, bool]]:
        """Collect the timestamps of the packets whose frames are required."""
        for packet, required in chosen:
            if required and packet.pts is None:
                self.skipping = False
                raise _RetryError
            if required:
                heappush(expected, packet.pts)
            yield packet, required

    def _select(
        self, frames: Iterator[Any], targets: Sequence[int], iterator: "_PacketIterator"
    ) -> Iterator[tuple[Any, ...]]:
        """Of frames in presentation order, those shown at `targets`, how often, and their neighbors."""
        delivered = 0
        before = shown = None
        for frame in frames:
            if shown is not None:
                if frame.pts <= shown.pts:
                    continue  # timestamps go back: the frame has no place in the order
                reached = bisect_left(targets, frame.pts)
                if reached > delivered:
                    yield shown, reached - delivered, before, frame
                    delivered = reached
                if delivered == len(targets):
                    return
            before, shown = shown, frame
        if shown is not None:
            if iterator.ended:
                self._check_end(shown, targets[-1])
            yield shown, len(targets) - delivered, before, None

    def _check_end(self, final: Any, last: int) -> None:
        """Raise an error if the last frame ends long before a requested tick within the duration in the header."""
        if self.timeline is not None or self.table is not None:
            return
        end_s = float((final.pts + (final.duration or 0) - self.start) * self.tick)
        header_s = self._header_duration_s()
        requested_s = min(float((last - self.start) * self.tick), header_s)
        if requested_s - end_s > max(_TOLERANCE_S, _TOLERANCE * header_s):
            raise DecodeError(
                self.path, f"truncated at {end_s:.1f} s (header says {header_s:.1f} s); re-export or remove it"
            )


class _PacketIterator:
    """Packets, and whether the file has no more of them."""

    def __init__(self, packets: Iterator[Any]) -> None:
        self.packets = packets
        self.ended = False

    def __iter__(self) -> Iterator[Any]:
        yield from self.packets
        self.ended = True
