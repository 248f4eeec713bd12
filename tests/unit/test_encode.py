"""One call from anything that holds a picture or a video to dense features."""

import copy
import io
import logging
import warnings
from dataclasses import dataclass, replace

import fsspec
import numpy as np
import psutil
import pytest
import torch
from PIL import Image, ImageSequence

from tests.helpers.media import indexed_image, write_image, write_video
from tubelet.checkpoint.native_clip import NativeClip, log_native
from tubelet.config import ModelConfig, PixelStatistics
from tubelet.data import decode
from tubelet.data.clips import normalize, resize_center_crop
from tubelet.errors import TubeletError
from tubelet.model.encoder import Encoder
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.dense_features import DenseFeatures
from tubelet.pretrained.load import load

CONFIG = ModelConfig(width=48, depth=4, heads=2, levels=(0, 1, 2, 3), patch_size=8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = Backbone(CONFIG).eval().requires_grad_(False)
    backbone.native_clip = NativeClip(64)
    return backbone


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "video.mp4", frames=48, fps=12)  # 4 s
    write_image(folder / "still.png")
    return folder


@pytest.fixture(scope="module")
def frames():
    return np.stack([indexed_image(i) for i in range(4)])


def test_features_are_the_encoders_levels_on_their_grid(model, frames):
    pixels = torch.from_numpy(frames).permute(3, 0, 1, 2).unsqueeze(0)
    expected = model(normalize(pixels))
    features = model.encode(pixels, fps=4)
    assert features.grid == (2, 8, 8)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(features.levels, expected, strict=True))
    assert torch.equal(features.tokens, features.levels[-1]) and features.tokens.shape == (1, 128, 48)
    assert torch.equal(features.map[0, 1, 2, 3], features.tokens[0, 64 + 2 * 8 + 3])
    assert torch.allclose(features.pooled, features.tokens.mean(1))
    assert features.times.tolist() == [[0.125, 0.625]]
    assert features.upsample((32, 24)).shape == (1, 2, 32, 24, 48)
    assert torch.allclose(features.upsample(8), features.map)
    assert repr(features) == "DenseFeatures(1 x 2x8x8 tokens, 48 wide, 4 levels, float32 on cpu)"


def test_every_form_of_a_clip_gives_the_same_features(model, frames):
    expected = model.encode(frames).tokens
    pictures = [Image.fromarray(frame) for frame in frames]
    tensor = torch.from_numpy(frames)
    for clip in (tensor, pictures, list(frames), iter(pictures), [image / 255 for image in tensor]):
        assert torch.allclose(model.encode(clip).tokens, expected, atol=1e-6)
    for batch in (torch.stack([tensor, tensor]), [pictures, frames], [tensor.permute(3, 0, 1, 2)] * 2):
        both = model.encode(batch)
        assert both.tokens.shape == (2, 128, 48) and both.times is None
        assert torch.allclose(both.tokens[1], expected[0], atol=1e-6)


