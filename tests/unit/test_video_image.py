"""What frames show: orientation, square pixels, interlaced fields, transfer curves, primaries, bits."""

import io
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.filter import Graph
from numpy.lib.stride_tricks import sliding_window_view

from tests.helpers.decoding import decode_clips, video_info
from tests.helpers.media import displayed_rgb, indexed_image, read_index, write_video
from tests.helpers.video_files import frame_of
from tubelet.data.containers import MediaBytes
from tubelet.data.decode import Video, read_frames
from tubelet.data.video.color import to_bt709
from tubelet.data.video.image import Converter
from tubelet.data.video.reader import DecodedFrame
from tubelet.errors import DecodeError

QUADRANTS = {(-1, -1): 250, (1, -1): 180, (-1, 1): 110, (1, 1): 40}
# (x, y) is shown at (a x + c y, b x + d y)
MATRICES = [(1, 0, 0, 1), (0, 1, -1, 0), (-1, 0, 0, -1), (0, -1, 1, 0)]
MATRICES += [(-1, 0, 0, 1), (1, 0, 0, -1), (0, 1, 1, 0), (0, -1, -1, 0)]


def write(
    path: Path,
    images: list[np.ndarray],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    setup: Callable[[Any], None] = lambda stream: None,
    options: dict[str, str] | None = None,
    frames: Callable[[Any], None] = lambda frame: None,
) -> Path:
    """A video of (H, W, 3) uint8 images; `setup` changes the stream, `frames` each frame that is encoded."""
    quality = {"preset": "ultrafast", "crf": "2"} if codec.startswith("libx26") else {}
    log = {"x265-params": "log-level=none:pools=none"} if codec == "libx265" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=quality | log | (options or {}))
        stream.height, stream.width = images[0].shape[:2]
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        setup(stream)
        for image in images:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            frames(frame)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def set_matrix(path: Path, matrix: tuple[float, ...]) -> Path:
    """Write a display matrix into the header of an MP4's track."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") - 4 + 48
    a, b, c, d = (round(65536 * value) for value in matrix)
    rows = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
    data[at : at + 36] = b"".join((value & 0xFFFFFFFF).to_bytes(4, "big") for value in rows)
    path.write_bytes(data)
    return path


def quadrants(pixels: np.ndarray) -> list[int]:
    height, width = pixels.shape[:2]
    corners = [(y, x) for y in (height // 8, 5 * height // 8) for x in (width // 8, 5 * width // 8)]
    return [int(pixels[y : y + height // 4, x : x + width // 4].mean()) for y, x in corners]


def gray_quadrants(height: int, width: int) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    for (x, y), value in QUADRANTS.items():
        image[:: -1 if y > 0 else 1][: height // 2, :: -1 if x > 0 else 1][:, : width // 2] = value
    return image


@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(3, 2)])
@pytest.mark.parametrize("matrix", MATRICES)
def test_all_eight_orientations_are_applied(matrix: tuple[int, ...], aspect: Fraction, tmp_path: Path) -> None:
    def setup(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = aspect

    path = set_matrix(write(tmp_path / "a.mp4", [gray_quadrants(64, 96)] * 3, setup=setup), matrix)
    a, b, c, d = matrix
    shown = {(a * x + c * y, b * x + d * y): value for (x, y), value in QUADRANTS.items()}
    pixels = read_frames(path).pixels[0].numpy()
    assert np.allclose(quadrants(pixels), [shown[x, y] for y in (-1, 1) for x in (-1, 1)], atol=6)
    info = video_info(path)
    width = round(96 * aspect)
    assert (info.height, info.width) == pixels.shape[:2] == ((width, 64) if b else (64, width))
    assert info.mirrored == (a * d - b * c < 0)
    with Video(path) as video:
        passed = next(video.scan(np.array([0.0])))[0]
    turned = np.rot90(read_frames(set_matrix(path, (1, 0, 0, 1))).pixels[0].numpy(), info.rotation // 90)
    assert np.array_equal(passed, pixels)
    assert np.array_equal(pixels, turned[:, ::-1] if info.mirrored else turned)


def test_matrices_of_nothing_are_none_and_other_angles_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [gray_quadrants(64, 96)] * 2)
    assert read_frames(set_matrix(path, (0, 0, 0, 0))).pixels.shape == (2, 64, 96, 3)
    assert read_frames(set_matrix(path, (2, 0, 0, 2))).pixels.shape == (2, 64, 96, 3)
    with pytest.raises(DecodeError, match="rotates by 45 degrees, expected a multiple of 90"):
        video_info(set_matrix(path, (0.7071, 0.7071, -0.7071, 0.7071)))


@pytest.mark.parametrize(("name", "ratio"), [("a.mp4", 2), ("a.mkv", Fraction(8, 9)), ("a.ts", 2), ("a.avi", 2)])
def test_pixels_that_are_not_square_are_resampled(name: str, ratio: Fraction, tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :72]
    disc = np.where((((x - 35.5) * float(ratio)) ** 2 + (y - 31.5) ** 2 < 24**2)[..., None], 255, 0)

    def setup(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(ratio)
        stream.codec_context.max_b_frames = 0

    path = write(tmp_path / name, [np.broadcast_to(disc, (64, 72, 3)).astype(np.uint8)] * 4, setup=setup)
    info, (clip,) = video_info(path), decode_clips(path, [np.array([0.0, 0.2])])
    lit = clip.pixels[0, ..., 0].numpy() > 127
    assert (info.width, info.height) == (round(72 * ratio), 64) == lit.shape[::-1]
    assert lit.any(0).sum() == pytest.approx(lit.any(1).sum(), abs=2)


def test_ratios_that_are_unknown_or_nearly_one_are_square(tmp_path: Path) -> None:
    for ratio in (Fraction(0), Fraction(960, 959)):

        def setup(stream: Any, ratio: Fraction = ratio) -> None:
            if ratio:
                stream.codec_context.sample_aspect_ratio = ratio

        assert video_info(write(tmp_path / "a.mp4", [gray_quadrants(64, 96)] * 2, setup=setup)).width == 96


@pytest.mark.parametrize("ratio", [Fraction(16), Fraction(1, 20)])
def test_ratios_of_no_camera_are_refused(ratio: Fraction, tmp_path: Path) -> None:
    def setup(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = ratio

    path = write(tmp_path / "a.mp4", [gray_quadrants(64, 96)] * 2, setup=setup)
    with pytest.raises(DecodeError, match=f"pixel aspect ratio {ratio.numerator}:{ratio.denominator}"):
        video_info(path)


def write_interlaced(path: Path, codec: str, top_first: bool, count: int = 30) -> Path:
    """A bar that moves 4 pixels from field to field; a frame's two fields show it at different places."""
    images = []
    for index in range(count):
        image = np.zeros((64, 160, 3), np.uint8)
        for field in (0, 1):
            left = 8 * (index % 12) + 4 * (field if top_first else 1 - field)
            image[field::2, left : left + 24] = 255
        images.append(image)
    order = "tff" if top_first else "bff"
    options = {"flags": "+ilme+ildct", "x264-params": f"{order}=1:threads=1"} if codec == "libx264" else {}
    if codec == "mpeg2video":
        options = {"flags": "+ilme+ildct", "field_order": "tt" if top_first else "bb", "qscale": "2"}
    return write(path, images, codec, options=options)


