"""8-bit weights and compiled blocks: features next to those of the plain model."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import tubelet
from tests.helpers.heads import tiny_encoder
from tubelet.errors import ConfigError
from tubelet.heads.adaptation import with_encoder_weights
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.compilation import compile_encoder
from tubelet.pretrained.quantization import quantize_linear_layers

has_vnni = pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="this CPU has no 8-bit units")


@pytest.fixture
def saved(tmp_path):
    tiny_encoder().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def clips(count, frames=4, seed=0):
    return torch.randint(0, 256, (count, frames, 32, 32, 3), generator=torch.Generator().manual_seed(seed)).byte()


@has_vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_features_of_8_bit_weights_are_close_and_do_not_depend_on_the_batch(saved, dtype):
    model = tubelet.load(saved, device="cpu", dtype=dtype)
    small = tubelet.load(saved, device="cpu", dtype=dtype, int8=True)
    assert small.weights_id == model.weights_id
    both = small.encode(clips(2), resize=None).tokens
    assert F.cosine_similarity(both, model.encode(clips(2), resize=None).tokens, dim=-1).min() > 0.999
    torch.testing.assert_close(both[:1], small.encode(clips(2)[:1], resize=None).tokens)
    torch.testing.assert_close(copy.deepcopy(small).encode(clips(2), resize=None).tokens, both)


@has_vnni
def test_a_model_with_8_bit_weights_is_not_saved(saved, tmp_path):
    with pytest.raises(ConfigError, match="load the model without int8"):
        tubelet.load(saved, device="cpu", int8=True).save_pretrained(tmp_path / "again")
    assert not (tmp_path / "again").exists()


@has_vnni
def test_what_8_bit_weights_cannot_do_is_one_clear_error(saved):
    model = tubelet.load(saved, device="cpu", int8=True)
    pixels = torch.randn(1, 3, 4, 32, 32, requires_grad=True)
    for call in (pickle.dumps, Backbone.double, lambda model: model.to("meta")):
        with pytest.raises(ConfigError, match=r"8-bit weights cannot .*; load the model"):
            call(copy.deepcopy(model))
    with pytest.raises(ConfigError, match="in 8 bits; load it without int8"):
        with_encoder_weights(model, dict(tiny_encoder(1).state_dict()), "full")
    with pytest.raises(ConfigError, match="8-bit weights give no gradients"):
        model.forward_features(pixels)
    with torch.no_grad():
        assert model.forward_features(pixels).isfinite().all()


def test_8_bit_weights_need_a_cpu_with_units_for_them(saved, monkeypatch):
    with pytest.raises(ConfigError, match="float16 on cpu"):
        tubelet.load(saved, device="cpu", dtype=torch.float16, int8=True)
    monkeypatch.setattr("torch.cpu._is_vnni_supported", lambda: False)
    with pytest.raises(ConfigError, match="AVX-512 VNNI"):
        tubelet.load(saved, device="cpu", int8=True)


@pytest.mark.slow
def test_compiled_features_are_equal_for_all_shapes_and_few_graphs_serve_them(monkeypatch):
    # What is traced, and when, is the same for every backend; the real one takes long.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, compiled = tiny_encoder(), tiny_encoder()
    if torch.cpu._is_vnni_supported():
        for each in (model, compiled):
            quantize_linear_layers(each)
    compile_encoder(compiled)

    def check(pixels):
        torch.testing.assert_close(
            compiled.encode(pixels, resize=None).tokens, model.encode(pixels, resize=None).tokens, atol=1e-5, rtol=0
        )

    for count, frames in ((1, 4), (2, 4), (3, 4), (1, 8), (2, 1), (5, 2)):
        check(clips(count, frames))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled.encode(clips(1), resize=None).tokens.isfinite().all()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, [clips(1, seed=seed) for seed in range(4)]))
    torch.testing.assert_close(
        copy.deepcopy(compiled).encode(clips(1), resize=None).tokens, model.encode(clips(1), resize=None).tokens
    )


def test_without_a_compiler_compile_is_one_clear_error(saved, monkeypatch):
    def backend(graph, inputs):
        raise RuntimeError("no C++ compiler was found\nin these directories")

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    with pytest.raises(ConfigError, match=r"cannot be compiled on this machine \(.*no C\+\+ .*\); .*leave compile out"):
        tubelet.load(saved, device="cpu", compile=True)