@pytest.mark.parametrize("layout", ["THWC", "TCHW", "CTHW", "BTHWC", "BTCHW", "BCTHW"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_the_axis_of_the_channels_is_found_by_its_size(model, frames, layout, dtype):
    expected = model.encode(frames).tokens
    clip = torch.from_numpy(frames) if dtype == torch.uint8 else torch.from_numpy(frames).to(dtype) / 255
    clip = clip.unsqueeze(0) if "B" in layout else clip
    clip = clip.permute(["BTHWC"[-clip.dim() :].index(axis) for axis in layout])
    for form in (clip, clip.numpy()):
        assert torch.allclose(model.encode(form).tokens, expected, atol=1e-6)
        assert torch.allclose(model.encode(form, layout=layout).tokens, expected, atol=1e-6)
    if "B" in layout:
        both = torch.cat([clip.roll(1, layout.index("T")), clip])
        assert torch.allclose(model.encode(both).tokens[1:], expected, atol=1e-6)


def test_a_shape_that_may_have_several_layouts_needs_one(model, frames):
    clip = torch.from_numpy(frames[:3]).permute(0, 3, 1, 2)  # 3 frames of 3 channels
    with pytest.raises(TubeletError, match=r"may be TCHW or CTHW; pass the one that it is, such as layout=\"TCHW\""):
        model.encode(clip)
    with pytest.raises(TubeletError, match="may be BTCHW or BCTHW"):
        model.encode(clip[None])
    with pytest.warns(UserWarning, match="3 frames do not divide"):
        expected = model.encode(frames[:3]).tokens  # no frame is 3 pixels wide
    with pytest.warns(UserWarning, match="3 frames do not divide"):
        for form, layout in ((clip, "TCHW"), (clip.transpose(0, 1), "CTHW"), (clip.permute(3, 1, 0, 2), "WCTH")):
            assert torch.equal(model.encode(form, layout=layout).tokens, expected)


def test_a_batch_of_images_is_said_by_its_layout(model, frames):
    expected = torch.cat([model.encode(frame).tokens for frame in frames])
    tensor = torch.from_numpy(frames)
    images = [Image.fromarray(frame) for frame in frames]
    for batch, layout in (
        (frames, "BHWC"),
        (tensor.permute(0, 3, 1, 2), "BCHW"),
        (images, "BHWC"),
        (list(tensor), "BHWC"),
        (tensor.permute(0, 3, 1, 2).unsqueeze(2), None),
    ):
        features = model.encode(batch, layout=layout)
        assert features.grid == (1, 8, 8) and features.times.tolist() == [[0.0]] * 4
        assert torch.allclose(features.tokens, expected, atol=1e-5)
    larger = [image.resize((96, 64)) for image in images[:1]] + images[1:]
    assert model.encode(larger, layout="BHWC", resize=32).tokens.shape == (4, 16, 48)
    assert model.encode([images, images], layout="BTHWC").tokens.shape == (2, 128, 48)
    with pytest.raises(TubeletError, match="an entry of the list is a batch itself"):
        model.encode([torch.stack([tensor, tensor])])


def test_channels_of_opencv_are_reversed(model, frames):
    expected = model.encode(frames).tokens
    for clip in (frames[..., ::-1], list(frames[..., ::-1]), frames[..., ::-1].transpose(3, 0, 1, 2).copy()):
        assert torch.equal(model.encode(clip, bgr=True).tokens, expected)


def test_models_of_other_channels_find_their_axis(frames):
    gray = PixelStatistics(window=(0, 255), mean=(0.4,), std=(0.2,))
    model = Backbone(replace(CONFIG, channels=1, pixels=gray)).eval()
    luma = np.stack([np.array(Image.fromarray(frame).convert("L")) for frame in frames])
    expected = model.encode(luma[:, None], resize=None).tokens  # (T, 1, H, W)
    for form, layout in (
        (luma, "THW"),
        (luma[..., None], None),
        (luma[None] / 255, None),
        (list(luma), None),
    ):
        assert torch.allclose(model.encode(form, resize=None, layout=layout).tokens, expected, atol=1e-6)
    colors = model.encode([Image.fromarray(frame) for frame in frames], resize=None).tokens
    assert torch.allclose(colors, expected, atol=0.05)  # the luma, rounded otherwise than by PIL
    for form in (frames[0], luma):
        with pytest.raises(TubeletError, match=r'expected 1 channel: .* such as layout="THW"'):
            model.encode(form, resize=None)
    many = PixelStatistics(window=(0, 255), mean=(0.4,) * 5, std=(0.2,) * 5)
    model = Backbone(replace(CONFIG, channels=5, pixels=many)).eval()
    clip = torch.rand(4, 5, 16, 32)
    expected = model.encode(clip, resize=None).tokens
    assert torch.allclose(model.encode(clip.transpose(0, 1), resize=None).tokens, expected, atol=1e-6)
    assert torch.allclose(model.encode((clip - 0.4) / 0.2, normalized=True).tokens, expected, atol=1e-5)


@dataclass
class FrameBatch:
    """The fields of torchcodec's class of this name, and of its Frame."""

    data: torch.Tensor
    pts_seconds: torch.Tensor | float
    duration_seconds: torch.Tensor | float


def test_decoded_clips_and_frames_of_torchcodec_keep_their_times(model, frames):
    expected = model.encode(frames).tokens
    data, seconds = torch.from_numpy(frames).permute(0, 3, 1, 2), torch.tensor([1.0, 1.5, 2.0, 2.5]).double()
    clip = FrameBatch(data, seconds, torch.full((4,), 0.5))
    decoded = decode.Frames(torch.from_numpy(frames), seconds.numpy())
    assert model.encode([decoded, decoded]).times.tolist() == [[1.25, 2.25]] * 2
    for form in (
        clip,
        decoded,
        [FrameBatch(image, float(time), 0.5) for image, time in zip(data, seconds, strict=True)],
    ):
        features = model.encode(form)
        assert torch.equal(features.tokens, expected) and features.times.tolist() == [[1.25, 2.25]]
    batch = model.encode(FrameBatch(data.expand(2, *data.shape), torch.stack([seconds, seconds + 1]), None))
    assert batch.tokens.shape[0] == 2 and batch.times.tolist() == [[1.25, 2.25], [2.25, 3.25]]
    assert model.encode(clip, layout="BCHW").times.tolist() == seconds[:, None].tolist()
    with pytest.raises(TubeletError, match="fps is 4, but the frames have times of their own"):
        model.encode(clip, fps=4)


def test_frames_of_an_animation_need_copies(model, frames, tmp_path):
    first, *others = (Image.fromarray(frame) for frame in frames)
    first.save(tmp_path / "moving.png", save_all=True, append_images=others)
    with Image.open(tmp_path / "moving.png") as image:
        tokens = model.encode(ImageSequence.Iterator(image)).tokens
        assert torch.equal(tokens, model.encode(frames).tokens)
        with pytest.raises(TubeletError, match=r"one and the same PIL image .*: \[frame\.copy\(\)"):
            model.encode(list(ImageSequence.Iterator(image)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_become_arrays_whatever_the_precision(model, frames, dtype):
    other = copy.deepcopy(model).to(dtype)
    features = other.encode(frames)
    expected = model.encode(frames).numpy()
    assert expected.shape == (1, 2, 8, 8, 48) and expected.dtype == np.float32
    assert features.pooled.numpy().dtype == features.tokens.numpy().dtype == np.float32
    np.testing.assert_allclose(features.numpy(), expected, atol=0.1)
    other.requires_grad_(dtype == torch.float32)
    computed = other.dense_features(torch.from_numpy(frames).permute(3, 0, 1, 2)[None])
    assert computed.tokens.dtype == dtype and np.allclose(computed.numpy(), features.numpy(), atol=1e-5)


def test_images_go_through_the_image_tokenizer_whatever_they_come_as(model, videos):
    expected = model.encode(videos / "still.png")
    assert expected.grid == (1, 8, 8) and expected.times.tolist() == [[0.0]]
    image = Image.open(videos / "still.png")
    for form in (image, [image], np.array(image), torch.from_numpy(np.array(image)).permute(2, 0, 1)):
        assert torch.equal(model.encode(form).tokens, expected.tokens)
    assert model.encode([videos / "still.png"] * 3).tokens.shape == (3, 64, 48)
    assert torch.allclose(model(normalize(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None, :, None]))[-1],
                          expected.tokens)  # fmt: skip


def test_a_video_file_is_read_at_the_rate_and_place_that_were_asked_for(model, videos):
    features = model.encode(videos / "video.mp4", frames=4, fps=2, start=1.0)
    assert features.times.tolist() == [[1.25, 2.25]]
    whole = torch.from_numpy(np.stack([indexed_image(i) for i in (12, 18, 24, 30)]))
    similarity = torch.cosine_similarity(features.tokens, model.encode(whole).tokens, dim=-1)
    assert similarity.min() > 0.9  # but for compression, these are the frames
    assert model.encode(str(videos / "video.mp4"), frames=8).grid == (4, 8, 8)
    with pytest.warns(UserWarning, match="too short for 32 frames"):
        model.encode(videos / "video.mp4", frames=32)
    with pytest.raises(TubeletError, match=r"lasts 4\.0 s"):
        model.encode(videos / "video.mp4", frames=16, start=3)


def test_an_odd_count_of_frames_repeats_the_last_and_reports_it(model, frames):
    with pytest.warns(UserWarning, match="3 frames do not divide into tubelets of 2"):
        features = model.encode(frames[:3], fps=1)
    repeated = model.encode(frames[[0, 1, 2, 2]], fps=1)
    assert torch.equal(features.tokens, repeated.tokens)
    assert features.times.tolist() == repeated.times.tolist()


def test_sizes_that_do_not_divide_into_patches_need_resizing(model):
    clip = torch.randint(0, 256, (2, 50, 90, 3), dtype=torch.uint8)
    with pytest.raises(TubeletError, match='resize="round"'):
        model.encode(clip, resize=None)
    assert model.encode(clip).grid == (1, 8, 8)
    assert model.encode(clip, resize="round").grid == (1, 6, 11)
    assert model.encode(clip, resize=32).grid == (1, 4, 4)
    assert model.encode(clip, resize=(16, 40)).grid == (1, 2, 5)
    for given in ({"resize": 30}, {"crop": 30}):
        with pytest.raises(
            TubeletError, match=r"(resize|crop) is 30, expected a multiple of the patch size of 8 pixels, such"
        ):
            model.encode(clip, **given)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(32, 32, 4, dtype=torch.uint8), "expected 3 channels: an image (HWC or CHW)"),
        (torch.zeros(5, 4, 32, 32, dtype=torch.uint8), 'or another order by layout=, such as layout="BCHW"'),
        (np.zeros((32, 32), np.uint8), "repeat the values of a grayscale image"),
        (torch.zeros(3, 8, 3, dtype=torch.uint8), "expected 3 channels"),
        (np.zeros((32, 32, 3), np.uint16), "uint16, expected uint8 (0 to 255) or floats from 0 to 1"),
        (np.array(["a video"]), "cannot encode an array of <U7"),
        (torch.zeros(0, 3, 2, 32, 32), "nothing to encode"),
        ("https://videos.example/1.docx", "https://videos.example/1.docx: expected a video"),
        (torch.zeros(1, 3, 2, 32, 32, dtype=torch.int64), "expected uint8"),
        ([], "nothing to encode"),
        ("video.docx", "expected a video or an image"),
        (".", "is a folder, expected a video or an image; `tubelet embed` encodes all of a folder"),
        (7, "cannot encode int"),
        (np.zeros((32, 32, 3), "M8[s]"), "cannot encode an array of datetime64[s]"),
        (np.zeros((32, 32, 3), np.longdouble), f"cannot encode an array of {np.dtype(np.longdouble)}"),
        (np.zeros((), np.uint8), "pixels have shape ()"),
        (torch.zeros(2, 3, 32, 32).to_sparse(), "sparse"),
        (torch.zeros(2, 3, 32, 32, device="meta"), "without values"),
        ([np.zeros((32, 32, 3), np.uint8), np.zeros((16, 32, 3), np.uint8)], "have one size"),
        ([np.zeros((2, 32, 32, 3), np.float32), np.zeros((2, 16, 32, 3), np.float32)], "resize=(height, width)"),
    ],
)
def test_what_cannot_be_encoded_names_what_was_expected(model, x, words):
    with pytest.raises(TubeletError) as error:
        model.encode(x, resize=None)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"fps": float("inf")}, "fps is inf"),
        ({"fps": float("nan")}, "fps is nan"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": -4}, "fps is -4"),
        ({"frames": 0}, "frames is 0"),
        ({"frames": 2.5}, "frames is 2.5"),
        ({"resize": 0}, "resize is 0"),
        ({"resize": "big"}, "resize is 'big'"),
        ({"resize": (32, 32, 3)}, "resize is (32, 32, 3)"),
        ({"crop": 0}, "crop is 0"),
    ],
)
def test_odd_numbers_are_one_clear_sentence(model, videos, numbers, words):
    for call in (model.encode, lambda path, **given: next(model.stream(path, overlap=0, **given))):
        with pytest.raises(TubeletError) as error:
            call(videos / "video.mp4", **numbers)
        assert words in str(error.value) and "expected" in str(error.value)


