"""Models of this package as models of transformers: Auto classes, pipeline, Trainer, peft."""

import importlib
import re
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import tubelet
from tests.helpers.heads import tiny_encoder, tiny_head
from tests.helpers.media import write_image, write_video
from tubelet.checkpoint.weights import LoadSpec
from tubelet.cli.convert import Convert
from tubelet.data.decode import Video
from tubelet.errors import DataError, TubeletError
from tubelet.heads.head_folder import write_classifier
from tubelet.pretrained.convert import convert_to

pytest.importorskip("transformers", reason="transformers, whose classes are registered, is absent")
pytestmark = pytest.mark.slow  # importing transformers takes longer than all tests here together
CPU = {"device": "cpu", "dtype": torch.float32}


@pytest.fixture(scope="module")
def hf():
    return pytest.importorskip("tubelet.hf", exc_type=ImportError)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A video, an encoder, and both kinds of folders of it."""
    root = tmp_path_factory.mktemp("hf")
    write_video(root / "video.mp4", frames=24)
    tiny_encoder().save_pretrained(root / "encoder")
    convert_to(root / "encoder", root / "base", "transformers", LoadSpec(), image_size=32, frames=4)
    model = tubelet.load(root / "encoder", **CPU)
    head = tiny_head(model, "classification", network="attentive", options={"blocks": 2}, temperature=2.0)
    for parameter in head.network.parameters():  # probabilities that are not all 0 and 1
        parameter.mul_(0.05)
    head.save(root / "head.safetensors")
    Convert(
        model=str(root / "encoder"),
        out=root / "classifier",
        to="transformers",
        head=root / "head.safetensors",
        license="mit",
    ).run()
    return root


def test_the_card_of_a_folder_has_code_that_runs_as_it_is(hf, folder, monkeypatch):
    monkeypatch.chdir(folder)
    results = {}
    for name, license, tag in (
        ("base", "unknown", "image-feature-extraction"),
        ("classifier", "mit", "video-classification"),
    ):
        card = ModelCard.load(folder / name / "README.md")
        assert (card.data.license, card.data.pipeline_tag, card.data.library_name) == (license, tag, "tubelet")
        (code,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
        exec(code.replace("this repository's id, or the directory", str(folder / name)), results)
    assert results["features"].shape == tubelet.load(folder / "base", **CPU).encode(folder / "video.mp4").tokens.shape
    classes = tubelet.load_head(folder / "head.safetensors").spec.classes
    assert {score["label"] for score in results["scores"]} <= {*classes}
    assert f"With a head for {len(classes)} classes: {', '.join(classes)}." in card.text


def test_the_auto_classes_give_what_encode_gives(hf, folder):
    model = hf.AutoModel.from_pretrained(folder / "base")
    processor = hf.AutoVideoProcessor.from_pretrained(folder / "base")
    assert isinstance(model, hf.TubeletModel) and isinstance(processor, hf.TubeletVideoProcessor)
    own = tubelet.load(folder / "base", **CPU)
    expected = own.encode(folder / "video.mp4", frames=4, resize=32)
    with torch.no_grad():
        output = model(**processor(folder / "video.mp4"))
        (tokens, levels) = model(**processor([folder / "video.mp4"]), return_dict=False)
    assert torch.equal(output.last_hidden_state, expected.tokens) and torch.equal(tokens, expected.tokens)
    assert all(map(torch.equal, levels, expected.levels))


def test_the_processor_takes_videos_as_people_hold_them(hf, folder, tmp_path):
    processor = hf.AutoVideoProcessor.from_pretrained(folder / "base")
    frames = np.random.default_rng(0).integers(0, 256, (4, 40, 56, 3), dtype=np.uint8)
    expected = processor(frames)["pixel_values_videos"]
    assert expected.shape == (1, 4, 3, 32, 32) and expected.dtype == torch.float32
    for same in (
        torch.from_numpy(frames),
        torch.from_numpy(frames).permute(0, 3, 1, 2),
        list(frames),
        [Image.fromarray(frame) for frame in frames],
        [frames],
        frames[None],
    ):
        assert torch.equal(processor(same)["pixel_values_videos"], expected)
    assert processor(np.repeat(frames, 3, 0), do_sample_frames=True)["pixel_values_videos"].shape[1] == 4
    write_image(tmp_path / "still.png")
    assert processor(tmp_path / "still.png")["pixel_values_videos"].shape == (1, 1, 3, 32, 32)
    with pytest.raises(DataError, match=r"type torch\.float32, expected \(frames, height, width, 3\) of uint8"):
        processor(frames.astype(np.float32))


def test_a_pipeline_gives_the_scores_of_the_head(hf, folder):
    from transformers import pipeline

    found = pipeline("video-classification", model=str(folder / "classifier"), device="cpu")(
        str(folder / "video.mp4"), top_k=3
    )
    processor = hf.TubeletVideoProcessor.from_pretrained(folder / "classifier")
    with Video(folder / "video.mp4") as video:
        assert processor.fps == 12.0 and video.info.duration_s > 4 / 12
    encoder, head = tubelet.load(folder / "encoder", **CPU), tubelet.load_head(folder / "head.safetensors")
    features = encoder.dense_features(processor(folder / "video.mp4")["pixel_values_videos"].transpose(1, 2))
    scores = dict(zip(head.spec.classes, head(features)[0].tolist(), strict=True))
    assert max(scores.values()) < 0.99
    for row in found:
        assert row["score"] == pytest.approx(scores[row["label"]], abs=2e-5)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
def test_trainer_takes_a_step_and_its_folder_loads_here(hf, folder, tmp_path):
    from transformers import Trainer, TrainingArguments

    model = hf.AutoModelForVideoClassification.from_pretrained(folder / "base", num_labels=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = [{"pixel_values_videos": torch.randn(4, 3, 32, 32), "labels": i % 2} for i in range(2)]
    arguments = TrainingArguments(
        tmp_path / "out",
        max_steps=1,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        gradient_checkpointing=True,
        learning_rate=1e-2,
        warmup_steps=0,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    assert trainer.train().training_loss > 0
    trainer.save_model(tmp_path / "trained")
    again = tubelet.load(tmp_path / "trained", **CPU)
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[f"tubelet.encoder.{name}"])
    assert not torch.equal(again.blocks[0].mlp.fc1.weight, before["tubelet.encoder.blocks.0.mlp.fc1.weight"])


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing. is deprecated:FutureWarning")
def test_peft_takes_a_step(hf, folder):
    peft = pytest.importorskip("peft")
    model = hf.AutoModelForVideoClassification.from_pretrained(folder / "base", num_labels=2)
    config = peft.LoraConfig(r=2, target_modules=["qkv", "proj"], modules_to_save=["head"])
    adapted = peft.get_peft_model(model, config)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    frozen = model.tubelet.encoder.blocks[0].attention.qkv.base_layer.weight.clone()
    lora = model.tubelet.encoder.blocks[0].attention.qkv.lora_B["default"].weight
    adapted(pixel_values_videos=torch.randn(2, 4, 3, 32, 32), labels=torch.tensor([0, 1])).loss.backward()
    optimizer.step()
    assert lora.any() and torch.equal(frozen, model.tubelet.encoder.blocks[0].attention.qkv.base_layer.weight)


def test_other_tasks_and_encoders_are_refused(folder, tmp_path):
    model = tubelet.load(folder / "encoder", **CPU)
    with pytest.raises(TubeletError, match="the head is for timeline, expected one for classification or multilabel"):
        write_classifier(model, tiny_head(model, "timeline"), tmp_path / "out")
    with pytest.raises(TubeletError, match="this head was trained on the encoder"):
        write_classifier(model, tiny_head(tiny_encoder(1), "classification"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_transformers_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "tubelet.hf", raising=False)
    with pytest.raises(TubeletError, match=r"needs transformers 5\.20 or later: pip install 'tubelet\[hf\]'"):
        importlib.import_module("tubelet.hf")
