"""Models of any number of channels and any depth: their statistics, their frames, and their training."""

import dataclasses
import json
import math
import shutil
import sys

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

import tubelet
from tests.helpers.commands import run_tubelet
from tests.helpers.dicom_files import write_dicom
from tests.helpers.training import ONE_BLOCK, tiny_config
from tubelet.config import (
    EmbedConfig,
    FitConfig,
    ModelConfig,
    PixelStatistics,
    PredictConfig,
    from_dict,
    to_dict,
    vit_pico,
)
from tubelet.data.clips import normalize
from tubelet.data.images import read_image
from tubelet.data.loader import StepDataset, step_bytes
from tubelet.data.model_frames import to_input
from tubelet.data.pixel_statistics import measure_collection, read_pixel_statistics
from tubelet.data.sources import MediaList
from tubelet.data.stacks.depth import require_8_bits_in_folders
from tubelet.embed.clip_vectors import read_clip_vectors
from tubelet.embed.collection import embed_collection
from tubelet.embed.search import search
from tubelet.errors import ConfigError, DataError, DecodeError, MissingPackageError, TubeletError
from tubelet.fitting.run import fit_head, read_label_table
from tubelet.model.tokenizer import Tokenizer
from tubelet.prediction.pipeline import predict_collection
from tubelet.prediction.video_writer import rewrite_video
from tubelet.prediction.videos import draw_videos
from tubelet.pretrained.backbone import Backbone
from tubelet.train.distributed import DistContext
from tubelet.train.initialization import adapt_channels
from tubelet.train.optim import build_optimizer
from tubelet.train.step import train_step
from tubelet.view.dense_table import read_dense_table
from tubelet.view.map_page import _strips
from tubelet.view.players import make_player
from tubelet.view.search_page import write_search_page
from tubelet.vjepa import VJEPA

GRAY12 = PixelStatistics(window=(0, 4095), mean=(0.25,), std=(0.125,))


def statistics(channels, window=(0, 4095)):
    return PixelStatistics(window=window, mean=(0.25,) * channels, std=(0.125,) * channels)


def test_models_of_8_bit_rgb_keep_their_config_hash():
    assert Backbone(vit_pico()).config_hash == "dcbb77570dd0"  # computed before pixels were a setting
    assert "pixels" not in to_dict(vit_pico())


def test_a_model_with_statistics_survives_json():
    model = dataclasses.replace(vit_pico(), channels=2, pixels=statistics(2))
    assert from_dict(ModelConfig, json.loads(json.dumps(to_dict(model)))) == model
    with pytest.raises(ConfigError, match="channels is 3, and pixels has statistics of 2"):
        dataclasses.replace(model, channels=3)
    with pytest.raises(ConfigError, match=r"config: pixels.window is missing"):
        from_dict(ModelConfig, to_dict(model) | {"pixels": {"mean": [1.0], "std": [1.0]}})


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_every_gray_level_of_12_bits_stays_distinct(dtype):
    levels = np.arange(4096, dtype=dtype).reshape(1, 64, 64, 1)
    found = to_input(levels, GRAY12, "a")
    assert found.dtype == torch.float32 and len(found.unique()) == 4096
    expected = (torch.arange(4096) / 4095 - 0.25) / 0.125
    assert torch.allclose(found.flatten(), expected, atol=1e-6)


def test_values_outside_of_the_window_are_clipped():
    found = to_input(np.array([[0], [100], [150], [200], [300]], np.uint16), statistics(1, (100, 200)), "a")
    assert torch.allclose(found.flatten() * 0.125 + 0.25, torch.tensor([0.0, 0.0, 0.5, 1.0, 1.0]))


def test_gray_becomes_rgb_by_repetition_and_rgb_gray_by_luma():
    gray = np.array([[[10], [200]]], np.uint16)
    assert torch.equal(to_input(gray, statistics(3), "a"), to_input(gray, statistics(1), "a").expand(1, 2, 3))
    color = np.array([[[100, 200, 50]]], np.uint8)
    luma = 0.299 * 100 + 0.587 * 200 + 0.114 * 50
    found = to_input(color.astype(np.uint16), GRAY12, "a")
    assert found.item() == pytest.approx((luma / 4095 - 0.25) / 0.125, abs=1e-6)
    on_device = normalize(torch.from_numpy(color).view(1, 3, 1, 1, 1), GRAY12)
    assert on_device.shape == (1, 1, 1, 1, 1) and on_device.item() == pytest.approx(found.item(), abs=1e-6)


