"""Whether a reader reads a file of the corpus as its truth says, property by property."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.error import FFmpegError
from av.filter import Graph
from av.video.reformatter import Interpolation

from tests.helpers.video_cards import circle_ratio, combing, read_number, read_patches
from tests.helpers.video_corpus import Truth

# Containers count time in milliseconds at the coarsest; FLV rounds frame by frame.
_TICK_S = 2e-3
_COMBED = 0.25


@dataclass(frozen=True)
class Opened:
    """A video as a reader opens it.

    Attributes:
        every: all frames in order, (H, W, 3) RGB, and their seconds by the reader's own clock.
        clips: for each of several clips, the frames shown at its ascending seconds of that clock.
        duration_s: as the reader reports it; None if it does not.
        fps: as the reader reports it; None if it does not.
        start_s: where the reader's clock begins, if that is part of its contract.
        size: width and height as reported; None if not.
        reported: what the reader reports that it does not convert.
    """

    every: tuple[Sequence[Any], np.ndarray]
    clips: Callable[[Sequence[np.ndarray]], Sequence[Sequence[Any]]]
    duration_s: float | None = None
    fps: float | None = None
    start_s: float | None = None
    size: tuple[int, int] | None = None
    reported: tuple[str, ...] = ()


# Opens a file; raises what the reader raises for a file that it refuses.
Reader = Callable[[Path], AbstractContextManager[Opened]]


@dataclass(frozen=True)
class Verdict:
    """How a reader does on a file.

    Attributes:
        kind: "right", "refused" or "wrong".
        fits: whether this is what the truth asks for.
        detail: what is wrong, or the reason of the refusal.
        frames: what was read, (H, W, 3) RGB each.
    """

    kind: str
    fits: bool
    detail: str = ""
    frames: Sequence[Any] = ()


def judge(reader: Reader, path: Path, truth: Truth, refusals: tuple[type[Exception], ...], reasons: bool) -> Verdict:
    """Let a reader read a file of the corpus.

    Args:
        reader: the reader.
        path: the file.
        truth: what is right.
        refusals: what the reader raises for a file that it does not take.
        reasons: whether the words of a refusal must match those that the truth asks for.
    """
    try:
        with reader(path) as opened:
            found = problems(opened, truth) if truth.numbers else ["read without an error"]
            frames = opened.every[0]
    except refusals as error:
        words = str(error).replace(str(path), "").lstrip(": ").splitlines()[0]
        allowed = truth.refused is not None and (not reasons or re.search(truth.refused, words) is not None)
        return Verdict("refused", allowed, words)
    except Exception as error:
        return Verdict("wrong", False, f"raises {type(error).__name__}: {error}")
    return Verdict("wrong" if found else "right", not found, "; ".join(found), frames)


def problems(opened: Opened, truth: Truth) -> list[str]:
    """What is wrong in a reading; empty if all is right."""
    pixels, times = opened.every
    if np.any(np.diff(times) <= 0):
        at = int(np.argmax(np.diff(times) <= 0))
        return [f"times do not ascend: {times[at]:.2f} s, then {times[at + 1]:.2f} s"]
    numbers = [read_number(p) for p in pixels]
    firm = [i for i, number in enumerate(numbers) if number not in truth.optional]
    expected = [number for number in truth.numbers if number not in truth.optional]
    starts = np.array([s for s, number in zip(truth.starts, truth.numbers, strict=True) if number in set(expected)])
    if [numbers[i] for i in firm] != expected:
        return [_difference([numbers[i] for i in firm], expected)]
    found = list(_time_problems(opened, truth, times[firm], starts))
    found += _access_problems(opened, truth, times[firm][0] - starts[0])
    found += _look_problems(opened, truth, [pixels[i] for i in firm])
    return found


def _difference(found: list[int], expected: list[int]) -> str:
    if sorted(found) == sorted(expected):
        return "frames out of order"
    if len(found) > len(expected) and sum(a == b for a, b in pairwise(found)) > sum(
        a == b for a, b in pairwise(expected)
    ):
        return f"{len(found)} frames for {len(expected)}, some twice"
    if not set(found) & set(expected) and len(found) == len(expected):
        return "other frames"
    if extra := [number for number in found if number not in expected]:
        return f"{len(extra)} frames that are not shown ({_ranges(extra)})"
    if missing := [number for number in expected if number not in found]:
        return f"{len(missing)} of {len(expected)} frames are missing ({_ranges(missing)})"
    return f"{len(found)} frames for {len(expected)}"


def _ranges(numbers: list[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}..{numbers[-1]}"


def _time_problems(opened: Opened, truth: Truth, times: np.ndarray, starts: np.ndarray) -> Iterator[str]:
    shift = times[0] - starts[0]
    off = np.abs(times - shift - starts)
    if off.max() > _TICK_S:
        worst = int(off.argmax())
        yield f"times off by up to {off.max():.2f} s (frame {worst} at {times[worst] - shift:.3f} s)"
    if opened.start_s is not None and abs(shift - opened.start_s) > truth.lead_s + _TICK_S:
        yield f"starts at {shift - opened.start_s:.2f} s"
    lasts = np.diff(truth.starts)
    allowed = max(1.01 * lasts.max(), 0.02 * truth.duration_s) + truth.lead_s
    if opened.duration_s is not None and abs(opened.duration_s - truth.duration_s) > allowed:
        yield f"duration {opened.duration_s:.2f} s, right {truth.duration_s:.2f} s"
    steady = lasts.max() - lasts.min() < 1e-6
    rate = 1 / lasts.mean()
    if opened.fps is not None and steady and abs(opened.fps - rate) > 0.05 * rate:
        yield f"{opened.fps:.2f} frames per second, right {rate:.2f}"


def _access_problems(opened: Opened, truth: Truth, shift: float) -> Iterator[str]:
    """Random access, in no order, at times within the frames that everyone must show."""
    rng = np.random.default_rng(0)
    ends = np.append(truth.starts[1:], truth.duration_s)
    length = ends - truth.starts
    firm = np.flatnonzero([number not in truth.optional for number in truth.numbers])
    chosen, seconds = [], []
    for _ in range(10):
        frames = np.sort(rng.choice(firm, rng.integers(1, 6)))
        inside = np.minimum(rng.uniform(0.1, 0.9, len(frames)) * length[frames], 5.0)
        seconds.append(np.sort(np.array(truth.starts)[frames] + np.maximum(inside, 2 * _TICK_S) + shift))
        chosen.append(frames)
    expected = [truth.numbers[i] for frames in chosen for i in frames]
    found = [read_number(p) for clip in opened.clips(seconds) for p in clip]
    places = zip(np.concatenate(seconds), found, expected, strict=True)
    if wrong := [(second, number, right) for second, number, right in places if number != right]:
        second, number, right = wrong[0]
        example = f"frame {number} at {second - shift:.2f} s, right {right}"
        yield f"random access: {len(wrong)} of {len(expected)} frames wrong ({example})"


def _look_problems(opened: Opened, truth: Truth, pixels: list[Any]) -> Iterator[str]:
    last = np.asarray(pixels[-1])
    height, width = last.shape[:2]
    if truth.size is not None and (width, height) != truth.size:
        yield f"size {width}x{height}, right {truth.size[0]}x{truth.size[1]}"
    if opened.size is not None and opened.size != (width, height):
        yield f"reports {opened.size[0]}x{opened.size[1]}, delivers {width}x{height}"
    if abs(width / height / truth.aspect - 1) > 0.04:
        yield f"aspect {width / height:.2f}, right {truth.aspect:.2f}"
    if truth.interlaced:
        comb = float(np.median([combing(p) for p in pixels[2:-2]]))
        if comb > _COMBED:
            yield f"combed (interlaced lines, {comb:.1f})"
        return
    if truth.circle and not 0.85 < (ratio := circle_ratio(last)) < 1.18:
        yield f"circle {ratio:.2f} times as wide as high"
    if truth.patches is not None:
        found = read_patches(last)
        off = np.abs(found - truth.patches).max(1)
        if off.max() > truth.tolerance:
            worst = int(off.argmax())
            yield f"color {found[worst].round().astype(int).tolist()}, right {truth.patches[worst].tolist()}"


# Readers


@contextmanager
def tubelet_reader(path: Path) -> Iterator[Opened]:
    """The package: all frames, one pass, and clips by time must agree to the bit."""
    from tests.helpers.decoding import decode_clips
    from tubelet.data.decode import Video, read_frames

    frames = read_frames(path)
    pixels = frames.pixels.numpy()
    if np.any(np.diff(frames.times) <= 0):
        yield Opened((list(pixels), frames.times), lambda clips: [])
        return
    with Video(path) as video:
        info = video.info
        middles = frames.times + 0.4 * np.diff(frames.times, append=frames.times[-1] + 1 / max(info.fps, 1))
        passed = [np.array(image) for image, _, repeats in video.scan(middles) for _ in range(repeats)]
    if not np.array_equal(np.array(passed), pixels):
        raise AssertionError(f"one pass gives {len(passed)} frames, reading all {len(pixels)}, or other pixels")
    places = {second: place for place, second in enumerate(frames.times.tolist())}

    def clips(seconds: Sequence[np.ndarray]) -> Sequence[Sequence[Any]]:
        found = decode_clips(path, list(seconds))
        for clip in found:
            if not np.array_equal(clip.pixels.numpy(), pixels[[places[second] for second in clip.times.tolist()]]):
                raise AssertionError(f"a clip has other pixels than the whole video, at {clip.times} s")
        return [clip.pixels.numpy() for clip in found]

    size = (info.width, info.height)
    yield Opened((list(pixels), frames.times), clips, info.duration_s, info.fps, 0.0, size)


def decoded(path: Path, tolerant: bool) -> tuple[list[Any], Fraction]:
    """All frames by FFmpeg's libraries without any options, and the ratio of a pixel's sides.

    Args:
        path: the file.
        tolerant: go on after a packet that cannot be decoded, as players do.
    """
    frames = []
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic)
        stream.codec_context.thread_count = 1
        for packet in container.demux(stream):
            try:
                frames += packet.decode()
            except FFmpegError:
                if not tolerant:
                    raise
        sar = stream.sample_aspect_ratio or stream.codec_context.sample_aspect_ratio or Fraction(1)
    return frames, sar


def rgb(frame: Any) -> np.ndarray:
    """(H, W, 3) uint8, converted on one core; of more than 8 bits with swscale's exact arithmetic."""
    deep = frame.format.components[0].bits > 8
    exact = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    return frame.reformat(format="rgb24", interpolation=exact if deep else None, threads=1).to_ndarray()


