"""Making small videos by code: encoders with their arithmetic of color, stream copies, surgery on MP4 boxes."""

import struct
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.bitstream import BitStreamFilterContext

from tests.helpers.video_cards import card, to_yuv

FPS = 12
_TICKS = 12_000  # per second, a multiple of the rates used here


def encode(
    path: Path,
    codec: str = "libx264",
    cards: Iterable[np.ndarray] | None = None,
    frames: int = 48,
    first: int = 0,
    fps: float = FPS,
    times: Sequence[float] | None = None,
    pix_fmt: str = "yuv420p",
    matrix: str = "bt601",
    full: bool = False,
    tags: tuple[int, int, int] | None = None,
    sar: Fraction | None = None,
    top_first: bool | None = None,
    bframes: int = 2,
    gop: int = 12,
    options: dict[str, str] | None = None,
    muxing: dict[str, str] | None = None,
    container: str | None = None,
    tag: str | None = None,
) -> Path:
    """A video of `cards`, as they are stored; frame i is shown from i / fps, or from `times[i]`, on."""
    pictures = [card(i % 256) for i in range(first, first + frames)] if cards is None else list(cards)
    height, width = pictures[0].shape[:2]
    rate = Fraction(fps).limit_denominator(1001)
    ticks = Fraction(rate) if times is None and (codec in _COARSE or path.suffix == ".avi") else Fraction(_TICKS)
    with av.open(str(path), "w", format=container, options=muxing or {}) as file:
        stream = file.add_stream(codec, rate=rate, options=encoder_options(codec, bframes, gop) | (options or {}))
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        context = stream.codec_context
        context.time_base, context.thread_count = 1 / ticks, 1
        if tag is not None:
            context.codec_tag = tag
        if sar is not None:
            context.sample_aspect_ratio = sar
        if tags is not None:
            context.color_primaries, context.color_trc, context.colorspace = tags
            context.color_range = 2 if full else 1
        for number, pixels in enumerate(pictures):
            frame = frame_of(pixels, pix_fmt, matrix, full)
            frame.pts = round((number / fps if times is None else times[number]) * ticks)
            frame.time_base = 1 / ticks
            if tags is not None:
                frame.color_primaries, frame.color_trc, frame.colorspace = tags
                frame.color_range = 2 if full else 1
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


# Encoders whose clock is the frame rate.
_COARSE = ("mpeg4", "mpeg2video", "mjpeg", "wmv2", "flv", "msmpeg4v2", "dvvideo")


def encoder_options(codec: str, bframes: int, gop: int) -> dict[str, str]:
    if codec in ("libx264", "libx264rgb"):
        params = f"keyint={gop}:min-keyint={gop}:scenecut=0:threads=1:b-adapt=0:bframes={bframes}"
        return {"preset": "veryfast", "crf": "12", "x264-params": params}
    if codec == "libx265":
        params = f"keyint={gop}:min-keyint={gop}:scenecut=0:bframes={bframes}:b-adapt=0:pools=none:frame-threads=1"
        return {"preset": "ultrafast", "crf": "10", "x265-params": params + ":open-gop=0:log-level=none"}
    if codec == "libvpx-vp9":
        return {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "0", "g": str(gop), "crf": "10", "b:v": "0"}
    if codec == "libvpx":
        return {"deadline": "realtime", "cpu-used": "8", "g": str(gop), "crf": "4", "b:v": "1M"}
    if codec in ("mpeg4", "mpeg2video"):
        return {"bf": str(bframes), "g": str(gop), "q:v": "2", "global_quality": "236", "flags": "+qscale"}
    if codec in ("wmv2", "flv", "msmpeg4v2"):
        return {"g": str(gop), "global_quality": "236", "flags": "+qscale"}
    return {}


