"""A corpus of small videos with what is right to read from each: a table that readers are measured by.

    for case in CASES:
        path = case.make(folder)
        truth = case.truth

Every file is made by code from test cards (`cards`), in some ten milliseconds, the same each time. What a muxer cannot
write (edit lists, matrices, sizes that contradict each other) is written into its file afterward.
"""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.helpers.video_cards import MATRICES, PATCHES, card, interlaced_card, squeezed, stored, to_yuv
from tests.helpers.video_files import (
    FPS,
    damage,
    encode,
    encoder_options,
    joined,
    patched,
    remux,
    scale_durations,
    with_edits,
    with_matrix,
    with_sound,
)

_AV1 = Path(__file__).parents[1] / "data" / "av1.mp4"
# By ISO 23091-4: primaries, transfer, matrix.
BT601, BT709, PQ, HLG = (6, 6, 6), (1, 1, 1), (9, 16, 9), (9, 18, 9)


@dataclass(frozen=True)
class Truth:
    """What a reader should make of a file.

    Attributes:
        numbers: of the cards that are shown, in order; empty for a file that must be refused.
        starts: second at which each begins to be shown, from the first one's start.
        duration_s: from the first frame's start to the last one's end.
        size: width and height as shown; None where resampling to square pixels leaves a choice.
        aspect: width over height as shown.
        patches: (4, 3) RGB; None where they are not looked at.
        tolerance: of the patches, in levels of 255.
        circle: whether the card has one.
        interlaced: whether its frames are two fields of different moments.
        refused: what the reason of a refusal must match; None where refusing is wrong.
        optional: numbers of cards of which only a part of the time is shown: a reader may leave them out.
        lead_s: seconds that a reader may add in front of the first frame: the file's own clock begins earlier.
    """

    numbers: tuple[int, ...] = tuple(range(48))
    starts: tuple[float, ...] = tuple(i / FPS for i in range(48))
    duration_s: float = 4.0
    size: tuple[int, int] | None = (64, 64)
    aspect: float = 1.0
    patches: np.ndarray | None = field(default_factory=lambda: PATCHES)
    tolerance: float = 14.0
    circle: bool = True
    interlaced: bool = False
    refused: str | None = None
    optional: frozenset[int] = frozenset()
    lead_s: float = 0.0


@dataclass(frozen=True)
class Case:
    """One file of the corpus.

    Attributes:
        name: of the file.
        group: the property that it is about.
        write: makes it at a path.
        truth: what is right.
    """

    name: str
    group: str
    write: Callable[[Path], Any]
    truth: Truth

    def make(self, folder: Path) -> Path:
        """The file, in `folder`."""
        path = folder / self.name
        self.write(path)
        return path


def refused(reason: str) -> Truth:
    """A file that a reader must refuse."""
    return Truth(numbers=(), starts=(), refused=reason)


def steady(numbers: Sequence[int], fps: float = FPS, **rest: Any) -> Truth:
    """Cards at a constant rate."""
    starts = tuple(i / fps for i in range(len(numbers)))
    return Truth(tuple(numbers), starts, duration_s=len(numbers) / fps, **rest)


# Files that take more than one step


def _part(path: Path, name: str) -> Path:
    """Where to put what a file is made of."""
    folder = path.parent / "parts"
    folder.mkdir(exist_ok=True)
    return folder / f"{path.name}-{name}"


def _copy(
    codec: str = "libx264",
    start: int = 0,
    skip: int = 0,
    offset_s: float = 0.0,
    filters: str | None = None,
    **options: Any,
) -> Callable[[Path], Path]:
    """Encode and copy the packets, from a keyframe on or from the middle of a group, into the file."""
    muxing, container = options.pop("muxing", None), options.pop("container", None)

    def write(path: Path) -> Path:
        # MP4 keeps the parameter sets of a stream once, in its header: a transport stream cut from one could have none.
        suffix = path.suffix if path.suffix in (".ts", ".mpg") else ".mp4"
        source = encode(_part(path, f"whole{suffix}"), codec, **options)
        return remux(source, path, start, skip, offset_s, muxing, filters, container)

    return write


def _plain(codec: str = "libx264", **options: Any) -> Callable[[Path], Path]:
    return lambda path: encode(path, codec, **options)


def _edited(
    *edits: tuple[float, float | None], bframes: int = 2, version: int = 0, rate: int = 1
) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        source = encode(_part(path, "whole.mp4"), bframes=bframes, frames=60)
        return with_edits(source, path, edits, version, rate)

    return write


def _matrix(name: str) -> Callable[[Path], Path]:
    images = [np.ascontiguousarray(stored(card(i, 96, 64), MATRICES[name])) for i in range(12)]
    return lambda path: with_matrix(encode(path, cards=images), MATRICES[name])