def among(pixels: Sequence[Any], times: np.ndarray) -> Callable[[Sequence[np.ndarray]], Sequence[Sequence[Any]]]:
    """Random access to frames that are all there."""

    def clips(seconds: Sequence[np.ndarray]) -> Sequence[Sequence[Any]]:
        places = [np.searchsorted(times, clip + 1e-6, side="right") - 1 for clip in seconds]
        return [[pixels[max(place, 0)] for place in clip] for clip in places]

    return clips


@contextmanager
def pyav_reader(path: Path) -> Iterator[Opened]:
    """FFmpeg's libraries as they come: every frame in RGB, nothing else done."""
    frames, _ = decoded(path, tolerant=False)
    pixels = [rgb(frame) for frame in frames]
    times = np.array([frame.time if frame.time is not None else np.nan for frame in frames])
    yield Opened((pixels, times), among(pixels, times))


@contextmanager
def player_reader(path: Path) -> Iterator[Opened]:
    """FFmpeg's libraries with the filters of a player: fields, orientation, square pixels, standard dynamic range."""
    frames, sar = decoded(path, tolerant=True)
    pixels, times = [], []
    graph = None
    for frame in frames:
        if graph is None:
            graph = _player(frame, sar)
        graph.push(frame)
        _pull(graph, pixels, times)
    if graph is not None:
        graph.push(None)
        _pull(graph, pixels, times)
    seconds = np.array(times)
    yield Opened((pixels, seconds), among(pixels, seconds))