def test_a_rate_above_the_videos_own_is_reported_once(model, videos):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        model.encode(videos / "video.mp4", fps=12)
        list(model.stream(videos / "video.mp4", fps=12))
        assert not caught
        for _ in range(2):
            model.encode(videos / "video.mp4", fps=30), list(model.stream(videos / "video.mp4", fps=30))
    (warning,) = caught
    assert "video.mp4: has 12 frames a second, the clips 30: frames are repeated" in str(warning.message)


def test_a_warning_shows_the_line_of_the_users_own_code(model, videos, frames, tmp_path):
    rounded = copy.deepcopy(model).bfloat16()
    calls = (
        lambda: model.encode(frames[:3]),
        lambda: model.encode(videos / "video.mp4", fps=30),
        lambda: list(model.stream(videos / "video.mp4", frames=64, fps=1.25)),
        lambda: rounded.requires_grad_(),
        lambda: rounded.save_pretrained(tmp_path / "rounded"),
    )
    for call in calls:
        with pytest.warns(UserWarning) as caught:
            call()
        assert {(each.filename, each.lineno) for each in caught} == {(__file__, call.__code__.co_firstlineno)}


def test_what_is_chosen_is_printed_once_where_nothing_shows_the_log(videos, capsys, monkeypatch):
    logger = logging.getLogger("tubelet")
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    names = [str(videos), "b", "c"]
    for name, level in ((names[0], logging.NOTSET), (names[0], logging.NOTSET), (names[1], logging.WARNING)):
        monkeypatch.setattr(logger, "level", level)
        log_native(name, NativeClip(64), "64 px", {"resize=": None})
    assert capsys.readouterr().err == f"tubelet: {videos}: 64 px (its own; resize= changes it)\n"
    monkeypatch.setattr(root, "handlers", [logging.StreamHandler(io.StringIO())])
    log_native(names[2], NativeClip(64), "64 px", {"resize=": None})
    assert not capsys.readouterr().err