def test_other_channels_and_values_are_refused():
    with pytest.raises(DecodeError, match="a: has 2 channels, the model takes 3"):
        to_input(np.zeros((1, 1, 2), np.uint16), statistics(3), "a")
    with pytest.raises(DecodeError, match="a: has values that are not finite"):
        to_input(np.full((1, 1, 1), np.nan, np.float32), GRAY12, "a")
    with pytest.raises(DataError, match="pixels have 3 channels, the model takes 2"):
        normalize(torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8), statistics(2))


def test_stored_values_in_memory_are_those_of_a_file(tmp_path):
    for channels in (1, 3, 5):
        config = dataclasses.replace(vit_pico(), depth=1, levels=(0,), channels=channels, pixels=statistics(channels))
        model = Backbone(config).eval()
        clip = every_level(0, 4, channels).transpose(0, 2, 3, 1)
        np.save(tmp_path / "clip.npy", clip)
        expected = model.encode(tmp_path / "clip.npy", frames=4, fps=4, resize=32).tokens
        for form in (clip, torch.from_numpy(clip), clip.astype(np.int64), (clip / 4095).astype(np.float32)):
            assert torch.allclose(model.encode(form, resize=32).tokens, expected, atol=1e-4)
        narrow = (clip >> 4).astype(np.uint16)
        found = model.encode(narrow, resize=None).tokens
        assert torch.allclose(found, model.encode(narrow.astype(np.int32), resize=None).tokens, atol=1e-5)
        with pytest.raises(DataError, match=r"floats are from 0 to 4095, expected 0 to 1 for the model's window of 0"):
            model.encode(clip.astype(np.float32))
        assert model.pretrained_cfg["mean"] == (0.25,) * channels


def test_deep_pil_images_keep_their_depth_in_memory(tmp_path):
    model = Backbone(dataclasses.replace(vit_pico(), depth=1, levels=(0,), channels=1, pixels=GRAY12)).eval()
    values = every_level(0)
    Image.fromarray(values).save(tmp_path / "deep.png")
    expected = model.encode(values, resize=None).tokens
    for form in (Image.fromarray(values), Image.fromarray(values.astype(np.int32)), tmp_path / "deep.png"):
        assert torch.allclose(model.encode(form, resize=None).tokens, expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 5])
def test_models_without_statistics_take_normalized_pixels_only(channels):
    model = Backbone(dataclasses.replace(vit_pico(), depth=1, levels=(0,), channels=channels)).eval()
    pixels = torch.randn(1, channels, 2, 16, 16)
    assert torch.allclose(model.encode(pixels, normalized=True).tokens, model(pixels)[-1], atol=1e-5)
    for form in (pixels.sigmoid(), (255 * pixels.sigmoid()).byte()):
        with pytest.raises(DataError, match="has no mean and std of pixels"):
            model.encode(form, resize=None)


def test_floats_are_normalized_already():
    pixels = torch.randn(1, 2, 1, 8, 8)
    assert torch.equal(normalize(pixels, statistics(2)), pixels)


def every_level(seed, *shape):
    """Frames (..., 64, 64) of 12 bits, in each of which every gray level is once."""
    rng = np.random.default_rng(seed)
    frames = [rng.permutation(4096) for _ in range(math.prod(shape))]
    return np.stack(frames).astype(np.uint16).reshape(*shape, 64, 64)


def write_stack(path, seed=0, frames=4, channels=None):
    """A TIFF of frames with every gray level."""
    shape, axes = ((frames,), "TYX") if channels is None else ((frames, channels), "TCYX")
    values = every_level(seed, *shape)
    tifffile.imwrite(path, values, photometric="minisblack", metadata={"axes": axes}, ome=True)
    return str(path)


