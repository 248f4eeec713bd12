import contextlib
import gc
import warnings
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

import tubelet
from tests.helpers.decoding import decode_clips, stream_clips, video_info
from tests.helpers.media import (
    displayed_rgb,
    flip_bytes,
    indexed_image,
    read_index,
    variable_times,
    write_audio_only,
    write_image,
    write_one_frame,
    write_rotated,
    write_text,
    write_truncated,
    write_variable_rate,
    write_video,
)
from tubelet.data.decode import Frames, read_frames
from tubelet.data.images import read_image
from tubelet.data.video import container_header
from tubelet.data.video.reader import VideoReader
from tubelet.errors import DecodeError

OPEN_GOP = {"x264-params": "keyint=12:min-keyint=12:scenecut=0:threads=1:open-gop=1"}
FILES = {
    "b_frames.mp4": {},
    "pyramid.mp4": {"bframes": 5, "gop": 30},
    "open_gop.mp4": {"codec_options": OPEN_GOP},
    "open_gop.ts": {"codec_options": OPEN_GOP},
    "variable.mp4": {"times": list(variable_times())},
    "variable.mkv": {"times": list(variable_times())},
    "late_start.mp4": {"times": [1.5 + i / 12 for i in range(48)]},
    "early_start.mp4": {"times": [-0.5 + i / 12 for i in range(48)]},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "live.webm": {"codec": "libvpx-vp9", "container_options": {"live": "1"}},
    "b_frames.mov": {},
    "b_frames.mkv": {},
    "b_frames.ts": {},
    "b_frames.avi": {},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mpeg4.avi": {"codec": "mpeg4", "bframes": 0},
    "mpeg2.ts": {"codec": "mpeg2video", "fps": 25},
    "one_keyframe.ts": {"gop": 250},
}


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("video") / "video.mp4")


def one_clip(path: Path, times: list[float] | np.ndarray) -> Frames:
    return decode_clips(path, [np.asarray(times)])[0]


def indices(frames: Frames) -> list[int]:
    return [read_index(pixels) for pixels in frames.pixels]


def reason(path: Path, times: list[float] | None = None) -> str:
    """Why the file cannot be read; the message names the file."""
    with pytest.raises(DecodeError) as caught:
        one_clip(path, [0.0, 0.1] if times is None else times)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    return caught.value.reason


def plainly_decoded(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and times of all frames by the shortest way there is: no seeking, no skipping, no options."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    start = min(f.time for f in frames)
    return np.stack([displayed_rgb(f) for f in frames]), np.array([f.time - start for f in frames])


@pytest.mark.parametrize("name", FILES)
@pytest.mark.slow
def test_random_clips_are_bit_identical_to_the_frames_of_a_plain_decoder(name: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, **FILES[name])
    pixels, starts = plainly_decoded(path)
    starts = np.sort(starts)  # FFmpeg guesses the times of AVI packets, in decoding order
    rng = np.random.default_rng(0)
    clips = []
    for _ in range(12):
        rate = rng.choice([4.0, 6.0, 12.0, 30.0])
        clips.append(rng.uniform(-0.2, starts[-1]) + np.arange(rng.integers(2, 9)) / rate)
    found = decode_clips(path, clips)
    for times, clip in zip(clips, found, strict=True):
        shown = np.maximum(np.searchsorted(starts, times + 1e-6, side="right") - 1, 0)
        assert np.array_equal(clip.pixels.numpy(), pixels[shown])
        assert np.allclose(clip.times, starts[shown], atol=1e-6)


def test_images_that_nobody_needs_are_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "video.mp4", bframes=5, gop=48)
    decoded = []
    real = VideoReader._decode

    def counted(self, packet, at):
        frames = real(self, packet, at)
        decoded.extend(frames)
        return frames

    monkeypatch.setattr(VideoReader, "_decode", counted)
    assert indices(one_clip(path, np.arange(48) / 12)) == list(range(48))
    everything = len(decoded)
    decoded.clear()
    assert indices(one_clip(path, [1.0, 2.0, 3.9])) == [12, 24, 46]
    assert len(decoded) < 0.75 * everything


