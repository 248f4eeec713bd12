"""The video stream of a file: its packets on one steady clock, and the frames that they decode to."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from typing import Any

import numpy as np
from av.error import FFmpegError
from av.stream import Disposition

from tubelet.data.containers import (
    READ_ERRORS,
    STRICT_FORMATS,
    Media,
    decoder_options,
    in_words,
    name_of,
    open_container,
    plain_words,
)
from tubelet.data.limits import check_picture
from tubelet.data.suffixes import FLV, MATROSKA, MP4, MPEG_PS, MPEG_TS
from tubelet.data.video.claims import open_whole
from tubelet.data.video.leading import without_leading
from tubelet.data.video.timestamps import AscendingTimes, PacketTable, SteadyClock, in_order, time_of
from tubelet.errors import DecodeError

# These formats store when a packet's frame is shown. The others do not, or not always: there FFmpeg guesses it while it
# decodes, and leaving out frames would change its guesses.
TIMED_FORMATS = (MP4, MATROSKA, MPEG_TS, FLV)
# Streams that are cut and joined at any place, so that their clock may jump.
JOINED_FORMATS = (MPEG_TS, MPEG_PS)
# Decoders of these codecs may leave out frames that are not shown without anything else changing.
_LAYERED_CODECS = ("h264", "hevc")


class VideoStream:
    """One open video: its demuxer and its decoder.

    Attributes:
        path: the file's name, for errors.
        format: FFmpeg's name of the container.
        stream: FFmpeg's stream.
        tick: seconds of a tick of its clock.
        start: the tick at which the presentation starts.
        first: the tick of the media at which the first frame begins.
        timed: whether packets tell when their frames are shown.
        seekable: whether frames are the same wherever the file is entered.
        table: of all packets, where they have been read.
        joins: how often the clock jumps.
    """

    def __init__(self, media: Media) -> None:
        self.media = media
        self.path = name_of(media)
        self.options: dict[str, str] = {}
        self.table: PacketTable | None = None
        self.start = self.first = 0
        self.timed = self.seekable = True
        self.joins = 0
        with ExitStack() as opened:
            self.file, self.claims = open_whole(media)
            opened.callback(self.file.close)
            self._open()
            opened.pop_all()
        self.tick = Fraction(self.stream.time_base)

    def close(self) -> None:
        """Close the demuxer and the file."""
        self.container.close()
        self.file.close()

    def _open(self) -> None:
        with plain_words(self.path, "is not a media file, or its beginning is damaged", self.file):
            self.container: Any = open_container(self.media, self.file, self.options)
        self.format = self.container.format.name
        self.stream = self._video_stream()
        self.decoder = self.stream.codec_context
        check_picture(self.path, self.decoder.width, self.decoder.height)
        # Videos are spread over worker processes: more threads in each would only fight over the cores.
        self.decoder.thread_type = "NONE"
        self.decoder.thread_count = 1
        self.decoder.options = decoder_options(self.format)
        self.clock = (
            SteadyClock(Fraction(self.stream.time_base), self.decoder.name) if self.format in JOINED_FORMATS else None
        )
        self.entry: int | None = None

    def _video_stream(self) -> Any:
        """The first video that moves; the cover of a music file is a video stream too, but none to train on."""
        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = [s.type for s in self.container.streams]
            counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))) or "no stream at all"
            raise DecodeError(self.path, f"has no video stream (it has {counts})")
        if streams[0].codec_context is None:
            raise DecodeError(
                self.path, "its codec is not supported by this build of FFmpeg: convert it, e.g. to H.264"
            )
        return streams[0]

    def _restart(self) -> None:
        """Back to the first packet, by the one way that needs no index."""
        self.container.close()
        self._open()

    def _seek(self, target: int) -> bool:
        """Move to the keyframe at or before a tick, as well as the format can; False where it cannot."""
        if self.joins and self.table is not None:  # the file's own clock is not ours: its packets are passed over
            self._restart()
            keyframes = self.table.keyframes
            place = int(np.searchsorted(keyframes, target, side="right")) - 1
            self.entry = int(keyframes[place]) if place >= 0 else None
            return place >= 0
        try:
            self.container.seek(target, stream=self.stream)
        except (FFmpegError, OSError, ValueError, OverflowError):
            return False
        self.clock = None
        return True

    def _from_keyframe(self, packets: Iterator[Any], target: int) -> Iterator[Any]:
        """Packets from the first keyframe on; none if it is later than `target`."""
        entry: int | None = None
        for packet in packets:
            time = time_of(packet)
            if entry is None:
                if not packet.is_keyframe or time is None:
                    continue
                entry = time
                if entry > target:
                    return
            elif self.timed and time is not None and time < entry:
                continue  # shown before the keyframe and built on frames from before it, which are not there
            yield packet

    def _packets(self) -> Iterator[Any]:
        """Packets of the video stream from where the demuxer stands to the end of the file."""
        if self.decoder.name == "h264":
            return without_leading(self._demuxed(), self.decoder.extradata)
        return self._demuxed()

    def _demuxed(self) -> Iterator[Any]:
        times = AscendingTimes()
        with plain_words(self.path, "is damaged: its packets cannot be told apart", self.file):
            for packet in self.container.demux(self.stream):
                if not packet.size:  # the empty one at the end asks the decoder for the frames that it still holds
                    continue
                if self.clock is not None:
                    self.clock.correct(packet)
                if (self.clock is not None or self.format in TIMED_FORMATS) and (fault := times.fault(packet)):
                    self._refuse_clock(packet, *fault)
                if self.entry is not None:
                    if packet.pts != self.entry:
                        continue
                    self.entry = None
                yield packet

    def _refuse_clock(self, packet: Any, what: str, before: int) -> None:
        then, now = (float((tick - self.start) * self.tick) for tick in (before, packet.pts))
        where = f"from {then:.1f} to {now:.1f} s" if then != now else f"at {now:.1f} s"
        raise DecodeError(self.path, f"its clock {what} {where}: split it there, or re-encode it")

    def _decoded(self, chosen: Iterable[tuple[Any, bool]]) -> Iterator[Any]:
        """Frames of packets, in the order they are shown.

        Where a packet is not needed its frame may be left out: those that no other frame builds on, which are up to
        two thirds of a video and cost as much as any. The frames that come are the same to the bit.
        """
        frames = self._decode_all(chosen)
        return frames if self.timed else in_order(frames)

    def _decode_all(self, chosen: Iterable[tuple[Any, bool]]) -> Iterator[Any]:
        at: int | None = None
        layered = self.decoder.name in _LAYERED_CODECS
        skipped = None
        for packet, wanted in chosen:
            time = time_of(packet)
            at = at if time is None else time
            skip = not wanted or (layered and packet.is_discard)
            if skip is not skipped:
                self.decoder.skip_frame = "NONREF" if skip else "DEFAULT"
                skipped = skip
            yield from self._decode(packet, at)
        yield from self._decode(None, at)

    def _decode(self, packet: Any, at: int | None) -> list[Any]:
        try:
            frames: list[Any] = self.decoder.decode(packet)
        except READ_ERRORS as error:
            raise in_words(self.path, f"has damaged pictures{self._where(at)}", error) from error
        for frame in frames:
            if frame.pts is None:
                raise DecodeError(self.path, f"has frames without a time{self._where(at)}: convert it, e.g. to MP4")
            if frame.is_corrupt and self.format in STRICT_FORMATS:
                raise DecodeError(self.path, f"has damaged pictures{self._where(at)}")
        return frames

    def _where(self, at: int | None) -> str:
        return "" if at is None else f" at about {float((at - self.start) * self.tick):.1f} s"

    def _seconds(self, frame: Any) -> float:
        """When a frame begins to be shown, in seconds from the start."""
        return float((frame.pts - self.start) * self.tick)