def _anamorphic(codec: str, ratio: Fraction, width: int, frames: int = 12, turn: str = "none", **options: Any):
    """Stored in `width` columns; shown with square pixels of the same height."""

    def write(path: Path) -> Path:
        shown = round(width * ratio)
        images = [squeezed(card(i, shown, 64), width) for i in range(frames)]
        if turn != "none":  # the sensor lies: what is stored is the turned image, its pixels are wide or high
            images = [
                squeezed(np.ascontiguousarray(stored(card(i, 64, shown), MATRICES[turn])), width) for i in range(frames)
            ]
        encode(path, codec, cards=images, sar=ratio, **options)
        return with_matrix(path, MATRICES[turn]) if turn != "none" else path

    return write


def _interlaced(
    codec: str, top_first: bool, turn: str = "none", woven: bool = True, **options: Any
) -> Callable[[Path], Path]:
    order = "tff" if top_first else "bff"

    def write(path: Path) -> Path:
        images = [interlaced_card(i, top_first) if woven else card(i) for i in range(24)]
        images = [np.ascontiguousarray(stored(picture, MATRICES[turn])) for picture in images]
        more = {"flags": "+ildct+ilme+qscale", "field_order": "tt" if top_first else "bb"}
        if codec == "libx264":
            params = encoder_options("libx264", 2, 12)["x264-params"] + f":{order}=1"
            more = {"x264-params": params}
        encode(path, codec, cards=images, fps=25, options=more, **options)
        return path if turn == "none" else with_matrix(path, MATRICES[turn])

    return write


def _display_width(path: Path) -> Path:
    """The size in which a WebM is to be shown, in place of its track's language and lacing."""
    encode(path, "libvpx-vp9", cards=[squeezed(card(i, 128, 64), 64) for i in range(12)])
    old = bytes.fromhex("9c8100 22b59c83756e64")
    size = bytes.fromhex("e086b08140ba8140")  # Video, 6 bytes: PixelWidth 64, PixelHeight 64
    shown = bytes.fromhex("e08eb08140ba8140 54b08180 54ba8140")  # and DisplayWidth 128, DisplayHeight 64

    def change(data: bytearray) -> bytearray:
        assert data.count(old) == data.count(size) == 1
        return data.replace(old, b"\xec\x80").replace(size, shown)

    return patched(path, change)