@pytest.mark.parametrize("overlap", [False, True])
def test_clips_of_a_video_that_can_be_entered_at_its_start_only_take_one_pass(
    overlap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "video.avi", frames=96, codec="mpeg4")
    starts = np.arange(0.0, 7.0, 0.3 if overlap else 0.7)
    clips = [start + np.arange(8) / 12 for start in starts]
    expected = decode_clips(path, clips)
    decoded = []
    real = VideoReader._decode
    monkeypatch.setattr(VideoReader, "_decode", lambda *given: decoded.append(1) or real(*given))
    found = list(stream_clips(path, clips))
    assert len(decoded) < 96 + 30  # and the beginning once more, which tells how the video is turned
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a.pixels, b.pixels) and np.array_equal(a.times, b.times)
    monkeypatch.setattr("tubelet.data.size_limits.CLIP_PIXELS", 7 * 64 * 64)
    with pytest.raises(DecodeError, match="8 frames of 64x64 pixels exceed"):
        next(stream_clips(path, clips))


def test_a_file_that_cannot_be_opened_is_closed(tmp_path: Path) -> None:
    path = write_audio_only(tmp_path / "video.mp4")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reason(path)
        gc.collect()
    assert not [str(warning.message) for warning in caught]


def test_frames_are_found_by_time_where_the_rate_varies(tmp_path: Path) -> None:
    path = write_variable_rate(tmp_path / "video.mp4")
    starts = variable_times()
    clip = one_clip(path, starts[10:20] + 1 / 48)
    assert indices(clip) == list(range(10, 20))
    assert np.allclose(clip.times, starts[10:20], atol=1e-3)


def test_a_time_on_a_frame_boundary_shows_the_frame_that_begins_there_whatever_the_clock_rounds(tmp_path: Path) -> None:
    for name in ("video.mp4", "video.mkv", "video.ts"):
        clip = one_clip(write_video(tmp_path / name), np.arange(48) / 12)
        assert indices(clip) == list(range(48)), name


def test_times_before_the_first_frame_show_it_and_times_after_the_last_show_the_last(video: Path) -> None:
    assert indices(one_clip(video, [-1.0, 0.0, 3.95, 4.0, 9.0])) == [0, 0, 47, 47, 47]