def test_only_true_and_false_are_switches(model, videos):
    calls = [
        lambda: next(model.stream(videos / "video.mp4", causal="no")),
        lambda: decode.Video(videos / "video.mp4", full_depth="no"),
        lambda: decode.Video(videos / "video.mp4", display=1),
        lambda: Backbone(CONFIG, with_predictor=0),
        *(lambda name=name: load("no-model", **{name: "no"}) for name in ("int8", "compile", "with_predictor")),
    ]
    for call in calls:
        with pytest.raises(TubeletError, match="expected true or false"):
            call()


def test_odd_places_and_overlaps_are_one_clear_sentence(model, videos):
    for start in (float("nan"), -1):
        for call in (model.encode, lambda path, **given: next(model.stream(path, **given))):
            with pytest.raises(TubeletError, match=f"start is {start}, expected"):
                call(videos / "video.mp4", start=start)
    with pytest.raises(TubeletError, match="start is None, expected seconds"):
        next(model.stream(videos / "video.mp4", start=None))
    for path in (videos / "still.png", np.zeros((4, 32, 32, 3), np.uint8)):
        with pytest.raises(TubeletError, match=r"the path or URL of a video, found .*; pass it to encode"):
            next(model.stream(path))
    for end in (float("nan"), 1, 0.5, "3"):
        with pytest.raises(TubeletError, match=f"end is {end!r}, expected seconds after start"):
            next(model.stream(videos / "video.mp4", start=1, end=end))
    with pytest.raises(TubeletError, match=r"lasts 4\.000 s, windows would start at 4 s"):
        next(model.stream(videos / "video.mp4", start=4))
    for overlap in (-2, 8, 2.5):
        with pytest.raises(TubeletError, match=r"overlap.*expected"):
            next(model.stream(videos / "video.mp4", frames=8, overlap=overlap))