@pytest.mark.parametrize("top_first", [True, False])
@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.ts", "libx264"), ("a.mkv", "mpeg2video")])
def test_interlaced_frames_are_deinterlaced_alike_from_anywhere(
    name: str, codec: str, top_first: bool, tmp_path: Path
) -> None:
    path = write_interlaced(tmp_path / name, codec, top_first)
    frames = read_frames(path)
    assert len(frames.times) == 30
    expected = by_bwdif(path)
    assert np.array_equal(frames.pixels.numpy(), expected)
    combs = np.abs(np.diff(expected[..., 0].astype(int), axis=1)).mean()
    with av.open(str(path)) as container:
        raw = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    assert combs < 0.4 * np.abs(np.diff(raw[..., 0].astype(int), axis=1)).mean()
    for places in ([0, 1], [7], [3, 4, 20], [28, 29], [12, 13]):
        clip = decode_clips(path, [frames.times[places] + 0.03])[0]
        assert np.array_equal(clip.pixels.numpy(), expected[places]), places
    with Video(path) as video:
        passed = np.stack([image for image, *_ in video.scan(frames.times + 0.03)])
    assert np.array_equal(passed, expected)


def by_bwdif(path: Path) -> np.ndarray:
    """All frames by FFmpeg's filter over the whole video."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    assert all(frame.interlaced_frame for frame in frames)
    graph = Graph()
    source = graph.add_buffer(width=160, height=64, format=frames[0].format, time_base=Fraction(1, 10))
    graph.link_nodes(source, graph.add("bwdif", "mode=send_frame"), graph.add("buffersink")).configure()
    for frame in [*frames, None]:
        graph.push(frame)
    made = [graph.pull() for _ in frames]
    for one, other in zip(made, frames, strict=True):
        one.colorspace, one.color_range = other.colorspace, other.color_range
    return np.stack([displayed_rgb(frame) for frame in made])


def tagged(transfer: int, primaries: int, matrix: int) -> dict[str, Callable[[Any], None]]:
    def tag(target: Any) -> None:
        target.color_trc, target.color_primaries, target.colorspace, target.color_range = transfer, primaries, matrix, 1

    return {"setup": lambda stream: tag(stream.codec_context), "frames": tag}


def flat(level: float, depth: int) -> Callable[[Any], None]:
    """Fill a frame with neutral gray at a share of the limited range."""

    def fill(frame: Any) -> None:
        scale = 2 ** (depth - 8)
        for number, plane in enumerate(frame.planes):
            kind = np.uint8 if depth == 8 else np.uint16
            value = round(scale * (16 + 219 * level)) if number == 0 else 128 * scale
            plane.update(np.full((plane.height, plane.line_size // np.dtype(kind).itemsize), value, kind).tobytes())

    return fill


# Reference white is 58 % of PQ and 75 % of HLG, a gray card of 26 cd/m2 is 38 % of both (BT.2408).
@pytest.mark.parametrize(
    ("transfer", "level", "expected"),
    [(16, 0.58, 237), (18, 0.75, 237), (16, 0.38, 108), (18, 0.38, 108), (16, 1.0, 255), (18, 1.0, 253), (16, 0.0, 0)],
)
def test_high_dynamic_range_is_tone_mapped(transfer: int, level: float, expected: int, tmp_path: Path) -> None:
    depth = 8 if transfer == 18 and level == 0.75 else 10
    tags = tagged(transfer, 9, 9)

    def frames(frame: Any) -> None:
        flat(level, depth)(frame)
        tags["frames"](frame)

    pix_fmt = "yuv420p" if depth == 8 else "yuv420p10le"
    image = np.zeros((64, 64, 3), np.uint8)
    path = write(tmp_path / "a.mp4", [image] * 3, "libx264", pix_fmt, setup=tags["setup"], frames=frames)
    assert np.abs(read_frames(path).pixels[1].numpy().astype(int) - expected).max() <= 4


def test_tone_mapping_is_monotonic_and_keeps_hues() -> None:
    ramp = np.linspace(0, 65535, 4096).astype(np.uint16)
    for transfer in (16, 18):
        gray = to_bt709(np.repeat(ramp[None, :, None], 3, 2), transfer, 9)[0]
        assert np.abs(gray.astype(int) - gray[:, :1]).max() <= 1
        assert (np.diff(gray[:, 0].astype(int)) >= 0).all()
    # Pure BT.709 red at reference white in linear BT.2020, encoded as PQ, is pure red again.
    linear = 203 / 10_000 * np.array([0.6274, 0.0691, 0.0164])
    root = linear ** (2610 / 16384)
    code = ((3424 / 4096 + 2413 / 128 * root) / (1 + 2392 / 128 * root)) ** (2523 / 32)
    red = to_bt709(np.round(65535 * code).astype(np.uint16).reshape(1, 1, 3), 16, 9)[0, 0]
    assert red[0] > 225 and red[1:].max() < 25


def test_wide_gamut_of_standard_range_becomes_bt709(tmp_path: Path) -> None:
    codes = np.array([[[0.7, 0.3, 0.2], [0.5, 0.5, 0.5], [0.0, 1.0, 0.0]]])
    found = to_bt709(np.round(65535 * codes).astype(np.uint16), 14, 9)[0]
    assert np.abs(found[1].astype(int) - 128).max() <= 1  # gray stays gray
    assert found[0, 0] > round(255 * 0.7) and found[2].tolist() == [0, 255, 0]


def test_colors_that_cannot_be_converted_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", [indexed_image(1)] * 3, **tagged(1, 1, 8))
    with pytest.raises(DecodeError, match="color matrix YCgCo"):
        read_frames(path)


@pytest.mark.parametrize(("matrix", "primaries"), [(1, 1), (5, 5), (6, 6), (9, 1)])
def test_matrices_and_ranges_are_those_of_the_tags(matrix: int, primaries: int, tmp_path: Path) -> None:
    colors = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [128, 128, 128]], np.float64)
    kr, kb = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}[matrix]
    luma = colors @ [kr, 1 - kr - kb, kb]
    cb, cr = (colors[:, 2] - luma) / (2 - 2 * kb), (colors[:, 0] - luma) / (2 - 2 * kr)
    for full in (False, True):
        y, cb8, cr8 = (
            (luma, cb + 128, cr + 128) if full else (16 + luma * 219 / 255, 128 + cb * 224 / 255, 128 + cr * 224 / 255)
        )

        def frames(frame: Any, planes: tuple[np.ndarray, ...] = (y, cb8, cr8), full: bool = full) -> None:
            frame.colorspace, frame.color_range = matrix, 1 + full
            for plane, values in zip(frame.planes, planes, strict=True):
                rows = np.repeat(np.round(values), plane.line_size // 4)[None]
                plane.update(np.repeat(rows, plane.height, 0).astype(np.uint8).tobytes())

        def setup(stream: Any, full: bool = full) -> None:
            context = stream.codec_context
            context.colorspace, context.color_primaries, context.color_trc = matrix, primaries, 1
            context.color_range = 1 + full

        image = np.zeros((64, 256, 3), np.uint8)
        path = write(tmp_path / "a.mp4", [image] * 2, pix_fmt="yuv444p", setup=setup, frames=frames)
        found = read_frames(path).pixels[0, 32, 32::64].numpy().astype(int)
        assert np.abs(found - colors).max() <= 4, (matrix, full)


def source_frame(name: str, options: str, pix_fmt: str) -> Any:
    """The first frame of one of FFmpeg's own sources."""
    graph = Graph()
    nodes = [graph.add(name, options), graph.add("format", pix_fmt), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph.pull()


def ffv1(frame: Any, matrix: int, color_range: int) -> MediaBytes:
    """A lossless video of twice the same frame, with a matrix and a range in its tags."""
    target = io.BytesIO()
    with av.open(target, "w", format="matroska") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, frame.format.name
        context = stream.codec_context
        context.thread_count, context.colorspace, context.color_range = 1, matrix, color_range
        frame.colorspace, frame.color_range = matrix, color_range
        for number in range(2):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return MediaBytes("bars.mkv", target.getvalue())


def flat_areas(pixels: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels whose neighbors up to four pixels away in all directions have the same color."""
    same = np.zeros(pixels.shape[:2], bool)
    lowest = sliding_window_view(sliding_window_view(pixels, 9, axis=0).min(-1), 9, axis=1).min(-1)
    highest = sliding_window_view(sliding_window_view(pixels, 9, axis=0).max(-1), 9, axis=1).max(-1)
    same[4:-4, 4:-4] = (lowest == highest).all(-1)
    return same


# What is not specified is read as BT.601, whatever the resolution.
TAGGED = {"bt601": (2, 5, 6), "bt709": (1,), "bt2020": (9,)}


@pytest.mark.parametrize("source", ["smptehdbars", "testsrc2"])
@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", TAGGED)
def test_color_bars_of_ffmpeg_are_exact_in_all_matrices_ranges_and_samplings(
    matrix: str, full: bool, source: str
) -> None:
    colors = source_frame(source, "size=192x120", "rgb24").to_ndarray(format="rgb24")
    flat = flat_areas(colors)
    assert flat.mean() > 0.1 and len(np.unique(colors[flat], axis=0)) >= 3
    for number, sampling, bits in product(TAGGED[matrix], ("420", "422", "444"), (8, 10)):
        frame = frame_of(colors, f"yuv{sampling}p{'10le' if bits == 10 else ''}", matrix, full)
        media = ffv1(frame, number, 1 + full)
        found = read_frames(media).pixels[0].numpy().astype(int)
        assert np.abs(found - colors)[flat].max() <= 2, (sampling, bits)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("pix_fmt", "height", "width"), [("nv12", 120, 192), ("yuv420p", 119, 192), ("yuv422p", 120, 256)]
)
def test_color_bars_are_exact_without_a_fast_conversion(pix_fmt: str, height: int, width: int, full: bool) -> None:
    colors = source_frame("smptehdbars", f"size=192x{height}", "rgb24").to_ndarray(format="rgb24")
    frame = frame_of(colors, "yuv420p" if pix_fmt == "nv12" else pix_fmt, "bt709", full).reformat(format=pix_fmt)
    frame.colorspace, frame.color_range = 1, 1 + full
    found = Converter("bars", frame, None).image(DecodedFrame(frame, 1, 0.0), height, width).astype(int)
    flat = flat_areas(colors)
    columns = np.arange(192) * width // 192
    assert np.abs(found[:, columns] - colors)[flat].max() <= 2


def test_hd_color_bars_of_ffmpeg_have_the_colors_of_their_codes() -> None:
    frame = source_frame("smptehdbars", "size=192x120", "yuv444p")
    y, cb, cr = (frame.to_ndarray(format="yuv444p").astype(float) - np.array([16, 128, 128])[:, None, None]) / 219
    red, blue = y + cr * 219 / 224 * 2 * (1 - 0.2126), y + cb * 219 / 224 * 2 * (1 - 0.0722)
    colors = np.stack([red, (y - 0.2126 * red - 0.0722 * blue) / 0.7152, blue], axis=-1).clip(0, 1) * 255
    found = read_frames(ffv1(frame, 1, 1)).pixels[0].numpy()
    assert len(np.unique(found.reshape(-1, 3), axis=0)) > 10
    assert np.abs(found - colors).max() <= 2


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("libx264", "yuv420p10le", ".mp4"),
        ("libx264", "yuv422p10le", ".mp4"),
        ("ffv1", "gray16le", ".mkv"),
        ("ffv1", "gbrp14le", ".mkv"),
        ("ffv1", "yuv444p9le", ".mkv"),
        ("ffv1", "yuva420p", ".mkv"),
        ("png", "rgb48be", ".mov"),
        ("png", "rgba", ".mov"),
        ("prores_ks", "yuv422p10le", ".mov"),
    ],
)
def test_deep_pixels_keep_their_brightness(codec: str, pix_fmt: str, suffix: str, tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], (64, 128, 3))
    path = write(tmp_path / f"a{suffix}", [np.ascontiguousarray(ramp)] * 2, codec, pix_fmt)
    found = read_frames(path).pixels[0].numpy().astype(int)
    assert np.abs(found - ramp)[8:-8, 4:-4].mean() < 2.5


@pytest.mark.parametrize("name", ["gray12.mp4", "yuv444p12.mp4"])
def test_hevc_of_12_bits_keeps_its_brightness(name: str) -> None:
    # Made by `write` from two frames of this ramp: x265 has one depth a process, so other tests would be in the way.
    ramp = np.broadcast_to(np.arange(0, 256, 2, dtype=np.uint8)[None, :, None], (64, 128, 3))
    found = read_frames(Path(__file__).parents[1] / "data" / name).pixels[0].numpy().astype(int)
    assert np.abs(found - ramp)[8:-8, 4:-4].mean() < 2.5


def test_plain_videos_are_those_of_a_plain_decoder(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", frames=12)
    with av.open(str(path)) as container:
        expected = np.stack([displayed_rgb(frame) for frame in container.decode(video=0)])
    frames = read_frames(path)
    assert np.array_equal(frames.pixels.numpy(), expected)
    assert [read_index(pixels) for pixels in frames.pixels] == [*range(12)]


@pytest.mark.parametrize(("pix_fmt", "bits"), [("gray", 8), ("gray10le", 10), ("gray12le", 12), ("gray16le", 16)])
def test_at_full_depth_a_gray_video_keeps_every_level(pix_fmt: str, bits: int, tmp_path: Path) -> None:
    levels = np.random.default_rng(0).permutation(4096).reshape(2, 64, 32) % 2**bits
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 64, pix_fmt
        for image in levels:
            plane = av.VideoFrame(32, 64, pix_fmt)
            rows = np.frombuffer(plane.planes[0], np.uint8 if bits == 8 else "<u2").reshape(64, -1)
            rows[:, :32] = image
            container.mux(stream.encode(plane))
        container.mux(stream.encode(None))
    with Video(tmp_path / "a.mkv", full_depth=True) as video:
        assert (video.info.channels, video.info.bits) == (1, 8 if bits == 8 else 16)
        pixels = video.frames().pixels.numpy()[..., 0]
    if bits in (8, 16):
        assert np.array_equal(pixels, levels)
    else:
        ranked = np.unique(pixels)
        assert len(ranked) == len(np.unique(levels))
        assert np.array_equal(np.searchsorted(ranked, pixels), np.searchsorted(np.unique(levels), levels))
    assert read_frames(tmp_path / "a.mkv").pixels.shape == (2, 64, 32, 3)


def test_at_full_depth_colors_of_more_than_8_bits_are_16(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 1024, (32, 32, 3)).astype(np.uint16)
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "gbrp10le"
        for _ in range(2):
            frame = av.VideoFrame(32, 32, "gbrp10le")
            for plane, channel in zip(frame.planes, (1, 2, 0), strict=True):
                np.frombuffer(plane, "<u2").reshape(32, -1)[:, :32] = image[..., channel]
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with Video(tmp_path / "a.mkv", full_depth=True) as video:
        assert (video.info.channels, video.info.bits) == (3, 16)
        pixels = video.frames().pixels.numpy()
    assert np.array_equal(pixels[0] >> 6, image)
