"""Models as folders of `transformers`, and back: strictly, and with equal outputs."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import tubelet
from tests.helpers.heads import tiny_encoder
from tests.numerics.test_vjepa2_0 import CPU, as_release, build
from tubelet.checkpoint.weights import LoadSpec
from tubelet.cli.convert import Convert
from tubelet.config import ModelConfig, PredictorConfig
from tubelet.errors import TubeletError
from tubelet.io.gguf import read_gguf, write_gguf
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.convert import convert, convert_to

transformers = pytest.importorskip("transformers", reason="transformers, the other side of the comparison, is absent")

pytestmark = pytest.mark.slow  # importing transformers takes longer than all tests here together
# Depth and levels of a port: they are a function of each other there.
CONFIG = ModelConfig(
    width=48,
    depth=4,
    heads=2,
    levels=(0, 1, 2, 3),
    patch_size=16,
    predictor=PredictorConfig(width=24, depth=4, heads=2, mask_tokens=3),
)


def saved(folder, config=CONFIG, predictor=False):
    """A model with random weights, in the layout of `tubelet.load`."""
    torch.manual_seed(0)
    model = Backbone(config, predictor).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return tubelet.load(folder, with_predictor=predictor, **CPU)


def test_vjepa2_0_is_a_model_of_transformers(tmp_path):
    theirs = build(tmp_path / "theirs")
    Convert(
        model=str(tmp_path / "theirs"), out=tmp_path / "out", to="transformers", image_size=32, frames=4, license="mit"
    ).run()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: mit" in card and "library_name: transformers" in card and "import tubelet" not in card
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert type(model) is transformers.VJEPA2Model
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        outputs = model(pixels)
        expected = theirs(pixels, skip_predictor=True).last_hidden_state
    torch.testing.assert_close(outputs.last_hidden_state, expected, rtol=0, atol=2e-5)
    assert not outputs.predictor_output.last_hidden_state.any()
    again = tubelet.load(tmp_path / "out", **CPU)
    assert again.fingerprint == tubelet.load(tmp_path / "theirs", **CPU).fingerprint
    message = convert_to(tmp_path / "out", tmp_path / "again", "transformers", LoadSpec())
    assert "VJEPA2Model of transformers, for clips of 4 x 32 x 32, with its card" in message
    assert json.loads((tmp_path / "out" / "video_preprocessor_config.json").read_text())["size"]["shortest_edge"] == 36


@pytest.mark.parametrize("source", ["release", "transformers"])
def test_the_predictor_of_vjepa2_0_goes_to_transformers(tmp_path, source):
    theirs = build(tmp_path / "theirs")
    path = tmp_path / "theirs"
    if source == "release":
        path = as_release(load_file(path / "model.safetensors"), tmp_path)
    spec = LoadSpec(predictor=True, heads=2, predictor_heads=2)
    convert_to(path, tmp_path / "out", "transformers", spec, image_size=32, frames=4)
    model, info = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = torch.randn(2, 4, 3, 32, 32)
    masks = {"context_mask": [torch.arange(20).expand(2, -1)], "target_mask": [torch.arange(20, 32).expand(2, -1)]}
    with torch.no_grad():
        found, expected = model(pixels, **masks), theirs(pixels, **masks)
    for outputs in ((found, expected), (found.predictor_output, expected.predictor_output)):
        torch.testing.assert_close(*(output.last_hidden_state for output in outputs), rtol=0, atol=2e-5)
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    name = "predictor.layer.0.attention.key.bias"
    save_file(
        {key.replace(name, name + "_old"): x for key, x in tensors.items()}, tmp_path / "out" / "model.safetensors"
    )
    with pytest.raises(TubeletError, match=f"missing {name} .*unexpected {name}_old"):
        convert_to(tmp_path / "out", tmp_path / "again", "transformers", spec)


def test_an_encoder_that_is_not_vjepa2_0_becomes_a_model_of_this_package(tmp_path):
    config = replace(CONFIG, rope="2.0")
    saved(tmp_path / "mine", config)  # with an image tokenizer of its own
    message = convert_to(tmp_path / "mine", tmp_path / "out", "transformers", LoadSpec())
    assert "TubeletModel" in message and "since the encoder has an image tokenizer, modality embeddings" in message
    assert tubelet.load(tmp_path / "out", **CPU).config == config


@pytest.mark.parametrize("layout", ["transformers", "vjepa21"])
@pytest.mark.parametrize("distilled", [False, True])
def test_vjepa2_1_comes_back_to_the_bit(tmp_path, layout, distilled):
    predictor = replace(CONFIG.predictor, rescale_rope=not distilled, output_width=80 if distilled else None)
    config = replace(CONFIG, output_levels=1 if distilled else None, predictor=predictor)
    model = saved(tmp_path / "mine", config, predictor=True)
    convert_to(tmp_path / "mine", tmp_path / "out", layout, LoadSpec(predictor=True))
    again = tubelet.load(tmp_path / "out", with_predictor=True, **CPU)
    assert again.fingerprint == model.fingerprint
    pixels = torch.randn(1, 3, 4, 32, 48)
    for ours, other in zip(*(each.encode(pixels, normalized=True).levels for each in (model, again)), strict=True):
        assert torch.equal(ours, other)
    assert again.config.predictor.rescale_rope == (not distilled)


def test_the_ports_keys_are_theirs(tmp_path):
    saved(tmp_path / "mine", predictor=True)
    convert_to(tmp_path / "mine", tmp_path / "out", "vjepa21", LoadSpec(predictor=True))
    names = set(load_file(tmp_path / "out" / "model.safetensors"))
    assert names >= {
        "encoder.embeddings.patch_embeddings.proj.weight",
        "encoder.embeddings.patch_embeddings_img.proj.weight",
        "encoder.embeddings.img_mod_embed",
        "encoder.layer.0.attention.query.weight",
        "encoder.norms_block.3.bias",
        "predictor.embeddings.predictor_embed.2.weight",
        "predictor.embeddings.mask_tokens.2",
        "predictor.embeddings.video_mod_embed",
        "predictor.layer.3.mlp.fc2.bias",
        "predictor.layernorm.weight",
        "predictor.proj_context.weight",
    }
    # Another port has one tensor of mask tokens and its own names in the predictor; its encoder is the same.
    config = json.loads((tmp_path / "out" / "config.json").read_text()) | {"model_type": "vjepa2_1"}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    assert tubelet.load(tmp_path / "out", **CPU).fingerprint == tubelet.load(tmp_path / "mine", **CPU).fingerprint
    with pytest.raises(TubeletError, match="predictor of this port is not supported"):
        tubelet.load(tmp_path / "out", with_predictor=True, **CPU)


def test_every_layout_lists_tensors_by_its_own_names(tmp_path):
    saved(tmp_path / "mine", predictor=True)
    for layout, name in (("transformers", "encoder.blocks.1.mlp.fc1.weight"), ("vjepa21", "predictor.proj.bias")):
        folder = tmp_path / layout
        convert_to(tmp_path / "mine", folder, layout, LoadSpec(predictor=True))
        tensors = load_file(folder / "model.safetensors")
        save_file(
            {key.replace(name, name + "_old"): value for key, value in tensors.items()}, folder / "model.safetensors"
        )
        with pytest.raises(TubeletError, match=f"missing {name} .*unexpected {name}_old"):
            tubelet.load(folder, with_predictor=True, **CPU)


def test_a_folder_of_something_else_is_not_overwritten(tmp_path):
    saved(tmp_path / "mine")
    build(tmp_path / "theirs")
    with pytest.raises(TubeletError, match="a transformers model that this package wrote"):
        convert_to(tmp_path / "mine", tmp_path / "theirs", "transformers", LoadSpec())
    with pytest.raises(TubeletError, match="includes the predictor; add --with-predictor"):
        convert_to(tmp_path / "mine", tmp_path / "out", "vjepa21", LoadSpec())
    assert not (tmp_path / "out").exists()
    tiny_encoder().save_pretrained(tmp_path / "other")
    with pytest.raises(TubeletError, match="output levels of their depth"):
        convert_to(tmp_path / "other", tmp_path / "out", "vjepa21", LoadSpec())


def test_an_encoder_for_mlx_comes_back_to_the_bit(tmp_path):
    model = saved(tmp_path / "mine")
    convert_to(tmp_path / "mine", tmp_path / "mlx.safetensors", "mlx", LoadSpec())
    tensors = load_file(tmp_path / "mlx.safetensors")
    assert tensors["patch_embed.proj.weight"].shape == (48, 2, 16, 16, 3)
    assert tensors["patch_embed_img.proj.weight"].shape == (48, 1, 16, 16, 3)
    again = tubelet.load(tmp_path / "mlx.safetensors", heads=2, levels=(0, 1, 2, 3), **CPU)
    assert again.fingerprint == model.fingerprint
    with pytest.raises(TubeletError, match="of MLX files only the encoder is read, not the requested predictor"):
        tubelet.load(tmp_path / "mlx.safetensors", heads=2, levels=(0, 1, 2, 3), with_predictor=True, **CPU)
    tensors["norms_block.0.shift"] = tensors.pop("norms_block.0.bias")
    save_file(tensors, tmp_path / "mlx.safetensors", {"format": "mlx"})
    with pytest.raises(TubeletError, match=r"missing norms_block\.0\.bias.*unexpected norms_block\.0\.shift"):
        tubelet.load(tmp_path / "mlx.safetensors", heads=2, levels=(0, 1, 2, 3), **CPU)
    with pytest.raises(TubeletError, match="an encoder that this package wrote"):  # no more, by its header
        convert_to(tmp_path / "mine", tmp_path / "mlx.safetensors", "mlx", LoadSpec())


def test_vjepa2_0_of_mlx_is_a_folder_in_the_names_of_transformers(tmp_path):
    build(tmp_path / "theirs")
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    config = json.loads((tmp_path / "theirs" / "config.json").read_text())
    del config["model_type"]  # which that port's config does not have
    (tmp_path / "mlx").mkdir()
    (tmp_path / "mlx" / "config.json").write_text(json.dumps(config))
    kernels = {name: x.movedim(1, -1).contiguous() if x.dim() == 5 else x for name, x in tensors.items()}
    save_file(kernels, tmp_path / "mlx" / "model.safetensors", {"format": "mlx"})
    assert tubelet.load(tmp_path / "mlx", **CPU).fingerprint == tubelet.load(tmp_path / "theirs", **CPU).fingerprint


def test_gguf_comes_back_to_the_bit(tmp_path):
    model = saved(tmp_path / "mine", replace(CONFIG, mlp_ratio=48 / 11))
    Convert(model=str(tmp_path / "mine"), out=tmp_path / "2.1.gguf", image_size=32, frames=4).run()
    assert tubelet.load(tmp_path / "2.1.gguf", **CPU).fingerprint == model.fingerprint
    build(tmp_path / "theirs")
    convert_to(tmp_path / "theirs", tmp_path / "2.0.gguf", "gguf", LoadSpec())
    assert (
        tubelet.load(tmp_path / "2.0.gguf", **CPU).fingerprint == tubelet.load(tmp_path / "theirs", **CPU).fingerprint
    )
    convert(tmp_path / "2.1.gguf", tmp_path / "again.pt", LoadSpec())
    metadata, tensors = read_gguf(tmp_path / "2.1.gguf")
    assert metadata["jepa.enc.hier_layers"] == [0, 1, 2, 3] and metadata["jepa.enc.ffn_dim"] == 209
    assert metadata["jepa.pre.resize_short"] == 36 and metadata["jepa.enc.layer_scale"] is False
    assert tensors["enc.patch_embed.weight"].shape == (48, 3 * 2 * 16 * 16)
    assert torch.equal(tensors["enc.norm.bias"], tensors["enc.hier_norm.3.bias"])


def test_damaged_gguf_files_are_refused(tmp_path):
    saved(tmp_path / "mine")
    path = tmp_path / "a.gguf"
    convert_to(tmp_path / "mine", path, "gguf", LoadSpec())
    whole = path.read_bytes()
    metadata, tensors = read_gguf(path)
    tensors["enc.blk.0.ln3.weight"] = tensors.pop("enc.blk.0.ln2.weight")
    for changed, message in (
        (whole[:-40], "ends at byte .*, the file at"),
        (whole[:100], "it ends too early"),
        (b"GGML" + whole[4:], "does not begin with GGUF"),
        (whole[:4] + b"\x09" + whole[5:], "version is 9, expected 2 or 3"),
        (whole[:8] + b"\xff" * 8 + whole[16:], "tensors and .* keys, expected at most"),
    ):
        path.write_bytes(changed)
        with pytest.raises(TubeletError, match=message):
            tubelet.load(path, **CPU)
    write_gguf(path, metadata, tensors)
    with pytest.raises(TubeletError, match=r"missing enc\.blk\.0\.ln2\.weight.*unexpected enc\.blk\.0\.ln3\.weight"):
        tubelet.load(path, **CPU)
    write_gguf(path, metadata | {"jepa.enc.cls_token": True}, tensors)
    with pytest.raises(TubeletError, match=r"jepa\.enc\.cls_token is True, supported is only False"):
        tubelet.load(path, **CPU)