def test_images_of_16_bits_are_scaled_whether_they_are_files_or_in_memory(model, tmp_path):
    deep = (indexed_image(5)[..., 0].astype(np.uint16) << 8) + 17
    Image.fromarray(deep).save(tmp_path / "deep.png")
    expected = model.encode(Image.fromarray(indexed_image(5)[..., 0])).tokens
    for form in (tmp_path / "deep.png", Image.open(tmp_path / "deep.png"), Image.fromarray(deep.astype(np.int32))):
        assert torch.equal(model.encode(form).tokens, expected)
    for values in (deep.astype(np.float32), deep.astype(np.int32) * 2):
        with pytest.raises(TubeletError, match=r"scale (them|it) to"):
            model.encode(Image.fromarray(values))


def test_a_very_long_image_is_cut_before_it_is_resized(model):
    thin = np.zeros((2, 4, 20_000, 3), np.uint8)
    thin[:, :, 9_000:11_000] = 200
    process = psutil.Process()
    before = process.memory_info().rss
    assert model.encode(thin, resize=224).grid == (1, 28, 28)  # resized whole, it would be 1.5 GB
    assert process.memory_info().rss - before < 3e8
    assert resize_center_crop(torch.from_numpy(thin), 224).unique().tolist() == [200]


@pytest.mark.parametrize(
    ("least", "top", "words"),
    [
        (0, 255, "floats are from 0 to 255, expected colors from 0 to 1; divide by 255, or pass uint8; pass"),
        (-2.1, 2.6, "floats are from -2.1 to 2.6, expected colors from 0 to 1; pass normalized=True"),
    ],
)
def test_floats_that_are_no_colors_are_refused_unless_they_are_normalized(model, least, top, words):
    pixels = torch.linspace(least, top, 3 * 2 * 16 * 16).view(3, 2, 16, 16)
    with pytest.raises(TubeletError, match=words):
        model.encode(pixels)
    found = model.encode(pixels, normalized=True).tokens
    assert torch.allclose(found, Encoder.forward(model, pixels[None])[-1], atol=1e-6)  # without checks
    colors = torch.rand(3, 2, 16, 16)  # may be both
    found = model.encode(colors, resize=None).tokens
    assert not torch.allclose(found, model.encode(colors, normalized=True).tokens)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_floats_of_few_bits_are_resized_in_float32(model, frames, dtype):
    colors = (torch.from_numpy(frames) / 255).to(dtype)
    expected = model.encode(colors.float()).tokens
    assert torch.allclose(model.encode(colors).tokens, expected, atol=1e-5)
    pixels = torch.randn(3, 2, 16, 16).to(dtype)
    found = model.encode(pixels, normalized=True).tokens
    assert torch.allclose(found, model(pixels.float()[None])[-1], atol=1e-5)