def stack_config(model, **changes):
    data = {"image_size": 64, "frames": 4, "crop_scale": (1, 1), "crop_aspect": (1, 1)}
    return dataclasses.replace(tiny_config("unused", data=data, batch_size=2, **changes), model=model)


@pytest.mark.parametrize("channels", [1, 2])
def test_20_steps_on_12_bit_stacks_keep_every_gray_level(tmp_path, channels):
    files = [write_stack(tmp_path / "a.ome.tif", channels=None if channels == 1 else channels)]
    if channels == 1:
        write_dicom(tmp_path / "b.dcm", every_level(1, 4))
        files.append(str(tmp_path / "b.dcm"))
    media = MediaList(videos=files, images=[])
    found = measure_collection(media, percentiles=(0, 100))
    with pytest.raises(TubeletError, match="max_files is 0, expected 1 to"):
        measure_collection(media, max_files=0)
    assert found.pixels.window == (0, 4095) and found.pixels.channels == channels
    assert np.allclose(found.pixels.mean, 0.5, atol=0.01) and np.allclose(found.pixels.std, 12**-0.5, atol=0.01)
    config = stack_config(dataclasses.replace(ONE_BLOCK, channels=channels, pixels=found.pixels), steps=20)
    dataset = StepDataset(config, media)
    torch.manual_seed(0)
    model = VJEPA(config.model)
    optimizer, ctx = build_optimizer(model, config.optim), DistContext(torch.device("cpu"), 0, 1)
    before, losses = model.student.tokenizer.video.weight.detach().clone(), []
    for step in range(20):
        data = dataset[step]
        assert not data.bad and data.failure is None
        (batch,) = data.batches
        assert batch.pixels.shape == (2, channels, 4, 64, 64) and batch.pixels.dtype == torch.float32
        for channel in batch.pixels.flatten(2).flatten(0, 1):
            assert len(channel.unique()) == 4096
        losses.append(float(train_step(model, optimizer, data, config, step, ctx)["loss"]))
    assert np.isfinite(losses).all() and not torch.equal(model.student.tokenizer.video.weight, before)
    assert step_bytes(config, dataset.partition) > 4 * batch.pixels.numel()


def test_stacks_without_statistics_end_in_a_sentence_that_names_the_command(tmp_path):
    media = MediaList(videos=[write_stack(tmp_path / "a.ome.tif")], images=[])
    failure = StepDataset(stack_config(ONE_BLOCK), media)[0].failure
    assert "a.ome.tif: has 1 channel of uint16, the model takes 8-bit RGB" in failure
    assert "`tubelet stats SOURCE --out stats.json`, and train with --stats stats.json" in failure


def test_a_missing_reader_of_stacks_is_reported_with_the_command_that_measures_them(tmp_path, monkeypatch):
    write_stack(tmp_path / "a.ome.tif")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(MissingPackageError, match=r"need tifffile: pip install .* `tubelet stats SOURCE --out"):
        require_8_bits_in_folders((str(tmp_path),))
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="1 channel of uint16, the model takes 8-bit RGB"):
        require_8_bits_in_folders((str(tmp_path / "a.ome.tif"),))
    (tmp_path / "a.ome.tif").write_bytes(b"II*\0")
    require_8_bits_in_folders((str(tmp_path), "https://host/a.tif"))


def test_a_gray_model_is_trained_on_8_bit_colors(tmp_path):
    colors = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(colors).save(tmp_path / "a.png")
    media = MediaList(videos=[], images=[str(tmp_path / "a.png")])
    found = measure_collection(media, channels=1, window=(0, 255))
    config = stack_config(dataclasses.replace(ONE_BLOCK, channels=1, pixels=found.pixels))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, flip=False))
    pixels = StepDataset(config, media)[0].batches[0].pixels[0, 0, 0]
    luma = colors @ np.array([0.299, 0.587, 0.114]) / 255
    assert np.allclose(pixels * found.pixels.std[0] + found.pixels.mean[0], luma, atol=1e-5)


