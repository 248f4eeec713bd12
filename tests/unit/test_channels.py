"""Models of any number of channels and any depth: their statistics, their frames, and their training."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tubelet.config import ModelConfig, PixelStatistics, from_dict, to_dict, vit_pico
from tubelet.data.clips import normalize
from tubelet.data.model_frames import to_input
from tubelet.errors import ConfigError, DataError, DecodeError
from tubelet.pretrained.backbone import Backbone

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
    gray = np.array([[[10], [200]]], np.uint8)
    assert to_input(gray, None, "a").tolist() == [[[10] * 3, [200] * 3]]
    assert torch.equal(to_input(gray, statistics(3), "a"), to_input(gray, statistics(1), "a").expand(1, 2, 3))
    color = np.array([[[100, 200, 50]]], np.uint8)
    luma = 0.299 * 100 + 0.587 * 200 + 0.114 * 50
    found = to_input(color, GRAY12, "a")
    assert found.item() == pytest.approx((luma / 4095 - 0.25) / 0.125, abs=1e-6)
    on_device = normalize(torch.from_numpy(color).view(1, 3, 1, 1, 1), GRAY12)
    assert on_device.shape == (1, 1, 1, 1, 1) and on_device.item() == pytest.approx(found.item(), abs=1e-6)


def test_other_channels_and_values_are_refused():
    with pytest.raises(DecodeError, match="a: has 2 channels, the model takes 3"):
        to_input(np.zeros((1, 1, 2), np.uint16), statistics(3), "a")
    with pytest.raises(DecodeError, match="a: has values that are not finite"):
        to_input(np.full((1, 1, 1), np.nan, np.float32), GRAY12, "a")
    with pytest.raises(ConfigError, match=r"a: has 1 channels of uint16, .* `tubelet stats SOURCE --out stats\.json`"):
        to_input(np.zeros((1, 1, 1), np.uint16), None, "a")
    with pytest.raises(DataError, match="pixels have 3 channels, the model takes 2"):
        normalize(torch.zeros(1, 3, 1, 8, 8, dtype=torch.uint8), statistics(2))


def test_floats_are_normalized_already():
    pixels = torch.randn(1, 2, 1, 8, 8)
    assert torch.equal(normalize(pixels, statistics(2)), pixels)
