"""Files to uint8 frames and their times.

Frames are chosen by their timestamps, never by counting: files of variable frame rate, with edit lists or cut out of a
broadcast have no other truth. Whatever goes wrong with a file is a `DecodeError` that says what it is.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from torch import Tensor

from tubelet.data.clock import HELD_BACK, clock_seconds, in_order, shown_at, time_of
from tubelet.data.containers import (
    STRICT_FORMATS,
    TIMED_FORMATS,
    Media,
    decoder_options,
    name_of,
    open_container,
    open_whole,
    plain_words,
)
from tubelet.data.limits import check_clip, check_duration, check_picture
from tubelet.data.passes import Scan, in_one_pass
from tubelet.types import DecodeError

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".avi", ".mov", ".ts"})

# Decoders hold back at most so many frames to put them in order; a field may be a packet of its own.
_REORDER = 2 * HELD_BACK


@dataclass(frozen=True)
class VideoInfo:
    """What a video says about itself.

    Attributes:
        path: the file, or the name of a `Blob`.
        duration_s: of the video stream, in seconds.
        fps: frames per second, on average.
        width: pixels, after rotation.
        height: pixels, after rotation.
        rotation: degrees (0, 90, 180, 270) by which frames were turned counter-clockwise to stand upright.
    """

    path: str
    duration_s: float
    fps: float
    width: int
    height: int
    rotation: int


@dataclass(frozen=True)
class Frames:
    """Decoded frames.

    Attributes:
        pixels: (T, H, W, 3) uint8 RGB, upright.
        times: (T,) float64, seconds from the video's start at which each delivered frame begins to be shown.
    """

    pixels: Tensor
    times: np.ndarray


def read_info(media: Media) -> VideoInfo:
    """Length, rate and size of a video; decodes one frame.

    Raises:
        DecodeError: the file cannot be read as a video.
    """
    with _Video(media) as video:
        return video.info()


def read_clips(media: Media, choose: Callable[[VideoInfo], list[np.ndarray]]) -> tuple[VideoInfo, list[Frames]]:
    """Clips of one video, which is opened once.

    Args:
        media: the file.
        choose: given the video's info, the times (T,) of each clip's frames in seconds from the video's start,
            ascending.

    Returns:
        The info, and for each clip the frames shown at its times: at time t, the last frame that begins at or before
        t; before the first frame, the first.

    Raises:
        DecodeError: the file cannot be read, ends before a wanted time, or has a single frame while a clip wants more.
    """
    with _Video(media) as video:
        info = video.info()
        wanted = [np.asarray(times, dtype=np.float64) for times in choose(info)]
        return info, [video.clip(times) for times in wanted]


def stream_clips(media: Media, choose: Callable[[VideoInfo], list[np.ndarray]]) -> Iterator[Frames]:
    """As `read_clips`, one clip after the other, so that a film of any length can be read; they ascend."""
    with _Video(media) as video:
        clips = choose(video.info())
        if video.seekable:
            yield from map(video.clip, clips)
        elif clips:
            passed = in_one_pass(video.path, video.scan, clips)
            yield from (Frames(torch.from_numpy(pixels), times) for pixels, times in passed)


def read_frames(media: Media) -> Frames:
    """Every frame of a short video.

    Raises:
        DecodeError: the file cannot be read as a video.
    """
    with _Video(media) as video:
        return video.everything()


@contextmanager
def open_video(media: Media) -> Iterator[tuple[VideoInfo, Scan]]:
    """A video to be read from end to end, however long: its info, and what passes over its pictures.

    Raises:
        DecodeError: the file cannot be read, here or on the way; see `read_clips`.
    """
    with _Video(media) as video:
        yield video.info(), video.scan


class _Video:
    """One open video file: its demuxer, its decoder and where its clock starts."""

    def __init__(self, media: Media) -> None:
        self.media = media
        self.path = name_of(media)
        self.rotation, self.duration_s = 0, 0.0
        with ExitStack() as opened:
            self.file = opened.enter_context(open_whole(media))
            self._open()
            opened.pop_all()
        self.timed = self.skipping = self.format in TIMED_FORMATS
        # Where display times are guessed, frames that change order get other times after a seek than from the start.
        self.seekable = self.timed or not self.stream.codec_context.has_b_frames
        self.tick = Fraction(self.stream.time_base)
        self.start: int = self.stream.start_time or 0
        # Half a tick is what the container rounds to; more than a millisecond would find frames that are still to come.
        self.tolerance_s = min(float(self.tick) / 2, 1e-3) + 1e-9

    def __enter__(self) -> "_Video":
        return self

    def __exit__(self, *_: object) -> None:
        self.container.close()
        self.file.close()

    def _open(self) -> None:
        with plain_words(self.path, "is not a media file, or its beginning is damaged", self.file):
            self.container: Any = open_container(self.media, self.file)
        self.format = self.container.format.name
        self.stream = self._video_stream()
        self.decoder = self.stream.codec_context
        check_picture(self.path, self.decoder.width, self.decoder.height)
        # Videos are spread over worker processes: more threads in each would only fight over the cores.
        self.decoder.thread_type = "NONE"
        self.decoder.thread_count = 1
        self.decoder.options = decoder_options(self.format)

    def _video_stream(self) -> Any:
        """The first moving picture; the cover of a music file is a video stream too, but none to train on."""
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

    def info(self) -> VideoInfo:
        """What the header says, and the display rotation, which comes with decoded frames only."""
        first = next(self._decoded(self._packets(), None), None)
        if first is None:
            raise DecodeError(self.path, "has no frames")
        self.rotation = round(first.rotation / 90) % 4 * 90
        self.duration_s = self._duration_s()
        check_duration(self.path, self.duration_s)
        check_picture(self.path, first.width, first.height)
        height, width = self._upright(first, first)
        return VideoInfo(self.path, self.duration_s, self._fps(), width, height, self.rotation)

    def clip(self, times: np.ndarray) -> Frames:
        """The frames shown at ascending `times` (T,) in seconds from the start."""
        found = self._find(self._ticks(times))
        if len(times) > 1 and len(found) == 1:
            self._check_moving()
        return self._frames(found)

    def scan(self, times: np.ndarray, size: tuple[int, int] | None) -> Iterator[tuple[np.ndarray, float, int]]:
        """See `Scan`. Holds a few frames at a time; pictures that no time asks for are skipped where they can be."""
        targets = self._ticks(times)
        converter, served, first = VideoReformatter(), 0, None
        while served < len(targets):
            self._restart()
            needed = self._needed(self._packets(), targets[served:])
            expected = None if needed is None else iter(sorted(needed))
            self._restart()
            for frame, repeats in self._select(self._decoded(self._packets(), needed), targets[served:], ended=True):
                if expected is not None and frame.pts != next(expected, None):
                    self.skipping = False  # see `_find`: over again from where this failed
                    break
                served += repeats
                if repeats == len(targets) > 1:
                    self._check_moving()
                first = first or frame
                height, width = size or self._upright(frame, first)
                yield self._picture(frame, converter, height, width), self._seconds(frame), repeats

    def everything(self) -> Frames:
        """All frames of a file that has just been opened."""
        found: list[tuple[Any, int]] = []
        for frame in self._decoded(self._packets(), None):
            found.append((frame, 1))
            check_clip(self.path, len(found), frame.width, frame.height)
        if not found:
            raise DecodeError(self.path, "has no frames")
        self.rotation = round(found[0][0].rotation / 90) % 4 * 90
        return self._frames(found)

    def _fps(self) -> float:
        """Frames per second; FFmpeg's average is nonsense where a container counts ticks as frames."""
        average = float(self.stream.average_rate or 0)
        guessed = float(self.stream.guessed_rate or 0)
        return average if 0 < average <= 400 else guessed

    def _duration_s(self) -> float:
        """Length of the video stream, from the header if it tells, else from the packets."""
        if self.stream.duration:
            return float(self.stream.duration * self.tick)
        start_s = float(self.start * self.tick)
        if (end_s := clock_seconds(self.stream.metadata.get("DURATION", ""))) is not None:
            duration = end_s - start_s
        elif self.container.duration and len(self.container.streams) == 1:
            duration = self.container.duration / av.time_base - start_s
        else:  # a recording that was never finished, or a header that speaks of the sound as well
            duration = self._measured_s()
        if duration <= 0:
            raise DecodeError(self.path, "has no duration: its header and its frames give no time")
        return duration

    def _measured_s(self) -> float:
        """Length of the video stream by the times of its last packets."""
        end = 0
        if self.container.duration:
            self._seek(round(self.container.duration / av.time_base / self.tick))
            end = self._end_of(self._packets())
        if not end:
            self._restart()
            end = self._end_of(self._packets())
        return float((end - self.start) * self.tick)

    def _end_of(self, packets: Iterator[Any]) -> int:
        """The tick at which the last of `packets` stops being shown; 0 without packets."""
        return max((time_of(p) + (p.duration or 0) for p in packets if time_of(p) is not None), default=0)

    def _check_moving(self) -> None:
        """Complain of a file with a single frame."""
        self._restart()
        packets = self._packets()
        if next(packets, None) is not None and next(packets, None) is None:
            raise DecodeError(self.path, "has 1 frame; a video needs at least 2: save it as an image")

    def _restart(self) -> None:
        """Back to the first packet, by the one way that needs no index."""
        self.container.close()
        self._open()

    def _seek(self, target: int) -> bool:
        """Move to the keyframe at or before a tick, as well as the format can; False where it cannot."""
        try:
            self.container.seek(target, stream=self.stream)
        except (FFmpegError, OSError, ValueError, OverflowError):
            return False
        return True

    def _find(self, targets: np.ndarray) -> list[tuple[Any, int]]:
        """The frames shown at `targets` (T,), in ticks of the stream, each with how many targets it serves."""
        back_s = 0.0
        while True:
            offset = int(targets[0]) - round(back_s / float(self.tick))
            from_start = offset < self.start or not self.seekable or not self._seek(offset)
            if from_start:
                self._restart()
            packets, ended = self._gather(int(targets[-1]), from_start)
            needed = self._needed(packets, targets)
            found: list[tuple[Any, int]] = []
            if packets and (from_start or time_of(packets[0]) <= targets[0]):
                try:
                    found = list(self._select(self._decoded(iter(packets), needed), targets, ended))
                except DecodeError:
                    # A stream that is renewed bit by bit has keyframes that are not whole: go back further.
                    if from_start:
                        raise
            if found and needed is not None and {frame.pts for frame, _ in found} != needed:
                # This decoder names its frames by other times than their packets', or withholds some that others left
                # out were to bring: nothing can be left out, and a decoder that once withheld is opened anew.
                self.skipping = False
                self._restart()
            elif found and (from_start or found[0][0].pts <= targets[0]):
                return found
            elif from_start:
                raise DecodeError(self.path, "has no frames")
            else:
                # The index is wrong or, as in MPEG-TS, there is none and the seek was a guess: go back further.
                back_s = 2 * back_s + 1.0

    def _gather(self, last: int, from_start: bool) -> tuple[list[Any], bool]:
        """The packets that hold all frames up to tick `last`, from a keyframe on, and whether the file ended there."""
        packets: list[Any] = []
        beyond = 0
        for packet in self._packets():
            time = time_of(packet)
            if not packets and not from_start and (not packet.is_keyframe or time is None):
                continue
            if packets and not from_start and self.timed and time is not None and time < time_of(packets[0]):
                continue  # shown before the keyframe and built on pictures from before it, which are not there
            packets.append(packet)
            beyond += time is not None and time > last
            # Nothing is shown before it is decoded, so a decoding time says that all later packets are later.
            if beyond >= _REORDER or (self.timed and packet.dts is not None and packet.dts > last):
                return packets, False
        return packets, True

    def _needed(self, packets: Iterable[Any], targets: np.ndarray) -> set[int] | None:
        """Display times of the packets that are needed for `targets`; None where all are, or they do not tell."""
        return shown_at(packets, targets) if self.skipping else None

    def _select(self, frames: Iterator[Any], targets: np.ndarray, ended: bool) -> Iterator[tuple[Any, int]]:
        """Of frames in the order they are shown, those shown at `targets`, each with how many targets it serves."""
        served = 0
        shown = None
        for frame in frames:
            if shown is not None:
                if frame.pts <= shown.pts:
                    continue  # a clock that jumps back: the frame has no place in the order
                reached = int(np.searchsorted(targets, frame.pts))
                if reached > served:
                    yield shown, reached - served
                    served = reached
                if served == len(targets):
                    return
            shown = frame
        if shown is not None:
            if ended:
                self._check_end(shown, int(targets[-1]))
            yield shown, len(targets) - served

    def _check_end(self, final: Any, last: int) -> None:
        """Complain if the file's final frame is over long before a wanted tick that lies within the promised length."""
        end_s = float((final.pts + (final.duration or 0) - self.start) * self.tick)
        wanted_s = min(float((last - self.start) * self.tick), self.duration_s)
        if wanted_s - end_s > max(1.0, 0.1 * self.duration_s):
            raise DecodeError(self.path, f"ends at {end_s:.1f} s, its header promises {self.duration_s:.1f} s: cut off")

    def _packets(self) -> Iterator[Any]:
        """Packets of the video stream from where the demuxer stands to the end of the file."""
        with plain_words(self.path, "is damaged: its packets cannot be told apart", self.file):
            for packet in self.container.demux(self.stream):
                if packet.size:  # the empty one at the end asks the decoder for the frames that it still holds
                    yield packet

    def _decoded(self, packets: Iterator[Any], needed: set[int] | None) -> Iterator[Any]:
        """Frames of packets, in the order they are shown.

        With `needed`, frames at other times may be left out: those that no other frame builds on, which are up to
        two thirds of a video and cost as much as any. The frames that come are the same to the bit.
        """
        frames = self._decode_all(packets, needed)
        return frames if self.timed else in_order(frames)

    def _decode_all(self, packets: Iterator[Any], needed: set[int] | None) -> Iterator[Any]:
        at: int | None = None
        for packet in packets:
            at = at if time_of(packet) is None else time_of(packet)
            self.decoder.skip_frame = "DEFAULT" if needed is None or packet.pts in needed else "NONREF"
            yield from self._decode(packet, at)
        yield from self._decode(None, at)

    def _decode(self, packet: Any, at: int | None) -> list[Any]:
        where = "" if at is None else f" at about {float((at - self.start) * self.tick):.1f} s"
        with plain_words(self.path, f"has damaged pictures{where}"):
            frames = self.decoder.decode(packet)
        for frame in frames:
            if frame.pts is None:
                raise DecodeError(self.path, f"has frames without a time{where}: convert it, e.g. to MP4")
            if frame.is_corrupt and self.format in STRICT_FORMATS:
                raise DecodeError(self.path, f"has damaged pictures{where}")
        return frames

    def _frames(self, found: list[tuple[Any, int]]) -> Frames:
        """Frames, each so many times, as pixels and seconds."""
        first = found[0][0]
        repeats = [repeats for _, repeats in found]
        check_clip(self.path, sum(repeats), first.width, first.height)
        pixels = np.empty((sum(repeats), *self._upright(first, first), 3), dtype=np.uint8)
        converter = VideoReformatter()  # one for all: it sets itself up for a format once
        for (frame, count), end in zip(found, np.cumsum(repeats), strict=True):
            pixels[end - count : end] = self._picture(frame, converter, *self._upright(frame, first))
        times = np.repeat([self._seconds(frame) for frame, _ in found], repeats)
        return Frames(torch.from_numpy(pixels), times)

    def _upright(self, frame: Any, first: Any) -> tuple[int, int]:
        """Height and width of a frame once it stands upright, which must be those of the first."""
        if (frame.height, frame.width) != (first.height, first.width):
            sizes = f"from {first.width}x{first.height} to {frame.width}x{frame.height}"
            raise DecodeError(self.path, f"changes its size {sizes} on the way: split it there")
        return (frame.width, frame.height) if self.rotation % 180 else (frame.height, frame.width)

    def _picture(self, frame: Any, converter: VideoReformatter, height: int, width: int) -> np.ndarray:
        """A frame as (height, width, 3) uint8 RGB, upright; a view of the converted frame's memory."""
        if self.rotation % 180:
            height, width = width, height
        with plain_words(self.path, f"has pixels of a format ({frame.format.name}) that cannot become RGB"):
            # Unless told not to, PyAV converts the colours of each frame on all cores.
            picture = converter.reformat(
                frame, width, height, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1
            )
            plane: Any = picture.planes[0]
            rows = np.frombuffer(plane, dtype=np.uint8).reshape(-1, plane.line_size)  # rows may end in padding
        return np.rot90(rows[:height, : 3 * width].reshape(height, width, 3), self.rotation // 90)

    def _ticks(self, times: np.ndarray) -> np.ndarray:
        """Ascending seconds from the start as ticks of the stream's clock."""
        if len(times) == 0 or np.any(np.diff(times) < 0):
            raise ValueError(f"a clip needs ascending times, got {times}")
        return self.start + np.floor((times + self.tolerance_s) / float(self.tick)).astype(np.int64)

    def _seconds(self, frame: Any) -> float:
        """When a frame begins to be shown, in seconds from the start."""
        return float((frame.pts - self.start) * self.tick)