def test_the_first_layer_is_adapted_so_that_repeated_values_have_equal_tokens():
    torch.manual_seed(0)
    rgb = Tokenizer(ONE_BLOCK)
    state = {f"tokenizer.{name}": value for name, value in rgb.state_dict().items()}
    for channels, frames in ((1, 4), (1, 1), (5, 4), (5, 1)):
        other = Tokenizer(dataclasses.replace(ONE_BLOCK, channels=channels))
        adapted = adapt_channels(state, 3, channels)
        other.load_state_dict({name.removeprefix("tokenizer."): value for name, value in adapted.items()})
        gray = torch.randn(2, 1, frames, 16, 16)
        repeated = gray.expand(-1, channels, -1, -1, -1)
        assert torch.allclose(other(repeated), rgb(gray.expand(-1, 3, -1, -1, -1)), atol=1e-5)
    assert adapt_channels(state, 3, 3) is state


def test_the_statistics_command_writes_what_training_takes(tmp_path):
    values = np.arange(100, 164, dtype=np.uint16).reshape(8, 8)
    for k in range(3):
        tifffile.imwrite(tmp_path / f"{k}.tif", values + k)
    (tmp_path / "broken.tif").write_bytes(b"II*\0")
    out = tmp_path / "stats.json"
    text = run_tubelet("stats", tmp_path, "--out", out, "--window", 90, 200).stdout.replace("\n", " ")
    assert "3 of 4 files (3 of 1 channel of uint16); 1 failed; window 90 to 200" in text and "broken.tif" in text
    found = read_pixel_statistics(out)
    assert found.window == (90, 200) and found.mean[0] == pytest.approx((values.mean() + 1 - 90) / 110, abs=0.005)


def test_a_run_on_tiff_and_dicom_stacks_by_the_commands(tmp_path):
    sources = tmp_path / "stacks"
    sources.mkdir()
    write_stack(sources / "a.ome.tif")
    levels = np.random.default_rng(1).permuted(np.tile(np.arange(4096, dtype=np.uint16), (4, 1)), axis=1)
    write_dicom(sources / "b.dcm", levels.reshape(4, 64, 64))
    sizes = ("--image-size", 64, "--frames", 4, "--batch-size", 2, "--workers", 0, "--crop-scale", 1, 1)
    options = (sources, "--out", tmp_path / "run", "--model", "vit-pico", *sizes, "--steps", 1)
    refused = run_tubelet("train", *options)
    assert refused.returncode == 1 and not (tmp_path / "run").exists()
    assert "the model takes 8-bit RGB: measure the collection with `tubelet stats" in " ".join(refused.stderr.split())
    made = run_tubelet("stats", sources, "--out", tmp_path / "stats.json", "--percentiles", 0, 100)
    assert "2 of 2 files (2 of 1 channel of uint16)" in " ".join(made.stdout.split()), made
    done = run_tubelet("train", *options, "--stats", tmp_path / "stats.json")
    assert done.returncode == 0, done
    model = tubelet.load(tmp_path / "run", dtype=torch.float32)
    assert model.config.channels == 1 and model.config.pixels == read_pixel_statistics(tmp_path / "stats.json")
    from_file = model.encode(sources / "b.dcm", frames=4, resize=None)
    fractions = torch.from_numpy(levels.astype(np.float32)).view(1, 1, 4, 64, 64) / 4095
    assert torch.allclose(
        from_file.levels[-1], model.encode(fractions, layout="BCTHW", resize=None).levels[-1], atol=1e-4
    )
    embedded = run_tubelet("embed", sources, "--model", tmp_path / "run", "--out", tmp_path / "table", "--fps", 4)
    assert "2 new files" in embedded.stdout, embedded
    streamed = tubelet.DenseFeatures.merge(model.stream(sources / "b.dcm", frames=4, resize=None))
    assert torch.allclose(streamed.levels[-1], from_file.levels[-1], atol=1e-4)
    for target in ("a.pt", "a.gguf"):
        refused = run_tubelet("convert", tmp_path / "run", tmp_path / target)
        assert refused.returncode == 1 and "which this layout cannot hold" in " ".join(refused.stderr.split())
    assert run_tubelet("convert", tmp_path / "run", tmp_path / "a.safetensors").returncode == 0
    assert tubelet.load(tmp_path / "a.safetensors", dtype=torch.float32).config == model.config


