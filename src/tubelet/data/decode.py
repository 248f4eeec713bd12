"""Files to uint8 frames and their times.

Frames are chosen by their timestamps, never by counting: files of variable frame rate, with edit lists or cut out of a
broadcast have no other truth. Whatever goes wrong with a file is a `DecodeError` that says what it is.
"""

import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from PIL import Image, ImageOps
from torch import Tensor

from tubelet.data.containers import check_complete, check_present, plain_words
from tubelet.types import DecodeError

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".webm", ".avi", ".mov", ".ts"})
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})

_MP4, _MATROSKA, _MPEGTS = "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts"
# These formats store the display time of every packet. AVI does not: there FFmpeg guesses it while it decodes, and
# leaving out pictures would change its guesses.
_TIMED_FORMATS = (_MP4, _MATROSKA, _MPEGTS)
# A broadcast recording may begin or be cut anywhere, and AVI decoders meet slightly odd streams in healthy files: only
# formats whose packets are whole by construction are held to the letter.
_STRICT_FORMATS = (_MP4, _MATROSKA)
_STRICT = {"err_detect": "explode"}
# Decoders hold back at most so many frames to put them in order; a field may be a packet of its own.
_HELD_BACK = 16
_REORDER = 2 * _HELD_BACK
_CLOCK = re.compile(r"(\d+):(\d+):(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class VideoInfo:
    """What a video says about itself.

    Attributes:
        path: the file.
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


def read_info(path: str | Path) -> VideoInfo:
    """Length, rate and size of a video; decodes one frame.

    Raises:
        DecodeError: the file cannot be read as a video.
    """
    with _Video(str(path)) as video:
        return video.info()


def read_clips(path: str | Path, choose: Callable[[VideoInfo], list[np.ndarray]]) -> tuple[VideoInfo, list[Frames]]:
    """Clips of one video, which is opened once.

    Args:
        path: the file.
        choose: given the video's info, the times (T,) of each clip's frames in seconds from the video's start,
            ascending.

    Returns:
        The info, and for each clip the frames shown at its times: at time t, the last frame that begins at or before
        t; before the first frame, the first.

    Raises:
        DecodeError: the file cannot be read, ends before a wanted time, or has a single frame while a clip wants more.
    """
    with _Video(str(path)) as video:
        info = video.info()
        wanted = [np.asarray(times, dtype=np.float64) for times in choose(info)]
        return info, [video.clip(times) for times in wanted]


def read_frames(path: str | Path) -> Frames:
    """Every frame of a short video.

    Raises:
        DecodeError: the file cannot be read as a video.
    """
    with _Video(str(path)) as video:
        return video.everything()


def read_image(path: str | Path) -> Tensor:
    """A still image, upright as its EXIF tag asks.

    Returns:
        (H, W, 3) uint8 RGB. Transparency is dropped; of an animation, the first picture.

    Raises:
        DecodeError: the file is missing, no image, damaged, cut off, or has more pixels than Pillow allows.
    """
    name = str(path)
    check_present(name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(name) as image:
                upright = ImageOps.exif_transpose(image)
                if upright.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip instead of scale
                    upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
                pixels = np.array(upright.convert("RGB"))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = Image.MAX_IMAGE_PIXELS or 0
        raise DecodeError(name, f"has more than {limit / 1e6:.0f} million pixels: make it smaller") from error
    except Image.UnidentifiedImageError as error:
        raise DecodeError(name, "is not an image that Pillow can read, or its beginning is damaged") from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError) as error:
        # Pillow's decoders raise all of these on damaged files.
        raise DecodeError(name, f"is damaged or cut off ({error})") from error
    return torch.from_numpy(pixels)


class _Video:
    """One open video file: its demuxer, its decoder and where its clock starts."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.rotation = 0
        self.duration_s = 0.0
        check_present(path)
        check_complete(path)
        self._open()
        self.timed = self.format in _TIMED_FORMATS
        self.skipping = self.timed
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

    def _open(self) -> None:
        with plain_words(self.path, "is not a media file, or its beginning is damaged"):
            self.container = av.open(self.path, metadata_errors="ignore")
        self.format = self.container.format.name
        try:
            self.stream = self._video_stream()
        except DecodeError:
            self.container.close()
            raise
        self.decoder = self.stream.codec_context
        # Videos are spread over worker processes: more threads in each would only fight over the cores.
        self.decoder.thread_type = "NONE"
        self.decoder.thread_count = 1
        if self.format in _STRICT_FORMATS:
            self.decoder.options = dict(_STRICT)

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
        width, height = first.width, first.height
        if self.rotation % 180:
            width, height = height, width
        return VideoInfo(self.path, self.duration_s, self._fps(), width, height, self.rotation)

    def clip(self, times: np.ndarray) -> Frames:
        """The frames shown at ascending `times` (T,) in seconds from the start."""
        if len(times) == 0 or np.any(np.diff(times) < 0):
            raise ValueError(f"a clip needs ascending times, got {times}")
        targets = self.start + np.floor((times + self.tolerance_s) / float(self.tick)).astype(np.int64)
        found = self._find(targets)
        if len(times) > 1 and len(found) == 1 and self._has_one_frame():
            raise DecodeError(self.path, "has 1 frame; a video needs at least 2: save it as an image")
        return self._frames(found)

    def everything(self) -> Frames:
        """All frames of a file that has just been opened."""
        found = [(frame, 1) for frame in self._decoded(self._packets(), None)]
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
        if clock := _CLOCK.fullmatch(self.stream.metadata.get("DURATION", "")):
            hours, minutes, seconds = (float(part) for part in clock.groups())
            duration = 3600 * hours + 60 * minutes + seconds - start_s
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
        return max((_time_of(p) + (p.duration or 0) for p in packets if _time_of(p) is not None), default=0)

    def _has_one_frame(self) -> bool:
        self._restart()
        packets = self._packets()
        return next(packets, None) is not None and next(packets, None) is None

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
            if packets and (from_start or _time_of(packets[0]) <= targets[0]):
                found = self._select(self._decoded(iter(packets), needed), targets, ended)
            if found and needed is not None and not all(frame.pts in needed for frame, _ in found):
                # This decoder names its frames by other times than their packets': nothing can be left out.
                self.skipping = False
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
            time = _time_of(packet)
            if not packets and not from_start and (not packet.is_keyframe or time is None):
                continue
            if packets and not from_start and self.timed and time is not None and time < _time_of(packets[0]):
                continue  # shown before the keyframe and built on pictures from before it, which are not there
            packets.append(packet)
            beyond += time is not None and time > last
            # Nothing is shown before it is decoded, so a decoding time says that all later packets are later.
            if beyond >= _REORDER or (self.timed and packet.dts is not None and packet.dts > last):
                return packets, False
        return packets, True

    def _needed(self, packets: list[Any], targets: np.ndarray) -> set[int] | None:
        """Display times of the packets whose frames are shown at `targets`; None where the packets do not tell."""
        if not self.skipping or any(packet.pts is None for packet in packets):
            return None
        times = np.unique([packet.pts for packet in packets if not packet.is_discard])
        if len(times) == 0:
            return None
        places = np.maximum(np.searchsorted(times, targets, side="right") - 1, 0)
        return set(times[places].tolist())

    def _select(self, frames: Iterator[Any], targets: np.ndarray, ended: bool) -> list[tuple[Any, int]]:
        """Of frames in the order they are shown, those shown at `targets`, each with how many targets it serves."""
        found: list[tuple[Any, int]] = []
        served = 0
        shown = None
        for frame in frames:
            if shown is not None:
                if frame.pts <= shown.pts:
                    continue  # a clock that jumps back: the frame has no place in the order
                reached = int(np.searchsorted(targets, frame.pts))
                if reached > served:
                    found.append((shown, reached - served))
                    served = reached
                if served == len(targets):
                    return found
            shown = frame
        if shown is not None:
            if ended:
                self._check_end(shown, int(targets[-1]))
            found.append((shown, len(targets) - served))
        return found

    def _check_end(self, final: Any, last: int) -> None:
        """Complain if the file's final frame is over long before a wanted tick that lies within the promised length."""
        end_s = float((final.pts + (final.duration or 0) - self.start) * self.tick)
        wanted_s = min(float((last - self.start) * self.tick), self.duration_s)
        if wanted_s - end_s > max(1.0, 0.1 * self.duration_s):
            raise DecodeError(self.path, f"ends at {end_s:.1f} s, its header promises {self.duration_s:.1f} s: cut off")

    def _packets(self) -> Iterator[Any]:
        """Packets of the video stream from where the demuxer stands to the end of the file."""
        with plain_words(self.path, "is damaged: its packets cannot be told apart"):
            for packet in self.container.demux(self.stream):
                if packet.size:  # the empty one at the end asks the decoder for the frames that it still holds
                    yield packet

    def _decoded(self, packets: Iterator[Any], needed: set[int] | None) -> Iterator[Any]:
        """Frames of packets, in the order they are shown.

        With `needed`, frames at other times may be left out: those that no other frame builds on, which are up to
        two thirds of a video and cost as much as any. The frames that come are the same to the bit.
        """
        frames = self._decode_all(packets, needed)
        return frames if self.timed else _in_order(frames)

    def _decode_all(self, packets: Iterator[Any], needed: set[int] | None) -> Iterator[Any]:
        at: int | None = None
        for packet in packets:
            at = at if _time_of(packet) is None else _time_of(packet)
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
            if frame.is_corrupt and self.format in _STRICT_FORMATS:
                raise DecodeError(self.path, f"has damaged pictures{where}")
        return frames

    def _frames(self, found: list[tuple[Any, int]]) -> Frames:
        """Frames, each so many times, as pixels and seconds."""
        height, width = found[0][0].height, found[0][0].width
        count = sum(repeats for _, repeats in found)
        upright = (width, height) if self.rotation % 180 else (height, width)
        pixels = np.empty((count, *upright, 3), dtype=np.uint8)
        times = np.empty(count, dtype=np.float64)
        converter = VideoReformatter()  # one for all: it sets itself up for a format once
        at = 0
        for frame, repeats in found:
            if (frame.height, frame.width) != (height, width):
                sizes = f"from {width}x{height} to {frame.width}x{frame.height}"
                raise DecodeError(self.path, f"changes its size {sizes} on the way: split it there")
            with plain_words(self.path, f"has pixels of a format ({frame.format.name}) that cannot become RGB"):
                # Unless told not to, PyAV converts the colours of each frame on all cores.
                picture = converter.reformat(frame, format="rgb24", threads=1).to_ndarray()
            pixels[at : at + repeats] = np.rot90(picture, self.rotation // 90)
            times[at : at + repeats] = float((frame.pts - self.start) * self.tick)
            at += repeats
        return Frames(torch.from_numpy(pixels), times)


def _time_of(packet: Any) -> Any:
    """When a packet's frame is shown, in ticks; else when it is decoded; None if neither is known."""
    return packet.dts if packet.pts is None else packet.pts


def _in_order(frames: Iterator[Any]) -> Iterator[Any]:
    """Frames in the order they are shown, with times that ascend: the guessed ones are those of the decoding order."""
    waiting: deque[Any] = deque()
    times: list[int] = []
    for frame in frames:
        waiting.append(frame)
        heappush(times, frame.pts)
        if len(waiting) > _HELD_BACK:
            yield _retimed(waiting.popleft(), heappop(times))
    while waiting:
        yield _retimed(waiting.popleft(), heappop(times))


def _retimed(frame: Any, pts: int) -> Any:
    frame.pts = pts
    return frame