def frame_of(pixels: np.ndarray, pix_fmt: str, matrix: str = "bt601", full: bool = False) -> Any:
    """A frame; luma and color difference are computed here, so that no judge checks its own arithmetic."""
    layout = av.VideoFormat(pix_fmt)
    names = layout.name
    if not names.startswith(("yuv", "gray")) or names.startswith("yuva"):
        return av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pix_fmt)
    full = full or names.startswith(("yuvj", "gray"))
    frame = av.VideoFrame(pixels.shape[1], pixels.shape[0], pix_fmt)
    planes = _planes(pixels.tobytes(), pixels.shape, pixels.dtype.str, pix_fmt, matrix, full)
    for plane, data in zip(frame.planes, planes, strict=False):
        plane.update(data)
    return frame


@lru_cache(maxsize=1024)  # many files have the same frames
def _planes(data: bytes, shape: tuple[int, ...], dtype: str, pix_fmt: str, matrix: str, full: bool) -> list[bytes]:
    bits = av.VideoFormat(pix_fmt).components[0].bits
    codes = to_yuv(np.frombuffer(data, dtype).reshape(shape), matrix, full, bits)
    planes = []
    for plane, values in zip(av.VideoFrame(shape[1], shape[0], pix_fmt).planes, codes, strict=False):
        sub_y, sub_x = -(-values.shape[0] // plane.height), -(-values.shape[1] // plane.width)
        if (sub_y, sub_x) != (1, 1):
            pad = (plane.height * sub_y - values.shape[0], plane.width * sub_x - values.shape[1])
            values = np.pad(values, ((0, pad[0]), (0, pad[1])), mode="edge").astype(np.float64)
            values = values.reshape(plane.height, sub_y, plane.width, sub_x).mean((1, 3)).round()
        size = 1 if bits == 8 else 2
        rows = np.zeros((plane.height, plane.line_size // size), dtype=np.uint8 if bits == 8 else "<u2")
        rows[:, : plane.width] = values
        planes.append(rows.tobytes())
    return planes


# Stream copy and surgery


def remux(
    source: Path,
    target: Path,
    start: int = 0,
    skip: int = 0,
    offset_s: float = 0.0,
    muxing: dict[str, str] | None = None,
    filters: str | None = None,
    container: str | None = None,
) -> Path:
    """The packets of a video from its keyframe number `start` (counting from 0) on, as they are, in another file.

    The first `skip` of them are left out.
    """
    with av.open(str(source)) as old, av.open(str(target), "w", format=container, options=muxing or {}) as new:
        stream = old.streams.video[0]
        out = new.add_stream_from_template(stream)
        shift = round(offset_s / stream.time_base)
        keys = -1
        copied = BitStreamFilterContext(filters, stream, out) if filters else None
        for packet in old.demux(stream):
            keys += packet.is_keyframe
            if keys < start or not packet.size:
                continue
            if skip:
                skip -= 1
                continue
            packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
            for filtered in copied.filter(packet) if copied else [packet]:
                filtered.stream = out
                new.mux(filtered)
    return target


def find_box(data: bytes | bytearray, *path: bytes) -> tuple[int, int]:
    """Where a box of an MP4 begins and ends; of several with one name, the first."""
    at, first, last = 0, 0, len(data)
    for name in path:
        while bytes(data[at + 4 : at + 8]) != name:
            at += int.from_bytes(data[at : at + 4], "big")
        first, last = at, at + int.from_bytes(data[at : at + 4], "big")
        at = first + 8
    return first, last


def replace_box(data: bytearray, box: bytes, *path: bytes) -> bytearray:
    """The file with another box at `path`; it lies behind the media data, whose offsets stay."""
    begin, end = find_box(data, *path)
    parents = [find_box(data, *path[:depth])[0] for depth in range(1, len(path))]
    for at in parents:
        size = int.from_bytes(data[at : at + 4], "big") + len(box) - (end - begin)
        data[at : at + 4] = size.to_bytes(4, "big")
    data[begin:end] = box
    return data


TRACK = (b"moov", b"trak")


def make_box(name: bytes, content: bytes) -> bytes:
    """A box of an MP4."""
    return (8 + len(content)).to_bytes(4, "big") + name + content


def with_edits(
    source: Path, target: Path, edits: Sequence[tuple[float, float | None]], version: int = 0, rate: int = 1
) -> Path:
    """A copy of an MP4 with B-frames whose edit list shows seconds (length, begin); begin None for a pause."""
    data = bytearray(source.read_bytes())
    at = find_box(data, b"moov", b"mvhd")[0]
    movie = int.from_bytes(data[at + 20 : at + 24], "big")
    at = find_box(data, *TRACK, b"mdia", b"mdhd")[0]
    media = int.from_bytes(data[at + 20 : at + 24], "big")
    old = find_box(data, *TRACK, b"edts", b"elst")[0]
    lead = int.from_bytes(data[old + 20 : old + 24], "big")  # what the muxer skips for the delay of B-frames
    layout = ">QqHH" if version else ">IiHH"
    entries = b"".join(
        struct.pack(layout, round(length * movie), -1 if begin is None else lead + round(begin * media), rate, 0)
        for length, begin in edits
    )
    content = bytes([version, 0, 0, 0]) + len(edits).to_bytes(4, "big") + entries
    total = round(sum(length for length, _ in edits) * movie)
    for box, offset in ((b"moov", b"mvhd"), 24), ((*TRACK, b"tkhd"), 28):
        at = find_box(data, *box)[0] + offset
        data[at : at + 4] = total.to_bytes(4, "big")
    target.write_bytes(replace_box(data, make_box(b"edts", make_box(b"elst", content)), *TRACK, b"edts"))
    return target


def with_matrix(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Write a display matrix into an MP4."""
    data = bytearray(path.read_bytes())
    a, b, c, d = (value << 16 & 0xFFFFFFFF for value in matrix)
    at = find_box(data, *TRACK, b"tkhd")[0] + 48
    data[at : at + 36] = struct.pack(">9I", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def patched(path: Path, change: Callable[[bytearray], Any]) -> Path:
    """A file after `change` has been made to its bytes."""
    data = bytearray(path.read_bytes())
    path.write_bytes(change(data) or data)
    return path


def scale_durations(data: bytearray, factor: float) -> None:
    """Multiply all durations that the header of an MP4 states; those of single frames stay."""
    places = ((b"mvhd",), 24), ((b"trak", b"tkhd"), 28), ((b"trak", b"mdia", b"mdhd"), 24)
    for path, offset in places:
        at = find_box(data, b"moov", *path)[0] + offset
        data[at : at + 4] = round(int.from_bytes(data[at : at + 4], "big") * factor).to_bytes(4, "big")
    if factor < 1:
        return  # the edit list would end the video there
    at = find_box(data, *TRACK, b"edts", b"elst")[0] + 16
    data[at : at + 4] = round(int.from_bytes(data[at : at + 4], "big") * factor).to_bytes(4, "big")


def damage(data: bytearray, path: Path, chosen: Callable[[Any, int], bool]) -> None:
    """Invert bytes inside the slices of the packets that `chosen` names by pts in frames."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        for packet in file.demux(stream):
            if packet.size and chosen(packet, round(float(packet.pts * stream.time_base) * FPS)):
                for at in range(packet.pos + packet.size // 2, packet.pos + packet.size, 3):
                    data[at] ^= 0xFF


def with_sound(source: Path, target: Path, seconds: float, delay_s: float = 0.0) -> Path:
    """A video with `seconds` of sound that begins at 0, while the frames begin at `delay_s`."""
    rate, codec, size = (16_000, "mp2", 1152) if target.suffix == ".ts" else (16_000, "aac", 1024)
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream = old.streams.video[0]
        out = new.add_stream_from_template(stream)
        sound = new.add_stream(codec, rate=rate, layout="mono")
        packets = []
        for at in range(0, int(seconds * rate), size):
            tone = 0.1 * np.sin(np.arange(at, at + size) / 10)
            integer = sound.codec_context.format.name == "s16"
            samples = (tone * 32767).astype(np.int16) if integer else tone.astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples[None], format="s16" if integer else "fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
            packets += sound.encode(frame)
        packets += sound.encode(None)
        shift = round(delay_s / stream.time_base)
        for packet in old.demux(stream):
            if packet.size:
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, out
                packets.append(packet)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            new.mux(packet)
    return target


def joined(path: Path, *parts: Path) -> Path:
    """One file after the other."""
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path