@pytest.mark.parametrize(
    ("x", "given", "words"),
    [
        (np.zeros((8, 32, 32, 3), np.uint8), {"frames": 4}, "frames is 4, which is for files"),
        ([Image.new("RGB", (32, 32))], {"start": 0.5}, "start is 0.5, which is for files"),
        (np.zeros((2, 32, 32, 3), np.uint8), {"layout": "TXHW"}, "layout is 'TXHW', expected a letter for each axis"),
        (np.zeros((2, 32, 32, 3), np.uint8), {"layout": "TCC"}, "layout is 'TCC', expected"),
        (np.zeros((2, 32, 32, 3), np.uint8), {"layout": "TCHW"}, 'does not fit layout="TCHW"'),
        (np.zeros((2, 32, 32, 3), np.uint8), {"layout": "HWC"}, 'does not fit layout="HWC"'),
        (np.zeros((2, 32, 32, 3), np.uint8), {"normalized": True}, "normalized is True, but pixels are uint8"),
        (np.zeros((2, 32, 32, 3), np.uint8), {"bgr": 1}, "bgr is 1, expected True or False"),
        (Image.new("RGB", (32, 32)), {"bgr": True}, "a PIL image has RGB colors"),
        ("video.mp4", {"layout": "THWC"}, "are for pixels in memory, found the path video.mp4"),
    ],
)
def test_options_of_pixels_that_do_not_fit_are_one_clear_sentence(model, x, given, words):
    with pytest.raises(TubeletError) as error:
        model.encode(x, **given)
    assert words in str(error.value)


