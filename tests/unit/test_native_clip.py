"""A model runs at its own size, length and rate wherever its file comes from, and says so once."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests.helpers.media import indexed_image, write_image, write_video
from tubelet.checkpoint.native_clip import NativeClip, choose_clip
from tubelet.checkpoint.registry import RELEASED
from tubelet.checkpoint.run import save_checkpoint
from tubelet.checkpoint.vjepa2_1 import write_released
from tubelet.checkpoint.weights import LoadSpec
from tubelet.config import (
    DataConfig,
    EmbedConfig,
    EvaluateConfig,
    FitConfig,
    ModelConfig,
    PredictorConfig,
    TrainConfig,
    ViewConfig,
)
from tubelet.data.clips import resize_clip
from tubelet.embed.collection import embed_collection
from tubelet.embed.table import read_settings
from tubelet.errors import TubeletError
from tubelet.fitting.label_task import get_label_task
from tubelet.fitting.run import head_input
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.convert import convert, convert_to
from tubelet.pretrained.load import load, random_init_like
from tubelet.tasks.common.task import EvaluationContext
from tubelet.view.feature_page import write_feature_page
from tubelet.vjepa import VJEPA

CPU = {"device": "cpu", "dtype": torch.float32}
SMALL = PredictorConfig(width=24, depth=1, heads=2)
SIZES = ModelConfig(width=24, depth=4, heads=2, levels=(0, 1, 2, 3), patch_size=16, predictor=SMALL)
RUN = TrainConfig(model=SIZES, data=DataConfig(image_size=48, frames=6, fps=5.0))
TRAINED = NativeClip(48, 6, 5.0, "run")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory of a checkpoint that was not trained."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    torch.manual_seed(0)
    save_checkpoint(folder, 3, VJEPA(SIZES).state_dict(), RUN, keep=1)
    return folder


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Two seconds of 96 x 96 pixels."""
    return write_video(tmp_path_factory.mktemp("videos") / "a.mp4", frames=24, fps=12, size=96)


def layouts(run, folder):
    """The run in every layout, by name."""
    spec = LoadSpec(predictor=True)
    convert(run, folder / "encoder.safetensors", LoadSpec())
    load(run, **CPU).save_pretrained(folder / "hub")
    for layout, name in (("transformers", "own"), ("vjepa21", "port")):
        convert_to(run, folder / name, layout, spec)
    for layout, name in (("mlx", "a.mlx.safetensors"), ("gguf", "a.gguf")):
        convert_to(run, folder / name, layout, LoadSpec())


def test_every_layout_keeps_the_clips_of_a_run(run, tmp_path):
    assert load(run, **CPU).native_clip == TRAINED
    layouts(run, tmp_path)
    for name in ("encoder.safetensors", "hub", "a.mlx.safetensors"):
        assert load(tmp_path / name, heads=2, levels=SIZES.levels, **CPU).native_clip == TRAINED, name
    assert load(tmp_path / "own", **CPU).native_clip == NativeClip(48, 6, 5.0)
    for name in ("port", "a.gguf"):  # layouts without a rate
        assert load(tmp_path / name, **CPU).native_clip == NativeClip(48, 6, 4.0), name
    convert_to(tmp_path / "own", tmp_path / "smaller", "transformers", LoadSpec(), image_size=32)
    convert(tmp_path / "smaller", tmp_path / "again.safetensors", LoadSpec())
    assert load(tmp_path / "again.safetensors", **CPU).native_clip == NativeClip(32, 6, 5.0)


def test_a_file_that_does_not_say_has_the_clips_of_the_pre_training_grid(tmp_path):
    assumed = NativeClip(256, 16, 4.0, "assumed")
    model = VJEPA(SIZES)
    write_released(tmp_path / "a.pt", SIZES, {"teacher": model.teacher.state_dict()})
    encoder = load(tmp_path / "a.pt", heads=2, levels=SIZES.levels, **CPU)
    assert encoder.native_clip == assumed == random_init_like(encoder, 0).native_clip
    encoder.save_pretrained(tmp_path / "hub")
    assert load(tmp_path / "hub", **CPU).native_clip == assumed  # still not known


def test_released_models_have_the_size_in_their_name():
    sizes = {name: NativeClip.of_name(name, SIZES) for name in RELEASED}
    assert sizes["vjepa2.1-vitb16-384"] == NativeClip(384, 16, 4.0, "published")
    assert {clip.image_size for clip in sizes.values()} == {256, 384}
    assert all(name.endswith(str(clip.image_size)) for name, clip in sizes.items())


@pytest.mark.parametrize("clip", ['{"image_size": 48}', "{", '{"image_size": 48, "frames": 4, "fps": 4, "source": 1}'])
def test_a_damaged_header_is_named(clip):
    with pytest.raises(TubeletError, match=r"a\.safetensors: the clip in its header"):
        NativeClip.from_header({"clip": clip}, "a.safetensors")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"crop_size": 256, "frames_per_clip": 64}, NativeClip(256, 64)),  # as of transformers' own V-JEPA 2.0
        ({"image_size": 64, "num_frames": True, "fps": float("nan")}, NativeClip(64)),
        ({"crop_size": "256"}, None),
    ],
)
def test_what_other_programs_say_is_read_if_it_is_a_clip(values, expected):
    found = NativeClip.from_fields(values, ("crop_size", "image_size"), ("num_frames", "frames_per_clip"), "fps")
    assert found == expected