def test_a_hidden_beginning_of_an_edit_list_is_not_shown(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mp4", times=[-0.5 + i / 12 for i in range(48)])
    assert indices(one_clip(path, [0.0, 1.0])) == [6, 18]


def test_a_seek_that_lands_too_late_is_taken_back(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    landings = []
    real = VideoReader._seek

    def late(self, target):
        landings.append(target)
        return real(self, target + round(1.5 / self.tick))

    monkeypatch.setattr(VideoReader, "_seek", late)
    assert indices(one_clip(video, [1.5, 2.0])) == [18, 24]
    assert len(landings) > 1


def test_a_container_that_cannot_seek_is_read_from_its_start(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VideoReader, "_seek", lambda self, target: False)
    assert indices(one_clip(video, [3.0, 3.5])) == [36, 42]


def test_the_info_tells_length_rate_and_size(tmp_path: Path) -> None:
    for name in ("video.mp4", "video.mkv", "video.ts", "video.avi"):
        info = video_info(write_video(tmp_path / name))
        assert (info.duration_s, info.fps) == (pytest.approx(4.0, abs=0.01), pytest.approx(12, abs=0.1)), name
        assert (info.width, info.height, info.rotation) == (64, 64, 0)


def test_a_recording_without_a_length_in_its_header_is_measured(tmp_path: Path) -> None:
    path = write_video(tmp_path / "live.webm", codec="libvpx-vp9", container_options={"live": "1"})
    assert video_info(path).duration_s == pytest.approx(4.0, abs=0.1)


def test_the_length_is_that_of_the_images_where_the_sound_is_longer(tmp_path: Path) -> None:
    path = tmp_path / "video.mkv"
    video = write_video(tmp_path / "video.mp4")
    sound = write_audio_only(tmp_path / "sound.mp4", seconds=9.0)
    with av.open(str(path), "w") as target, av.open(str(video)) as pictures, av.open(str(sound)) as tone:
        sources = [pictures.streams.video[0], tone.streams.audio[0]]
        streams = [target.add_stream_from_template(source) for source in sources]
        for container, source, stream in zip([pictures, tone], sources, streams, strict=True):
            for packet in container.demux(source):
                if packet.size:
                    packet.stream = stream
                    target.mux(packet)
    data = path.read_bytes()
    assert video_info(path).duration_s == pytest.approx(4.0, abs=0.1)
    path.write_bytes(data.replace(b"DURATION", b"NOTATION"))  # as written by tools that give streams no length
    assert video_info(path).duration_s == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_frames_stand_upright(degrees: int, suffix: str, tmp_path: Path) -> None:
    frames = read_frames(write_rotated(tmp_path / f"video{suffix}", degrees, frames=4))
    lying = np.rot90(frames.pixels[3].numpy(), -degrees // 90)
    assert read_index(lying) == 3


def test_the_matrix_that_phones_write_for_upright_videos_turns_clockwise(tmp_path: Path) -> None:
    path = write_rotated(tmp_path / "video.mp4", -90, frames=4)
    one, minus = (1 << 16).to_bytes(4, "big"), ((-1 << 16) & 0xFFFFFFFF).to_bytes(4, "big")
    zero = bytes(4)
    assert b"".join([zero, one, zero, minus, zero, zero]) in path.read_bytes()  # x' = -y, y' = x
    assert video_info(path).rotation == 270
    assert np.allclose(read_frames(path).pixels[2].float(), np.rot90(indexed_image(2), -1).astype(np.float32), atol=60)


def test_width_and_height_are_those_of_the_upright_image(tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.set_display_rotation(90)
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(indexed_image(1)[:32], format="rgb24")))
        container.mux(stream.encode(None))
    info, (clip,) = video_info(path), decode_clips(path, [np.array([0.0, 0.2])])
    assert (info.width, info.height) == (32, 64)
    assert clip.pixels.shape == (2, 64, 32, 3)


def test_a_video_gives_its_properties_and_any_clips_of_one_open_file(video: Path) -> None:
    with tubelet.Video(video) as opened:
        assert (opened.info.width, opened.info.height, opened.info.fps) == (64, 64, 12)
        late, early = opened.clips([[2.0, 3.0], opened.info.duration_s * np.array([0.0, 0.25])])
        assert [indices(clip) for clip in (late, early, *opened.stream([[1.0]]))] == [[24, 36], [0, 12], [12]]
        assert indices(opened.frames()) == list(range(48))


def test_read_frames_delivers_all_frames_with_their_times(video: Path) -> None:
    frames = read_frames(video)
    assert indices(frames) == list(range(48))
    assert frames.pixels.dtype == torch.uint8 and frames.pixels.shape == (48, 64, 64, 3)
    assert np.allclose(frames.times, np.arange(48) / 12)


def test_colors_survive(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mp4", frames=4, codec_options={"crf": "10"})
    assert (read_frames(path).pixels[0].float() - torch.from_numpy(indexed_image(0)).float()).abs().mean() < 8


def test_a_missing_file_an_empty_file_and_a_folder_are_distinguished(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    assert reason(tmp_path / "missing.mp4") == "does not exist"
    assert reason(tmp_path / "empty.mp4") == "is empty (0 bytes)"
    assert reason(tmp_path) == "is a folder, not a file"


def test_a_text_file_is_not_media(tmp_path: Path) -> None:
    assert "not a media file" in reason(write_text(tmp_path / "video.mp4"))


def test_a_sound_file_has_no_video_stream(tmp_path: Path) -> None:
    assert reason(write_audio_only(tmp_path / "sound.mp4")) == "has no video stream (it has 1 audio)"


def test_a_video_cut_off_before_its_index_misses_it(video: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.mp4"
    path.write_bytes(video.read_bytes()[:4000])
    assert "its index (moov) is missing" in reason(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".webm", ".avi"])
def test_a_video_that_is_shorter_than_its_header_promises_is_cut_off(suffix: str, tmp_path: Path) -> None:
    codec = "libvpx-vp9" if suffix == ".webm" else "libx264"
    path = write_truncated(tmp_path / f"cut{suffix}", codec=codec)
    assert reason(path).startswith(f"truncated: has {path.stat().st_size} bytes, header says")


def test_transport_streams_of_two_codecs_in_one_file_are_refused(tmp_path: Path) -> None:
    old, new = (write_video(tmp_path / f"{codec}.ts", codec=codec) for codec in ("mpeg2video", "libx264"))
    assert [video_info(path).duration_s for path in (old, new)] == pytest.approx([4, 4])
    both = tmp_path / "both.ts"
    for first, second in ((old, new), (new, old)):
        both.write_bytes(first.read_bytes() + second.read_bytes())
        assert reason(both) == "its codec changes (stream 256); split it there"


def test_program_maps_that_span_packets_are_read(tmp_path: Path) -> None:
    streams = b"".join(bytes([kind, 0xE1, number, 0xF0, 100, *[0xFF] * 100]) for kind, number in ((2, 0), (27, 1)))
    table = bytes([2, 0xB0 | (13 + len(streams)) >> 8, (13 + len(streams)) & 255, 0, 1, 193, 0, 0, 0xE1, 0, 0xF0, 0])
    section = b"\0" + table + streams + b"\0\0\0\0"
    first = bytes([0x47, 0x50, 0, 0x10]) + section[:184]
    between = bytes([0x47, 0x01, 0, 0x10]) + bytes(184)
    second = bytes([0x47, 0x10, 0, 0x11]) + section[184:].ljust(184, b"\xff")
    found = list(container_header._mapped_streams(first + between + second))
    assert found == [(0x100, 2), (0x101, 27)]


def test_junk_behind_a_video_does_no_harm(video: Path, tmp_path: Path) -> None:
    path = tmp_path / "junk.mp4"
    path.write_bytes(video.read_bytes() + b"signed by a camera" * 9)
    assert indices(one_clip(path, [1.0, 2.0])) == [12, 24]


def test_a_header_that_promises_more_than_there_is_is_named(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video.mkv")
    data = path.read_bytes()
    assert data.count(b"00:00:04.000000000") == 1
    path.write_bytes(data.replace(b"00:00:04.000000000", b"00:00:08.000000000"))
    assert reason(path, [6.0, 7.0]) == ("truncated at 4.0 s (header says 8.0 s); re-export or remove it")


def test_an_unknown_codec_is_named_as_such(video: Path, tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    path.write_bytes(video.read_bytes().replace(b"avc1", b"zzzz"))
    assert "codec is not supported" in reason(path)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".avi"])
def test_a_video_of_one_frame_is_no_video(suffix: str, tmp_path: Path) -> None:
    path = write_one_frame(tmp_path / f"still{suffix}")
    assert reason(path) == "has 1 frame, expected at least 2; save it as an image"


def test_a_clip_that_shows_one_frame_of_many_is_delivered(video: Path) -> None:
    assert indices(one_clip(video, [1.0, 1.01, 1.02])) == [12, 12, 12]


@pytest.mark.slow
def test_flipped_bytes_are_noticed_and_healthy_files_are_not_blamed(tmp_path: Path) -> None:
    unnoticed, raised = 0, 0
    for seed in range(12):
        healthy = write_video(tmp_path / f"{seed}.mp4", bframes=seed % 4, gop=8 + seed, size=32 * (2 + seed % 3))
        assert indices(read_frames(healthy)) == list(range(48))
        damaged = flip_bytes(healthy, tmp_path / f"{seed}_damaged.mp4", seed)
        try:
            plainly_decoded(damaged)
            unnoticed += 1
        except av.error.FFmpegError:
            pass
        try:
            read_frames(damaged)
        except DecodeError as error:
            assert "corrupt" in error.reason
            raised += 1
    assert raised >= 10
    assert unnoticed >= 3  # else the files are so broken that any reader complains


def test_no_reader_writes_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    video = write_video(tmp_path / "video.mp4")
    damaged = flip_bytes(video, tmp_path / "damaged.mp4", 3)
    capfd.readouterr()  # encoders may talk
    for path in (video, damaged, write_text(tmp_path / "text.mp4")):
        with contextlib.suppress(DecodeError):
            read_frames(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_an_image_is_read_as_rgb(suffix: str, tmp_path: Path) -> None:
    pixels = read_image(write_image(tmp_path / f"still{suffix}", index=77))
    assert pixels.shape == (64, 64, 3) and pixels.dtype == torch.uint8
    assert read_index(pixels) == 77


def test_an_image_is_turned_as_its_exif_tag_asks(tmp_path: Path) -> None:
    pixels = read_image(write_image(tmp_path / "still.jpg", index=77, orientation=6))
    assert read_index(np.rot90(pixels.numpy(), 1)) == 77


def test_images_of_other_kinds_become_rgb(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 64 * 64).reshape(64, 64).astype(np.uint8)
    for mode in ("L", "P", "RGBA", "LA", "1"):
        path = tmp_path / f"{mode}.png"
        Image.fromarray(ramp).convert(mode).save(path)
        assert read_image(path).shape == (64, 64, 3), mode
    path = tmp_path / "deep.png"
    Image.fromarray(ramp.astype(np.uint16) * 257).save(path)
    assert np.array_equal(read_image(path)[..., 0].numpy(), ramp)


def test_an_image_cut_off_or_damaged_or_too_large_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / "still.png")
    data = path.read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    for name, words in (("cut.png", "corrupt or truncated"), ("text.png", "not an image"), ("none.png", "not exist")):
        if name == "text.png":
            write_text(tmp_path / name)
        with pytest.raises(DecodeError, match=words):
            read_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    for limit in (3000, 1000):  # Pillow warns above the limit and refuses above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DecodeError, match="million pixels"):
            read_image(path)


def test_an_image_of_16_bits_that_would_be_black_is_refused(tmp_path: Path) -> None:
    values = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)
    Image.fromarray(4 * values).save(tmp_path / "scan.png")
    with pytest.raises(DecodeError, match=r"maximum 4092 would decode as black; scale it to 0-65535"):
        read_image(tmp_path / "scan.png")
    Image.fromarray(64 * values).save(tmp_path / "scan.tif")
    assert read_image(tmp_path / "scan.tif")[..., 0].numpy().tolist() == (64 * values >> 8).tolist()


def test_of_a_tiff_one_page_is_an_image_and_several_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(indexed_image(i)) for i in range(3)]
    pages[0].save(tmp_path / "one.tif")
    assert torch.equal(read_image(tmp_path / "one.tif"), torch.from_numpy(indexed_image(0)))
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DecodeError, match="has 3 pages, expected 1; it is a stack: read it where"):
        read_image(tmp_path / "stack.tif")


def encode_noise(
    path: Path, codec: str, options: dict[str, str], size: int = 64, frames: int = 96, fps: int = 24
) -> Path:
    """Frames of noise that darkens and brightens, by a codec with its own options alone."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w", options={"live": "1"} if path.suffix == ".webm" else {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.options = options
        for i in range(frames):
            pixels = rng.integers(0, 64, (size, size, 3)) + 2 * i % 190
            frame = av.VideoFrame.from_ndarray(pixels.astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def assert_read_as_whole(path: Path, clips: list[np.ndarray]) -> None:
    whole = read_frames(path)
    for seconds in clips:
        numbers = np.searchsorted(whole.times, seconds + 1e-3) - 1
        clip = decode_clips(path, [seconds])[0]
        assert clip.times.tolist() == whole.times[numbers].tolist()
        assert torch.equal(clip.pixels, whole.pixels[numbers])


def test_frames_that_a_decoder_withholds_when_others_are_left_out_come_all_the_same(tmp_path: Path) -> None:
    # SVT-AV1 gives its process a real-time scheduling policy, and so all that the process starts later.
    path = tmp_path / "live.webm"
    encoder = get_context("fork").Process(target=encode_noise, args=(path, "libsvtav1", {"preset": "8"}))
    encoder.start()
    encoder.join()
    assert encoder.exitcode == 0
    assert_read_as_whole(path, [1.5 + np.arange(8) / 24])
    (streamed,) = stream_clips(path, [1.5 + np.arange(8) / 24])
    assert np.diff(streamed.times) == pytest.approx(np.full(7, 1 / 24), abs=2e-3)


@pytest.mark.slow
def test_a_stream_that_is_renewed_bit_by_bit_is_read_from_anywhere(tmp_path: Path) -> None:
    x264 = {"preset": "veryfast", "bf": "0", "g": "24", "x264-params": "intra-refresh=1:keyint=24:threads=1:scenecut=0"}
    path = encode_noise(tmp_path / "refresh.mp4", "libx264", x264, size=192, frames=150, fps=25)
    assert_read_as_whole(path, list(np.arange(0.5, 5.5, 0.26)[:, None]))