def test_arrays_that_pytorch_does_not_share_are_copied_without_a_word(model, frames):
    expected = model.encode(frames).tokens
    pictures = [np.asarray(Image.fromarray(frame)) for frame in frames]  # read-only
    floats = normalize(torch.from_numpy(frames).permute(3, 0, 1, 2).unsqueeze(0)).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model.encode(pictures).tokens, expected)
        assert torch.allclose(model.encode(floats.astype(">f4"), normalized=True).tokens, expected, atol=1e-6)


def test_a_video_behind_a_url_is_encoded_and_streamed(model, videos):
    with fsspec.open("memory://videos/video.mp4", "wb") as file:
        file.write((videos / "video.mp4").read_bytes())
    url = "memory://videos/video.mp4"
    assert torch.equal(model.encode(url).tokens, model.encode(videos / "video.mp4").tokens)
    for there, here in zip(model.stream(url), model.stream(videos / "video.mp4"), strict=True):
        assert torch.equal(there.tokens, here.tokens)


def test_a_map_is_upsampled_to_whole_sizes_only(model, frames):
    features = model.encode(frames)
    assert features.upsample(np.int64(16)).shape == (1, 2, 16, 16, 48)
    for size in (0, (16, 0)):
        with pytest.raises(TubeletError, match="at least 1"):
            features.upsample(size)


def test_windows_cover_a_video_and_merge_into_one(model, videos):
    windows = list(model.stream(videos / "video.mp4", frames=8, overlap=4, fps=5))  # 20 frames
    assert [w.grid.t for w in windows] == [4, 4, 4, 4]
    starts = [w.times[0, 0].item() for w in windows]
    assert starts == pytest.approx([0.1, 0.9, 1.7, 2.5])
    whole = DenseFeatures.merge(windows)
    assert whole.grid == (10, 8, 8) and whole.tokens.shape == (1, 640, 48) and len(whole.levels) == 4
    assert torch.allclose(whole.times, torch.arange(10, dtype=torch.float64)[None] * 0.4 + 0.1)
    assert torch.equal(whole.map[:, :2], windows[0].map[:, :2])
    assert torch.allclose(whole.map[:, 2:4], (windows[0].map[:, 2:] + windows[1].map[:, :2]) / 2)


def test_windows_see_the_frames_that_a_clip_of_the_same_times_sees(model, videos):
    for window in model.stream(videos / "video.mp4", frames=8, overlap=2, fps=4):
        start = window.times[0, 0].item() - 0.125
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            clip = model.encode(videos / "video.mp4", frames=8, fps=4, start=start)
        assert torch.allclose(window.tokens, clip.tokens, atol=1e-6)


