"""What people pass to models and heads by mistake: each is one sentence, and nothing is ignored silently."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import tubelet
from tests.helpers.heads import tiny_encoder, tiny_head
from tests.helpers.media import write_image
from tubelet.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def model():
    return tiny_encoder()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("what", [None, 5, "", tiny_encoder])
def test_what_is_no_name_is_not_loaded(what):
    for load in (tubelet.load, tubelet.load_head):
        with pytest.raises(ConfigError, match=r"cannot load an (empty name|object of type \w+), expected a "):
            load(what)


def test_options_without_effect_are_errors(saved):
    with pytest.raises(ConfigError, match="heads is 3, but the file has 2; leave it out"):
        tubelet.load(saved, heads=3)
    with pytest.raises(ConfigError, match=r"levels is \(0,\), but the file has \(0, 1\); leave it out"):
        tubelet.load(saved, levels=(0,))
    assert tubelet.load(saved, device="cpu", heads=2).config.heads == 2
    for dtype in (torch.float8_e4m3fn, torch.int8, "float16"):
        with pytest.raises(ConfigError, match=r"dtype is .*, expected a floating-point type of 16 bits or"):
            tubelet.load(saved, dtype=dtype)


def test_integers_are_not_taken_for_normalized_pixels(model):
    pixels = torch.zeros(1, 3, 4, 32, 32)
    for dtype in (torch.uint8, torch.int64, torch.bool):
        for call in (model, model.forward_features, model.forward_intermediates):
            with pytest.raises(
                DataError, match=r"pixels are \w+, expected normalized floats; model.encode takes colors"
            ):
                call(pixels.to(dtype))
    with pytest.raises(DataError, match="pixels are int64, expected colors of uint8 or normalized floats"):
        model.dense_features(pixels.long())
    for call in (model, model.forward_features, model.forward_intermediates):
        with pytest.raises(DataError, match=r"floats from 0 to 255, expected normalized floats, \(x / 255"):
            call(torch.linspace(0, 255, pixels.numel()).view_as(pixels))


def test_what_is_no_config_and_what_is_no_size(model):
    for config in (None, "vit-b", {"width": 24}):
        with pytest.raises(ConfigError, match=r"config is of type \w+, expected a ModelConfig, such as model_preset"):
            tubelet.Backbone(config)
    features = model.encode(torch.zeros(4, 32, 32, 3, dtype=torch.uint8))
    for size in (0, 1.5, "a", None, True, (3,), (3, -1)):
        with pytest.raises(DataError, match=r"size is .*, expected rows and columns of at least 1"):
            features.upsample(size)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_sizes_and_tensors_that_cannot_be_encoded(model):
    clip = torch.zeros(4, 32, 32, 3, dtype=torch.uint8)
    for size in (10**7, (32, 10**7)):
        with pytest.raises(ConfigError, match=r"resize is .*, expected at most 32768 pixels"):
            model.encode(clip, resize=size)
    with pytest.raises(DataError, match="nested"):
        model.encode(torch.nested.nested_tensor([clip[0] / 255, clip[1] / 255], layout=torch.strided))


@pytest.mark.parametrize("task", ["classification", "timeline"])
def test_heads_take_features_and_tokens_only(model, task):
    head = tiny_head(model, task)
    shapes = [(2, 24), (2, 3, 24), (1, 2, 4, 23), (4, 32, 32, 3), (1, 2, 0, 24)]
    for features in [*(torch.zeros(shape) for shape in shapes), np.zeros((1, 2, 4, 24)), None, [1]]:
        with pytest.raises(DataError, match=r"features are .*, expected those of model.encode, or tokens of shape"):
            head(features)
    features = model.encode(torch.zeros(4, 32, 32, 3, dtype=torch.uint8))
    other = copy.copy(head)
    other.spec = replace(head.spec, input=replace(head.spec.input, levels=(9,)))
    with pytest.raises(ConfigError, match=r"levels are \(9,\) in the head, but the encoder has 2"):
        other(features)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        scores = copy.deepcopy(head).to(dtype)(features)
        assert scores.dtype == dtype
        torch.testing.assert_close(scores.float(), head(features), atol=5e-2, rtol=0)


def test_predict_takes_paths_of_any_iterable_and_counts_what_it_does_not_read(model, tmp_path, caplog):
    head = tiny_head(model, "classification")
    np.save(tmp_path / "a.npy", np.zeros((8, 32, 32, 3), np.uint8))
    write_image(tmp_path / "a.png")
    for sources in (tmp_path / "a.npy", {str(tmp_path / "a.npy")}, (path for path in [tmp_path / "a.npy"])):
        assert len(tubelet.predict(head, sources, model=model, workers=0).records) == 2
    assert "not read" not in caplog.text
    assert len(tubelet.predict(head, [tmp_path / "a.npy", tmp_path / "a.png"], model=model, workers=0).records) == 2
    assert "1 image not read, since the head takes videos" in caplog.text
    with pytest.raises(DataError, match="no videos, which a head takes, but 1 image; pass videos"):
        tubelet.predict(head, tmp_path / "a.png", model=model, workers=0)
    for sources in (torch.zeros(4, 32, 32, 3), [np.zeros(3)], None, "", [""]):
        with pytest.raises(ConfigError, match=r"a source is (empty|of type \w+), expected a path or URL"):
            tubelet.predict(head, sources, model=model)


@pytest.mark.parametrize("change", [{"fps": 0.0}, {"stride_s": 0.0}, {"frames": 0}, {"cells": -1}, {"image_size": 0}])
def test_clips_of_heads_have_sizes_that_exist(model, change):
    with pytest.raises(ConfigError, match=rf"{next(iter(change))} is .*, expected"):
        tiny_head(model, "classification", input=change)
