"""V-JEPA 2.0 in both its layouts, beside transformers' own model."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import tubelet
from tubelet.errors import TubeletError

CPU = {"device": "cpu", "dtype": torch.float32}


def build(folder, width=48, heads=2, kind="VJEPA2Model", **settings):
    """A small model of transformers with every parameter filled at random, saved in its own layout."""
    transformers = pytest.importorskip("transformers", reason="the other side of the comparison")
    torch.manual_seed(0)
    config = transformers.VJEPA2Config(
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        hidden_size=width,
        num_attention_heads=heads,
        num_hidden_layers=4,
        pred_hidden_size=24,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
        **settings,
    )
    theirs = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.1).add_(float(parameter.dim() == 1) * 0.3)
    theirs.save_pretrained(folder)
    return theirs


@pytest.fixture
def saved(tmp_path):
    return tmp_path, build(tmp_path)


def as_release(tensors, folder):
    """The same weights as the release lays them out, with the position tables that it never took out."""
    state = {
        "encoder": {"pos_embed": torch.zeros(1, 4, 48)},
        "predictor": {"predictor_pos_embed": torch.zeros(1, 4, 24)},
    }
    for name, value in tensors.items():
        module, _, name = name.partition(".")
        prefix = "predictor_" if module == "predictor" else ""
        name = name.replace("layernorm", f"{prefix}norm").replace("layer.", f"{prefix}blocks.")
        name = name.replace("embeddings.patch_embeddings", "patch_embed").replace("attention.", "attn.")
        name = name.replace("embeddings.predictor_embeddings", "predictor_embed")
        name = f"predictor_{name}" if prefix and name.startswith("proj.") else name
        if name == "embeddings.mask_tokens":
            state[module] |= {f"mask_tokens.{i}": token for i, token in enumerate(value)}
        elif module in state:
            state[module][name] = value
    for values in state.values():
        for name in [name for name in values if ".query." in name]:
            parts = [values.pop(name.replace("query", part)) for part in ("query", "key", "value")]
            values[name.replace("query", "qkv")] = torch.cat(parts)
    encoder, predictor = (
        {f"module.backbone.{name}": x for name, x in state[m].items()} for m in ("encoder", "predictor")
    )
    torch.save({"encoder": encoder, "target_encoder": encoder, "predictor": predictor}, folder / "old.pt")
    return folder / "old.pt"


# Heads of 24 channels split evenly over three axes; of 32, two are left over and an axis has an odd number of pairs.
@pytest.mark.slow
@pytest.mark.parametrize(("width", "heads"), [(48, 2), (64, 2)])
def test_the_encoder_computes_what_transformers_computes(tmp_path, width, heads):
    theirs = build(tmp_path, width, heads)
    model = tubelet.load(tmp_path, **CPU)
    assert model.config.rope == "2.0"
    clips, images = torch.randn(2, 3, 4, 32, 32), torch.randn(2, 3, 1, 32, 32)
    with torch.no_grad():
        for pixels in (clips, images):
            expected = theirs(pixels.transpose(1, 2), skip_predictor=True).last_hidden_state
            assert expected.std() > 0.1
            torch.testing.assert_close(model.encode(pixels, normalized=True).tokens, expected, rtol=0, atol=2e-5)


@pytest.mark.slow
def test_levels_are_the_blocks_outputs_after_the_one_norm(saved):
    folder, theirs = saved
    pixels = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        hidden = theirs(pixels.transpose(1, 2), skip_predictor=True, output_hidden_states=True).hidden_states
        # Theirs are the outputs of blocks 1 to 4, the first of all being the embeddings where it is kept.
        expected = [theirs.encoder.layernorm(x) for x in hidden[-4:-1]]
    levels = tubelet.load(folder, **CPU).encode(pixels, normalized=True).levels
    for ours, other in zip(levels[:3], expected, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=2e-5)


def test_the_release_and_transformers_give_the_same_model(saved):
    folder, _ = saved
    path = as_release(load_file(folder / "model.safetensors"), folder)
    old, new = tubelet.load(path, heads=2, **CPU), tubelet.load(folder / "model.safetensors", **CPU)
    assert old.config == new.config and old.fingerprint == new.fingerprint
    for name, value in old.state_dict().items():
        assert torch.equal(value, new.state_dict()[name])


def test_the_two_generations_turn_by_different_angles(saved):
    model = tubelet.load(saved[0], **CPU)
    pixels = torch.randn(1, 3, 4, 32, 32)
    before = model.encode(pixels, normalized=True).tokens
    model.config = replace(model.config, rope="2.1")
    assert (
        model.encode(pixels, normalized=True).tokens - before
    ).abs().max() > 2e-3  # a hundred times the bound of parity


def test_a_damaged_file_names_its_tensor_as_the_file_does(saved):
    folder, _ = saved
    tensors = load_file(folder / "model.safetensors")
    name = "encoder.layer.2.attention.key.weight"
    renamed = {key.replace(name, name + "_old"): value for key, value in tensors.items()}
    save_file(renamed, folder / "model.safetensors")
    with pytest.raises(TubeletError, match=name):
        tubelet.load(folder, **CPU)


def test_what_the_blocks_cannot_do_is_refused(saved):
    folder, _ = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    with pytest.raises(TubeletError, match="hidden_act is 'relu'"):
        tubelet.load(folder, **CPU)
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "vit"}))
    with pytest.raises(TubeletError, match="expected 'vjepa2'"):
        tubelet.load(folder, **CPU)
    with pytest.raises(TubeletError, match=r"predictor of V-JEPA 2\.0 has other heads"):
        (folder / "config.json").write_text(json.dumps(config))
        tubelet.load(folder, with_predictor=True, **CPU)
