"""Heads of others: V-JEPA 2.0's released probes, and classification models of transformers, both ways."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import tubelet
from tests.helpers.heads import tiny_encoder, tiny_head
from tests.helpers.media import write_video
from tests.numerics.test_vjepa2_0 import CPU, as_release, build
from tubelet.cli.convert import Convert
from tubelet.errors import TubeletError
from tubelet.heads.head_file import load_head

transformers = pytest.importorskip("transformers", reason="transformers, the other side of the comparison, is absent")
pytestmark = pytest.mark.slow  # importing transformers takes longer than all tests here together
CLASSES = {0: "falls", 1: "stays", 2: "rises"}


def build_classifier(folder, width=48, heads=2):
    """A small VJEPA2ForVideoClassification with every parameter filled at random, saved in its own layout."""
    labels = {"id2label": CLASSES, "label2id": {name: i for i, name in CLASSES.items()}, "num_pooler_layers": 2}
    return build(folder, width, heads, "VJEPA2ForVideoClassification", **labels)


@pytest.fixture
def saved(tmp_path):
    return tmp_path / "theirs", build_classifier(tmp_path / "theirs")


def logits_of(head, folder, pixels):
    """Logits of a head on the encoder in a folder; pixels (B, T, C, H, W)."""
    features = tubelet.load(folder, **CPU).dense_features(pixels.transpose(1, 2))
    return head.network(features.tokens.unflatten(1, (features.grid.t, -1)))


def as_released_probe(tensors, path):
    """The same probe as the release lays it out: the best of a list, and one of the others."""
    state = {}
    for name, value in tensors.items():
        if not name.startswith(("pooler.", "classifier.")):
            continue
        name = name.replace("classifier.", "linear.").replace("self_attention_layers", "blocks")
        name = name.replace("cross_attention_layer", "cross_attention_block").replace("layer_norm", "norm")
        name = name.replace("self_attn.out_proj", "attn.proj").replace("self_attn.", "attn.")
        state["module." + name.replace("cross_attn.", "xattn.").replace("_proj.", ".")] = value
    for name in [name for name in state if ".attn.q." in name]:
        parts = [state.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
        state[name.replace(".q.", ".qkv.")] = torch.cat(parts)
    for name in [name for name in state if ".xattn.k." in name]:
        state[name.replace(".k.", ".kv.")] = torch.cat([state.pop(name), state.pop(name.replace(".k.", ".v."))])
    others = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"classifiers": [state, others], "opt": [{}], "epoch": 20}, path)
    return path


def test_a_classification_model_of_transformers_is_a_head(saved, tmp_path):
    folder, theirs = saved
    head = tubelet.load_head(folder)
    assert head.spec.classes == tuple(CLASSES.values()) and head.spec.options == {"blocks": 3, "heads": 2}
    clips = head.spec.input
    assert (clips.image_size, clips.frames, clips.resize) == (32, 4, int(32 * 256 / 224))  # of VJEPA2VideoProcessor
    pixels = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(logits_of(head, folder, pixels), theirs(pixels).logits, rtol=0, atol=2e-5)
    write_video(tmp_path / "video.mp4", frames=24)
    rows = tubelet.predict(folder, tmp_path / "video.mp4", model=tubelet.load(folder, **CPU)).records
    assert rows and {row.label for row in rows} <= set(CLASSES.values())


def test_a_head_file_of_it_is_written_and_goes_back(saved, tmp_path):
    folder, theirs = saved
    Convert(model=str(folder), out=tmp_path / "head.safetensors", to="head").run()
    head = load_head(tmp_path / "head.safetensors")
    assert all(map(torch.equal, head.state_dict().values(), tubelet.load_head(folder).state_dict().values()))
    Convert(model=str(folder), out=tmp_path / "again", to="transformers", head=tmp_path / "head.safetensors").run()
    again, info = transformers.AutoModelForVideoClassification.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert type(again) is transformers.VJEPA2ForVideoClassification and again.config.id2label == CLASSES
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels).logits, theirs(pixels).logits, rtol=0, atol=2e-5)


@pytest.fixture
def released(tmp_path):
    """An encoder and a probe as the release has them, of sixteen heads, and both as one model of transformers."""
    theirs = build_classifier(tmp_path / "theirs", width=192, heads=16)
    tensors = load_file(tmp_path / "theirs" / "model.safetensors")
    names = {name.removeprefix("vjepa2."): value for name, value in tensors.items()}
    encoder = tubelet.load(as_release(names, tmp_path), heads=16, **CPU)
    return encoder, as_released_probe(tensors, tmp_path / "probe.pt"), theirs


def test_a_released_probe_gives_the_same_logits(released, tmp_path):
    encoder, probe, theirs = released
    head = tubelet.load_head(probe, encoder=encoder, classes=list(CLASSES.values()))
    assert head.spec.classes == tuple(CLASSES.values()) and head.spec.options == {"blocks": 3, "heads": 16}
    assert (head.spec.input.views, head.spec.input.resize, head.spec.input.padded) == (3, None, True)
    pixels = torch.randn(2, 4, 3, 32, 32)
    with torch.no_grad():
        expected = theirs(pixels).logits
        torch.testing.assert_close(logits_of(head, tmp_path / "theirs", pixels), expected, rtol=0, atol=2e-5)
    assert tubelet.load_head(probe, encoder=encoder).spec.classes == ("0", "1", "2")
    head.check_encoder(encoder)


def test_a_released_probe_becomes_a_head_file(released, tmp_path):
    encoder, probe, _ = released
    encoder.save_pretrained(tmp_path / "encoder")
    (tmp_path / "names.txt").write_text("falls\nstays\nrises\n")
    out = tmp_path / "head.safetensors"
    command = {"model": str(tmp_path / "encoder"), "out": out, "to": "head", "head": probe}
    Convert(**command, class_names=tmp_path / "names.txt").run()
    assert load_head(out).spec.classes == ("falls", "stays", "rises")
    assert load_head(out).spec.encoder.source == str(tmp_path / "encoder")
    (tmp_path / "names.txt").write_text("falls\n")
    with pytest.raises(TubeletError, match="1 different names of classes, expected 3"):
        Convert(**command, class_names=tmp_path / "names.txt").run()


def test_damaged_probes_list_tensors_by_the_names_of_the_file(released, tmp_path):
    encoder, probe, _ = released
    with pytest.raises(TubeletError, match="the encoder of this probe is not known by its file name"):
        tubelet.load_head(probe)
    file = torch.load(probe)
    state = file["classifiers"][0]
    state["module.pooler.blocks.1.attn.old.weight"] = state.pop("module.pooler.blocks.1.attn.qkv.weight")
    torch.save(file, probe)
    with pytest.raises(TubeletError, match=r"missing pooler\.blocks\.1\.attn\.qkv\.weight.*unexpected pooler.*old"):
        tubelet.load_head(probe, encoder=encoder)
    torch.save({"encoder": state}, probe)
    with pytest.raises(TubeletError, match="expected the key 'classifiers' of a released probe, found"):
        tubelet.load_head(probe, encoder=encoder)


def test_damaged_folders_are_refused(saved):
    folder, _ = saved
    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    name = "pooler.self_attention_layers.1.self_attn.v_proj.bias"
    save_file({key.replace(name, name + "_old"): value for key, value in tensors.items()}, folder / "model.safetensors")
    with pytest.raises(TubeletError, match=f"missing {name}.*unexpected {name}_old"):
        tubelet.load_head(folder)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config | {"id2label": {"0": "a", "1": "b"}}))
    with pytest.raises(TubeletError, match="id2label has 2 names, expected those of 3 classes"):
        tubelet.load_head(folder)
    (folder / "config.json").write_text(json.dumps(config | {"frames_per_clip": "4"}))
    with pytest.raises(TubeletError, match=r"are 32, '4' and 4\.0, expected positive numbers"):
        tubelet.load_head(folder)
    encoder = {key.removeprefix("vjepa2."): value for key, value in tensors.items() if key.startswith("vjepa2.")}
    save_file(encoder, folder / "model.safetensors")
    with pytest.raises(TubeletError, match="has an encoder without a classification head"):
        tubelet.load_head(folder)


def test_a_classification_model_of_this_package_is_a_head_too(tmp_path):
    tiny_encoder().save_pretrained(tmp_path / "encoder")
    model = tubelet.load(tmp_path / "encoder", **CPU)
    for task in ("classification", "multilabel"):
        given = tiny_head(model, task, temperature=2.0, input={"cells": 2}, seed=1)
        given.save(tmp_path / f"{task}.safetensors")
        out = tmp_path / task
        Convert(
            model=str(tmp_path / "encoder"), out=out, to="transformers", head=tmp_path / f"{task}.safetensors"
        ).run()
        again = tubelet.load_head(out)
        assert again.spec.input == given.spec.input and again.spec.classes == given.spec.classes
        again.check_encoder(model)
        features = model.dense_features(torch.randn(1, 3, 4, 32, 32))
        assert torch.equal(again(features), given(features))
