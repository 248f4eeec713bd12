"""Pixel labels and evaluations of images and stacks of 12 bits: models see the stored values."""

import dataclasses

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from tests.helpers.media import write_image, write_video
from tubelet.config import EmbedConfig, FitConfig, ModelConfig, PixelStatistics, PredictConfig
from tubelet.data.model_frames import depth_problem, to_input
from tubelet.datasets import DenseSample
from tubelet.embed.collection import embed_collection
from tubelet.errors import TubeletError
from tubelet.fitting.run import fit_head, read_label_table
from tubelet.prediction.pipeline import predict_collection
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.cache import FeatureCache
from tubelet.tasks.common.clip_transforms import ClipView, ImageView, shown_frames
from tubelet.tasks.common.extract import Source, extract
from tubelet.tasks.common.pixel_features import test_source as whole_image
from tubelet.tasks.segmentation import sliding_windows

DEEP = PixelStatistics(window=(1900, 2200), mean=(0.4,), std=(0.3,))
LEVELS = np.array([2000, 2100], np.int16)  # 124 and 131 of 255


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    config = ModelConfig(width=24, depth=1, heads=2, levels=(0,), patch_size=8, channels=1, pixels=DEEP)
    return Backbone(config).requires_grad_(False).eval()


def write_labels(folder):
    """Four TIFF images and a stack of four frames with masks; a class is a gray level."""
    folder.mkdir()
    rng, lines, frames = np.random.default_rng(0), ["path,mask,start_frame,split"], []
    for number in range(8):
        mask = np.kron(rng.integers(0, 2, (4, 4)), np.ones((8, 8))).astype(np.uint8)
        values = LEVELS[mask] + rng.integers(-8, 9, mask.shape)
        Image.fromarray(mask).save(folder / f"{number}_mask.png")
        stack = number >= 4
        if stack:
            frames.append(values.astype(np.uint16))
        else:
            tifffile.imwrite(folder / f"{number}.tif", values.astype(np.uint16), photometric="minisblack")
        name, start = ("cells.ome.tif", number - 4) if stack else (f"{number}.tif", "")
        lines.append(f"{name},{number}_mask.png,{start},{'train' if stack else 'val'}")
    tifffile.imwrite(folder / "cells.ome.tif", np.stack(frames), photometric="minisblack", metadata={"axes": "TYX"})
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "legend.csv").write_text("index,name\n0,ground\n1,cell\n")
    return np.stack(frames)


@pytest.mark.slow
def test_masks_of_12_bit_images_and_stacks_are_fitted_and_predicted(model, tmp_path):
    write_labels(tmp_path / "cells")
    config = FitConfig(image_size=32, epochs=40, learning_rates=(1e-1,), weight_decays=(0.0,), workers=0)
    labels, task = read_label_table(tmp_path / "cells" / "labels.csv", config)
    assert task.name == "segmentation"
    head, result = fit_head(labels, task, model, "none", config, cache=tmp_path / "cache")
    scores = {each.model: each.metrics[0].value for each in result.spec.scores}
    assert scores["linear head on pixels"] > 70 > 60 > scores["majority class by position"]
    assert all(image.std() > 20 for image in (images["image"] for images in result.figures.values()))
    made = predict_collection(
        model, {"a": head}, [str(tmp_path / "cells" / "0.tif")], tmp_path / "out", PredictConfig(workers=0)
    )
    assert made.files == 1 and not made.bad_files
    (picture,) = (tmp_path / "out" / "pictures").rglob("*.jpg")
    assert np.asarray(Image.open(picture)).shape == (32, 32, 3)


def test_transforms_of_evaluations_read_stored_values(model, tmp_path):
    frames = write_labels(tmp_path / "cells")
    stack, image = tmp_path / "cells" / "cells.ome.tif", tmp_path / "cells" / "0.tif"
    expected = to_input(frames[2][..., None], DEEP, "").permute(2, 0, 1)
    sample = DenseSample(name="a", image=stack, target=image, time_s=2 / 4 + 1e-3)
    assert sample.image_shape() == (32, 32) and sample.show_image().dtype == np.uint8
    source = dataclasses.replace(whole_image(sample), pixels=DEEP)
    assert torch.equal(sliding_windows(source, 32)[0, :, 0], expected)
    clip = ClipView(size=32, frames=4, frame_step=1)
    assert torch.equal(clip(dataclasses.replace(source, part=()))[0, 0, :, 2], expected)
    assert shown_frames(clip, source)["0.50 s"].shape == (32, 32, 3)
    one = ImageView(size=32)(Source(files=(image,), pixels=DEEP))
    assert one.shape == (1, 1, 1, 1, 32, 32) and one.dtype == torch.float32
    features = extract(model, FeatureCache(tmp_path, model), [Source(files=(image,))], {}, ImageView(size=32))
    with torch.no_grad():
        tokens = model(one[0])[-1]
    assert torch.allclose(features[0]["tokens"][0, 0].float(), tokens[0], atol=5e-3)
    assert features.sources[0].pixels == DEEP