def test_a_table_of_12_bit_stacks_is_searched_mapped_and_viewed(tmp_path):
    sources = tmp_path / "stacks"
    sources.mkdir()
    for number in range(2):
        write_stack(sources / f"{number}.ome.tif", number, frames=8)
    model = Backbone(dataclasses.replace(vit_pico(), channels=1, pixels=GRAY12))
    settings = EmbedConfig(image_size=32, frames=4, fps=2, workers=0, dense=True)
    assert embed_collection(model, [str(sources)], tmp_path / "table", settings).files == 2
    query = str(sources / "1.ome.tif")
    copied = shutil.copy(query, tmp_path / "query.ome.tif")
    hits = search(tmp_path / "table", copied, top=2, model=model, at_s=3.0, box=(8, 8, 16, 16))
    assert hits[0].path == query and hits[0].box is not None
    write_search_page(hits, query, tmp_path / "search.html", 3.0, None, 2.0)
    assert (tmp_path / "search.html").read_text().count("data:video/mp4") == 3
    clips = read_clip_vectors(tmp_path / "table")
    assert clips.end_s.max() > 2.5 and len(_strips(clips, range(len(clips.file)))) == len(clips.file)  # at 2 fps
    files, _ = read_dense_table(tmp_path / "table", [query], 8)
    assert files[0].duration_s == 4.0
    rewrite_video(files[0].path, tmp_path / "copy.mp4", 64, stack_fps=2)
    with tubelet.Video(tmp_path / "copy.mp4") as video:
        assert video.info.duration_s == pytest.approx(4) and video.frames().pixels.float().std() > 40


def test_displays_show_any_depth_and_channels(tmp_path):
    values = np.linspace(0, 1, 2 * 64 * 64 * 5, dtype=np.float32).reshape(2, 64, 64, 5)
    values[0, 0, 0] = np.nan
    for name, shown in {"five": values, "two": values[..., :2], "flat": np.full_like(values[..., :1], 7)}.items():
        np.save(tmp_path / f"{name}.npy", shown)
        with tubelet.Video(tmp_path / f"{name}.npy", display=True) as video:
            pixels = video.frames().pixels
        assert pixels.shape == (2, 64, 64, 3) and (name == "flat" or pixels.float().std() > 60)
    Image.fromarray(every_level(0, 1)[0]).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", display=True).float().std() > 60


@pytest.mark.slow
def test_a_head_is_fitted_and_applied_to_deep_stacks_of_every_format(tmp_path):
    lines, rng = ["path,label"], np.random.default_rng(0)
    for number in range(8):
        bright = number % 2
        values = rng.integers(3000 * bright, 1000 + 3000 * bright, (4, 32, 32)).astype(np.uint16)
        name = f"{number}{('.ome.tif', '.npy', '.dcm')[number // 2 % 3]}"
        if name.endswith(".npy"):
            np.save(tmp_path / name, values)
        elif name.endswith(".dcm"):
            write_dicom(tmp_path / name, values)
        else:
            tifffile.imwrite(tmp_path / name, values, photometric="minisblack", metadata={"axes": "TYX"})
        lines.append(f"{name},{('dark', 'bright')[bright]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    model = Backbone(dataclasses.replace(tiny_config("none").model, channels=1, pixels=GRAY12))
    choices = {"networks": ("linear",), "learning_rates": (1e-2,), "weight_decays": (0.0,)}
    config = FitConfig(**choices, image_size=32, frames=4, fps=4, epochs=1, folds=2, workers=0)
    labels, task = read_label_table(tmp_path / "labels.csv", config)
    head, result = fit_head(labels, task, model, "none", config, cache=tmp_path / "cache")
    assert result.spec.classes == ("bright", "dark") and len(labels.rows) == 8
    made = predict_collection(
        model, {"a": head}, [str(tmp_path / "labels.csv")], tmp_path / "out", PredictConfig(workers=0), []
    )
    assert made.files == 8 and not made.bad_files
    shown, bad = draw_videos(made.media_predictions(1), made.media, tmp_path / "videos", made.classes)
    assert not bad and shown[0].drawn.is_file()
    assert make_player(dataclasses.replace(shown[0], drawn=None), tmp_path).note.startswith("A small copy")