def test_a_last_window_is_of_full_length_and_a_short_video_is_one_window(model, videos):
    last = list(model.stream(videos / "video.mp4", frames=6, overlap=0, fps=4))[-1]  # 16 frames: 0-5, 6-11, 10-15
    assert last.times.tolist() == [[2.625, 3.125, 3.625]]
    (only,) = model.stream(videos / "video.mp4", frames=64, overlap=8, fps=4)
    assert only.grid.t == 8
    with pytest.warns(UserWarning, match="the last is repeated"):
        assert [w.grid.t for w in model.stream(videos / "video.mp4", frames=64, overlap=8, fps=1.25)] == [3]
    with pytest.raises(TubeletError, match="expected multiples of 2"):
        next(model.stream(videos / "video.mp4", frames=8, overlap=3))


@pytest.mark.parametrize("rotation", [0, 90])
def test_a_video_is_decoded_in_one_pass(model, tmp_path, monkeypatch, rotation):
    path = write_video(tmp_path / "video.mp4", frames=60, fps=12, gop=60, rotation=rotation)
    decoded = []

    class Counting(decode.VideoReader):
        def _decode(self, packet, at):
            decoded.append(packet is not None)
            return super()._decode(packet, at)

    monkeypatch.setattr(decode, "VideoReader", Counting)
    windows = list(model.stream(path, frames=4, overlap=2, fps=12))
    assert len(windows) == 29
    assert sum(decoded) <= 60 + 8  # and the beginning, which tells how it is turned


def test_a_head_can_be_trained_between_one_window_and_the_next(model, videos):
    head = torch.nn.Linear(48, 1)
    one, other = (model.stream(videos / "video.mp4", frames=8, overlap=0) for _ in range(2))
    for windows in zip(one, other, strict=True):
        sum(head(window.pooled).sum() for window in windows).backward()
    assert head.weight.grad is not None and torch.is_grad_enabled()


@pytest.mark.slow
def test_a_long_video_does_not_grow_the_process(model, tmp_path):
    path = write_video(tmp_path / "long.mp4", frames=800, fps=4, size=64)  # over three minutes
    process, memory = psutil.Process(), []
    for _ in model.stream(path, frames=8, overlap=4):
        memory.append(process.memory_info().rss)
    assert len(memory) == 199
    assert memory[-1] - memory[50] < 5e6


@pytest.mark.parametrize(("frames", "overlap"), [(8, 4), (6, 2), (2, 0)])
def test_windows_overlap_by_half_by_default(frames, overlap, model, videos):
    plain = [window.times for window in model.stream(videos / "video.mp4", frames=frames, resize=32, fps=None)]
    told = [
        window.times for window in model.stream(videos / "video.mp4", frames=frames, overlap=overlap, resize=32, fps=4)
    ]
    assert len(plain) == len(told) and all(torch.equal(a, b) for a, b in zip(plain, told, strict=True))


def test_training_or_saving_weights_that_were_rounded_is_warned_of(model, tmp_path):
    exact = copy.deepcopy(model)
    exact.save_pretrained(tmp_path / "exact")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "exact", device="cpu", dtype=torch.float32).requires_grad_().save_pretrained(tmp_path / "again")
    rounded = load(tmp_path / "exact", device="cpu", dtype=torch.bfloat16)
    with pytest.warns(UserWarning, match="bfloat16 round most optimizer steps .* dtype=torch.float32"):
        rounded.requires_grad_()
    with pytest.warns(UserWarning, match="rounded to bfloat16 are saved"):
        rounded.save_pretrained(tmp_path / "rounded")


def test_pixels_are_normalized_as_the_model_needs(model, frames):
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2).unsqueeze(0)
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(3, 1, 1, 1) for name in ("mean", "std"))
    tokens = model.forward_features((clip / 255 - mean) / std)
    torch.testing.assert_close(tokens, model.encode(clip).tokens, atol=1e-5, rtol=1e-4)


def test_features_are_arrays_for_numpy(model, frames):
    features = model.encode(frames, resize=None)
    assert np.array_equal(np.asarray(features), features.map.numpy())
    assert np.asarray(features, dtype=np.float16).dtype == np.float16