def test_models_of_8_bit_rgb_keep_their_cached_features(tmp_path):
    write_image(tmp_path / "a.png")
    small = ModelConfig(width=24, depth=1, heads=2, levels=(0,), patch_size=8)
    model, view = Backbone(small).requires_grad_(False).eval(), ImageView(size=32)
    cache, source = FeatureCache(tmp_path / "cache", model), Source(files=(tmp_path / "a.png",))
    features = extract(model, cache, [source], view.recipe, view)
    identity = {"dtype": "torch.float32"} | view.recipe | {"part": ()}
    assert features.paths == [cache.path_for(identity, [tmp_path / "a.png"])] and view(source).dtype == torch.uint8


def stack_of(folder, name, change, dtype=np.uint16):
    """A stack of values in the window of the model, changed."""
    values = np.random.default_rng(1).integers(1950, 2150, (8, 32, 32))
    tifffile.imwrite(folder / name, change(values).astype(dtype), photometric="minisblack")
    return folder / name


def test_8_bit_values_are_refused_where_they_cannot_fill_the_window(model, tmp_path):
    video, small = write_video(tmp_path / "a.mp4"), stack_of(tmp_path, "b.tif", lambda x: x >> 4, np.uint8)
    for pixels in (video, small, tifffile.imread(small)):
        with pytest.raises(TubeletError, match=r"8-bit values .* cover 0 % of the window of the model, 1900 to 2200"):
            model.encode(pixels, resize="round")
    assert not depth_problem(np.dtype("uint8"), PixelStatistics(window=(20, 250), mean=(0.4,), std=(0.3,)))


@pytest.mark.filterwarnings("error")
def test_values_outside_of_the_window_are_reported(model, tmp_path):
    wrong = stack_of(tmp_path, "b.tif", lambda x: x - 1000)
    values = tifffile.imread(stack_of(tmp_path, "a.tif", lambda x: x))
    model.encode(tmp_path / "a.tif", frames=8)
    for pixels in (values, values[:, None], values.astype(np.int16), (values - 1900) / np.float32(300)):
        model.encode(pixels)
    for pixels, options in ((wrong, {"frames": 8}), (values.astype(np.int16) - 3000, {}), (values[0] - 1500, {})):
        with pytest.warns(UserWarning, match="more than 99 % of the values are outside of the model's window, 1900 to"):
            model.encode(pixels, **options)
    with pytest.warns(UserWarning, match="more than 99 %"):
        list(model.stream(wrong))
    with pytest.warns(UserWarning, match="floats are from .*, the darkest tenth of the model's window, 1900 to 2200"):
        model.encode(values / np.float32(65535))


def test_files_outside_of_the_window_are_counted(model, tmp_path, caplog):
    (tmp_path / "in").mkdir()
    for name in "abc":
        stack_of(tmp_path / "in", f"{name}.tif", lambda x, name=name: x - 1000 * (name != "a"))
    made = embed_collection(model, [str(tmp_path / "in")], tmp_path / "out", EmbedConfig(workers=0))
    assert made.rows == 3 and made.outside == 2
    (message,) = [record.getMessage() for record in caplog.records if "outside of the model's window" in record.message]
    assert "b.tif: more than 99 %" in message


def test_an_array_of_pages_is_a_clip_of_a_model_of_one_channel(model, tmp_path):
    path = stack_of(tmp_path, "a.tif", lambda x: x)
    pages = tifffile.imread(path)
    tokens = model.encode(pages).tokens
    assert torch.equal(tokens, model.encode(pages[..., None]).tokens) and tokens.shape[1] == 4 * 16**2
    assert model.encode([pages, pages], layout="BTHW").tokens.shape[:2] == (2, 4 * 16**2)
    with pytest.raises(TubeletError, match=r'clips of one channel .THW.; pass layout="BTHW"'):
        model.encode([pages, pages])
    with Image.open(path) as image, pytest.raises(TubeletError, match="page 0 of 8 of a TIFF file; pass the path"):
        model.encode(image)
