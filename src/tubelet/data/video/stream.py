"""The video stream of a file: its packets with corrected timestamps, and the frames that they decode to."""

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
    as_decode_error,
    decoder_options,
    media_name,
    open_container,
    to_decode_error,
)
from tubelet.data.file_types import FLV, MATROSKA, MP4, MPEG_PS, MPEG_TS
from tubelet.data.size_limits import check_frame_size
from tubelet.data.video.container_header import open_validated
from tubelet.data.video.open_gop import drop_leading_pictures
from tubelet.data.video.timestamps import (
    PacketTable,
    TimestampCorrector,
    TimestampOrderCheck,
    pts_or_dts,
    reorder_by_pts,
)
from tubelet.errors import DecodeError, TubeletError

# Formats that store presentation timestamps. In others FFmpeg may guess them while it decodes, and skipping frames
# would change its guesses.
TIMED_FORMATS = (MP4, MATROSKA, MPEG_TS, FLV)
# Streams that are often concatenated, so that their timestamps may jump.
JOINED_FORMATS = (MPEG_TS, MPEG_PS)
# Codecs whose decoders can skip frames that are not shown without any other change.
_LAYERED_CODECS = ("h264", "hevc")


class VideoStream:
    """One open video: its demuxer and its decoder.

    Attributes:
        path: name of the file, for messages.
        format: FFmpeg's name of the container.
        stream: FFmpeg's stream.
        tick: seconds of a tick of its time base.
        start: the tick at which the presentation starts.
        first: the tick of the media at which the first frame begins.
        timed: whether packets have presentation timestamps.
        seekable: whether frames are the same after a seek as from the start.
        table: table of all packets, if they have been read.
        joins: number of jumps of the timestamps.
    """

    def __init__(self, media: Media) -> None:
        self.media = media
        self.path = media_name(media)
        self.options: dict[str, str] = {}
        self.table: PacketTable | None = None
        self.start = self.first = 0
        self.timed = self.seekable = True
        self.joins = 0
        with ExitStack() as opened:
            self.file, self.header = open_validated(media)
            opened.callback(self.file.close)
            self._open()
            opened.pop_all()
        self.tick = Fraction(self.stream.time_base)

    def close(self) -> None:
        """Close the demuxer and the file."""
        self.container.close()
        self.file.close()

    def _open(self) -> None:
        with as_decode_error(self.path, "not a media file, or its header is corrupt", self.file):
            self.container: Any = open_container(self.media, self.file, self.options)
        self.format = self.container.format.name
        self.stream = self._video_stream()
        self.decoder = self.stream.codec_context
        check_frame_size(self.path, self.decoder.width, self.decoder.height)
        # Videos are distributed over worker processes: more threads in each would compete for the cores.
        self.decoder.thread_type = "NONE"
        self.decoder.thread_count = 1
        self.decoder.options = decoder_options(self.format)
        self.corrector = (
            TimestampCorrector(Fraction(self.stream.time_base), self.decoder.name)
            if self.format in JOINED_FORMATS
            else None
        )
        self.entry: int | None = None

    def _video_stream(self) -> Any:
        """The first video stream that is not the cover image of an audio file."""
        streams = [s for s in self.container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            kinds = [s.type for s in self.container.streams]
            counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))) or "no stream at all"
            raise DecodeError(self.path, f"has no video stream (it has {counts})")
        if streams[0].codec_context is None:
            raise DecodeError(
                self.path, "its codec is not supported by this build of FFmpeg; convert it, e.g. to H.264"
            )
        return streams[0]

    def _restart(self) -> None:
        """Open the file again, the one way to rewind that needs no index."""
        self.container.close()
        self._open()

    def _seek(self, target: int) -> bool:
        """Seek to the keyframe at or before a tick, as well as the format can; False where it cannot."""
        if (
            self.joins and self.table is not None
        ):  # the file's own timestamps are not the corrected ones: packets are skipped
            self._restart()
            keyframes = self.table.keyframes
            index = int(np.searchsorted(keyframes, target, side="right")) - 1
            self.entry = int(keyframes[index]) if index >= 0 else None
            return index >= 0
        try:
            self.container.seek(target, stream=self.stream)
        except TubeletError:
            raise
        except (FFmpegError, OSError, ValueError, OverflowError):
            return False
        self.corrector = None
        return True

    def _from_keyframe(self, packets: Iterator[Any], target: int) -> Iterator[Any]:
        """Packets from the first keyframe on; none if it is later than `target`."""
        entry: int | None = None
        for packet in packets:
            time = pts_or_dts(packet)
            if entry is None:
                if not packet.is_keyframe or time is None:
                    continue
                entry = time
                if entry > target:
                    return
            elif self.timed and time is not None and time < entry:
                continue  # shown before the keyframe and predicted from missing frames before it
            yield packet

    def _packets(self) -> Iterator[Any]:
        """Packets of the video stream from the position of the demuxer to the end of the file."""
        if self.decoder.name == "h264":
            return drop_leading_pictures(self._demuxed(), self.decoder.extradata)
        return self._demuxed()

    def _demuxed(self) -> Iterator[Any]:
        times = TimestampOrderCheck()
        with as_decode_error(self.path, "corrupt: its packets cannot be parsed", self.file):
            for packet in self.container.demux(self.stream):
                if not packet.size:  # the empty one at the end would flush the decoder
                    continue
                if self.corrector is not None:
                    self.corrector.correct(packet)
                if (self.corrector is not None or self.format in TIMED_FORMATS) and (fault := times.fault(packet)):
                    self._raise_timestamp_error(packet, *fault)
                if self.entry is not None:
                    if packet.pts != self.entry:
                        continue
                    self.entry = None
                yield packet

    def _raise_timestamp_error(self, packet: Any, what: str, before: int) -> None:
        then, now = (float((tick - self.start) * self.tick) for tick in (before, packet.pts))
        where = f"from {then:.1f} to {now:.1f} s" if then != now else f"at {now:.1f} s"
        raise DecodeError(self.path, f"timestamps {what} {where}; split it there, or re-encode it")

    def _decoded(self, chosen: Iterable[tuple[Any, bool]]) -> Iterator[Any]:
        """Frames of packets, in presentation order.

        Frames of packets that are not required are skipped if no other frame is predicted from them, which are up to
        two thirds of a video and cost as much as any. The returned frames are the same to the bit.
        """
        frames = self._decode_all(chosen)
        return frames if self.timed else reorder_by_pts(frames)

    def _decode_all(self, chosen: Iterable[tuple[Any, bool]]) -> Iterator[Any]:
        at: int | None = None
        layered = self.decoder.name in _LAYERED_CODECS
        skipped = None
        for packet, required in chosen:
            time = pts_or_dts(packet)
            at = at if time is None else time
            skip = not required or (layered and packet.is_discard)
            if skip is not skipped:
                self.decoder.skip_frame = "NONREF" if skip else "DEFAULT"
                skipped = skip
            yield from self._decode(packet, at)
        yield from self._decode(None, at)

    def _decode(self, packet: Any, at: int | None) -> list[Any]:
        try:
            frames: list[Any] = self.decoder.decode(packet)
        except READ_ERRORS as error:
            raise to_decode_error(self.path, f"corrupt frames{self._where(at)}", error) from error
        for frame in frames:
            if frame.pts is None:
                raise DecodeError(self.path, f"frames without timestamps{self._where(at)}; convert it, e.g. to MP4")
            if frame.is_corrupt and self.format in STRICT_FORMATS:
                raise DecodeError(self.path, f"corrupt frames{self._where(at)}")
        return frames

    def _where(self, at: int | None) -> str:
        return "" if at is None else f" near {float((at - self.start) * self.tick):.1f} s"

    def _seconds(self, frame: Any) -> float:
        """Seconds from the start at which a frame begins to be shown."""
        return float((frame.pts - self.start) * self.tick)
