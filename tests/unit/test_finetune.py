"""Heads whose encoder was trained too."""

import dataclasses

import pytest
import torch

from tubelet.config import ModelConfig, PredictorConfig
from tubelet.errors import CheckpointError, ConfigError
from tubelet.heads.head_file import EncoderId, Head, HeadInput, HeadSpec, load_head
from tubelet.model.lora import add_adapters, get_adapters
from tubelet.pretrained.backbone import Backbone

TINY = ModelConfig(
    width=48, depth=3, heads=2, levels=(0, 2), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)


def tiny_backbone(seed=0, with_predictor=False):
    torch.manual_seed(seed)
    model = Backbone(TINY, with_predictor)
    model.identify()
    return model.requires_grad_(False).eval()


def spec_for(model, finetuned, classes=("left", "right")):
    return HeadSpec(
        task="classification",
        network="linear",
        options={},
        width=model.config.width,
        classes=classes,
        input=HeadInput(image_size=32, frames=4, fps=8.0, stride_s=0.5),
        encoder=EncoderId(
            source="runs/base", model_id=model.model_id, weights_id=model.weights_id, config_hash=model.config_hash
        ),
        finetuned=finetuned,
    )


def trained_weights(model, finetuned):
    """Weights as after some training."""
    twin = Backbone(model.config)
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("predictor.")})
    if finetuned == "lora":
        add_adapters(twin, 2)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    state = get_adapters(twin) if finetuned == "lora" else twin.state_dict()
    return {name: value.detach().clone() for name, value in state.items()}, twin


@pytest.mark.parametrize("finetuned", ["lora", "full"])
def test_a_head_file_carries_the_trained_encoder(finetuned, tmp_path):
    model, pixels = tiny_backbone(with_predictor=True), torch.randn(2, 3, 4, 32, 32)
    before, base_id = model.encode(pixels).tokens, model.weights_id
    weights, trained = trained_weights(model, finetuned)
    Head(spec_for(model, finetuned), encoder_weights=weights).save(tmp_path / "head.safetensors")
    head = load_head(tmp_path / "head.safetensors")
    adapted = head.adapt(model)
    with torch.no_grad():
        expected = trained(pixels)[-1]
    torch.testing.assert_close(adapted.encode(pixels).tokens, expected, rtol=1e-5, atol=1e-5)
    assert head.adapt(adapted) is adapted
    assert adapted.weights_id == head.adapted_weights_id != base_id == model.weights_id
    assert torch.equal(model.encode(pixels).tokens, before)
    assert not torch.allclose(before, expected, atol=1e-2)
    assert not adapted.training and not any(p.requires_grad for p in adapted.parameters())


def test_the_identity_of_an_adapted_encoder_does_not_depend_on_the_data_type_it_was_loaded_with(tmp_path):
    model = tiny_backbone()
    half = tiny_backbone().to(torch.bfloat16)
    for finetuned in ("lora", "full"):
        weights, _ = trained_weights(model, finetuned)
        head = Head(spec_for(model, finetuned), encoder_weights=weights)
        assert head.adapt(half).weights_id == head.adapt(model).weights_id
        assert head.adapt(half).dtype == torch.bfloat16


def test_a_head_with_a_trained_encoder_refuses_other_encoders(tmp_path):
    model, other = tiny_backbone(), tiny_backbone(seed=1)
    weights, _ = trained_weights(model, "lora")
    head = Head(spec_for(model, "lora"), encoder_weights=weights)
    twin = Head(spec_for(model, "lora"), encoder_weights=trained_weights(model, "lora")[0])
    for wrong in (other, twin.adapt(model)):
        with pytest.raises(ConfigError, match="was trained on the encoder"):
            head.adapt(wrong)


def test_a_frozen_encoder_is_used_as_it_is():
    model = tiny_backbone()
    head = Head(spec_for(model, None))
    assert head.adapt(model) is model and head.adapted_weights_id == model.weights_id


@pytest.mark.parametrize("claimed", ["lora", None])
def test_a_head_file_without_the_encoder_that_it_claims_is_refused(claimed, tmp_path):
    model = tiny_backbone()
    weights = {} if claimed else trained_weights(model, "full")[0]
    Head(spec_for(model, claimed), encoder_weights=weights).save(tmp_path / "head.safetensors")
    with pytest.raises(CheckpointError, match="weights of an encoder"):
        load_head(tmp_path / "head.safetensors")


def test_adapters_of_another_architecture_are_refused():
    model = tiny_backbone()
    weights, _ = trained_weights(model, "lora")
    name = next(name for name in weights if "lora_B" in name)
    wrong = weights | {name: torch.zeros(7, 2)}
    with pytest.raises(CheckpointError, match="does not match this encoder"):
        Head(dataclasses.replace(spec_for(model, "lora")), encoder_weights=wrong).adapt(model)