def pq(nits: np.ndarray) -> np.ndarray:
    """Signal of SMPTE ST 2084 for luminance."""
    y = (nits / 10_000) ** 0.1593017578125
    return ((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375


def hlg(nits: np.ndarray) -> np.ndarray:
    """Signal of BT.2100 HLG for what a display of 1,000 nits shows."""
    luma = (nits @ np.array([0.2627, 0.678, 0.0593]))[..., None]
    scene = nits / 1000 * np.maximum(luma / 1000, 1e-9) ** (1 / 1.2 - 1)
    low, high = np.sqrt(3 * scene), 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, low, high)


# Linear BT.709 to linear BT.2020 (BT.2087).
TO_BT2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
# Gray of 18 %, diffuse white, and the primaries of BT.709 as bright as they are in diffuse white.
HDR_LINEAR = np.array([[0.18, 0.18, 0.18], [1, 1, 1], [1, 0, 0], [0, 1, 0]])
HDR_PATCHES = np.array([[118, 118, 118], [240, 240, 240], [235, 30, 30], [30, 235, 30]])


def hdr_card(number: int, curve: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """(64, 64, 3) float 0 to 1: a card whose white is the diffuse white of BT.2408, 203 nits."""
    base = card(number)
    linear = (base > 127).astype(np.float64)
    for color, value in zip(PATCHES, HDR_LINEAR, strict=True):
        linear[32:][(base[32:] == color).all(-1)] = value
    return curve(203 * (linear @ TO_BT2020.T))


def _hdr(
    codec: str,
    curve: Callable[[np.ndarray], np.ndarray],
    tags: tuple[int, int, int],
    turn: str = "none",
    pix_fmt: str = "yuv420p10le",
    **options: Any,
) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        images = [np.ascontiguousarray(stored(hdr_card(i, curve), MATRICES[turn])) for i in range(8)]
        encode(path, codec, cards=images, matrix="bt2020", tags=tags, pix_fmt=pix_fmt, **options)
        return path if turn == "none" else with_matrix(path, MATRICES[turn])

    return write


def _first_damaged(path: Path) -> Path:
    """The second half is shown, from the middle of a group on; B-frames that are not shown are damaged."""
    source = with_edits(encode(_part(path, "whole.mp4"), frames=60), path, [(2.5, 2.5)])
    return patched(path, lambda data: damage(data, source, lambda p, n: n in (-4, -1)))


def _shown_damaged(path: Path) -> Path:
    encode(path, frames=48)
    return patched(path, lambda data: damage(data, path, lambda p, n: n in (17, 30)))


def _cut_off(keep: float, **options: Any) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        front = {"movflags": "faststart"} if path.suffix in (".mp4", ".mov") else {}
        encode(path, muxing=front, **options)
        return patched(path, lambda data: data[: int(len(data) * keep)])

    return write


def _matroska_duration(path: Path, factor: float) -> Path:
    """Multiply the length that the segment states, and that of the track."""
    encode(path)

    def change(data: bytearray) -> None:
        at = data.index(b"\x44\x89\x88") + 3
        data[at : at + 8] = struct.pack(">d", struct.unpack(">d", data[at : at + 8])[0] * factor)
        at = data.index(b"00:00:04.000")
        data[at : at + 12] = b"00:00:%06.3f" % (4 * factor)

    return patched(path, change)


def _clock_back(path: Path) -> Path:
    late = encode(_part(path, "late.ts"), muxing={"output_ts_offset": "500"})
    return joined(path, late, encode(_part(path, "early.ts"), first=48))


def _begins_again(path: Path) -> Path:
    return joined(path, encode(_part(path, "0.ts")), encode(_part(path, "1.ts"), first=48))


def _joined_mpg(path: Path) -> Path:
    return joined(path, *(encode(_part(path, f"{i}.mpg"), "mpeg2video", first=48 * i, fps=25) for i in range(2)))


def _thrice(path: Path) -> Path:
    return joined(path, *(encode(_part(path, f"{i}.ts"), first=16 * i, frames=16) for i in range(3)))


_GAP = tuple(i / 12 + (3596 - 2 / 12) * (i >= 48) for i in range(96))


def _gap(path: Path) -> Path:
    return encode(path, frames=96, times=_GAP)


def _size_changes(path: Path) -> Path:
    large = encode(_part(path, "1.ts"), cards=[card(i, 96, 96) for i in range(24)], muxing={"output_ts_offset": "2"})
    return joined(path, encode(_part(path, "0.ts"), frames=24), large)


def _size_changes_packets(path: Path, codec: str = "libx264") -> Path:
    """The second half is of another size, which only its packets contain."""
    parts = [
        encode(
            _part(path, f"{i}.{'ts' if codec == 'libx264' else 'webm'}"),
            codec,
            cards=[card(n, 64 + 32 * i, 64 + 32 * i) for n in range(24)],
        )
        for i in range(2)
    ]
    with av.open(str(path), "w") as new:
        files = [av.open(str(part)) for part in parts]
        out = new.add_stream_from_template(files[0].streams.video[0])
        for number, file in enumerate(files):
            stream = file.streams.video[0]
            for packet in file.demux(stream):
                if packet.size:
                    shift = round(2 * number / stream.time_base) - (stream.start_time or 0)
                    packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, out
                    new.mux(packet)
            file.close()
    return path


def _with_cover(path: Path) -> Path:
    """A cover before the video."""
    source = encode(_part(path, "whole.mp4"))
    cover = encode(_part(path, "cover.mp4"), "mjpeg", frames=1, first=200, pix_fmt="yuvj420p")
    with av.open(str(path), "w") as new, av.open(str(source)) as old, av.open(str(cover)) as image:
        streams = [new.add_stream_from_template(f.streams.video[0]) for f in (image, old)]
        streams[0].disposition = av.stream.Disposition.attached_pic
        for file, out in zip((image, old), streams, strict=True):
            for packet in file.demux(file.streams.video[0]):
                if packet.size:
                    packet.stream = out
                    new.mux(packet)
    return path


def _two_videos(path: Path) -> Path:
    """Two video streams of one size; the first is the default."""
    sources = [encode(_part(path, f"{i}.mp4"), first=100 * i) for i in range(2)]
    with av.open(str(path), "w") as new:
        files = [av.open(str(source)) for source in sources]
        streams = [new.add_stream_from_template(file.streams.video[0]) for file in files]
        packets = [(p, out) for file, out in zip(files, streams, strict=True) for p in file.demux(video=0) if p.size]
        for packet, out in sorted(packets, key=lambda pair: pair[0].dts):
            packet.stream = out
            new.mux(packet)
        for file in files:
            file.close()
    return path


@lru_cache(maxsize=1)
def _irregular() -> tuple[float, ...]:
    steps = np.random.default_rng(0).integers(1, 9, 47) / 24
    return (0.0, *np.cumsum(steps).tolist())


def _variable(**rest: Any) -> Truth:
    starts = _irregular()
    # Containers state no length of the last frame, or guess it from the rate.
    return Truth(starts=starts, duration_s=starts[-1] + 1 / FPS, **rest)


def _segments(*parts: Sequence[int], **rest: Any) -> Truth:
    return steady([number for part in parts for number in part], **rest)


def _sized(width: int, height: int, frames: int = 12) -> dict[str, Any]:
    return {"cards": [card(i, width, height) for i in range(frames)]}


def _gray() -> np.ndarray:
    luma = to_yuv(PATCHES[None], full=True)[0, 0]
    return np.repeat(luma[:, None], 3, 1)


WHOLE = steady(range(48))
_FEW = steady(range(12))
_WMV = steady(range(25), fps=25)
_CUT = steady(range(12, 48), lead_s=0.5)
_OPEN = {
    "libx264": {
        "bframes": 3,
        "options": {"x264-params": encoder_options("libx264", 3, 12)["x264-params"] + ":open-gop=1"},
    },
    "libx265": {
        "bframes": 3,
        "options": {
            "x265-params": encoder_options("libx265", 3, 12)["x265-params"].replace("open-gop=0", "open-gop=1")
        },
    },
}
_MIDDLE = steady(range(12, 48), lead_s=1.0)
_SAR2, _SAR89 = Fraction(2), Fraction(8, 9)
_ODD = dict(_sized(65, 49))
_DELAY = 2.0
_WRAP = 2**33 / 90_000  # seconds after which the clock of MPEG wraps around


def _cases() -> list[tuple[str, str, Callable[[Path], Any], Truth]]:
    mpeg2 = {"fps": 25, "frames": 25}
    return [
        ("h264.mp4", "constant rate", _plain(), WHOLE),
        ("h264.mov", "constant rate", _plain(), WHOLE),
        ("h264.mkv", "constant rate", _plain(), WHOLE),
        ("h264.ts", "constant rate", _plain(), WHOLE),
        ("h264.flv", "constant rate", _plain(), WHOLE),
        ("h264.avi", "constant rate", _plain(bframes=0), WHOLE),
        ("h264.m4v", "constant rate", _plain(container="mp4"), WHOLE),
        ("h264.3gp", "constant rate", _plain(container="3gp"), WHOLE),
        ("h264.m2ts", "constant rate", _plain(container="mpegts", muxing={"mpegts_m2ts_mode": "1"}), WHOLE),
        ("hevc.mp4", "constant rate", _plain("libx265", tag="hvc1"), WHOLE),
        ("hevc.mkv", "constant rate", _plain("libx265"), WHOLE),
        ("hevc.ts", "constant rate", _plain("libx265"), WHOLE),
        ("vp9.webm", "constant rate", _plain("libvpx-vp9"), WHOLE),
        ("vp9.mp4", "constant rate", _plain("libvpx-vp9"), WHOLE),
        ("vp8.webm", "constant rate", _plain("libvpx"), WHOLE),
        ("av1.mp4", "constant rate", lambda path: path.write_bytes(_AV1.read_bytes()), WHOLE),
        ("mpeg2.mpg", "constant rate", _plain("mpeg2video", **mpeg2), _WMV),
        ("mpeg2.ts", "constant rate", _plain("mpeg2video", **mpeg2), _WMV),
        ("mpeg4.mp4", "constant rate", _plain("mpeg4"), WHOLE),
        ("mpeg4.avi", "constant rate", _plain("mpeg4", bframes=0, tag="XVID"), WHOLE),
        ("wmv2.wmv", "constant rate", _plain("wmv2", fps=25, frames=25), _WMV),
        ("flv1.flv", "constant rate", _plain("flv", fps=25, frames=25), _WMV),
        ("mjpeg.avi", "constant rate", _plain("mjpeg", pix_fmt="yuvj420p", full=True), WHOLE),
        ("mjpeg.mov", "constant rate", _plain("mjpeg", pix_fmt="yuvj420p", full=True), WHOLE),
        ("prores.mov", "constant rate", _plain("prores_ks", pix_fmt="yuv422p10le", frames=12), _FEW),
        ("ffv1.mkv", "constant rate", _plain("ffv1", frames=12), _FEW),
        # The order of frames
        ("b-frames.avi", "B-frames", _plain("mpeg4"), WHOLE),
        ("b-frames-h264.avi", "B-frames", _plain(bframes=3), WHOLE),
        ("pyramid.mp4", "B-frames", _plain(bframes=6, gop=40), WHOLE),
        ("pyramid.ts", "B-frames", _plain(bframes=6, gop=40), WHOLE),
        ("one-keyframe.mp4", "B-frames", _plain(gop=250), WHOLE),
        ("one-keyframe.ts", "B-frames", _plain(gop=250), WHOLE),
        ("hevc-pyramid.mp4", "B-frames", _plain("libx265", bframes=4, gop=40), WHOLE),
        ("negative-ctts.mp4", "B-frames", _plain(muxing={"movflags": "negative_cts_offsets"}), WHOLE),
        ("fragments.mp4", "B-frames", _plain(muxing={"movflags": "frag_keyframe+empty_moov"}), WHOLE),
        ("live.webm", "B-frames", _plain("libvpx-vp9", muxing={"live": "1"}), WHOLE),
        (
            "hidden-frames.webm",
            "B-frames",
            _plain("libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "12"}),
            WHOLE,
        ),
        ("open-gop.mp4", "B-frames", _plain(**_OPEN["libx264"]), WHOLE),
        ("open-gop.ts", "B-frames", _plain(**_OPEN["libx264"]), WHOLE),
        # Variable rate
        ("variable.mp4", "variable rate", _plain(times=_irregular()), _variable()),
        ("variable.mov", "variable rate", _plain(times=_irregular(), bframes=0), _variable()),
        ("variable.mkv", "variable rate", _plain(times=_irregular()), _variable()),
        ("variable.ts", "variable rate", _plain(times=_irregular()), _variable()),
        ("variable.flv", "variable rate", _plain(times=_irregular()), _variable()),
        ("variable.webm", "variable rate", _plain("libvpx-vp9", times=_irregular()), _variable()),
        (
            "pause.mp4",
            "variable rate",
            _plain(times=[i / 12 + 20 * (i >= 24) for i in range(48)]),
            Truth(starts=tuple(i / 12 + 20 * (i >= 24) for i in range(48)), duration_s=24.0),
        ),
        ("ntsc.mp4", "variable rate", _plain(fps=30000 / 1001), steady(range(48), 30000 / 1001)),
        ("240-per-second.mp4", "variable rate", _plain(fps=240), steady(range(48), 240)),
        (
            "2-s-a-frame.mp4",
            "variable rate",
            _plain(times=[2.0 * i for i in range(48)]),
            Truth(starts=tuple(2.0 * i for i in range(48)), duration_s=96.0),
        ),
        # Open GOPs cut by stream copy
        *(
            (f"cut-{name}{suffix}", "open-GOP cut", _copy(codec, start=1, **_OPEN[codec]), _CUT)
            for codec, name in (("libx264", "h264"), ("libx265", "hevc"))
            for suffix in (".mp4", ".mov", ".mkv", ".ts")
        ),
        ("cut-mpeg2.ts", "open-GOP cut", _copy("mpeg2video", start=1, fps=25), steady(range(12, 48), 25, lead_s=0.5)),
        ("cut-mpeg2.mpg", "open-GOP cut", _copy("mpeg2video", start=1, fps=25), steady(range(12, 48), 25, lead_s=0.5)),
        ("mid-group.ts", "open-GOP cut", _copy(skip=5), _MIDDLE),
        ("mid-group.mkv", "open-GOP cut", _copy(skip=5), _MIDDLE),
        ("mid-group.mp4", "open-GOP cut", _copy(skip=5), _MIDDLE),
        ("mid-group-hevc.ts", "open-GOP cut", _copy("libx265", skip=5), _MIDDLE),
        (
            "mid-group-mpeg2.ts",
            "open-GOP cut",
            _copy("mpeg2video", skip=5, fps=25),
            steady(range(12, 48), 25, lead_s=0.5),
        ),
        # Edit lists
        ("edit-trim.mp4", "edit list", _edited((1.0, 0.5)), _segments(range(6, 18))),
        ("edit-trim-no-b.mp4", "edit list", _edited((1.0, 0.5), bframes=0), _segments(range(6, 18))),
        ("edit-trim.mov", "edit list", _edited((2.5, 1.0)), _segments(range(12, 42))),
        ("edit-two.mp4", "edit list", _edited((1.0, 0.5), (1.0, 3.0)), _segments(range(6, 18), range(36, 48))),
        (
            "edit-two-no-b.mp4",
            "edit list",
            _edited((1.0, 0.5), (1.0, 3.0), bframes=0),
            _segments(range(6, 18), range(36, 48)),
        ),
        (
            "edit-three.mp4",
            "edit list",
            _edited((0.5, 0.0), (0.5, 1.5), (1.0, 4.0)),
            _segments(range(6), range(18, 24), range(48, 60)),
        ),
        ("edit-pause-trim.mp4", "edit list", _edited((2.5, None), (2.0, 1.5)), _segments(range(18, 42))),
        ("edit-pause.mp4", "edit list", _edited((1.0, None), (5.0, 0.0)), _segments(range(60))),
        (
            "edit-v1.mp4",
            "edit list",
            _edited((1.0, 0.5), (1.0, 3.0), version=1),
            _segments(range(6, 18), range(36, 48)),
        ),
        (
            "edit-between.mp4",
            "edit list",
            _edited((1.0, 0.54)),
            Truth(
                tuple(range(7, 19)),
                tuple((n - 6.48) / 12 for n in range(7, 19)),
                1.0,
                optional=frozenset({6, 18}),
                lead_s=0.05,
            ),
        ),
        ("edit-repeat.mp4", "edit list", _edited((1.0, 0.5), (1.0, 0.5)), _segments(range(6, 18), range(6, 18))),
        ("edit-back.mp4", "edit list", _edited((1.0, 3.0), (1.0, 1.0)), _segments(range(36, 48), range(12, 24))),
        ("edit-fast.mp4", "edit list", _edited((1.0, 0.5), rate=2), refused("rate|edit")),
        ("edit-beyond.mp4", "edit list", _edited((9.0, 3.0)), _segments(range(36, 60), refused="edit|truncated")),
        ("edit-nothing.mp4", "edit list", _edited((1.0, 30.0)), refused("edit|no frames|shows")),
        # Where the video's time begins
        ("late.mp4", "start delay", _plain(times=[_DELAY + i / 12 for i in range(48)]), WHOLE),
        ("late.mkv", "start delay", _plain(times=[_DELAY + i / 12 for i in range(48)]), WHOLE),
        ("late.ts", "start delay", _plain(muxing={"output_ts_offset": "500"}), WHOLE),
        ("early.mp4", "start delay", _plain(times=[-0.5 + i / 12 for i in range(48)]), steady(range(6, 48))),
        (
            "sound-first.mp4",
            "start delay",
            lambda path: with_sound(encode(_part(path, "w.mp4")), path, 3.0, _DELAY),
            WHOLE,
        ),
        (
            "sound-first.mkv",
            "start delay",
            lambda path: with_sound(encode(_part(path, "w.mp4")), path, 3.0, _DELAY),
            WHOLE,
        ),
        (
            "sound-first.ts",
            "start delay",
            lambda path: with_sound(encode(_part(path, "w.mp4")), path, 3.0, _DELAY),
            WHOLE,
        ),
        ("sound-longer.mp4", "start delay", lambda path: with_sound(encode(_part(path, "w.mp4")), path, 9.0), WHOLE),
        ("sound-longer.mkv", "start delay", lambda path: with_sound(encode(_part(path, "w.mp4")), path, 9.0), WHOLE),
        ("sound-longer.ts", "start delay", lambda path: with_sound(encode(_part(path, "w.mp4")), path, 9.0), WHOLE),
        # Clocks that jump
        ("wrap.ts", "clock", _plain(muxing={"output_ts_offset": f"{_WRAP - 2:.6f}"}), WHOLE),
        ("back-500s.ts", "clock", _clock_back, steady(range(96), refused="clock|time")),
        ("begins-again.ts", "clock", _begins_again, steady(range(96), refused="clock|time")),
        (
            "gap-1h.ts",
            "clock",
            _gap,
            Truth(
                tuple(range(96)),
                _GAP,
                3603.833,
                refused="clock|time|gap|apart",
            ),
        ),
        (
            "wrap.mpg",
            "clock",
            _plain("mpeg2video", fps=25, muxing={"output_ts_offset": f"{_WRAP - 1:.6f}"}),
            steady(range(48), 25),
        ),
        ("begins-again.mpg", "clock", _joined_mpg, steady(range(96), 25, refused="clock|time")),
        ("begins-three-times.ts", "clock", _thrice, steady(range(48), refused="clock|time")),
        # Orientation
        *(
            (
                f"matrix-{name.replace(' ', '-')}.mp4",
                "display matrix",
                _matrix(name),
                steady(range(12), size=(96, 64), aspect=1.5),
            )
            for name in MATRICES
        ),
        (
            "matrix-rotated-90.mkv",
            "display matrix",
            lambda path: remux(_matrix("rotated 90")(_part(path, "w.mp4")), path),
            steady(range(12), size=(96, 64), aspect=1.5),
        ),
        (
            "sei-rotated.mp4",
            "display matrix",
            _copy(
                cards=[np.ascontiguousarray(stored(card(i, 96, 64), MATRICES["rotated 90"])) for i in range(12)],
                filters="h264_metadata=display_orientation=insert:rotate=270",
            ),
            steady(range(12), size=(96, 64), aspect=1.5),
        ),
        # Pixels that are not square
        ("sar-2-1.mp4", "pixel aspect", _anamorphic("libx264", _SAR2, 64), steady(range(12), size=None, aspect=2)),
        ("sar-8-9.mp4", "pixel aspect", _anamorphic("libx264", _SAR89, 72), steady(range(12), size=None)),
        ("sar-2-1.mkv", "pixel aspect", _anamorphic("libx264", _SAR2, 64), steady(range(12), size=None, aspect=2)),
        ("sar-2-1.ts", "pixel aspect", _anamorphic("libx264", _SAR2, 64), steady(range(12), size=None, aspect=2)),
        (
            "sar-2-1.avi",
            "pixel aspect",
            _anamorphic("libx264", _SAR2, 64, bframes=0),
            steady(range(12), size=None, aspect=2),
        ),
        ("display-width.webm", "pixel aspect", _display_width, steady(range(12), size=None, aspect=2)),
        ("pasp.mp4", "pixel aspect", _anamorphic("libvpx-vp9", _SAR89, 72), steady(range(12), size=None)),
        (
            "sar-rotated.mp4",
            "pixel aspect",
            _anamorphic("libx264", _SAR2, 64, turn="rotated 90"),
            steady(range(12), size=None, aspect=0.5),
        ),
        (
            "dvd.mpg",
            "pixel aspect",
            _anamorphic("mpeg2video", Fraction(32, 27), 96, fps=25),
            steady(range(12), 25, size=None, aspect=16 / 9),
        ),
        # Interlaced
        ("tff.mpg", "interlaced", _interlaced("mpeg2video", True), steady(range(24), 25, interlaced=True)),
        ("bff.mpg", "interlaced", _interlaced("mpeg2video", False), steady(range(24), 25, interlaced=True)),
        ("tff.mp4", "interlaced", _interlaced("libx264", True), steady(range(24), 25, interlaced=True)),
        ("bff.mp4", "interlaced", _interlaced("libx264", False), steady(range(24), 25, interlaced=True)),
        ("tff.ts", "interlaced", _interlaced("libx264", True), steady(range(24), 25, interlaced=True)),
        (
            "tff-mirrored.mp4",
            "interlaced",
            _interlaced("libx264", True, turn="mirrored left-right"),
            steady(range(24), 25, interlaced=True),
        ),
        ("tff.mov", "interlaced", _interlaced("mpeg2video", True), steady(range(24), 25, interlaced=True)),
        (
            "tff-422.mkv",
            "interlaced",
            _interlaced("libx264", True, pix_fmt="yuv422p"),
            steady(range(24), 25, interlaced=True),
        ),
        ("flagged-only.mp4", "interlaced", _interlaced("libx264", True, woven=False), steady(range(24), 25)),
        # High dynamic range
        ("pq.mp4", "HDR", _hdr("libx265", pq, PQ), steady(range(8), patches=HDR_PATCHES, tolerance=40)),
        ("pq.mkv", "HDR", _hdr("libx265", pq, PQ), steady(range(8), patches=HDR_PATCHES, tolerance=40)),
        ("hlg.mp4", "HDR", _hdr("libx265", hlg, HLG), steady(range(8), patches=HDR_PATCHES, tolerance=40)),
        ("hlg.ts", "HDR", _hdr("libx265", hlg, HLG), steady(range(8), patches=HDR_PATCHES, tolerance=40)),
        ("hlg.mov", "HDR", _hdr("libx265", hlg, HLG, tag="hvc1"), steady(range(8), patches=HDR_PATCHES, tolerance=40)),
        (
            "hlg-rotated.mov",
            "HDR",
            _hdr("libx265", hlg, HLG, turn="rotated 90", tag="hvc1"),
            steady(range(8), patches=HDR_PATCHES, tolerance=40),
        ),
        (
            "pq-full-range.mp4",
            "HDR",
            _hdr("libx265", pq, PQ, full=True),
            steady(range(8), patches=HDR_PATCHES, tolerance=40),
        ),
        (
            "pq-12-bit.mp4",
            "HDR",
            _hdr("libx265", pq, PQ, pix_fmt="yuv420p12le"),
            steady(range(8), patches=HDR_PATCHES, tolerance=40),
        ),
        ("pq-h264.mp4", "HDR", _hdr("libx264", pq, PQ), steady(range(8), patches=HDR_PATCHES, tolerance=40)),
        (
            "hlg-422.mp4",
            "HDR",
            _hdr("libx265", hlg, HLG, pix_fmt="yuv422p10le"),
            steady(range(8), patches=HDR_PATCHES, tolerance=40),
        ),
        # Levels and colors
        ("untagged.mp4", "colors", _plain(frames=12), _FEW),
        ("bt601.mp4", "colors", _plain(frames=12, tags=BT601), _FEW),
        ("bt709.mp4", "colors", _plain(frames=12, tags=BT709, matrix="bt709"), _FEW),
        ("bt709-hevc.mp4", "colors", _plain("libx265", frames=12, tags=BT709, matrix="bt709"), _FEW),
        ("bt709.webm", "colors", _plain("libvpx-vp9", frames=12, tags=BT709, matrix="bt709"), _FEW),
        ("bt2020-sdr.mp4", "colors", _plain("libx265", frames=12, tags=(1, 1, 9), matrix="bt2020"), _FEW),
        ("full-range.mp4", "colors", _plain(frames=12, tags=BT601, full=True), _FEW),
        ("full-range-709.mp4", "colors", _plain(frames=12, tags=BT709, matrix="bt709", full=True), _FEW),
        ("full-range-hevc.mp4", "colors", _plain("libx265", frames=12, tags=BT709, matrix="bt709", full=True), _FEW),
        # Bits and sampling
        ("10-bit-h264.mp4", "pixel format", _plain(frames=12, pix_fmt="yuv420p10le"), _FEW),
        ("10-bit-hevc.mp4", "pixel format", _plain("libx265", frames=12, pix_fmt="yuv420p10le"), _FEW),
        ("12-bit-hevc.mp4", "pixel format", _plain("libx265", frames=12, pix_fmt="yuv420p12le"), _FEW),
        ("16-bit-ffv1.mkv", "pixel format", _plain("ffv1", frames=12, pix_fmt="yuv444p16le"), _FEW),
        ("gray.mp4", "pixel format", _plain(frames=12, pix_fmt="gray"), steady(range(12), patches=_gray())),
        (
            "gray-10-bit.mkv",
            "pixel format",
            _plain("ffv1", frames=12, pix_fmt="gray10le"),
            steady(range(12), patches=_gray()),
        ),
        ("422.mp4", "pixel format", _plain(frames=12, pix_fmt="yuv422p"), _FEW),
        ("444.mp4", "pixel format", _plain(frames=12, pix_fmt="yuv444p"), _FEW),
        ("422-10-bit.mp4", "pixel format", _plain(frames=12, pix_fmt="yuv422p10le"), _FEW),
        ("444-10-bit.mp4", "pixel format", _plain("libx265", frames=12, pix_fmt="yuv444p10le"), _FEW),
        ("rgb.mp4", "pixel format", _plain("libx264rgb", frames=12, pix_fmt="rgb24"), _FEW),
        ("rgb-16-bit.mkv", "pixel format", _plain("ffv1", frames=12, pix_fmt="gbrp16le"), _FEW),
        ("alpha.mkv", "pixel format", _plain("ffv1", frames=12, pix_fmt="yuva444p"), _FEW),
        # Sizes
        ("odd.webm", "size", _plain("libvpx-vp9", **_ODD), steady(range(12), size=(65, 49), aspect=65 / 49)),
        ("odd.mkv", "size", _plain("ffv1", **_ODD), steady(range(12), size=(65, 49), aspect=65 / 49)),
        ("odd-444.mp4", "size", _plain(pix_fmt="yuv444p", **_ODD), steady(range(12), size=(65, 49), aspect=65 / 49)),
        (
            "odd-mjpeg.avi",
            "size",
            _plain("mjpeg", pix_fmt="yuvj420p", full=True, **_ODD),
            steady(range(12), size=(65, 49), aspect=65 / 49),
        ),
        ("cropped.mp4", "size", _plain(**_sized(90, 50)), steady(range(12), size=(90, 50), aspect=1.8)),
        ("size-changes.ts", "size", _size_changes, refused("size")),
        ("size-changes.mkv", "size", lambda path: _size_changes_packets(path), refused("size")),
        ("size-changes.webm", "size", lambda path: _size_changes_packets(path, "libvpx-vp9"), refused("size")),
        # Streams beside the video
        ("cover.mp4", "streams", _with_cover, WHOLE),
        ("two-videos.mp4", "streams", _two_videos, WHOLE),
        # Durations that contradict the packets
        (
            "duration-x10.mp4",
            "duration",
            lambda path: patched(encode(path), lambda d: scale_durations(d, 10)),
            steady(range(48), refused="duration|header"),
        ),
        (
            "duration-x0.1.mp4",
            "duration",
            lambda path: patched(encode(path), lambda d: scale_durations(d, 0.1)),
            steady(range(48), refused="duration|header"),
        ),
        (
            "duration-x8.mkv",
            "duration",
            lambda path: _matroska_duration(path, 8),
            steady(range(48), refused="duration|header"),
        ),
        (
            "duration-x0.5.mkv",
            "duration",
            lambda path: _matroska_duration(path, 0.5),
            steady(range(48), refused="duration|header"),
        ),
        # Damage
        ("cut-off.mp4", "damage", _cut_off(0.5), refused("truncated")),
        ("cut-off.mov", "damage", _cut_off(0.9), refused("truncated")),
        ("cut-off.mkv", "damage", _cut_off(0.5), refused("truncated")),
        ("cut-off.avi", "damage", _cut_off(0.5, bframes=0), refused("truncated")),
        ("cut-off.webm", "damage", _cut_off(0.5, codec="libvpx-vp9"), refused("truncated")),
        ("damaged-before-first.mp4", "damage", _first_damaged, steady(range(30, 60))),
        ("damaged.mp4", "damage", _shown_damaged, refused("corrupt")),
    ]


CASES = [Case(*row) for row in _cases()]
