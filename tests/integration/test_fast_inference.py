"""8-bit weights and compiled blocks: features next to those of the plain model."""

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import tubelet
from tests.helpers.heads import tiny_encoder
from tests.helpers.media import write_image
from tubelet.cli.command import parse
from tubelet.cli.embed import Embed
from tubelet.cli.predict import Predict
from tubelet.config import EmbedConfig
from tubelet.embed.collection import embed_collection
from tubelet.embed.table import read_settings
from tubelet.errors import ConfigError, DataError
from tubelet.heads.adaptation import with_encoder_weights
from tubelet.pretrained import quantization
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.compilation import compile_encoder
from tubelet.pretrained.quantization import has_int8_units, quantize_linear_layers

has_vnni = pytest.mark.skipif(not has_int8_units(), reason="this CPU has no 8-bit units")


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
    for capabilities, reason in (({"avx512_vnni": False}, "which this one has not"), ({}, "does not tell")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found, raising=False)
        with pytest.raises(ConfigError, match=f"AVX-512 VNNI.*{reason}; leave int8 out"):
            tubelet.load(saved, device="cpu", int8=True)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True, raising=False)
    assert has_int8_units()
    monkeypatch.delattr(torch.cpu, "_is_vnni_supported")
    assert has_int8_units() is None


@pytest.mark.parametrize("name", ["qlinear_prepack", "qlinear_pointwise"])
def test_a_pytorch_without_the_products_is_one_clear_error(saved, monkeypatch, name):
    def missing(*arguments):
        raise AttributeError(f"'_OpNamespace' 'onednn' object has no attribute '{name}'")

    monkeypatch.setattr(quantization, "has_int8_units", lambda: True)
    monkeypatch.setattr(torch.ops.onednn, name, missing, raising=False)
    with pytest.raises(ConfigError, match=f"no oneDNN products in 8 bits .*{name}.*; leave int8 out, or install PyTor"):
        tubelet.load(saved, device="cpu", int8=True)


@has_vnni
def test_a_table_states_its_precision_and_is_continued_in_it_only(saved, tmp_path, caplog):
    (tmp_path / "images").mkdir()
    write_image(tmp_path / "images" / "a.png")
    command = {"model": str(saved), "out": tmp_path / "table", "sources": (str(tmp_path / "images"),)}
    settings = EmbedConfig(image_size=32, workers=0)
    Embed(**command, settings=settings, int8=True).run()
    found = read_settings(tmp_path / "table")
    assert (found["int8"], found["dtype"]) == (True, str(tubelet.load(saved, device="cpu").dtype)[6:])
    with pytest.raises(DataError, match=r"other settings \(int8: True -> False\); choose another --out"):
        Embed(**command, settings=settings).run()
    plain = tmp_path / "plain"
    embed_collection(tiny_encoder(), [str(tmp_path / "images")], plain, settings)
    stored = json.loads((plain / "_settings.json").read_text())
    for name in ("dtype", "int8"):  # as earlier versions wrote it
        del stored[name]
    (plain / "_settings.json").write_text(json.dumps(stored))
    assert embed_collection(tiny_encoder(), [str(tmp_path / "images")], plain, settings).before == 1
    assert "data type" not in caplog.text
    (plain / "_settings.json").write_text(json.dumps(stored | {"dtype": "float16"}))
    embed_collection(tiny_encoder(), [str(tmp_path / "images")], plain, settings)
    assert "continued with another data type (dtype: float16 -> float32); features differ by" in caplog.text


def test_commands_load_as_python_does():
    words = ["images", "--model", "m", "--out", "t", "--int8", "--compile"]
    assert parse(Embed, "embed", words).load_options() == {"int8": True, "compile": True, "device": "cpu"}
    words = ["head.safetensors", "images", "--out", "t", "--compile"]
    assert parse(Predict, "predict", words).load_options() == {"int8": False, "compile": True}


@pytest.mark.slow
def test_compiled_features_are_equal_for_all_shapes_and_few_graphs_serve_them(monkeypatch):
    # What is traced, and when, is the same for every backend; the real one takes long.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, compiled = tiny_encoder(), tiny_encoder()
    if has_int8_units():
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
    if not compiled.int8:
        assert with_encoder_weights(compiled, dict(tiny_encoder(1).state_dict()), "full").compiled
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
