"""When frames are shown: edit lists, clocks, open groups of pictures, lengths. Frames carry their number."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.helpers.decoding import decode_clips, stream_clips, video_info
from tests.helpers.media import indexed_image, read_index, write_video
from tubelet.config import ShardConfig
from tubelet.data.clips import window_times
from tubelet.data.decode import Video, VideoInfo, read_frames
from tubelet.data.file_types import VIDEO_CONTAINERS, VIDEO_SUFFIXES
from tubelet.data.sample_index import Sample
from tubelet.data.shards.transcode import transcode
from tubelet.data.video import reader
from tubelet.data.video.open_gop import drop_leading_pictures
from tubelet.data.video.timestamps import mark_required, packets_until
from tubelet.errors import DecodeError
from tubelet.grid import Modality

X264 = "keyint=12:min-keyint=12:scenecut=0:threads=1"
OPEN_X264 = f"{X264}:b-adapt=0:bframes=3:open-gop=1"
OPEN_X265 = (
    "keyint=12:min-keyint=12:scenecut=0:b-adapt=0:bframes=3:open-gop=1:pools=none:frame-threads=1:log-level=none"
)
PAUSE = None


def numbers(path: Path, times: np.ndarray) -> list[int]:
    """What is shown at some times by clips, which must be what one pass shows."""
    clip = decode_clips(path, [times])[0]
    with Video(path) as video:
        passed = [read_index(image) for image, _, repeats in video.scan(times) for _ in range(repeats)]
    found = [read_index(pixels) for pixels in clip.pixels]
    assert found == passed
    return found


def assert_shows(path: Path, expected: list[int], fps: float = 12) -> None:
    """All frames, a pass, and clips anywhere show the numbers at a constant rate."""
    frames = read_frames(path)
    assert [read_index(pixels) for pixels in frames.pixels] == expected
    assert np.allclose(frames.times, np.arange(len(expected)) / fps, atol=2e-3)
    assert video_info(path).duration_s == pytest.approx(len(expected) / fps, abs=0.02)
    middles = (np.arange(len(expected)) + 0.4) / fps
    assert numbers(path, middles) == expected
    rng = np.random.default_rng(0)
    clips = [np.sort(rng.choice(len(expected), 3, replace=False)) for _ in range(8)]
    found = decode_clips(path, [middles[places] for places in clips])
    assert [[read_index(p) for p in clip.pixels] for clip in found] == [[expected[i] for i in c] for c in clips]


def box(data: bytes, *names: bytes) -> tuple[int, int]:
    """First byte and end of a box, by the names on the way to it."""
    at, begin, end = 0, 0, len(data)
    for name in names:
        while data[at + 4 : at + 8] != name:
            at += int.from_bytes(data[at : at + 4], "big")
        begin, end = at, at + int.from_bytes(data[at : at + 4], "big")
        at += 8
    return begin, end


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {b: write_video(folder / f"{b}.mp4", frames=60, bframes=b) for b in (0, 2)}


def edited(source: Path, path: Path, edits: list[tuple[float, float | None, float]], version: int = 0) -> Path:
    """A copy whose edit list has entries of seconds, second of the media (None for a pause) and rate."""
    data = bytearray(source.read_bytes())
    movie = int.from_bytes(data[box(data, b"moov", b"mvhd")[0] + 20 :][:4], "big")
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        ticks, delay = 1 / stream.time_base, -next(container.demux(stream)).dts
    entry = ">qq" if version else ">Ii"
    rows = [
        struct.pack(entry, round(length * movie), -1 if begin is None else delay + round(begin * ticks))
        + struct.pack(">i", round(rate * 65536))
        for length, begin, rate in edits
    ]
    content = struct.pack(">B3xI", version, len(rows)) + b"".join(rows)
    elst = struct.pack(">I4s", 8 + len(content), b"elst") + content
    edts = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
    track = box(data, b"moov", b"trak")
    begin, end = box(data, b"moov", b"trak", b"edts") if b"edts" in data else (track[0] + 8, track[0] + 8)
    outer = [box(data, b"moov"), track]
    data[begin:end] = edts
    for first, last in outer:
        data[first : first + 4] = (last - first + len(edts) - (end - begin)).to_bytes(4, "big")
    path.write_bytes(data)
    return path


EDITS = {
    "trim": ([(1, 0.5, 1)], [*range(6, 18)]),
    "two": ([(1, 0.5, 1), (1, 3, 1)], [*range(6, 18), *range(36, 48)]),
    "two that touch": ([(1, 0.5, 1), (1, 1.5, 1)], [*range(6, 30)]),
    "backwards": ([(1, 3, 1), (1, 1, 1)], [*range(36, 48), *range(12, 24)]),
    "repeated": ([(0.5, 1, 1)] * 3, [*range(12, 18)] * 3),
    "pause, trim": ([(2.5, PAUSE, 1), (2, 1.5, 1)], [*range(18, 42)]),
    "pauses, two": ([(1, PAUSE, 1), (9, PAUSE, 1), (1, 1, 1), (1, 3, 1)], [*range(12, 24), *range(36, 48)]),
    "longer than the media": ([(1, 0.5, 1), (100, 4, 1)], [*range(6, 18), *range(48, 60)]),
    "many": ([(1 / 12, 7 * i % 60 / 12, 1) for i in range(40)], [7 * i % 60 for i in range(40)]),
}


@pytest.mark.parametrize("bframes", [0, 2])
@pytest.mark.parametrize("name", EDITS)
def test_edit_lists_present_their_parts_in_order(name: str, bframes: int, sources: dict[int, Path], tmp_path: Path):
    edits, expected = EDITS[name]
    version = int(name == "two")
    path = edited(sources[bframes], tmp_path / "edited.mp4", edits, version)
    frames = read_frames(path)
    assert [read_index(pixels) for pixels in frames.pixels] == expected
    if name != "many":  # the clock of a movie rounds each of many short edits
        assert_shows(path, expected)


def test_a_pause_holds_the_frame_before_it_and_a_dwell_holds_its_own(sources: dict[int, Path], tmp_path: Path) -> None:
    path = edited(sources[2], tmp_path / "pause.mp4", [(1, 0.5, 1), (1, PAUSE, 1), (1, 3, 1)])
    assert numbers(path, np.array([0.99, 1.5, 1.99, 2.01])) == [17, 17, 17, 36]
    path = edited(sources[2], tmp_path / "dwell.mp4", [(2, 1.04, 0), (1, 2, 1)])
    assert numbers(path, np.array([0.0, 1.9, 2.01, 2.1])) == [12, 12, 24, 25]
    assert video_info(path).duration_s == pytest.approx(3)


def test_edit_lists_that_cannot_be_followed_are_refused(sources: dict[int, Path], tmp_path: Path) -> None:
    path = tmp_path / "edited.mp4"
    for edits, message in (
        ([(1, 0.5, 2)], "plays at 2 times the speed"),
        ([(1, 0.5, -1)], "plays at -1 times the speed"),
        ([(1, 30, 1), (1, 40, 1)], "shows none of its frames"),
        ([(1, 0, 1), (6 * 86400, PAUSE, 1), (1, 2, 1)], "timestamps jump: the frame at 0.9 s lasts 518400 s"),
    ):
        with pytest.raises(DecodeError, match=message):
            video_info(edited(sources[2], path, edits))


def stream_copy(source: Path, path: Path, shift: bool = False) -> Path:
    """From the second keyframe on, as by `ffmpeg -c copy`; that is at time zero if `shift`, what is before it below."""
    options = {"avoid_negative_ts": "disabled"} if shift else {}
    with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
        stream = old.streams.video[0]
        out = new.add_stream_from_template(stream)
        keyframes = zero = 0
        for packet in old.demux(stream):
            if packet.is_keyframe:
                keyframes += 1
                zero = packet.pts if shift and keyframes == 2 else zero
            if packet.size and keyframes > 1:
                packet.pts, packet.dts = packet.pts - zero, packet.dts - zero
                packet.stream = out
                new.mux(packet)
    return path


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_pass_that_begins_late_enters_at_a_keyframe_and_shows_the_same_frames(name, tmp_path, monkeypatch):
    path = write_video(tmp_path / name, frames=72)
    times = np.arange(72) / 12 + 0.01
    decoded = []
    decode = reader.VideoReader._decoded
    monkeypatch.setattr(reader, "_NEAR_START_S", 3.0)
    with Video(path) as video:
        whole = [(image.tobytes(), begins_s) for image, begins_s, _ in video.scan(times)]
        monkeypatch.setattr(
            reader.VideoReader, "_decoded", lambda self, chosen: decode(self, (decoded.append(1) or x for x in chosen))
        )
        found = [(image.tobytes(), begins_s) for image, begins_s, _ in video.scan(times[50:60])]
    assert found == whole[50:60] and len(decoded) < 40


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_open_groups_cut_by_stream_copy_are_read_from_the_keyframe_on(codec: str, tmp_path: Path) -> None:
    params = {"x264-params": OPEN_X264} if codec == "libx264" else {"preset": "ultrafast", "x265-params": OPEN_X265}
    for kind, suffixes in ((".mp4", (".mp4", ".mov", ".mkv")), (".ts", (".ts",))):
        whole = write_video(tmp_path / f"whole{kind}", codec=codec, codec_options=params)
        for suffix in suffixes:
            assert_shows(stream_copy(whole, tmp_path / f"cut{suffix}"), [*range(12, 48)])
            if suffix == ".mkv":  # times below zero are lost
                assert_shows(stream_copy(whole, tmp_path / f"zero{suffix}", shift=True), [*range(12, 48)])


def test_frames_before_an_idr_are_not_taken_for_leading_ones(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mp4", frames=24)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [p for p in container.demux(stream) if p.size]
        for packet in packets[1:3]:
            packet.pts = packets[0].pts - 1  # what bad muxers write
        assert len(list(drop_leading_pictures(iter(packets), stream.codec_context.extradata))) == 24


def test_a_first_packet_without_a_time_has_no_leading_ones(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.ts", frames=24)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [p for p in container.demux(stream) if p.size]
        packets[0].pts = None
        assert list(drop_leading_pictures(iter(packets), stream.codec_context.extradata)) == packets


def test_damage_in_hidden_frames_does_not_count(tmp_path: Path) -> None:
    source = write_video(tmp_path / "a.mp4", frames=60, codec_options={"x264-params": f"{X264}:b-pyramid=none"})
    path = edited(source, tmp_path / "trim.mp4", [(2.5, 2.5, 1)])
    with av.open(str(source)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    shift = data.index(b"mdat") - source.read_bytes().index(b"mdat")
    for number, packet in enumerate(packets):
        hidden = 2.0 < packet.pts * packet.time_base < 2.5
        if hidden and packet.pts < max(p.pts for p in packets[: number + 1]):  # a B-frame
            place = slice(packet.pos + shift + 6, packet.pos + shift + packet.size)
            data[place] = bytes(255 - value for value in data[place])
    path.write_bytes(data)
    with pytest.raises(av.error.FFmpegError), av.open(str(path)) as container:
        container.streams.video[0].codec_context.options = {"err_detect": "explode"}
        list(container.decode(video=0))
    assert_shows(path, [*range(30, 60)])


def recording(path: Path, first: int, offset: float) -> Path:
    """Two seconds of a transport stream whose first frame has a number and whose clock begins late."""
    with av.open(str(path), "w", options={"output_ts_offset": str(offset)}) as container:
        stream = container.add_stream("libx264", rate=12, options={"bf": "2", "x264-params": X264})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for index in range(24):
            frame = av.VideoFrame.from_ndarray(indexed_image(first + index), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("offsets", [(500, 0), (0, 0), (95442.7, 0), (50, 49), (0, 500), (0, 5000, 0), (9, 0, 90_000)])
def test_recordings_joined_to_one_stream_follow_each_other(offsets: tuple[float, ...], tmp_path: Path) -> None:
    joined = tmp_path / "joined.ts"
    parts = [recording(tmp_path / f"{i}.ts", 24 * i, offset).read_bytes() for i, offset in enumerate(offsets)]
    joined.write_bytes(b"".join(parts))
    assert_shows(joined, [*range(24 * len(offsets))])
    clips = [start + np.arange(4) / 12 + 0.03 for start in (0, 1, 1.7, 3)]
    found = [[read_index(p) for p in clip.pixels] for clip in stream_clips(joined, clips)]
    assert found == [[*range(n, n + 4)] for n in (0, 12, 20, 36)]


def test_a_clock_of_33_bits_that_wraps_around_continues(tmp_path: Path) -> None:
    assert_shows(recording(tmp_path / "wrap.ts", 0, 2**33 / 90_000 - 1), [*range(24)])


def test_slides_of_one_recording_are_shown_as_long_as_its_clock_has_it(tmp_path: Path) -> None:
    slides = write_video(tmp_path / "slides.ts", frames=4, times=[0, 20, 1220, 1240])
    assert numbers(slides, np.array([1.0, 1219, 1221, 1241])) == [0, 1, 2, 3]


@pytest.mark.parametrize("frames", [(12, 30), (30, 12)])
def test_recordings_joined_in_a_file_of_matroska_are_refused(frames: tuple[int, int], tmp_path: Path) -> None:
    parts = [write_video(tmp_path / f"{n}.webm", frames=n, codec="libvpx", gop=250).read_bytes() for n in frames]
    (tmp_path / "joined.webm").write_bytes(b"".join(parts))
    with pytest.raises(DecodeError, match=r"timestamps go back from \d\.\d to 0\.\d s; split it there"):
        read_frames(tmp_path / "joined.webm")


def test_a_clock_that_stands_still_is_refused(tmp_path: Path) -> None:
    flv = bytearray(write_video(tmp_path / "video.flv", bframes=0, codec="flv", fps=25).read_bytes())
    at, number = 13, 0
    while at < len(flv):
        if flv[at] == 9:
            number += 1
            time = min(int.from_bytes(flv[at + 4 : at + 7], "big"), 800)
            flv[at + 4 : at + 7] = time.to_bytes(3, "big")
        at += 15 + int.from_bytes(flv[at + 1 : at + 4], "big")
    assert number == 48
    (tmp_path / "frozen.flv").write_bytes(flv)
    with pytest.raises(DecodeError, match=r"timestamps repeat at 0\.8 s"):
        video_info(tmp_path / "frozen.flv")


def test_a_clock_that_goes_back_where_recordings_are_not_joined_is_refused(tmp_path: Path) -> None:
    flv = write_video(tmp_path / "video.flv", bframes=0, codec="flv", fps=25)
    content = flv.read_bytes()
    (tmp_path / "twice.flv").write_bytes(content + content[13:])
    with pytest.raises(DecodeError, match=r"timestamps go back from 1\.\d to 0\.0 s; split it there"):
        video_info(tmp_path / "twice.flv")


def write_sparse(path: Path, times: list[float]) -> Path:
    with av.open(
        str(path), "w", options={"video_track_timescale": "100"} if path.suffix == ".mp4" else {}
    ) as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0", "x264-params": "threads=1"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 100)
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(indexed_image(index), format="rgb24")
            frame.pts, frame.time_base = round(100 * time), Fraction(1, 100)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_work_is_in_proportion_to_the_number_of_frames(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"sparse{suffix}"
    with pytest.raises(DecodeError, match=r"timestamps jump: the frame at 0\.0 s lasts 259200 s"):
        video_info(write_sparse(path, [0, 259_200, 518_400]))
    info = video_info(write_sparse(path, [0, 400, 800, 1200]))
    assert info.frames == 4
    assert len(window_times(info, 16, 4.0, None)[0]) == 4
    assert len(list(transcode(Sample(str(path)), Modality.VIDEO, ShardConfig(size=64, segment_s=2)))) == 16


def test_windows_do_not_outnumber_frames() -> None:
    assert len(window_times(VideoInfo("v", 600.0, 1, 64, 64, 0, frames=7), 16, 4.0, None)[0]) == 7
    assert len(window_times(VideoInfo("v", 600.0, 1, 64, 64, 0), 16, 4.0, None)[0]) == 150


def test_a_header_that_promises_too_little_is_not_believed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mkv")
    path.write_bytes(path.read_bytes().replace(b"00:00:04.000000000", b"00:00:01.000000000"))
    assert video_info(path).duration_s == pytest.approx(4.0, abs=0.02)


def test_frames_that_last_longer_than_the_whole_video_are_refused(tmp_path: Path) -> None:
    data = bytearray(write_video(tmp_path / "video.mp4").read_bytes())
    at = data.index(b"stts") + 16  # ticks from one frame to the next
    data[at : at + 4] = (10**6).to_bytes(4, "big")
    (tmp_path / "video.mp4").write_bytes(data)
    with pytest.raises(DecodeError, match="shows only 1 frame: its edit list and the durations of its frames"):
        numbers(tmp_path / "video.mp4", np.arange(4) / 4)


def test_an_avi_that_promises_more_than_it_has_is_truncated(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.avi", codec="mjpeg", bframes=0)
    data = bytearray(path.read_bytes())
    at = data.index(b"strh") + 8 + 32  # dwLength
    assert int.from_bytes(data[at : at + 4], "little") == 48
    data[at : at + 4] = (480).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(DecodeError, match=r"truncated at 4\.0 s \(header says 40\.0 s\)"):
        video_info(path)


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mpg", "mpeg2video"),
        ("a.wmv", "wmv2"),
        ("a.flv", "flv"),
        ("video.m2v", "mpeg2video"),
        ("a.mxf", "mpeg2video"),
        ("a.3gp", "mpeg4"),
    ],
)
def test_videos_of_other_containers_are_read(name: str, codec: str, tmp_path: Path) -> None:
    bframes = 2 if codec == "mpeg2video" else 0
    assert_shows(write_video(tmp_path / name, codec=codec, frames=30, fps=25, bframes=bframes), [*range(30)], 25)


def test_an_animation_is_a_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.gif"), "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "rgb8"
        for index in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(indexed_image(index), format="rgb24")))
        container.mux(stream.encode(None))
    frames = read_frames(tmp_path / "a.gif")
    assert [read_index(pixels) for pixels in frames.pixels] == [*range(8)]
    assert np.allclose(frames.times, np.arange(8) / 10)


def test_the_table_of_containers_names_formats_that_ffmpeg_reads() -> None:
    assert {names.split(",")[0] for names in VIDEO_CONTAINERS} <= av.formats_available
    assert {".mp4", ".m4v", ".mpg", ".mts", ".m2ts", ".wmv", ".flv", ".3gp", ".ogv", ".vob", ".gif"} <= VIDEO_SUFFIXES


def test_which_packets_are_needed_is_known_while_they_are_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = write_video(tmp_path / "video.mp4", bframes=5, gop=30, codec_options={"b-pyramid": "normal"})
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    begins = np.sort([p.pts for p in packets])
    for _ in range(20):
        targets = np.sort(rng.integers(0, begins[-1] + 900, 6))
        shown = set(begins[np.searchsorted(begins, targets, side="right") - 1].tolist())
        found = list(mark_required(packets_until(iter(packets), int(targets[-1]), True), targets.tolist()))
        assert {packet.pts for packet, wanted in found if wanted} == shown


def test_one_pass_reads_each_packet_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "video.mp4")
    read = []
    real = reader.VideoReader._demuxed

    def counted(self):
        for packet in real(self):
            read.append(packet.pts)
            yield packet

    with Video(path) as video:
        monkeypatch.setattr(reader.VideoReader, "_demuxed", counted)
        assert len(list(video.scan(np.arange(0, 4, 0.25)))) == 16
    assert len(read) <= 48