def test_inputs_come_to_the_models_own_size_and_that_is_logged_once(run, video, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = load(run, **CPU)
    features = model.encode(video)
    assert features.grid == (3, 3, 3)
    assert features.times[0].tolist() == pytest.approx([0.5, 0.9, 1.3])  # six frames at 5 fps, from the middle
    write_image(tmp_path / "a.png", size=100)
    high, colors = np.zeros((2, 90, 50, 3), np.uint8), torch.rand(3, 2, 160, 80)
    for x, steps in ((tmp_path / "a.png", 1), (high, 1), (colors, 1)):
        assert model.encode(x).grid == (steps, 3, 3)
    assert [window.grid for window in model.stream(video)] == [(3, 3, 3)] * 2
    assert model.encode(colors, resize=None).grid == (1, 10, 5)
    assert model.encode(colors, normalized=True).grid == (1, 10, 5)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "mine/step-000000003: 48 x 48 px, 6 frames at 5 fps (its own; resize=, frames=, fps= change them)"


def test_own_pixels_are_an_explicit_choice(run, video):
    model = load(run, **CPU)
    assert model.encode(video, resize=None, frames=2).grid == (1, 6, 6)
    wide = np.zeros((2, 720, 1280, 3), np.uint8)
    assert model.encode(wide).tokens.shape[1] == 3 * 3
    assert model.config.grid(2, 720, 1280).tokens == 45 * 80  # what resize=None would compute


def test_the_transform_of_the_releases_evaluations_is_a_resize_and_a_crop(run):
    model = load(run, **CPU)
    frame = torch.from_numpy(indexed_image(3, 96))[None, 20:76].permute(3, 0, 1, 2)  # (3, 1, 56, 96)
    resized = resize_clip(frame, 54, round(96 * 54 / 56))
    left = (resized.shape[3] - 48) // 2
    expected = model.encode(resized[:, :, 3:51, left : left + 48], resize=None, layout="CTHW").tokens
    found = model.encode(frame, resize=54, crop=48, layout="CTHW").tokens
    assert F.cosine_similarity(found, expected, dim=-1).min() > 0.9999
    assert torch.equal(found, expected)
    with pytest.raises(TubeletError, match="crop is 64, but frames have 54 x 54 pixels"):
        model.encode(frame, resize=54, crop=64, layout="CTHW")


def test_options_win_over_the_models_own_and_the_rest_is_logged(caplog):
    caplog.set_level(logging.INFO)
    assert choose_clip("m", TRAINED, None, None, None) == TRAINED
    assert choose_clip("m", NativeClip(64, source="assumed"), 32, None, None)[:3] == (32, 16, 4.0)
    assert choose_clip("m", TRAINED, 32, 2, 1.0)[:3] == (32, 2, 1.0)
    assert [record.getMessage() for record in caplog.records] == [
        "m: 48 x 48 px, 6 frames at 5 fps (its own; --image-size, --frames, --fps change them)",
        "m: 32 x 32 px, 16 frames at 4 fps (--frames and --fps: assumed, since its file does not say)",
    ]


def test_embed_fit_and_view_take_the_models_own_clips(run, video, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = load(run, **CPU)
    embed_collection(model, [str(video)], tmp_path / "table", EmbedConfig(workers=0), str(run))
    settings = read_settings(tmp_path / "table")
    assert [settings[name] for name in ("image_size", "frames", "fps")] == [48, 6, 5.0]
    clips = head_input(get_label_task("classification"), model, FitConfig(), images=False)
    assert (clips.image_size, clips.frames, clips.fps) == TRAINED[:3]
    write_feature_page([str(video)], [str(run)], tmp_path / "page.html", ViewConfig(surprise=False, levels=(-1,)))
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert text.count("48 x 48 px, 6 frames at 5 fps (its own;") == 2
    # Fewer patches than 24 would be too coarse for a page.
    assert "whole frames with a short side of 384 px, 6 frames at 5 fps (its own;" in text


def evaluation(clip, **settings):
    model = SimpleNamespace(name="m", native_clip=clip)
    return EvaluationContext(
        task="", model=model, source="", data=None, config=EvaluateConfig(**settings), cache=None, progress=None
    )


def test_evaluations_are_at_the_size_of_a_run_and_otherwise_at_the_benchmarks():
    run, published, assumed = (evaluation(NativeClip(64, 4, 4.0, source)) for source in ("run", "published", "assumed"))
    assert [each.native_size(256) for each in (run, published, assumed)] == [64, 64, 256]
    assert [each.dense_size(512) for each in (run, published, assumed)] == [64, 512, 512]
    assert [each.native_frames(16) for each in (run, published, assumed)] == [4, 16, 16]
    assert run.dense_size(32) == 32 and run.native_frames(2) == 2  # no more than the benchmark's
    chosen = evaluation(NativeClip(64, 4, 4.0, "run"), image_size=32, frames=8)
    assert (chosen.native_size(256), chosen.dense_size(512), chosen.native_frames(16)) == (32, 32, 8)


def test_a_stack_without_a_rate_is_read_frame_by_frame_at_the_models_own(tmp_path):
    model = Backbone(ModelConfig(width=24, depth=1, heads=2, levels=(0,), patch_size=8)).eval()
    model.native_clip = NativeClip(image_size=32, frames=4, fps=10)
    frames = np.stack([indexed_image(i, 32) for i in range(8)])
    np.save(tmp_path / "a.npy", frames)
    features = model.encode(tmp_path / "a.npy", start=0)
    assert features.times[0].diff().tolist() == pytest.approx([0.2])
    assert torch.equal(features.tokens, model.encode(frames[:4]).tokens)