def _pull(graph: Any, pixels: list[Any], times: list[float]) -> None:
    while True:
        try:
            frame = graph.pull()
        except (FFmpegError, EOFError):
            return
        pixels.append(rgb(frame))
        times.append(float(frame.pts * frame.time_base))


def _player(frame: Any, sar: Fraction) -> Any:
    filters: list[tuple[str, str]] = []
    if frame.interlaced_frame:
        filters.append(("yadif", "mode=send_frame"))
    if frame.color_trc in (16, 18):
        filters.append(("scale", "out_primaries=bt709:out_transfer=bt709:out_color_matrix=bt709:intent=perceptual"))
        filters.append(("format", "gbrp"))
    if sar not in (0, 1):
        filters.append(("scale", f"w=round(iw*{sar}):h=ih"))
        filters.append(("setsar", "1"))
    data = next((d for d in frame.side_data if d.type.name == "DISPLAYMATRIX"), None)
    if data is not None:
        a, b, _, c, d = np.sign(np.frombuffer(bytes(data), dtype="<i4")[:5]).tolist()
        filters += _ORIENTATIONS[a, b, c, d]
    graph = Graph()
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)]
    nodes += [graph.add(name, options) for name, options in filters]
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes)
    graph.configure()
    return graph


_ORIENTATIONS = {
    (1, 0, 0, 1): [],
    (0, 1, -1, 0): [("transpose", "clock")],
    (-1, 0, 0, -1): [("hflip", ""), ("vflip", "")],
    (0, -1, 1, 0): [("transpose", "cclock")],
    (-1, 0, 0, 1): [("hflip", "")],
    (1, 0, 0, -1): [("vflip", "")],
    (0, 1, 1, 0): [("transpose", "cclock_flip")],
    (0, -1, -1, 0): [("transpose", "clock_flip")],
}
